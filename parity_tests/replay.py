"""Rung 7: one trainer's gradients, recorded while it trains, replayed through the other's optimiser.

    python -m parity_tests.replay --recipe muon-2024-10-12 --steps 50

At reduced size, on the CPU. What the optimiser keeps and by how much each weight changes are compared after each step;
the first step and tensor beyond tolerance is printed, with what the difference looks like. Steps count from 0. The
program ends with 1 if there is one. With `--out DIR` the recording is kept, 3 to 9 MB a step; `--from DIR` replays one.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in jaxgpt.train

import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import jax
import numpy as np
import torch
import tyro

import jaxgpt.mesh
from jaxgpt import bridge
from jaxgpt.commands import parse
from jaxgpt.errors import BadInput, exit_codes
from jaxgpt.recipes import named, reduced
from parity_tests import pair as pairs
from parity_tests.pair import Pair, Weights, learnable_tokens, relative
from parity_tests.recording import Update, keep, new_folder, read
from parity_tests.recording import updates as recording_updates
from parity_tests.resemblance import multiple, resemblance
from parity_tests.tolerances import REPLAY_CHANGE, REPLAY_MATRICES, REPLAY_MOMENTS
from torch_ref.moments import set_moments

PROG = "python -m parity_tests.replay"
APART = 1
"""How the program ends where the replay parts from the recording."""


class Torch:
    """torch_ref in the middle of training."""

    def __init__(self, both: Pair, start: Weights):
        self.both, self.state = both, pairs.torch_state(both, start)
        self.device = self.state.model.wte.weight.device

    def gradients(self, inputs: np.ndarray, targets: np.ndarray) -> Weights:
        batch = pairs.torch_batch(inputs, targets, self.device)
        return pairs.torch_tree(self.both.torch.gradients(self.state, *batch)[1])

    def update(self, grads: Weights) -> None:
        placed = {name: torch.tensor(g, device=self.device) for name, g in grads.items()}
        self.state = self.both.torch.update(self.state, placed)

    def weights(self) -> Weights:
        return pairs.torch_tree(dict(self.state.model.named_parameters()))

    def moments(self) -> Weights:
        return pairs.torch_moments(self.state)

    def take_bases(self, moments: Weights) -> None:
        """Put SOAP's bases among `moments` in the place of its own: see `parity_tests.pair.with_bases`."""
        if bases := {name: basis for name, basis in moments.items() if ".Q." in name}:
            tensors = {name: torch.tensor(value) for name, value in (self.moments() | bases).items()}
            set_moments(self.state.optimizers, self.state.model, tensors, self.state.step)


class Jax:
    """jaxgpt in the middle of training."""

    def __init__(self, both: Pair, start: Weights):
        self.both, self.state = both, pairs.jax_state(both, start)

    def gradients(self, inputs: np.ndarray, targets: np.ndarray) -> Weights:
        batch = pairs.jax_batch(self.both, inputs, targets)
        return pairs.jax_tree(self.both, self.both.jax.gradients(self.state.params, *batch)[1])

    def update(self, grads: Weights) -> None:
        placed = bridge.from_torch(grads, self.both.recipe.model)
        placed = jax.device_put(placed, jaxgpt.mesh.replicated(self.both.devices))
        self.state = self.both.jax.update(self.state, placed)

    def weights(self) -> Weights:
        return pairs.jax_tree(self.both, self.state.params)

    def moments(self) -> Weights:
        return pairs.jax_moments(self.both, self.state)

    def take_bases(self, moments: Weights) -> None:
        """The same of `Torch`."""
        self.state = pairs.with_bases(self.both, self.state, moments)


TRAINERS: dict[str, type[Torch] | type[Jax]] = {"torch": Torch, "jax": Jax}
OTHER = {"torch": "jax", "jax": "torch"}


def record(both: Pair, start: Weights, steps: int, by: str) -> Iterator[Update]:
    """Train `by` on learnable tokens; the raw gradients of each step and what they did, one step at a time."""
    trainer, before = TRAINERS[by](both, start), _wide(start)
    for step in range(steps):
        grads = trainer.gradients(*learnable_tokens(both.recipe, step))
        trainer.update(grads)
        after = _wide(trainer.weights())
        yield Update(grads, {name: after[name] - before[name] for name in after}, trainer.moments())
        before = after


class Compared(NamedTuple):
    """A tensor of a step on both sides, `relative` apart. Its name is that in a recording."""

    step: int
    tensor: str
    apart: float
    allowed: float
    looks: str | None = None

    @property
    def parts(self) -> bool:
        """NaN parts from everything."""
        return not self.apart <= self.allowed

    def __str__(self) -> str:
        looks = f"; looks like {self.looks}" if self.looks else ""
        return f"step {self.step}, tensor {self.tensor}: {self.apart:.2e} apart, allowed {self.allowed:.0e}{looks}"


class Outcome(NamedTuple):
    """Of a replay: how many steps were compared, and the first tensor beyond tolerance, or else the worst of all."""

    steps: int
    found: Compared

    @property
    def equal(self) -> bool:
        return not self.found.parts

    def __str__(self) -> str:
        return str(self.found) if not self.equal else f"equal for {self.steps} steps, worst {self.found}"


class Allowed(NamedTuple):
    """How far apart, relative, what two trainers make of the same gradients may be."""

    moments: float
    matrices: float
    """SOAP's bases and Shampoo's roots."""
    change: float
    """What a step adds to a weight."""


