"""Rung 8 in bfloat16: do the two frameworks part by more than rounding alone parts one of them from itself?

    python -m parity_tests.noise_floor --recipe opt-adam-2024-10-29 --steps 60 --out floor.json

In bfloat16 two right programs part as training goes on, so the yardstick is measured: PyTorch trains from weights, and
again from the same weights moved by one ulp each (float32, random signs). From each of the moved weights JAX trains
too, on the same tokens. In each window of steps the median over the pairs of the distance JAX-torch, an RMS of
differences of the training loss, may be `FACTOR` times the median of torch-torch. On a CPU the recipe is reduced.

XLA leaves out roundings to bfloat16 between operations that it fuses ("excess precision"), which an ulp of the weights
does not imitate. With `--rounding pinned` it makes each of them, Newton-Schulz's too, and what is left of a distance
has another cause.

The program prints both medians and writes them with all curves. It ends with 0 within the noise floor, with 1 outside.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in jaxgpt.train

import dataclasses
import gc
import importlib.metadata
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
import torch

import jaxgpt.mesh
import jaxgpt.train
import torch_ref.mesh
import torch_ref.train
from jaxgpt.commands import parse
from jaxgpt.errors import BadInput, NotFinite, exit_codes
from jaxgpt.recipes import RECIPES, Recipe, ScheduleConfig, named, precision
from jaxgpt.shards import inspect_shards
from jaxgpt.tokens import Position, Tokens
from parity_tests.pair import Pair, Weights, jax_batch, jax_state, learnable_tokens, torch_batch, torch_state
from parity_tests.scale import Device, as_trained, recipe_at_scale, torch_device, weights_at_scale

PROG = "python -m parity_tests.noise_floor"
FACTOR = 1.5
"""The distance JAX-torch may be this many times the noise floor."""
WINDOW = 50
"""Steps over which a distance is taken."""
LEARNABLE_IDS = 512
"""Of made text: so few that a hundred steps learn something."""
OUTSIDE = 1
"""How the program ends where the frameworks part by more than the noise floor."""

Batch = tuple[np.ndarray, np.ndarray]
"""Inputs and targets of a step, int32 (sequences, T)."""
Rounding = Literal["free", "pinned"]
Curve = list[float]
"""The training loss of each step."""


class Window(NamedTuple):
    """Distances of training losses over the steps from `first` to `last`, both counted from 1, a number a pair."""

    first: int
    last: int
    floor: list[float]
    """torch from the weights, and from moved ones."""
    across: list[float]
    """JAX and torch, both from the same moved weights."""

    @property
    def ratio(self) -> float:
        """Median distance JAX-torch in the median noise floor."""
        floor = np.median(self.floor)
        return float(np.median(self.across) / floor) if floor else np.inf

    @property
    def within(self) -> bool:
        """Whether the frameworks part by no more than `FACTOR` times the floor."""
        return bool(self.ratio <= FACTOR)

    def __str__(self) -> str:
        steps = f"{self.first}-{self.last}"
        said = [f"{np.median(d):.2e} ({min(d):.2e} to {max(d):.2e})" for d in (self.floor, self.across)]
        return f"{steps:>9}  {said[0]:<32}  {said[1]:<32}  {self.ratio:5.2f}"


class Curves(NamedTuple):
    """What was trained: torch from the weights and then from each of the moved ones, JAX from each of those."""

    torch: list[Curve]
    jax: list[Curve]

    def windows(self, width: int = WINDOW) -> list[Window]:
        """Both distances in each window of `width` steps; the last may be shorter."""
        starts = range(0, len(self.torch[0]), width)
        cuts = [slice(start, start + width) for start in starts]
        first, *moved = self.torch
        return [
            Window(
                cut.start + 1,
                min(cut.stop, len(first)),
                [distance(first[cut], each[cut]) for each in moved],
                [distance(in_jax[cut], in_torch[cut]) for in_jax, in_torch in zip(self.jax, moved, strict=True)],
            )
            for cut in cuts
        ]


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Root of the mean square of the differences, step by step."""
    return float(np.sqrt(np.mean(np.square(np.subtract(one, other)))))


def moved(weights: Weights, seed: int) -> Weights:
    """Each weight one ulp up or down; zero goes to the smallest number there is."""
    rng = np.random.default_rng(seed)
    towards = np.array([-np.inf, np.inf], np.float32)
    return {name: np.nextafter(w, towards[rng.integers(0, 2, w.shape, np.int8)]) for name, w in weights.items()}


