"""Train a recipe with PyTorch: `python -m torch_ref.train`.

On several devices: `torchrun --nproc-per-node 8 -m -- torch_ref.train --mesh 8` (without the `--` before the module,
torchrun takes `--run` for one of its own options).
"""

import contextlib
import math
import platform
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from jaxgpt import dry_run
from jaxgpt.errors import BadInput, NotFinite, NotWritten, exit_codes, not_finite, stopped
from jaxgpt.flags import Flags, default_recipe, embedded_notice, recipe_and_flags, shard_patterns
from jaxgpt.interrupt import Interrupt, interruptible
from jaxgpt.profiled import FOLDER, Profile, check_profile
from jaxgpt.recipes import DType, Precision, Recipe, precision
from jaxgpt.resume import finished_after, same_run
from jaxgpt.runlog import RunLog, describe, run_folder
from jaxgpt.saved import Progress, steps_in
from jaxgpt.shards import inspect_shards
from torch_ref import bridge, mesh, tokens
from torch_ref.checkpoint import Checkpoints
from torch_ref.finite import norms
from torch_ref.loss import cross_entropy
from torch_ref.mesh import Mesh
from torch_ref.model import GPT
from torch_ref.moments import set_moments
from torch_ref.muon import Muon, keep_own
from torch_ref.optimizer import clip, make_optimizer, multiplier, set_learning_rates
from torch_ref.tracer import Tracer

PROG = "python -m torch_ref.train"


class TrainState(NamedTuple):
    """All that an update changes; it changes the model and the optimisers in place. `step` counts updates done."""

    model: GPT
    loss: nn.Module
    """(inputs, targets) -> loss of a micro-batch; compiled on a GPU, in DDP where there are several processes."""
    optimizers: list[torch.optim.Optimizer]
    step: int


class Step(NamedTuple):
    """A recipe's step and its parts. Inputs and targets are int64 (sequences, T), this process's rows."""

    init: Callable[[int], TrainState]
    """seed -> state with fresh weights."""
    start: Callable[[dict[str, Tensor]], TrainState]
    """weights -> state."""
    gradients: Callable[[TrainState, Tensor, Tensor], tuple[Float[Tensor, ""], dict[str, Tensor]]]
    """(state, inputs, targets) -> mean loss over all processes and its raw gradients, by the weights' names."""
    update: Callable[[TrainState, dict[str, Tensor]], TrainState]
    """(state, gradients) -> state after one update."""
    step: Callable[[TrainState, Tensor, Tensor], tuple[TrainState, dict[str, Any]]]
    """(state, inputs, targets) -> state after one update, and train_loss and grad_norm (on the device), lr, and norms,
    the gradient's by weight."""
    evaluate: Callable[[TrainState, Tensor, Tensor], Float[Tensor, ""]]
    """(state, inputs, targets) -> mean loss over all processes in the validation dtype."""


class Loss(nn.Module):
    """The cross-entropy of a model's predictions, mean or sum: what is compiled, the model and its logits together."""

    def __init__(self, model: GPT):
        super().__init__()
        self.model = model

    def forward(self, inputs_BT: Int[Tensor, "B T"], targets_BT: Int[Tensor, "B T"]) -> Float[Tensor, ""]:
        """In at least float32."""
        x_ND, config = self.model.hidden(inputs_BT).flatten(0, 1), self.model.config
        weight_VD, bias_V = self.model.head()
        token_ids = config.token_ids if config.pad_rows == "masked" else None
        return cross_entropy(
            x_ND, weight_VD, targets_BT.flatten(), bias_V, config.logit_cap, token_ids, config.loss_reduction
        )


