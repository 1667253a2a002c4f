"""Train a recipe with JAX: `python -m jaxgpt.train --mesh 8`."""

import os

# On a CPU, JAX decomposes matrices with SciPy's OpenBLAS, whose threads wait for XLA's: on 2 cores a step of Shampoo
# took 100 times as long. The variable is read once, when NumPy or SciPy loads that library.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxgpt import bridge, dry_run, mesh, tokens
from jaxgpt.ahead import compile_step, memory
from jaxgpt.checkpoint import Checkpoints, check_folder
from jaxgpt.errors import BadInput, NotFinite, NotWritten, exit_codes, not_finite, stopped
from jaxgpt.finite import if_finite, named_norms, norms
from jaxgpt.flags import Flags, default_recipe, embedded_notice, recipe_and_flags, shard_patterns
from jaxgpt.interrupt import Interrupt, interruptible
from jaxgpt.loss import cross_entropy
from jaxgpt.model import GPT
from jaxgpt.optimizer import make_optimizer, multiplier
from jaxgpt.profiled import FOLDER, Profile, check_profile
from jaxgpt.recipes import Precision, Recipe, precision
from jaxgpt.resume import finished_after, same_run
from jaxgpt.runlog import RunLog, describe, run_folder
from jaxgpt.saved import Progress, steps_in
from jaxgpt.shards import inspect_shards
from jaxgpt.tracer import Tracer

PROG = "python -m jaxgpt.train"


class TrainState(NamedTuple):
    """All that an update changes. `step` counts updates done."""

    params: Any
    opt_state: optax.OptState
    step: Int[Array, ""]


class Step(NamedTuple):
    """A recipe's step and its parts. Inputs and targets are int32 (sequences, T), split over the mesh by rows."""

    like: Callable[[], TrainState]
    """Shapes, dtypes and shardings of a state, without one."""
    init: Callable[[int], TrainState]
    """seed -> state with fresh weights."""
    start: Callable[[Any], TrainState]
    """weights -> state."""
    gradients: Callable[..., tuple[Float[Array, ""], Any]]
    """(params, inputs, targets) -> mean loss and its raw gradients."""
    update: Callable[..., TrainState]
    """(state, gradients) -> state after one update."""
    step: jax.stages.Wrapped
    """(state, inputs, targets) -> state after one update, and train_loss, grad_norm, lr, and norms, the gradient's by
    tensor. Takes the state's memory."""
    evaluate: jax.stages.Wrapped
    """(params, inputs, targets) -> mean loss in the validation dtype."""


