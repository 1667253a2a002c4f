"""What the difference of two arrays looks like, where it is simple: a name for it saves a porter an afternoon."""

import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

_CLOSE = 1e-3
"""What an explanation may leave over, of the array's norm; of the difference's too, or 1.0000 would explain it all."""

_CLOSE_SORTED = 1e-6
"""The same of sorted numbers: any two large samples of one distribution are much alike once they are sorted."""

_ROOTS = {math.sqrt(n): f"sqrt({n})" for n in (2, 3)}
_FACTORS = (
    {float(n): str(n) for n in (2, 3, 4, 8, 16)} | {1 / n: f"1/{n}" for n in (2, 3, 4, 8, 16)} | _ROOTS
    | {1 / root: f"1/{name}" for root, name in _ROOTS.items()}
)  # fmt: skip


def resemblance(got: ArrayLike, want: ArrayLike) -> str | None:
    """A few words for what `got` is of `want`: "a factor 2", "a transpose"; None where they are equal or nothing fits.

    Arrays of any shape; their rows are what the first axis counts, their columns what the last does.
    """
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape:
        turned = want.ndim == 2 and got.shape == want.T.shape and np.linalg.norm(got - want.T) <= _CLOSE * _size(want)
        return "a transpose" if turned else f"shape {got.shape} for {want.shape}"
    if not np.isfinite(got).all():
        return "NaN or infinity" if np.isfinite(want).all() else None
    if not np.isfinite(want).all() or np.array_equal(got, want):
        return None
    if not got.any():
        return "zero"
    if not want.any():
        return "something where zero should be"
    return next((words for words, guess, close in _guesses(got, want) if _explains(guess, got, want, close)), None)


def multiple(got: ArrayLike, want: ArrayLike, of: Mapping[str, ArrayLike]) -> str | None:
    """How many times one of the arrays of `of` comes on top of `want`: "-0.05 times its value before too much"."""
    apart = np.asarray(got, np.float64) - np.asarray(want, np.float64)
    if not np.isfinite(apart).all() or not apart.any():
        return None
    for name, value in of.items():
        array = np.asarray(value, np.float64)
        if array.shape == apart.shape and array.any():
            times = float(np.vdot(array, apart) / np.vdot(array, array))
            if np.linalg.norm(apart - times * array) <= _CLOSE * np.linalg.norm(apart):
                return f"{times:.4g} times {name} too much"
    return None


def _size(array: NDArray) -> float:
    return float(np.linalg.norm(array))


def _explains(guess: NDArray, got: NDArray, want: NDArray, close: float) -> bool:
    return _size(got - guess) <= close * min(_size(got), 10 * _size(got - want))


def _guesses(got: NDArray, want: NDArray) -> Iterator[tuple[str, NDArray, float]]:
    """(words, what `got` would be, how closely), the simplest first."""
    factor = float(np.vdot(want, got) / np.vdot(want, want))
    yield _factor(factor), factor * want, _CLOSE
    offset = float(np.mean(got - want))
    yield f"{offset:.4g} too much everywhere", want + offset, _CLOSE
    if want.ndim == 2 and want.shape[0] == want.shape[1]:
        yield "a transpose", want.T, _CLOSE
    if want.ndim and len(want) % 3 == 0:
        parts = np.split(want, 3)
        for order in list(itertools.permutations(range(3)))[1:]:
            swapped = np.concatenate([parts[i] for i in order])
            yield f"thirds permuted, {'qkv'[order[0]]}, {'qkv'[order[1]]}, {'qkv'[order[2]]}", swapped, _CLOSE
    if want.ndim == 0:
        return
    for axis, line in [(0, "rows"), (-1, "columns")][: max(1, min(want.ndim, 2))]:
        yield from _of_lines(
            np.moveaxis(got, axis, 0), np.moveaxis(want, axis, 0), axis, line if want.ndim > 1 else "numbers"
        )


def _of_lines(got: NDArray, want: NDArray, axis: int, line: str) -> Iterator[tuple[str, NDArray, float]]:
    """The guesses about rows, or with axis -1 columns, which lie along the first axis here."""
    back = lambda array: np.moveaxis(array, 0, axis)  # noqa: E731
    if len(want) > 3:  # one is given away
        for by, way in ((1, "on"), (-1, "back")):
            shifted = np.roll(want, by, axis=0)
            edge = 0 if by == 1 else -1
            shifted[edge] = got[edge]  # whatever came in at the end
            yield f"{line} moved {way} by one", back(shifted), _CLOSE
    flat_got, flat = got.reshape(len(got), -1), want.reshape(len(want), -1)
    if flat.shape[1] > 1:
        turned = np.sum(flat_got * flat, axis=1) < 0
        signs = np.where(turned, -1.0, 1.0).reshape(-1, *[1] * (want.ndim - 1))
        yield f"the sign of {turned.sum()} of {len(want)} {line}", back(want * signs), _CLOSE
    look = np.random.default_rng(0).standard_normal(flat.shape[1])
    permuted = np.empty_like(want)
    permuted[np.argsort(flat_got @ look)] = want[np.argsort(flat @ look)]
    yield f"a permutation of its {line}", back(permuted), _CLOSE if flat.shape[1] > 1 else _CLOSE_SORTED


def _factor(factor: float) -> str:
    size = abs(factor)
    name = next((name for known, name in _FACTORS.items() if math.isclose(size, known, rel_tol=_CLOSE)), f"{size:.5g}")
    if factor < 0:
        return "the sign" if math.isclose(size, 1, rel_tol=_CLOSE) else f"the sign and a factor {name}"
    return f"a factor {name}"