def make_step(recipe: Recipe, precision: Precision, devices: Mesh, micro_batch: int, skip: bool = False) -> Step:
    """What one step of a recipe is. The trainer and the parity ladder both get it here.

    Args:
      recipe: what to compute.
      precision: how exactly. PyTorch's float32 products are never TF32 here, whatever `matmul` says.
      devices: this process's device, and how many processes share a step.
      micro_batch: sequences a device takes at once; the rest of its share is accumulated inside the step.
      skip: a step whose loss or gradient isn't finite changes no weight and no moment; the schedule moves on. Each step
        then waits for its loss.
    """
    schedule = multiplier(recipe.schedule)
    summed = recipe.model.loss_reduction == "sum"
    # PyTorch's own default, and so the published scripts'; but an environment variable of some containers changes it.
    torch.set_float32_matmul_precision("highest")

    def autocast(dtype: DType) -> torch.autocast:
        return torch.autocast(devices.device.type, torch.bfloat16, enabled=dtype == "bfloat16")

    def gradients(state: TrainState, inputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        rounds = len(inputs) // micro_batch
        total = torch.zeros(
            (), dtype=torch.promote_types(state.model.wte.weight.dtype, torch.float32), device=inputs.device
        )
        for i, (x, y) in enumerate(zip(inputs.split(micro_batch), targets.split(micro_batch), strict=True), start=1):
            # Processes exchange gradients once, when the last micro-batch has been added.
            parallel = state.loss if isinstance(state.loss, DistributedDataParallel) else None
            with parallel.no_sync() if parallel and i < rounds else contextlib.nullcontext():
                with autocast(precision.compute):
                    loss = state.loss(x, y)
                loss.backward()
            total += loss.detach()
        grads = {}
        for name, p in state.model.named_parameters():
            assert p.grad is not None
            # Several processes have the mean of their gradients now.
            grads[name], p.grad = p.grad.mul_(devices.size) if summed else p.grad.div_(rounds), None
        return mesh.mean_over_processes(devices, total / (inputs.numel() if summed else rounds)), grads

    def update(state: TrainState, grads: dict[str, Tensor]) -> TrainState:
        clip(grads, recipe.optimizer.clip_norm)
        set_learning_rates(state.optimizers, schedule(state.step))
        for name, p in state.model.named_parameters():
            p.grad = grads[name]
        for optimizer in state.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return state._replace(step=state.step + 1)

    def step(state: TrainState, inputs: Tensor, targets: Tensor) -> tuple[TrainState, dict[str, Any]]:
        train_loss, grads = gradients(state, inputs, targets)
        lr = recipe.optimizer.lr * schedule(state.step)
        by_tensor = norms(grads)
        norm = get_total_norm(list(by_tensor.values()))
        metrics = {"train_loss": train_loss, "grad_norm": norm, "lr": lr, "norms": by_tensor}
        if skip and not (train_loss.isfinite() & norm.isfinite()):
            return state._replace(step=state.step + 1), metrics
        return update(state, grads), metrics

    @torch.no_grad()
    def evaluate(state: TrainState, inputs: Tensor, targets: Tensor) -> Tensor:
        with autocast(precision.validation):
            loss = state.loss(inputs, targets)
        return mesh.mean_over_processes(devices, loss / inputs.numel() if summed else loss)

    def state_of(model: GPT) -> TrainState:
        model = model.to(devices.device)
        return TrainState(model, _fast(Loss(model), devices), make_optimizer(recipe, precision, model), step=0)

    settings: dict[str, Any] = {"parameters": precision.parameters, "embedding": precision.embedding}
    settings["attention"] = precision.attention

    def start(weights: dict[str, Tensor]) -> TrainState:
        model = GPT(recipe.model, **settings)
        model.load_state_dict(weights)
        return state_of(model)

    def init(seed: int) -> TrainState:
        return state_of(GPT(recipe.model, seed=seed, **settings))

    return Step(init, start, gradients, update, step, evaluate)


def _fast(loss: nn.Module, devices: Mesh) -> nn.Module:
    """The same module, compiled on a GPU, and averaging its gradients over the processes where there are several."""
    if devices.device.type == "cuda":
        # Inductor warns that float32 products could be TF32, and that a long softmax is split: neither is news.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\._inductor")
        loss.compile(dynamic=False)
    if devices.size > 1:
        # Newer versions of torch name the flag anew; 2.11 knows only this name.
        warnings.filterwarnings("ignore", category=FutureWarning, message="`broadcast_buffers`")
        return DistributedDataParallel(loss, broadcast_buffers=False)  # the buffers are tables, alike everywhere
    return loss


def validate(
    evaluate: Callable, state: TrainState, devices: Mesh, inputs: Tensor, targets: Tensor, micro_batch: int
) -> float:
    """Mean loss over the rows of inputs and targets, `micro_batch` of them a device at a time."""
    rows = micro_batch * devices.size
    losses = []
    for i in range(devices.rank * micro_batch, len(inputs), rows):
        x, y = (mesh.place(devices, each[i : i + micro_batch]) for each in (inputs, targets))
        losses.append(evaluate(state, x, y))
    return torch.stack(losses).double().mean().item()


def compile_ahead(
    program: Step, state: TrainState, training: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor]
) -> None:
    """Run once what a first step and a first validation would stop to compile. The state stays as it is.

    Args:
      program: of `make_step`.
      state: whose loss and Newton-Schulz are run.
      training: inputs and targets of one micro-batch, on the device.
      validation: the same of validation.
    """
    program.gradients(state, *training)
    for optimizer in state.optimizers:
        if isinstance(optimizer, Muon):
            for group in optimizer.param_groups:
                for p in group["params"]:
                    optimizer.orthogonalise(torch.zeros_like(p), group)
    program.evaluate(state, *validation).item()  # waits for the device