def make_step(recipe: Recipe, precision: Precision, devices: Mesh, micro_batch: int, skip: bool = False) -> Step:
    """What one step of a recipe is. The trainer and the parity ladder both get it here.

    Args:
      recipe: what to compute.
      precision: how exactly.
      devices: a mesh with the axis `data`; weights are replicated on it.
      micro_batch: sequences a device takes at once; the rest of its share is accumulated inside the step.
      skip: a step whose loss or gradient isn't finite changes no weight and no moment; the schedule moves on.
    """
    optimizer = make_optimizer(recipe, precision, deal=mesh.split(devices))
    schedule = multiplier(recipe.schedule)
    model = _graph(recipe, precision, precision.compute)
    validation_model = _graph(recipe, precision, precision.validation)
    everywhere, dealt = PartitionSpec(), PartitionSpec("data")

    summed = recipe.model.loss_reduction == "sum"

    def loss(params, inputs_BT: jax.Array, targets_BT: jax.Array, model=model) -> jax.Array:
        gpt: GPT = nnx.merge(model, nnx.State(params))
        x_ND, config = gpt.hidden(inputs_BT).reshape(-1, recipe.model.width), recipe.model
        weight_VD, bias_V = gpt.head()
        token_ids = config.token_ids if config.pad_rows == "masked" else None
        targets_N, form = targets_BT.reshape(-1), (config.logit_cap, token_ids, config.loss_reduction, gpt.kernels)
        return cross_entropy(x_ND, weight_VD, targets_N, gpt.compute, bias_V, *form)

    def device_gradients(params, inputs: jax.Array, targets: jax.Array):
        """One device's rows, a micro-batch at a time; the sum over devices comes last, once, in the weights' dtype."""
        rounds = len(inputs) // micro_batch
        wide = lambda w: jnp.promote_types(w.dtype, jnp.float32)  # noqa: E731
        if rounds == 1:
            sums = jax.value_and_grad(loss)(params, inputs, targets)
        else:

            def accumulate(sums, batch):
                return jax.tree.map(jnp.add, sums, jax.value_and_grad(loss)(params, *batch)), None

            zeros = (
                jnp.zeros((), jnp.promote_types(precision.compute, jnp.float32)),
                jax.tree.map(lambda w: jnp.zeros(w.shape, wide(w)), params),
            )
            micro_batches = tuple(a.reshape(rounds, micro_batch, -1) for a in (inputs, targets))
            sums, _ = jax.lax.scan(accumulate, zeros, micro_batches)
        total, sums = jax.lax.psum(sums, "data")
        parts = rounds * devices.size
        grads = jax.tree.map(lambda g, w: (g if summed else g / parts).astype(w.dtype), sums, params)
        return total / (inputs.size * devices.size if summed else parts), grads

    def gradients(params, inputs: jax.Array, targets: jax.Array):
        with jax.default_matmul_precision(precision.matmul):
            return jax.shard_map(
                device_gradients,
                mesh=devices,
                in_specs=(everywhere, dealt, dealt),
                out_specs=everywhere,
                check_vma=False,
            )(params, inputs, targets)

    def update(state: TrainState, grads) -> TrainState:
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1)

    def step(state: TrainState, inputs: jax.Array, targets: jax.Array):
        train_loss, grads = gradients(state.params, inputs, targets)
        lr = recipe.optimizer.lr * schedule(state.step)
        by_tensor = norms(grads)
        metrics = {"train_loss": train_loss, "grad_norm": optax.tree.norm(by_tensor), "lr": lr, "norms": by_tensor}
        updated = update(state, grads)
        if skip:
            is_finite = jnp.isfinite(train_loss) & jnp.isfinite(metrics["grad_norm"])
            updated = if_finite(is_finite, updated, state)._replace(step=updated.step)
        return updated, metrics

    def evaluate(params, inputs: jax.Array, targets: jax.Array):
        def device_loss(params, inputs, targets):
            value = loss(params, inputs, targets, validation_model)
            return jax.lax.pmean(value / inputs.size if summed else value, "data")

        with jax.default_matmul_precision("default" if precision.validation == "bfloat16" else "highest"):
            return jax.shard_map(
                device_loss,
                mesh=devices,
                in_specs=(everywhere, dealt, dealt),
                out_specs=everywhere,
                check_vma=False,
            )(params, inputs, targets)

    def start(params) -> TrainState:
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    def init(seed: int) -> TrainState:
        gpt = GPT(recipe.model, rngs=nnx.Rngs(seed), parameters=precision.parameters, embedding=precision.embedding)
        return start(nnx.to_pure_dict(nnx.split(gpt)[1]))

    def like() -> TrainState:
        shapes = jax.eval_shape(lambda: init(0))
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), shapes)

    whole = mesh.replicated(devices)
    return Step(
        like=like,
        init=jax.jit(init, static_argnums=0, out_shardings=whole),
        start=jax.jit(start, out_shardings=whole),
        gradients=jax.jit(gradients, out_shardings=whole),
        update=jax.jit(update, out_shardings=whole),
        step=jax.jit(step, donate_argnums=0, out_shardings=whole),
        evaluate=jax.jit(evaluate, out_shardings=whole),
    )


def _graph(recipe: Recipe, precision: Precision, compute) -> nnx.GraphDef:
    """The model without weights."""
    settings = {"parameters": precision.parameters, "embedding": precision.embedding, "compute": compute}
    settings["attention"] = precision.attention if compute == "bfloat16" else "exact"
    settings["kernels"] = precision.kernels if compute == precision.compute else "plain"
    return nnx.split(nnx.eval_shape(lambda: GPT(recipe.model, rngs=nnx.Rngs(0), **settings)))[0]


