"""Are two trainers' final losses the same? Paired runs, one a seed, judged against a margin fixed beforehand.

The paired two one-sided tests (TOST; Schuirmann 1987, J. Pharmacokinet. Biopharm. 15:657) say whether the mean
difference lies within the margin. That no difference was found is no proof of one: `underpowered` is a verdict.
Imports neither JAX nor PyTorch.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import gammainc, gammaincinv, ndtr, stdtr, stdtrit

from jaxgpt.curves import Run, Series, tokens_to
from jaxgpt.errors import BadInput

MARGIN = 0.003
"""Nats a token; about twice the scatter of one recipe's final loss over seeds (0.00134, simple-2026-06-11)."""

ALPHA = 0.05
"""Of each one-sided test, so of calling two trainers equivalent that are a margin apart; and of calling them
different where they aren't."""

POWER = 0.99
"""What a design should have: the chance of `equivalent` where there is no difference."""

RESAMPLES = 10_000
MOST_PAIRS = 1000
"""Where the search for a design of `POWER` ends."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)

Verdict = Literal["equivalent", "different", "underpowered"]


@dataclass(frozen=True)
class Equivalence:
    """Paired differences against a margin. Losses in nats a token."""

    pairs: int
    margin: float
    mean: float
    sd: float
    """Of the differences, n - 1 in the denominator; NaN for one pair. Of two independent runs, each of standard
    deviation s, it is s sqrt(2)."""
    interval_90: tuple[float, float]
    """Of the mean. Within the margin is what TOST shows at 5%."""
    interval_95: tuple[float, float]
    """Of the mean."""
    p: float
    """The larger of the two one-sided tests'."""

    @property
    def verdict(self) -> Verdict:
        """`equivalent` where both one-sided tests reject; else `different` where the 95% interval excludes 0; else
        `underpowered`: these pairs can't tell. A difference within the margin may be significant and equivalent."""
        if self.p < ALPHA:
            return "equivalent"
        low, high = self.interval_95
        return "different" if low > 0 or high < 0 else "underpowered"


def tost(differences: Sequence[float] | np.ndarray, margin: float = MARGIN) -> Equivalence:
    """Judge paired differences of final losses, one a seed and at least one, against `margin` > 0, in their unit."""
    d = np.asarray(differences, np.float64)
    n, mean = len(d), float(d.mean())
    if n == 1:
        nowhere = (-math.inf, math.inf)
        return Equivalence(1, margin, mean, math.nan, nowhere, nowhere, 1.0)
    sd = float(d.std(ddof=1))
    error = sd / math.sqrt(n)
    # no scatter at all is what deterministic runs have
    p = float(stdtr(n - 1, (abs(mean) - margin) / error)) if error else float(abs(mean) >= margin)
    half_90, half_95 = (float(stdtrit(n - 1, 1 - alpha)) * error for alpha in (ALPHA, ALPHA / 2))
    return Equivalence(n, margin, mean, sd, (mean - half_90, mean + half_90), (mean - half_95, mean + half_95), p)


def power(sd: float, pairs: int, margin: float = MARGIN, shift: float = 0.0) -> float:
    """The chance that TOST says `equivalent`, for normal differences of mean `shift` and standard deviation `sd`; 0 for
    one pair. At an sd measured from few pairs it is as uncertain as that.

    Exact but for the quadrature (2e-6): over the sample variance s^2, which is independent of the sample mean, of the
    chance that the mean lies within margin - t s / sqrt(n) (Phillips 1990, J. Pharmacokinet. Biopharm. 18:137).
    """
    if pairs < 2 or math.isnan(sd):
        return 0.0
    if sd == 0:
        return float(abs(shift) < margin)
    freedom, root = pairs - 1, math.sqrt(pairs)
    t = stdtrit(freedom, 1 - ALPHA)
    # Larger s never passes. Below it, s^2 (n-1) / sd^2 is chi-squared: integrate over its distribution's values.
    passing = gammainc(freedom / 2, (margin * root / t / sd) ** 2 * freedom / 2)
    s = sd * np.sqrt(gammaincinv(freedom / 2, passing * (_NODES + 1) / 2) * 2 / freedom)
    within = margin - t * s / root
    chance = ndtr((within - shift) * root / sd) - ndtr((-within - shift) * root / sd)
    return float(passing / 2 * (_WEIGHTS @ chance))


