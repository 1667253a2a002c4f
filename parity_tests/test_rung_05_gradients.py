"""Rung 5: raw gradients of every tensor. Adam and Muon hide a wrong scale; nothing here does."""

import numpy as np
import pytest

from parity_tests.pair import (
    DTYPES,
    MODELS,
    assert_alike,
    jax_batch,
    jax_state,
    jax_tree,
    pair,
    tokens,
    torch_batch,
    torch_state,
    torch_tree,
    weights,
)
from parity_tests.tolerances import GRADIENTS

by_recipe_and_dtype = pytest.mark.parametrize(("name", "dtype"), [(n, d) for n in MODELS for d in DTYPES])


def gradients(name, dtype, perturbed):
    both, start = pair(name, dtype), weights(name, dtype, perturbed)
    batch = tokens(both.recipe)
    _, got = both.jax.gradients(jax_state(both, start).params, *jax_batch(both, *batch))
    _, want = both.torch.gradients(torch_state(both, start), *torch_batch(*batch))
    return jax_tree(both, got), torch_tree(want)


@by_recipe_and_dtype
@pytest.mark.parametrize("perturbed", [False, True], ids=["initial", "perturbed"])
def test_raw_gradients_of_every_tensor_are_the_same(name, dtype, perturbed):
    got, want = gradients(name, dtype, perturbed)
    assert_alike(got, want, GRADIENTS[dtype], "rung 5, gradients")


@pytest.mark.parametrize("name", MODELS)
def test_no_gradient_is_zero_at_perturbed_weights(name):
    for each in gradients(name, "float64", True):
        assert all(np.abs(g).max() > 0 for g in each.values())
