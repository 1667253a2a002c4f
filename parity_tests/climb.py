"""The ladder of two programs that somebody else wrote: which rung and which tensor part first."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from jaxgpt.errors import BadInput
from parity_tests import name_map
from parity_tests.foreign import Arrays, Batch, Program, blame, run_as
from parity_tests.name_map import Place, carried
from parity_tests.resemblance import multiple, resemblance
from parity_tests.suspects import SUSPECTS, multiple_of_count, other_dtype, rounding
from parity_tests.tolerances import FOREIGN_CHANGE, GRADIENTS, LOGITS, LOSS, REPLAY_MOMENTS, TRAINING_LOSS

DType = Literal["float64", "float32"]

_ROW = "{:<4} {:<36} {:>8} {:>8}  {:<7}  {}"
HEAD = _ROW.format("rung", "what", "apart", "allowed", "", "worst, or first that differs")

_FLOOR = 1e-2
"""A gradient that is zero but for rounding, as that of a key's bias, is judged against this share of all of them."""


class Ladder(NamedTuple):
    """Two programs, and what is theirs in common.

    `names` maps each of the port's weights to its place in the reference: see `parity_tests.name_map`. `batch(step)`
    gives that step's arrays, inputs first, as both losses take them: whole numbers, or floats that take the climb's
    dtype. `moments` maps what the port's optimiser keeps to what the reference's calls it: {"mu": "exp_avg"}.
    """

    reference: Program
    port: Program
    names: Mapping[str, Place]
    batch: Callable[[int], Batch]
    moments: Mapping[str, str] = {}


class Compared(NamedTuple):
    """One tensor on both sides, and what the difference looks like where they part."""

    tensor: str
    apart: float
    allowed: float
    looks: str | None = None

    @property
    def parts(self) -> bool:
        """NaN parts from everything."""
        return not self.apart <= self.allowed


class Rung(NamedTuple):
    """What was compared on a rung, in the order in which a difference would spread."""

    number: str
    what: str
    dtype: str
    compared: list[Compared]

    @property
    def found(self) -> Compared:
        """The first tensor that parts, or else the worst."""
        share = lambda each: each.apart / each.allowed if each.allowed else each.apart  # noqa: E731
        return next((each for each in self.compared if each.parts), None) or max(self.compared, key=share)

    @property
    def green(self) -> bool:
        return not self.found.parts

    def __str__(self) -> str:
        tensor, apart, allowed, _ = self.found
        verdict = "equal" if self.green else "DIFFERS"
        return _ROW.format(self.number, self.what, f"{apart:.1e}", f"{allowed:.1e}", verdict, tensor)

    def explained(self) -> str:
        """Of a red rung: three lines that say where, what it looks like and what to look at."""
        parted = sum(each.parts for each in self.compared)
        looks = self.found.looks or "nothing simple"
        return (
            f"rung {self.number} in {self.dtype}: {self.found.tensor} is the first of {parted} that differ, "
            f"of {len(self.compared)} compared\nlooks like: {looks}\nlook at: {SUSPECTS[self.number]}"
        )


class Outcome(NamedTuple):
    """The rungs that were climbed, the red one last."""

    rungs: list[Rung]

    @property
    def green(self) -> bool:
        return all(rung.green for rung in self.rungs)

    def __str__(self) -> str:
        lines = [str(rung) for rung in self.rungs]
        return "\n".join(lines if self.green else [*lines, self.rungs[-1].explained()])


def climb(ladder: Ladder, steps: int = 20, dtype: DType = "float64", allow_factor: float = 1.0) -> Outcome:
    """Climb as far as the two agree. In a test: `outcome = climb(ladder); assert outcome.green, str(outcome)`.

    Allowances are those of `parity_tests.tolerances` times `allow_factor`. Raises `BadInput` in the words of one line.
    """
    return Outcome(list(rungs(ladder, steps, dtype, allow_factor)))


def rungs(ladder: Ladder, steps: int = 20, dtype: DType = "float64", allow_factor: float = 1.0) -> Iterator[Rung]:
    """The same, a rung when it is climbed; none after a red one."""
    for whose, program in (("reference", ladder.reference), ("port", ladder.port)):
        for field in ("forward", "loss"):
            if not callable(getattr(program, field)):
                raise BadInput(f"the {whose}'s {field} is {getattr(program, field)!r}: give a function")
    if (ladder.reference.update is None) != (ladder.port.update is None):
        raise BadInput("one program has an update and the other none: give both, or neither to end with the gradients")
    with _exactly(dtype), blame("weights"):
        pair = _Pair(ladder, dtype, allow_factor, steps)
    for number, what, compare in _rungs_of(ladder, steps):
        with _exactly(dtype), blame(f"rung {number}, {what}"):
            rung = Rung(number, what, dtype, compare(pair))
        yield rung
        if not rung.green:
            return