def pairs_needed(sd: float, margin: float = MARGIN) -> int | None:
    """The fewest pairs with `POWER` at that standard deviation of their differences; None beyond `MOST_PAIRS`, or of a
    standard deviation that is NaN."""
    designs = range(2, MOST_PAIRS + 1)
    at = bisect_left(designs, True, key=lambda n: power(sd, n, margin) >= POWER)  # power rises with pairs
    return designs[at] if at < len(designs) else None


@dataclass(frozen=True)
class TokensToTarget:
    """Tokens to a validation loss, of pairs. An infinite bound, or a ratio of 0, is one that the runs don't give."""

    target: float
    """Nats a token."""
    reached: tuple[int, int]
    """How many runs of either side got there."""
    ratio: tuple[float, float]
    """Mean of the other side by mean of the first; two equal numbers where all runs got there."""
    ratio_interval: tuple[float, float]
    difference: tuple[float, float]
    """The other side's mean minus the first's, in tokens."""
    difference_interval: tuple[float, float]


def tokens_to_target(target: float, pairs: Sequence[tuple[Series, Series]]) -> TokensToTarget:
    """A paired bootstrap of the tokens at which validation curves first are at `target`; 95% intervals.

    A run that never got there takes anything from its last validation's tokens up: the intervals hold all of that.
    Percentiles are moved outwards to allow for few pairs (Hesterberg 2015, Am. Stat. 69:371, "expanded percentile
    interval"). Where the most extreme of the n^n resamples lies within them, below 5 pairs, nothing is known.
    """
    n = len(pairs)
    bounds = np.array([[_tokens_bounds(target, curve) for curve in pair] for pair in pairs])  # (pair, side, bound)
    whole = bounds.mean(axis=0, keepdims=True)
    drawn = bounds[np.random.default_rng(0).integers(n, size=(RESAMPLES, n))].mean(axis=1)
    level = float(ndtr(stdtrit(n - 1, ALPHA / 2) * math.sqrt(n / (n - 1)))) if n > 1 else 0.0
    at = int(level * RESAMPLES) if level > float(n) ** -n else None
    ratio, ratio_interval = _bounds_at(0, _ratio(whole)), (0.0, math.inf)
    difference, difference_interval = _bounds_at(0, _difference(whole)), (-math.inf, math.inf)
    if at is not None:
        ratio_interval, difference_interval = _bounds_at(at, _ratio(drawn)), _bounds_at(at, _difference(drawn))
    reached = tuple(np.isfinite(bounds[:, :, 1]).sum(axis=0).tolist())
    return TokensToTarget(target, reached, ratio, ratio_interval, difference, difference_interval)


@dataclass(frozen=True, eq=False)
class Judgement:
    """Two sides' runs in pairs of equal seed, judged. Differences are the other side minus the first."""

    first: str
    other: str
    seeds: Sequence[int]
    loss: Equivalence
    """Of the final validation losses."""
    tokens: Sequence[TokensToTarget]


