"""Rung 5: raw gradients of every tensor. Adam and Muon hide a wrong scale; nothing here does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxgpt.model import GPT
from jaxgpt.recipes import reduced
from parity_tests.by_dtype import by_recipe_and_dtype
from parity_tests.pair import (
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


def gradients(name, dtype, perturbed):
    both, start = pair(name, dtype), weights(name, dtype, perturbed)
    batch = tokens(both.recipe)
    _, got = both.jax.gradients(jax_state(both, start).params, *jax_batch(both, *batch))
    _, want = both.torch.gradients(torch_state(both, start), *torch_batch(*batch))
    return jax_tree(both, got), torch_tree(want)


@by_recipe_and_dtype(MODELS)
@pytest.mark.parametrize("perturbed", [False, True], ids=["initial", "perturbed"])
def test_raw_gradients_of_every_tensor_are_the_same(name, dtype, perturbed):
    got, want = gradients(name, dtype, perturbed)
    assert_alike(got, want, GRADIENTS[dtype], "rung 5, gradients")


@pytest.mark.parametrize("name", MODELS)
def test_no_gradient_is_zero_at_perturbed_weights(name):
    for each in gradients(name, "float64", True):
        assert all(np.abs(g).max() > 0 for g in each.values())


def test_a_bfloat16_embeddings_gradient_is_summed_in_float32():
    """Of a token that stands 512 times, each with a gradient of one: in bfloat16, 256 + 1 is 256."""
    config, tokens = reduced("muon-2024-10-12").model, jnp.zeros((16, 32), jnp.int32)
    make = lambda: GPT(config, rngs=nnx.Rngs(0), embedding="bfloat16")  # noqa: E731
    graph, shapes = nnx.split(nnx.eval_shape(make))
    weights = jax.tree.map(lambda w: jnp.ones(w.shape, w.dtype), shapes)
    got = jax.grad(lambda weights: jnp.sum(nnx.merge(graph, weights).embed(tokens), dtype="float32"))(weights)
    assert got["wte"][...].dtype == jnp.bfloat16
    assert got["wte"][0, 0] == tokens.size