@contextmanager
def _exactly(dtype: str) -> Iterator[None]:
    """float32 without x64, as a port's own runs are: there a NumPy number doesn't widen what it is multiplied with."""
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        yield


class _Pair:
    """Both programs in one dtype, and their weights by the port's names: initial, and moved off their start.

    Zeros and ones hide what they are multiplied with; moved, no weight is either.
    """

    def __init__(self, ladder: Ladder, dtype: str, factor: float, steps: int):
        self.ladder, self.dtype, self.factor, self.steps = ladder, dtype, factor, steps
        self.reference, self.port = run_as(ladder.reference, dtype), run_as(ladder.port, dtype)
        self.initial = self.reference.arrays()
        name_map.check(ladder.names, self.initial, self.port.arrays())
        rng = np.random.default_rng(1)
        self.moved = {n: w + 0.05 * rng.standard_normal(w.shape).astype(dtype) for n, w in self.initial.items()}
        self.losses: list[float] = []
        order = {name: i for i, name in enumerate(self.initial)}
        first = lambda name: order[name_map.tensors(ladder.names[name])[0]]  # noqa: E731
        self.in_order = sorted(ladder.names, key=first)

    def start(self, weights: Arrays) -> None:
        """Both from these weights of the reference, with fresh optimisers."""
        self.reference.take(weights)
        self.port.take(self.here(weights))

    def here(self, of_reference: Arrays) -> Arrays:
        """In the port's names and layout, in the reference's order."""
        moved = carried(self.ladder.names, of_reference)
        return {name: moved[name] for name in self.in_order}

    def compared(
        self, name: str, got: NDArray, want: NDArray, allowed: float, of: Arrays, floor: float = 0
    ) -> Compared:
        """`floor` is the least norm against which the difference is judged; `of` may explain it."""
        if got.shape != want.shape:
            return Compared(name, np.inf, allowed, resemblance(got, want))
        apart = _norm(got - want) / (max(_norm(want), floor) or 1.0)
        judged = Compared(name, apart, allowed)
        if not judged.parts:
            return judged
        looks = other_dtype(got, want, self.dtype) or resemblance(got, want) or multiple(got, want, of)
        return judged._replace(looks=looks or rounding(apart, self.dtype))


def _rungs_of(ladder: Ladder, steps: int) -> list[tuple[str, str, Callable[[_Pair], list[Compared]]]]:
    climbed = [
        ("3", "activations and logits", _activations),
        ("4", "loss", _loss),
        ("5", "gradients at initial weights", lambda pair: _gradients(pair, pair.initial)),
        ("5", "gradients at moved weights", lambda pair: _gradients(pair, pair.moved)),
    ]
    if ladder.port.update is not None:
        climbed += [
            ("6", "one update, same gradients", _one_update),
            ("7", f"{steps} updates, reference's gradients", _replay),
            ("8", f"{steps} steps of training", _training),
        ]
    return climbed


def _activations(pair: _Pair) -> list[Compared]:
    """And where they part: whether they would agree with a square weight turned, which no check of shapes can see."""
    pair.start(pair.moved)
    batch, allowed = pair.ladder.batch(0), LOGITS[pair.dtype] * pair.factor
    got, want = pair.port.forward(batch), pair.reference.forward(batch)
    if unlike := sorted(got.keys() ^ want.keys()):
        raise BadInput(f"only one forward gives {', '.join(unlike)}: give the same names, or the logits alone, in both")
    compared = [pair.compared(name, got[name], want[name], allowed, {}) for name in want]
    red = next((i for i, each in enumerate(compared) if each.parts), None)
    if red is not None and (turned := _turned(pair, batch, compared[red].tensor, want)):
        compared[red] = compared[red]._replace(looks=f"{turned} transposed: it agrees once that is turned")
    return compared


def _turned(pair: _Pair, batch: Batch, tensor: str, want: Arrays) -> str | None:
    weights = pair.here(pair.moved)
    for name, weight in weights.items():
        if weight.ndim == 2 and weight.shape[0] == weight.shape[1]:
            pair.port.take(weights | {name: weight.T})
            if not pair.compared(tensor, pair.port.forward(batch)[tensor], want[tensor], LOGITS[pair.dtype], {}).parts:
                return name
    return None


