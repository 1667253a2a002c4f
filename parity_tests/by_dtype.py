"""Which recipes are compared in which dtype where nobody asks for `--full`: all in float64, a few in float32."""

from collections.abc import Iterable

import pytest

from parity_tests.pair import DTYPES

FLOAT32 = {
    "muon-2024-10-12",
    "llmc-2024-10-13",
    "opt-shampoo-2024-10-29",
    "opt-soap-2024-10-29",
    "simple-2026-06-11",
}
"""A recipe of each optimiser and each kind of model. In float32 the others are slow tests; in float64 none is: an error
of the program shows there with eight digits to spare, and float32 adds its rounding alone."""


def by_recipe_and_dtype(names: Iterable[str]) -> pytest.MarkDecorator:
    """Give a test each recipe's `name` and each `dtype`."""
    slow = {(name, "float32"): pytest.mark.slow for name in names if name not in FLOAT32}
    cases = [(name, dtype) for name in names for dtype in DTYPES]
    return pytest.mark.parametrize(("name", "dtype"), [pytest.param(*case, marks=slow.get(case, ())) for case in cases])
