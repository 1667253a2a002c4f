"""Rung 3: each layer's output and the logits. Each module alone: `test_rung_03_modules`."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jaxgpt.attention
import jaxgpt.loss
import jaxgpt.model
import torch_ref.attention
import torch_ref.model
from jaxgpt.recipes import RECIPES, precision, reduced
from parity_tests import modules
from parity_tests.by_dtype import by_recipe_and_dtype
from parity_tests.measured import assert_within
from parity_tests.pair import MODELS, assert_alike, relative, tokens, weights
from parity_tests.tolerances import HIDDEN, LOGITS


@functools.cache
def models(name, dtype):
    """The recipe's model in both frameworks with the same weights, off their initial values."""
    recipe = reduced(name)
    return modules.models(recipe, precision(recipe, dtype, attention="exact"), weights(name, dtype))


@by_recipe_and_dtype(MODELS)
def test_every_layers_output_is_the_same(name, dtype):
    in_jax, in_torch = models(name, dtype)
    inputs, _ = tokens(reduced(name))
    with torch.no_grad():
        want = in_torch.residuals(torch.tensor(inputs, dtype=torch.int64))
    names = ["embedding", *(f"block {i}" for i in range(len(want) - 2)), "final norm"]
    got = dict(zip(names, in_jax.residuals(jnp.asarray(inputs)), strict=True))
    assert_alike(got, dict(zip(names, want, strict=True)), HIDDEN[dtype], "rung 3, residual stream")


@by_recipe_and_dtype(MODELS)
def test_logits_are_the_same(name, dtype):
    in_jax, in_torch = models(name, dtype)
    inputs, _ = tokens(reduced(name))
    got, want = in_jax(jnp.asarray(inputs)), in_torch(torch.tensor(inputs, dtype=torch.int64))
    assert got.shape[-1] == reduced(name).model.vocab, "padding rows have logits too"
    assert_within(relative(got, want.detach()), LOGITS[dtype])


def test_a_linear_layer_multiplies_in_its_compute_dtype():
    layer = jaxgpt.model.Linear(8, 4, use_bias=False, dtype="bfloat16", param_dtype="float32", rngs=nnx.Rngs(0))
    x, kernel = jnp.linspace(-1, 1, 16, dtype="float32").reshape(2, 8), layer.kernel[...]
    y = layer(x)
    assert y.dtype == "bfloat16"
    assert (y == x.astype("bfloat16") @ kernel.astype("bfloat16")).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", RECIPES)
def test_rotary_tables_are_the_same_to_the_bit(name, dtype):
    config = RECIPES[name].model
    cos, sin = jaxgpt.model.rotary_tables(config, config.context, dtype)
    want_cos, want_sin = torch_ref.model.rotary_tables(config, dtype)
    for half, sign in ((0, 1), (1, -1)):
        assert (np.asarray(cos[:, :, half], np.float32) == want_cos.float().numpy()).all()
        assert (np.asarray(sin[:, :, half], np.float32) == sign * want_sin.float().numpy()).all()


def test_attention_does_not_look_ahead():
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal((1, 8, 2, 4)) for _ in range(3))
    later = [np.concatenate([a[:, :5], rng.standard_normal((1, 3, 2, 4))], axis=1) for a in (q, k, v)]
    for attend, make in ((jaxgpt.attention.attend, jnp.asarray), (torch_ref.attention.attend, torch.tensor)):
        before, after = attend(*map(make, (q, k, v))), attend(*map(make, later))
        assert (np.asarray(before)[:, :5] == np.asarray(after)[:, :5]).all()
        assert (np.asarray(before)[:, 5:] != np.asarray(after)[:, 5:]).any()