def _loss(pair: _Pair) -> list[Compared]:
    pair.start(pair.moved)
    batch = pair.ladder.batch(0)
    got, want = pair.port.loss(batch), pair.reference.loss(batch)
    judged = Compared("loss", abs(got - want) / (abs(want) or 1.0), LOSS[pair.dtype] * pair.factor)
    return [judged._replace(looks=multiple_of_count(got, want, np.shape(batch[-1]))) if judged.parts else judged]


def _gradients(pair: _Pair, weights: Arrays) -> list[Compared]:
    """From the output back, as a wrong gradient spreads."""
    pair.start(weights)
    batch, allowed = pair.ladder.batch(0), GRADIENTS[pair.dtype] * pair.factor
    got, want = pair.port.gradients(batch)[1], pair.here(pair.reference.gradients(batch)[1])
    floor = _FLOOR * np.sqrt(sum(_norm(grad) ** 2 for grad in want.values()))
    of = pair.here(weights)
    names = reversed(want)
    return [pair.compared(n, got[n], want[n], allowed, {"the weight": of[n]}, floor) for n in names]


def _one_update(pair: _Pair) -> list[Compared]:
    pair.start(pair.moved)
    return _update(pair, pair.reference.gradients(pair.ladder.batch(0))[1], {}, "")


def _replay(pair: _Pair) -> list[Compared]:
    pair.start(pair.initial)
    pair.losses.clear()
    compared: list[Compared] = []
    kept: Arrays = {}
    for step in range(pair.steps):
        loss, grads = pair.reference.gradients(pair.ladder.batch(step))
        pair.losses.append(loss)
        compared += _update(pair, grads, kept, f"step {step}, ")
        if any(each.parts for each in compared):
            break
    return compared


def _update(pair: _Pair, grads: Arrays, kept: Arrays, when: str) -> list[Compared]:
    """The same gradients into both; what they keep, and by how much each weight changes. `kept` is renewed."""
    before = pair.here(pair.reference.arrays()), pair.port.arrays()
    entering = pair.here(grads)
    pair.reference.update(grads)
    pair.port.update(entering)
    compared = _moments(pair, entering, before[1], kept, when)
    after = pair.here(pair.reference.arrays()), pair.port.arrays()
    for name, old in before[0].items():
        want, got = after[0][name] - old, after[1][name] - before[1][name]
        own_digits = 4 * np.finfo(pair.dtype).eps * _norm(old) / (_norm(want) or 1.0)
        allowed = FOREIGN_CHANGE[pair.dtype] * pair.factor + own_digits
        compared.append(pair.compared(f"{when}change of {name}", got, want, allowed, {"the weight": old}))
    return compared


def _moments(pair: _Pair, grads: Arrays, weights: Arrays, kept: Arrays, when: str) -> list[Compared]:
    compared = []
    for ours, theirs in pair.ladder.moments.items():
        got, there = pair.port.moments(ours), pair.reference.moments(theirs)
        for whose, slot, found in (("port", ours, got), ("reference", theirs, there)):
            if not found:
                raise BadInput(f"the {whose}'s optimiser keeps no {slot!r}: mend `moments`")
        for name in pair.in_order:
            if name in got and set(name_map.tensors(pair.ladder.names[name])) <= there.keys():
                want = carried({name: pair.ladder.names[name]}, there)[name]
                g, slot = np.asarray(grads[name], np.float64), f"{ours} of {name}"
                of = {"the gradient": g, "the gradient's square": g**2, "the weight": weights[name]}
                of |= {"its value before": kept[slot]} if slot in kept else {}
                allowed = REPLAY_MOMENTS[pair.dtype] * pair.factor
                compared.append(pair.compared(f"{when}{slot}", got[name], want, allowed, of))
                kept[slot] = want
    return compared


def _training(pair: _Pair) -> list[Compared]:
    """Each with its own gradients; the reference's losses are those of the rung before."""
    pair.start(pair.initial)
    compared = []
    for step, want in enumerate(pair.losses):
        got, grads = pair.port.gradients(pair.ladder.batch(step))
        pair.port.update(grads)
        compared.append(Compared(f"loss of step {step}", abs(got - want), TRAINING_LOSS[pair.dtype] * pair.factor))
    return compared


def _norm(array: NDArray) -> float:
    return float(np.linalg.norm(np.asarray(array, np.float64)))