def judge(runs: Sequence[Run], margin: float = MARGIN, targets: Sequence[float] = ()) -> Judgement:
    """Pair runs of two trainers, or of two recipes of one, by the seeds they recorded, and judge them.

    Raises:
      BadInput: there aren't two sides, a seed is missing, twice there or without its like, runs of one recipe had
        other settings or shards, or runs aren't validated or end at different steps.
    """
    sides: dict[str, dict[int, Run]] = {}
    starts: dict[tuple[str, str], Run] = {}
    for run in runs:
        side = f"{run.trainer}, {run.recipe}"
        of_side = sides.setdefault(side, {})
        flags = run.config.get("flags")
        seed, file = (flags.get(name) if isinstance(flags, dict) else None for name in ("seed", "init_from"))
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise BadInput(f"{run.name}: config.json has no flags.seed from 0 to 2**32 to pair it by; write it there")
        if seed in of_side:
            raise BadInput(f"{of_side[seed].name} and {run.name} are both seed {seed} of one side; leave one out")
        of_side[seed] = run
        # data order has no randomness, so that seeds with the same weights are one seed
        if isinstance(file, str) and (like := starts.setdefault((side, file), run)) is not run:
            raise BadInput(f"{like.name} and {run.name} start from one --init-from; give each seed a file of its own")
    if len(sides) != 2:
        mend = "add the runs of the other side" if len(sides) < 2 else "leave the others out"
        raise BadInput(f"two sides (trainer, recipe) make an equivalence test, not {'; '.join(sides)}; {mend}")
    (first, a), (other, b) = sides.items()
    for lone, without in ((a.keys() - b.keys(), other), (b.keys() - a.keys(), first)):
        if lone:
            seeds = ", ".join(map(str, sorted(lone)))
            raise BadInput(f"no run of {without} with seed {seeds}; train it, or leave out the run of the other side")
    _check_alike(runs)
    pairs = [(a[seed].val, b[seed].val) for seed in sorted(a)]
    loss = tost([float(y.loss[-1] - x.loss[-1]) for x, y in pairs], margin)
    return Judgement(first, other, sorted(a), loss, [tokens_to_target(target, pairs) for target in targets])


def _tokens_bounds(target: float, curve: Series) -> tuple[float, float]:
    tokens = tokens_to(target, curve)
    return (float(curve.tokens[-1]), math.inf) if tokens is None else (tokens, tokens)


def _ratio(means: np.ndarray) -> np.ndarray:
    """(sample, side, bound) -> (sample, bound); where the first side needs no tokens the ratio may be anything."""
    other, first = means[:, 1], means[:, 0, ::-1]
    return np.divide(other, first, out=np.broadcast_to([0.0, np.inf], other.shape).copy(), where=first > 0)


def _difference(means: np.ndarray) -> np.ndarray:
    return means[:, 1] - means[:, 0, ::-1]


def _bounds_at(at: int, samples: np.ndarray) -> tuple[float, float]:
    """Of the lower bounds the one `at` from below, of the upper ones `at` from above."""
    low, high = np.sort(samples, axis=0).T
    return float(low[at]), float(high[-1 - at])


def _check_alike(runs: Sequence[Run]) -> None:
    """Validated at the same last step, and of one recipe with the same settings and shards."""
    of_recipe: dict[str, Run] = {}
    for run in runs:
        if not len(run.val):
            raise BadInput(f"{run.name}: no validation loss; train it with validations")
        end, wanted = (f"step {r.val.step[-1]} after {r.val.tokens[-1]} tokens" for r in (run, runs[0]))
        if end != wanted:
            raise BadInput(f"{run.name} was last validated at {end}, {runs[0].name} at {wanted}; let all end there")
        like = of_recipe.setdefault(run.recipe, run)
        ours, theirs = _settings(run), _settings(like)
        try:
            apart = [name for name in sorted(ours.keys() & theirs.keys()) if ours[name] != theirs[name]]
        except RecursionError:
            raise BadInput(f"{run.name}: its config.json is nested too deep to be ours; leave the run out") from None
        if apart:
            raise BadInput(f"{like.name} and {run.name} differ in {apart[0]}; leave out the runs that aren't meant")


def _settings(run: Run) -> dict[str, object]:
    """Dotted name -> value, of what changes a loss as far as the run recorded it. `data.micro_batch` doesn't."""
    found: dict[str, object] = {}
    recipe, shards = (run.config.get(key) for key in ("recipe", "shards"))
    for part in ("model", "optimizer", "schedule", "data"):
        fields = recipe.get(part) if isinstance(recipe, dict) else None
        if isinstance(fields, dict):
            found |= {f"{part}.{name}": fields[name] for name in fields if name.isidentifier()}
    for kind in ("train", "val"):
        files = shards.get(kind) if isinstance(shards, dict) else None
        if isinstance(files, list):
            found[f"shards.{kind}"] = [file.get("sha256") for file in files if isinstance(file, dict)]
    found.pop("data.micro_batch", None)
    return found