def pair_of(recipe: Recipe, device: Device, rounding: Rounding = "free") -> Pair:
    """Both frameworks' steps of the recipe in its own precision, with the kernels that train on that device."""
    micro_batch = recipe.data.micro_batch
    attention = "exact" if device == "cpu" else "fast"
    kernels = "fused" if device == "gpu" and rounding == "free" else "plain"
    exactly = precision(recipe, None, attention, rounding, kernels)
    devices = jaxgpt.mesh.make_mesh_of(jax.devices(device)[:1])
    place = torch_ref.mesh.Mesh(0, 1, torch_device(device))
    return Pair(
        recipe,
        exactly,
        jaxgpt.train.make_step(recipe, exactly, devices, micro_batch),
        torch_ref.train.make_step(recipe, exactly, place, micro_batch),
        devices,
    )


def at(
    recipe: Recipe, steps: int, sequences: int | None = None, micro_batch: int | None = None, constant: bool = False
) -> Recipe:
    """The recipe for `steps` steps, its schedule scaled to them, or its peak learning rates throughout.

    Raises:
      BadInput: a number below 1, or sequences that the micro-batch doesn't divide.
    """
    sequences = recipe.data.sequences if sequences is None else sequences
    micro_batch = sequences if micro_batch is None else micro_batch
    data = dataclasses.replace(recipe.data, sequences=sequences, micro_batch=micro_batch)
    if sequences % micro_batch:
        raise BadInput(
            f"--micro-batch {micro_batch} doesn't divide the {sequences} sequences of a step: give a divisor"
        )
    schedule = RECIPES[recipe.name].schedule.scaled(steps)
    schedule = ScheduleConfig(steps, warmup=0, warmdown=0) if constant else schedule
    return dataclasses.replace(recipe, data=data, schedule=schedule)


def torch_curves(both: Pair, starts: Iterable[Weights], batches: list[Batch]) -> Iterator[Curve]:
    """The curve from each of `starts`. The model is made, and compiled, once."""
    state = None
    for number, start in enumerate(starts):
        if state is None:
            state = torch_state(both, start)
        else:
            state.model.load_state_dict({name: torch.tensor(w) for name, w in start.items()})
            for optimizer in state.optimizers:
                optimizer.state.clear()
            state = state._replace(step=0)
        device, losses = state.model.wte.weight.device, []
        for batch in batches:
            state, metrics = both.torch.step(state, *torch_batch(*batch, device))
            losses.append(metrics["train_loss"])
        yield _finite([float(loss) for loss in losses], "torch", number)


def jax_curves(both: Pair, starts: Iterable[Weights], batches: list[Batch]) -> Iterator[Curve]:
    """The same of JAX, compiled as its trainer does. Where rounding is pinned, every operation's is."""
    step = None
    for number, start in enumerate(starts):
        state, losses = jax_state(both, start), []
        if step is None:
            options = jaxgpt.mesh.compiler_options(both.devices, both.precision.rounding)
            step = both.jax.step.lower(state, *jax_batch(both, *batches[0])).compile(options)
        for batch in batches:
            state, metrics = step(state, *jax_batch(both, *batch))
            losses.append(metrics["train_loss"])
        yield _finite([float(loss) for loss in losses], "jax", number)


def _finite(losses: Curve, framework: str, number: int) -> Curve:
    if not np.isfinite(losses).all():
        step = int(np.argmin(np.isfinite(losses))) + 1
        raise NotFinite(f"train_loss of step {step} is {losses[step - 1]} in {framework}, run {number}")
    return losses


def torch_floor(both: Pair, start: Weights, batches: list[Batch], pairs: int) -> list[Curve]:
    """torch from the weights, and from as many moved ones as there are to be pairs."""
    with as_trained(None):
        curves = list(torch_curves(both, (moved(start, n) if n else start for n in range(pairs + 1)), batches))
    free()
    return curves


def jax_beside(both: Pair, start: Weights, batches: list[Batch], pairs: int) -> list[Curve]:
    """JAX from each of the same moved weights."""
    curves = list(jax_curves(both, (moved(start, n) for n in range(1, pairs + 1)), batches))
    free()
    return curves


def free() -> None:
    """Give one framework's memory of the card back to the other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def made_batches(recipe: Recipe, steps: int) -> list[Batch]:
    """Made text of few ids, something to learn from the first step on."""
    ids = min(LEARNABLE_IDS, recipe.model.token_ids)
    of_few = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, token_ids=ids))
    return [learnable_tokens(of_few, step) for step in range(steps)]


def read_batches(recipe: Recipe, steps: int, pattern: str) -> list[Batch]:
    """The first steps of real text, from shards. `BadInput` where they don't fit the recipe."""
    paths = [shard.path for shard in inspect_shards(pattern, "--data", recipe.model.token_ids)]
    stream, position = Tokens(paths, recipe.data.sequences, recipe.model.context), Position()
    batches = []
    for _ in range(steps):
        batches.append(stream.read(position))
        position = stream.next(position)
    return batches


