"""What a test measured beside what it allows: asserted where it is measured, and kept for the certificate."""

from typing import NamedTuple


class Measurement(NamedTuple):
    """One comparison. `oracle` is the reference framework's own distance from float64, where the test knows it."""

    what: str
    apart: float
    allowed: float
    oracle: float | None = None


_of_this_test: list[Measurement] = []


def assert_within(apart: float, allowed: float, what: str = "it", oracle: float | None = None) -> None:
    """`apart` is at most `allowed`; NaN is not. Both are kept under the name `what`."""
    _of_this_test.append(Measurement(what, float(apart), float(allowed), oracle))
    assert apart <= allowed, f"{what} is {apart:.2e} apart, allowed {allowed:.0e}"


def taken() -> list[Measurement]:
    """What has been measured since the last call; the largest share of its allowance for each name."""
    worst: dict[str, Measurement] = {}
    for each in _of_this_test:
        share = each.apart / each.allowed if each.allowed else float(each.apart > 0)
        before = worst.get(each.what)
        if before is None or not share <= (before.apart / before.allowed if before.allowed else 0):
            worst[each.what] = each
    _of_this_test.clear()
    return list(worst.values())