def allowed_to(both: Pair) -> Allowed:
    """That of the recipe at reduced size."""
    dtype = both.precision.parameters
    change = REPLAY_CHANGE[both.recipe.optimizer.kind][dtype]
    return Allowed(REPLAY_MOMENTS[dtype], REPLAY_MATRICES[dtype], change)


def replay(both: Pair, start: Weights, updates: Iterable[Update], by: str, allowed: Allowed | None = None) -> Outcome:
    """Feed the gradients that `by` recorded from `start` to the other trainer, as far as the two agree.

    The first step gives SOAP's bases to the other one: null spaces have no basis of their own. Without `allowed` as at
    reduced size.
    """
    allowed = allowed or allowed_to(both)
    trainer, before = TRAINERS[OTHER[by]](both, start), _wide(start)
    kept: Weights = {}
    worst, step = Compared(0, "", 0.0, 1.0), -1
    for step, want in enumerate(updates):
        trainer.update(want.gradients)
        if step == 0:
            trainer.take_bases(want.moments)
        after, moments = _wide(trainer.weights()), trainer.moments()
        got = Update(want.gradients, {name: after[name] - before[name] for name in after}, moments)
        for each in _compared(step, got, want, before, kept, allowed):
            if each.parts:
                return Outcome(step + 1, each)
            worst = max(worst, each, key=lambda one: one.apart / one.allowed)
        before, kept = after, moments
    return Outcome(step + 1, worst)


def _compared(
    step: int, got: Update, want: Update, weights: Weights, kept: Weights, allowed: Allowed
) -> Iterator[Compared]:
    """Weight by weight, its moments and then its change. `weights` and `kept` are those before the step."""
    assert got.moments.keys() == want.moments.keys(), sorted(got.moments.keys() ^ want.moments.keys())
    for name, change in want.change.items():
        for slot in (slot for slot in want.moments if slot.split(".", 2)[2].startswith(f"{name}.")):
            decomposed = ".Q." in slot or ".roots." in slot
            of = functools.partial(_entering, slot, want.gradients[name], kept)
            within = allowed.matrices if decomposed else allowed.moments
            yield _judged(step, slot, got.moments[slot], want.moments[slot], within, of)
        of = functools.partial(dict, {"the weight": weights[name]})
        yield _judged(step, f"change.{name}", got.change[name], change, allowed.change, of)


def _entering(slot: str, gradient: np.ndarray, kept: Weights) -> Weights:
    """What a moment is made of, by the words for it."""
    g = np.asarray(gradient, np.float64)
    what, entering = ("the gradient's square", g**2) if slot.endswith("_sq") else ("the gradient", g)
    of = {what: entering, "its value before": kept.get(slot, np.zeros(()))}
    if of["its value before"].shape == g.shape:
        of[f"(its value before - {what})"] = kept[slot] - entering
    return of


def _judged(
    step: int, tensor: str, got: np.ndarray, want: np.ndarray, allowed: float, of: Callable[[], Weights]
) -> Compared:
    if got.shape != want.shape:
        return Compared(step, tensor, np.inf, allowed, resemblance(got, want))
    judged = Compared(step, tensor, relative(got, want), allowed)
    return judged._replace(looks=resemblance(got, want) or multiple(got, want, of())) if judged.parts else judged


def _wide(weights: Weights) -> Weights:
    return {name: np.asarray(w, np.float64) for name, w in weights.items()}


@dataclass
class Flags:
    """Replay one trainer's gradients through the other's optimiser, and say where they part first."""

    recipe: str | None = None
    """whose optimiser; at reduced size"""
    steps: int | None = None
    """how many; by default 50, or all of a recording"""
    dtype: Literal["float64", "float32"] | None = None
    """of weights and sums; by default float64"""
    by: Literal["torch", "jax"] | None = None
    """which trainer is recorded; by default torch"""
    out: Path | None = None
    """a new folder to keep the recording in"""
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """a folder that holds a recording, to be replayed; it says its recipe, dtype and trainer itself"""


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `Flags`."""
    flags = parse(Flags, sys.argv[1:] if argv is None else argv, PROG)
    if flags.from_:
        for name in ("recipe", "dtype", "by", "out"):
            if (given := getattr(flags, name)) is not None:
                raise BadInput(f"--{name} {given} with --from {flags.from_}, which says it itself: leave --{name} out")
        recording = read(flags.from_)
        name, dtype, by, most = recording.recipe, recording.dtype, recording.by, len(recording.files)
    elif flags.recipe is None:
        raise BadInput("--recipe is missing: name one, as in --recipe tiny, or a recording with --from")
    else:
        recording = None
        name, dtype, by = named(flags.recipe).name, flags.dtype or "float64", flags.by or "torch"
        most = reduced(name).schedule.steps
    if dtype == "float32" and reduced(name).optimizer.kind == "soap":
        raise BadInput(f"--dtype float32 with {name}: there rounding orders SOAP's eigenvalues; give --dtype float64")
    steps = (most if recording else min(most, 50)) if flags.steps is None else flags.steps
    if not 1 <= steps <= most:
        raise BadInput(f"--steps {steps}: give 1 to {most}, as many as there are")
    if flags.out:
        new_folder(flags.out)
    jax.config.update("jax_enable_x64", True)
    torch.set_num_threads(1)
    both = pairs.pair(name, dtype, micro_batch=16)
    start = recording.start if recording else pairs.weights(name, dtype)
    recorded = recording_updates(recording, steps) if recording else record(both, start, steps, by)
    if flags.out:
        recorded = keep(flags.out, name, dtype, by, start, recorded)
    outcome = replay(both, start, recorded, by)
    print(outcome)
    sys.exit(0 if outcome.equal else APART)


if __name__ == "__main__":
    main()
