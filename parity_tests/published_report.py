"""Rung 14's table: a row a comparison, and what its figure means."""

from collections.abc import Iterable
from typing import NamedTuple

DIFFERENT = 1
"""How the program ends where something differs and nothing states why."""


class Row(NamedTuple):
    """A comparison. `because` states why more than `allowed` is expected, and `at_most` how much of it."""

    rung: str
    what: str
    measured: float
    allowed: float
    because: str = ""
    at_most: float = 0.0

    @property
    def verdict(self) -> str:
        """NaN differs from everything."""
        if self.measured <= self.allowed:
            return "equal"
        if self.because and self.measured <= self.at_most:
            return f"expected difference: {self.because}"
        return "DIFFERS"


def report(rows: Iterable[Row]) -> int:
    """Print a table, a line when it is known; how the program ends."""
    differing = 0
    print(f"{'rung':<5} {'what':<84} {'measured':>9} {'allowed':>8}  verdict")
    for row in rows:
        differing += row.verdict == "DIFFERS"
        print(f"{row.rung:<5} {row.what:<84} {row.measured:>9.2g} {row.allowed:>8.1g}  {row.verdict}", flush=True)
    print(f"{differing or 'no'} unexpected difference{'s' * (differing > 1)}")
    return DIFFERENT if differing else 0