def validate(
    evaluate: Callable, params, devices: Mesh, inputs: np.ndarray, targets: np.ndarray, micro_batch: int
) -> float:
    """Mean loss over the rows of inputs and targets, `micro_batch` of them a device at a time.

    One evaluation is awaited before the next begins: virtual CPU devices share a few threads, and two programs whose
    collectives don't depend on each other can wait there for each other's threads for ever.
    """
    rows = micro_batch * devices.size
    losses = [
        float(evaluate(params, *(mesh.place(devices, mesh.own_rows(each[i : i + rows])) for each in (inputs, targets))))
        for i in range(0, len(inputs), rows)
    ]
    return float(np.mean(losses))


def foresee(recipe: Recipe, flags: Flags, exactly: Precision, devices: Mesh) -> None:
    """Print what the run would be; the step is compiled, for its memory, and nothing is written."""
    check_folder(run_folder(flags, recipe, mesh.same_time()))
    check_profile(flags.profile, min(recipe.schedule.steps, flags.stop_at or recipe.schedule.steps))
    micro_batch = mesh.micro_batch(recipe.data.sequences, devices.size, recipe.data.micro_batch, flags.micro_batch)
    step = compile_step(make_step(recipe, exactly, devices, micro_batch), recipe, exactly, devices)
    kinds = [d.device_kind for d in devices.devices.flat]
    print(dry_run.report(recipe, flags, exactly, micro_batch, kinds, memory(step)._asdict()), flush=True)


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `jaxgpt.flags.Flags`."""
    argv = sys.argv[1:] if argv is None else argv
    flags = recipe_and_flags(argv, PROG, "tiny")[1]
    with interruptible() as interrupt, mesh.processes(flags) as devices:
        run(argv, flags, devices, interrupt)


def run(argv: list[str], flags: Flags, devices: Mesh, interrupt: Interrupt) -> None:
    """Train as the command line says, until the end or until `interrupt` wishes."""
    is_first, interrupt.alone = jax.process_index() == 0, jax.process_count() == 1
    platform = devices.devices.flat[0].platform
    recipe, flags, overrides = recipe_and_flags(argv, PROG, default_recipe(flags, accelerator=platform != "cpu"))
    nobody_said = flags.recipe is None and flags.data is None and recipe.data.tokens == "bytes" and not flags.resume
    if nobody_said and is_first:
        print(embedded_notice(recipe, flags), flush=True)
    exactly = precision(
        recipe,
        flags.dtype,
        attention=mesh.attention(devices),
        rounding=flags.rounding,
        kernels=mesh.kernels(devices, flags.kernels, flags.rounding),
    )
    if is_first and exactly.compute == "bfloat16" and platform != "cpu" and exactly.attention == "exact":
        print("XLA_FLAGS ask for determinism: attention is written out, slower and with more memory", flush=True)
    jax.config.update("jax_enable_x64", "float64" in dataclasses.astuple(exactly))
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
    folder = run_folder(flags, recipe, mesh.same_time())
    check_folder(folder)
    goes_on = flags.resume and steps_in(folder / "checkpoints")
    weights = None
    if flags.init_from and not goes_on:
        weights = bridge.load_state(flags.init_from, recipe, exactly.parameters, exactly.embedding)
    mesh.wait_for_all()  # the first process makes the folder once all have seen that it isn't there

    steps = min(recipe.schedule.steps, flags.stop_at or recipe.schedule.steps)
    check_profile(flags.profile, steps)
    described = describe(
        "jaxgpt",
        recipe,
        overrides,
        flags,
        exactly,
        micro_batch,
        [d.device_kind for d in devices.devices.flat],
        {"train": train_shards, "val": val_shards},
        ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"),
    )
    before = same_run(folder, described) if flags.resume else None
    if flags.resume and (finished := finished_after(folder)) >= steps:
        if is_first:
            print(f"run {folder} is finished: {finished} steps are done", flush=True)
        return
    log = RunLog(folder, described, steps, recipe.step_tokens, is_first, flags.resume)
    checkpoints = Checkpoints(folder / "checkpoints", flags.keep, described)
    counts = mesh.cached_compilation()
    started = time.perf_counter()
    program = make_step(recipe, exactly, devices, micro_batch, skip=flags.on_nonfinite == "skip")
    state, was = None, Progress()
    if flags.resume:
        state, was = checkpoints.restore(program.like()) or (state, was)
        log.go_on(was, before)
    if state is None:
        placed = weights and jax.device_put(weights, mesh.replicated(devices))
        state = program.start(placed) if placed else program.init(flags.seed)
    own = mesh.own_rows(range(data.sequences))
    rows = slice(own.start, own.stop)
    place = lambda array: mesh.place(devices, array)  # noqa: E731
    signals = lambda: () if interrupt.alone else (place(np.full(len(devices.local_devices), interrupt.signal or 0)),)  # noqa: E731
    example = place(mesh.own_rows(val_inputs[: val_micro_batch * devices.size]))
    options = mesh.compiler_options(devices, exactly.rounding)
    evaluate = program.evaluate.lower(state.params, example, example).compile(options)
    batch = jax.ShapeDtypeStruct((data.sequences, config.context), jnp.int32, sharding=mesh.split(devices))
    one_step = program.step if interrupt.alone else mesh.agreeing(devices, program.step)
    step = one_step.lower(state, batch, batch, *signals()).compile(options)
    log.write_config(compile={"seconds": round(time.perf_counter() - started, 2)} | counts)

    tracer = Tracer(folder / FOLDER, step, log.writes)
    traced = None if (folder / FOLDER).exists() else flags.profile
    profile = Profile(traced, was.step, steps, tracer, lambda: jax.block_until_ready(state))

    pending = None

    def record() -> None:
        """Write the last step's metrics, which wait on the device; NaN and infinity end the run."""
        nonlocal pending
        if pending is None:
            return
        done, metrics, at = pending
        pending = None
        interrupt.agreed = int(metrics.get("signal", 0))
        loss, norm, lr = (float(metrics[name]) for name in ("train_loss", "grad_norm", "lr"))
        if flags.on_nonfinite == "stop" and not (math.isfinite(loss) and math.isfinite(norm)):
            by_weight = named_norms(metrics["norms"], config)
            raise not_finite(done, loss, norm, stream.paths[at.shard], at.offset, by_weight)
        log.train(done, loss, norm, lr, mesh.peak_bytes(devices))

    log.start()
    log.start_clock()
    position = tokens.Position(was.shard, was.offset)
    interrupt.training = True
    with contextlib.closing(tokens.ahead(tokens.batches(stream, position, place, rows))) as upcoming:
        try:
            for done in range(was.step, steps + 1):
                stopping = interrupt.stops
                profile.at(done)
                if recipe.validates_after(done, last=steps) and done > log.validated and not stopping:
                    record()
                    val_loss = validate(evaluate, state.params, devices, val_inputs, val_targets, val_micro_batch)
                    if not math.isfinite(val_loss):
                        raise NotFinite(
                            f"val_loss after {done} steps is {val_loss}: lower --optimizer.lr or look at the weights "
                            "that the run started from"
                        )
                    log.validation(done, val_loss)
                    log.start_clock()
                if done > was.step and (done % flags.save_every == 0 or done == steps or stopping):
                    record()
                    broken = checkpoints.save(state, log.progress(done, position.shard, position.offset))
                    if broken:
                        raise NotFinite(f"after {done} steps {broken} isn't finite: lower --optimizer.lr")
                if stopping:
                    checkpoints.wait()
                    raise stopped(stopping, done, checkpoints.saved, folder)
                if done == steps:
                    break
                inputs, targets, after = next(upcoming)
                state, metrics = step(state, inputs, targets, *signals())
                if done == was.step:
                    jax.block_until_ready(metrics)  # see tokens.ahead
                record()
                pending, position = (done + 1, metrics, position), after
        finally:
            log.finish()
            is_saved = checkpoints.wait()

    if log.writes:
        log.finished(lambda file: bridge.save_state(file, jax.device_get(state.params), recipe, step=steps))
    if not is_saved:
        raise NotWritten(f"the checkpoint of step {steps}, the last, wasn't saved; weights.safetensors is in {folder}")


if __name__ == "__main__":
    main()
