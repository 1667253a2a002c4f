"""The one assertion that all rungs share: what it lets pass, and what it keeps."""

import math

import pytest

from parity_tests.measured import Measurement, assert_within, taken


@pytest.mark.parametrize("apart", [1.1, math.inf, math.nan])
def test_more_than_is_allowed_fails_with_its_name_and_both_figures(apart):
    with pytest.raises(AssertionError) as failed:
        assert_within(apart, 1.0, "rung 5, wte")
    assert str(failed.value).startswith(f"rung 5, wte is {apart:.2e} apart, allowed 1e+00")
    taken()


def test_all_that_is_allowed_passes_and_the_worst_of_a_name_is_kept():
    taken()
    for apart in (0.5, 1.0, 0.25):
        assert_within(apart, 1.0, "logits")
    assert taken() == [Measurement("logits", 1.0, 1.0)]
    assert taken() == []