@dataclass
class Flags:
    """Measure whether JAX and torch part by more than torch does from itself an ulp away, in the recipe's precision."""

    recipe: str
    """what is trained; on a CPU at reduced size"""
    steps: int
    """how many; the schedule is scaled to them, as the trainers scale it"""
    out: Path
    """a JSON file to write, which must not exist: settings, distances, all curves"""
    pairs: int = 5
    """moved weights that both frameworks train from"""
    device: Device = "cpu"
    """gpu: the recipe at full size"""
    sequences: int | None = None
    """a step's; by default 8 on a GPU, 16 on a CPU"""
    micro_batch: int | None = None
    """sequences at once; by default all of a step"""
    window: int = WINDOW
    """steps over which a distance is taken"""
    constant: bool = False
    """peak learning rates throughout, no warm-up or warm-down"""
    rounding: Rounding = "free"
    """pinned: JAX makes each rounding to bfloat16 that PyTorch makes"""
    data: str | None = None
    """glob of token shards; by default made text of 512 ids"""


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `Flags`."""
    flags = parse(Flags, sys.argv[1:] if argv is None else argv, PROG)
    for name in ("steps", "pairs", "window", "sequences", "micro_batch"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise BadInput(f"--{name.replace('_', '-')} {value}: give a whole number of at least 1")
    if flags.out.exists() or not flags.out.parent.is_dir():
        said = "exists already and is left as it is: give another name" if flags.out.exists() else "has no folder"
        raise BadInput(f"--out {flags.out} {said}")
    named(flags.recipe)
    if flags.device == "gpu":
        take_gpu()
    torch.set_num_threads(1)
    recipe = at(
        recipe_at_scale(flags.recipe, flags.device), flags.steps, flags.sequences, flags.micro_batch, flags.constant
    )
    if recipe.model.compute_dtype != "bfloat16":
        raise BadInput(f"--recipe {recipe.name} computes in {recipe.model.compute_dtype}: name one in bfloat16")
    batches = read_batches(recipe, flags.steps, flags.data) if flags.data else made_batches(recipe, flags.steps)
    both = pair_of(recipe, flags.device, flags.rounding)
    start = weights_at_scale(recipe.name, "float32", flags.device, perturbed=False)
    curves = Curves(*(run(both, start, batches, flags.pairs) for run in (torch_floor, jax_beside)))
    windows = curves.windows(flags.window)
    print(
        f"{recipe.name}, {flags.steps} steps of {recipe.data.sequences} x {recipe.model.context} tokens, {flags.pairs} "
        f"pairs, {flags.rounding} rounding, {both.devices.devices.flat[0].device_kind}\n"
        f"{'steps':>9}  {'torch-torch: median (range)':<32}  {'JAX-torch: median (range)':<32}  ratio"
    )
    print(*windows, sep="\n")
    within = all(window.within for window in windows)
    flags.out.write_text(described(flags, both, curves, windows), encoding="utf-8")
    print(f"{'within' if within else 'outside'} the noise floor (ratio at most {FACTOR} in each window); {flags.out}")
    sys.exit(0 if within else OUTSIDE)


def take_gpu() -> None:
    """Take it for both frameworks, memory as it is needed. `BadInput` where one of them finds none."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    jax.config.update("jax_platforms", "cuda,cpu")
    try:
        jax.devices("gpu")
    except RuntimeError:
        raise BadInput("--device gpu: JAX finds none; install .[cuda13], or leave the flag out") from None
    if not torch.cuda.is_available():
        raise BadInput("--device gpu: PyTorch finds none; install a CUDA build, or leave the flag out")


def described(flags: Flags, both: Pair, curves: Curves, windows: list[Window]) -> str:
    """All of a measurement as JSON."""
    of_window = [window._asdict() | {"ratio": window.ratio, "within": window.within} for window in windows]
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(flags).items()}
    kept = {
        "settings": settings,
        "device": both.devices.devices.flat[0].device_kind,
        "versions": {package: importlib.metadata.version(package) for package in ("jax", "jaxlib", "torch", "numpy")},
        "recipe": dataclasses.asdict(both.recipe),
        "precision": dataclasses.asdict(both.precision),
        "factor": FACTOR,
        "windows": of_window,
        "curves": curves._asdict(),
    }
    return json.dumps(kept, indent=1) + "\n"


if __name__ == "__main__":
    main()
