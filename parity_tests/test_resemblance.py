"""The words for a difference: each likeness is recognised, and nothing is seen where there is none."""

import math

import numpy as np
import pytest

from parity_tests.resemblance import multiple, resemblance

RNG = np.random.default_rng(0)
W = RNG.standard_normal((12, 12))
TALL = RNG.standard_normal((12, 5))
VECTOR = RNG.standard_normal(12)
SIGNS = np.where(np.arange(12) < 4, -1, 1)
ORDER = np.random.default_rng(3).permutation(12)


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (2, "a factor 2"),
        (1 / 2, "a factor 1/2"),
        (math.sqrt(2), "a factor sqrt(2)"),
        (math.sqrt(3), "a factor sqrt(3)"),
        (1 / math.sqrt(3), "a factor 1/sqrt(3)"),
        (1 / 8, "a factor 1/8"),
        (8, "a factor 8"),
        (-1, "the sign"),
        (-2, "the sign and a factor 2"),
        (1.2345, "a factor 1.2345"),
        (1.001, "a factor 1.001"),
    ],
)
def test_constant_factor_is_recognised(factor, words):
    assert resemblance(factor * W, W) == words


LIKENESSES = {
    "transpose": (W.T, W, "a transpose"),
    "transpose of another shape": (TALL.T, TALL, "a transpose"),
    "another shape": (TALL[:3], TALL, "shape (3, 5) for (12, 5)"),
    "zero": (0 * W, W, "zero"),
    "not zero": (W, 0 * W, "something where zero should be"),
    "nan": (W * np.nan, W, "NaN or infinity"),
    "offset": (W + 0.25, W, "0.25 too much everywhere"),
    "thirds": (np.concatenate([TALL[4:8], TALL[:4], TALL[8:]]), TALL, "thirds permuted, k, q, v"),
    "rows": (TALL[ORDER], TALL, "a permutation of its rows"),
    "columns": (W[:, ORDER], W, "a permutation of its columns"),
    "numbers": (VECTOR[ORDER], VECTOR, "a permutation of its numbers"),
    "next row": (np.roll(TALL, 1, axis=0), TALL, "rows moved on by one"),
    "row before, another one entering": (np.concatenate([W[1:], W[:1] * 3]), W, "rows moved back by one"),
    "next number": (np.roll(VECTOR, 1), VECTOR, "numbers moved on by one"),
    "signs of rows": (TALL * SIGNS[:, None], TALL, "the sign of 4 of 12 rows"),
    "signs of columns": (W * SIGNS, W, "the sign of 4 of 12 columns"),
}


@pytest.mark.parametrize(("got", "want", "words"), LIKENESSES.values(), ids=LIKENESSES)
def test_likeness_is_recognised(got, want, words):
    assert resemblance(got, want) == words


@pytest.mark.parametrize(("got", "want", "words"), LIKENESSES.values(), ids=LIKENESSES)
def test_likeness_is_recognised_in_float32(got, want, words):
    assert resemblance(got.astype(np.float32), want.astype(np.float32)) == words


@pytest.mark.parametrize("shape", [(), (1,), (2,), (1, 4), (4, 1), (2, 2), (3, 3), (300, 64), (3000,), (2, 3, 4)])
def test_nothing_is_seen_in_unrelated_numbers(shape):
    want = RNG.standard_normal(shape)
    got = RNG.standard_normal(shape)
    expected = want.size == 1  # any number is a factor of any other
    assert (resemblance(got, want) is not None) == expected


def test_nothing_is_seen_where_there_is_no_difference():
    assert resemblance(W, W.copy()) is None


def test_rounding_is_no_factor():
    assert resemblance(W * (1 + 1e-7 * RNG.standard_normal(W.shape)), W) is None


def test_factor_that_only_some_numbers_have_is_none():
    assert resemblance(np.concatenate([2 * W[:6], W[6:]]), W) is None


def test_multiple_of_another_array_is_recognised():
    assert multiple(W - 0.05 * W.T, W, {"rows": W * 2 + 1, "its turn": W.T}) == "-0.05 times its turn too much"


def test_unrelated_arrays_explain_no_difference():
    assert multiple(W - 0.05 * W.T, W, {"another": RNG.standard_normal(W.shape), "shape": TALL}) is None
