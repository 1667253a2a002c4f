"""What a test measured beside what it allows: asserted where it is measured, and kept for the certificate."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Measurement(NamedTuple):
    """One comparison. `oracle` is the reference framework's own distance from float64, where the test knows it."""

    what: str
    apart: float
    allowed: float
    oracle: float | None = None

    @property
    def share(self) -> float:
        """The part of the allowance that was used: above 1 it was exceeded, infinite where there is no telling by how
        much (NaN, or nothing was allowed)."""
        if self.allowed > 0 and math.isfinite(self.apart):
            return self.apart / self.allowed
        return 0.0 if self.apart <= self.allowed else math.inf


class Curve(NamedTuple):
    """One quantity over the steps of a run, in each framework."""

    name: str
    values: dict[str, list[float]]


_of_this_test: list[Measurement] = []
_curves_of_this_test: list[tuple[str, Mapping[str, Sequence[float]]]] = []


def assert_within(apart: float, allowed: float, what: str = "it", oracle: float | None = None) -> None:
    """`apart` is at most `allowed`; NaN is not. Both are kept under the name `what`."""
    kept = Measurement(what, float(apart), float(allowed), None if oracle is None else float(oracle))
    _of_this_test.append(kept)
    assert apart <= allowed, f"{what} is {apart:.2e} apart, allowed {allowed:.0e}"


def curve(name: str, values_by_framework: Mapping[str, Sequence[float]]) -> None:
    """Keep the values at each step, from the first one, under the framework they are from.

    They are read when the test has ended: lists that are still growing are kept up to where it failed.
    """
    _curves_of_this_test.append((name, values_by_framework))


def taken() -> list[Measurement]:
    """What has been measured since the last call; the largest share of its allowance for each name."""
    worst: dict[str, Measurement] = {}
    for each in _of_this_test:
        before = worst.get(each.what)
        if before is None or each.share > before.share:
            worst[each.what] = each
    _of_this_test.clear()
    return list(worst.values())


def curves_taken() -> list[Curve]:
    """The curves that have been kept since the last call."""
    kept = [
        Curve(name, {framework: [float(v) for v in values] for framework, values in by_framework.items()})
        for name, by_framework in _curves_of_this_test
    ]
    _curves_of_this_test.clear()
    return kept