def foresee(recipe: Recipe, flags: Flags, exactly: Precision, devices: Mesh) -> None:
    """Print what the run would be; nothing is written."""
    run_folder(flags, recipe, time.time())
    check_profile(flags.profile, min(recipe.schedule.steps, flags.stop_at or recipe.schedule.steps))
    micro_batch = mesh.micro_batch(recipe.data.sequences, devices.size, recipe.data.micro_batch, flags.micro_batch)
    if devices.rank == 0:
        kinds = device_names(devices)
        print(dry_run.report(recipe, flags, exactly, micro_batch, kinds), flush=True)


def device_names(devices: Mesh) -> list[str]:
    """Of all processes' devices, which are alike."""
    on_cpu = devices.device.type == "cpu"
    return [platform.machine() if on_cpu else torch.cuda.get_device_name(devices.device)] * devices.size


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `jaxgpt.flags.Flags`."""
    argv = sys.argv[1:] if argv is None else argv
    flags = recipe_and_flags(argv, PROG, "tiny")[1]
    with interruptible() as interrupt, mesh.processes(flags) as devices:
        run(argv, flags, devices, interrupt)


def run(argv: list[str], flags: Flags, devices: Mesh, interrupt: Interrupt) -> None:
    """Train as the command line says, until the end or until `interrupt` wishes."""
    on_cpu, interrupt.alone = devices.device.type == "cpu", devices.size == 1
    recipe, flags, overrides = recipe_and_flags(argv, PROG, default_recipe(flags, accelerator=not on_cpu))
    nobody_said = flags.recipe is None and flags.data is None and recipe.data.tokens == "bytes" and not flags.resume
    if nobody_said and devices.rank == 0:
        print(embedded_notice(recipe, flags), flush=True)
    exactly = precision(recipe, flags.dtype, attention="exact" if on_cpu else "fast", rounding=flags.rounding)
    data, config = recipe.data, recipe.model

    if flags.dry_run:
        return foresee(recipe, flags, exactly, devices)
    train_pattern, val_pattern = shard_patterns(recipe, flags)
    train_shards = inspect_shards(train_pattern, "--data", config.token_ids)
    val_shards = inspect_shards(val_pattern, "--val-data", config.token_ids)
    stream = tokens.Tokens([s.path for s in train_shards], data.sequences, config.context)
    val_inputs, val_targets = tokens.validation_sequences(val_shards[0].path, data.val_tokens, config.context)
    micro_batch = mesh.micro_batch(data.sequences, devices.size, data.micro_batch, flags.micro_batch)
    if len(val_inputs) % devices.size:
        fits = max(len(val_inputs) // devices.size, 1) * devices.size * config.context
        raise BadInput(f"--val-tokens {data.val_tokens} doesn't divide over --mesh {devices.size}: give {fits}")
    val_micro_batch = mesh.micro_batch(len(val_inputs), devices.size, micro_batch, None)
    folder = run_folder(flags, recipe, time.time())
    goes_on = flags.resume and steps_in(folder / "checkpoints")
    weights = None
    if flags.init_from and not goes_on:
        weights = bridge.load_state(flags.init_from, recipe, exactly.parameters, exactly.embedding)
    mesh.wait_for_all(devices)  # the first process makes the folder once all have seen that it isn't there

    steps = min(recipe.schedule.steps, flags.stop_at or recipe.schedule.steps)
    check_profile(flags.profile, steps)
    described = describe(
        "torch_ref",
        recipe,
        overrides,
        flags,
        exactly,
        micro_batch,
        device_names(devices),
        {"train": train_shards, "val": val_shards},
        ("torch", "numpy"),
    )
    before = same_run(folder, described) if flags.resume else None
    if flags.resume and (finished := finished_after(folder)) >= steps:
        if devices.rank == 0:
            print(f"run {folder} is finished: {finished} steps are done", flush=True)
        return
    log = RunLog(folder, described, steps, recipe.step_tokens, devices.rank == 0, flags.resume)
    checkpoints = Checkpoints(folder / "checkpoints", flags.keep, described, recipe, devices)
    started = time.perf_counter()
    program = make_step(recipe, exactly, devices, micro_batch, skip=flags.on_nonfinite == "skip")
    saved, was = None, Progress()
    if flags.resume:
        saved, was = checkpoints.restore(exactly) or (saved, was)
        log.go_on(was, before)
    if saved is None:
        state = program.start(weights) if weights else program.init(flags.seed)
    else:
        state = program.start(saved.weights)._replace(step=was.step)
    share = data.sequences // devices.size
    rows = slice(devices.rank * share, (devices.rank + 1) * share)
    place = lambda each: mesh.place(devices, each)  # noqa: E731
    position = tokens.Position(was.shard, was.offset)
    x, y = (place(each[:micro_batch]) for each in stream.read(position, rows))
    x_val, y_val = (place(each[:val_micro_batch]) for each in (val_inputs, val_targets))
    compile_ahead(program, state, (x, y), (x_val, y_val))
    if saved is not None:
        set_moments(state.optimizers, state.model, saved.moments, was.step - was.skipped)
        keep_own(state.optimizers)
    log.write_config(compile={"seconds": round(time.perf_counter() - started, 2)})

    tracer = Tracer(folder / FOLDER, devices.device, log.writes)
    traced = None if (folder / FOLDER).exists() else flags.profile
    profile = Profile(traced, was.step, steps, tracer, lambda: mesh.wait_for_device(devices))

    pending = None

    def record() -> None:
        """Write the last step's metrics, which wait on the device; NaN and infinity end the run."""
        nonlocal pending
        if pending is None:
            return
        done, fetched, metrics, at = pending
        pending = None
        loss, norm, signal = fetched()
        interrupt.agreed = int(signal)
        if flags.on_nonfinite == "stop" and not (math.isfinite(loss) and math.isfinite(norm)):
            by_weight = {name: each.item() for name, each in metrics["norms"].items()}
            raise not_finite(done, loss, norm, stream.paths[at.shard], at.offset, by_weight)
        log.train(done, loss, norm, metrics["lr"], mesh.peak_bytes(devices))

    log.start()
    log.start_clock()
    interrupt.training = True
    with contextlib.closing(tokens.ahead(tokens.batches(stream, position, place, rows))) as upcoming:
        try:
            for done in range(was.step, steps + 1):
                stopping = interrupt.stops
                profile.at(done)
                if recipe.validates_after(done, last=steps) and done > log.validated and not stopping:
                    record()
                    val_loss = validate(program.evaluate, state, devices, val_inputs, val_targets, val_micro_batch)
                    if not math.isfinite(val_loss):
                        raise NotFinite(
                            f"val_loss after {done} steps is {val_loss}: lower --optimizer.lr or look at the weights "
                            "that the run started from"
                        )
                    log.validation(done, val_loss)
                    log.start_clock()
                if done > was.step and (done % flags.save_every == 0 or done == steps or stopping):
                    record()
                    progress = log.progress(done, position.shard, position.offset)
                    broken = checkpoints.save(state.model, state.optimizers, progress)
                    if broken:
                        raise NotFinite(f"after {done} steps {broken} isn't finite: lower --optimizer.lr")
                if stopping:
                    checkpoints.wait()
                    raise stopped(stopping, done, checkpoints.saved, folder)
                if done == steps:
                    break
                inputs, targets, after = next(upcoming)
                state, metrics = program.step(state, inputs, targets)
                signal = mesh.largest_over_processes(devices, interrupt.signal or 0)
                fetched = mesh.fetch(devices, [metrics["train_loss"], metrics["grad_norm"], signal])
                record()
                pending, position = (done + 1, fetched, metrics, position), after
        finally:
            log.finish()
            is_saved = checkpoints.wait()

    if log.writes:
        log.finished(lambda file: bridge.save_state(file, state.model.state_dict(), recipe, step=steps))
    if not is_saved:
        raise NotWritten(f"the checkpoint of step {steps}, the last, wasn't saved; weights.safetensors is in {folder}")


if __name__ == "__main__":
    main()
