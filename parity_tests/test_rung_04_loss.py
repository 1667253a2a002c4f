"""Rung 4: the loss of a step, padding rows included, against the other framework and the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxgpt.loss
import torch_ref.loss
from jaxgpt import bridge
from jaxgpt.loss import cross_entropy
from jaxgpt.recipes import RECIPES
from parity_tests import oracle
from parity_tests.by_dtype import by_recipe_and_dtype
from parity_tests.measured import assert_within
from parity_tests.pair import (
    DTYPES,
    MODELS,
    jax_batch,
    jax_state,
    pair,
    relative,
    tokens,
    torch_batch,
    torch_state,
    weights,
)
from parity_tests.tolerances import LOSS


@by_recipe_and_dtype(MODELS)
@pytest.mark.parametrize("perturbed", [False, True], ids=["initial", "perturbed"])
def test_training_loss_of_a_step_is_the_same(name, dtype, perturbed):
    both, start = pair(name, dtype), weights(name, dtype, perturbed)
    batch = tokens(both.recipe)
    got, _ = both.jax.gradients(jax_state(both, start).params, *jax_batch(both, *batch))
    want, _ = both.torch.gradients(torch_state(both, start), *torch_batch(*batch))
    assert_within(relative(got, want), LOSS[dtype], "rung 4, loss")


@by_recipe_and_dtype(MODELS)
def test_validation_loss_is_the_same(name, dtype):
    both, start = pair(name, dtype), weights(name, dtype)
    batch = tokens(both.recipe, seed=5)
    got = both.jax.evaluate(jax_state(both, start).params, *jax_batch(both, *batch))
    want = both.torch.evaluate(torch_state(both, start), *torch_batch(*batch))
    assert_within(relative(got, want), LOSS[dtype], "rung 4, loss")


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_matches_oracle_and_counts_padding_rows(dtype):
    rng = np.random.default_rng(0)
    x, w, targets = rng.standard_normal((24, 8)), rng.standard_normal((50, 8)), rng.integers(0, 40, 24)
    want = oracle.cross_entropy(x @ w.T, targets)
    assert want > oracle.cross_entropy((x @ w.T)[:, :40], targets) + 0.1
    got = cross_entropy(jnp.asarray(x, dtype), jnp.asarray(w, dtype), jnp.asarray(targets), dtype)
    assert_within(relative(got, want), LOSS[dtype], "rung 4, loss")
    d = getattr(torch, dtype)
    in_torch = torch_ref.loss.cross_entropy(torch.tensor(x, dtype=d), torch.tensor(w, dtype=d), torch.tensor(targets))
    assert_within(relative(in_torch, want), LOSS[dtype], "rung 4, loss")


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_plain_cross_entropy_is_the_mean_unless_a_sum_is_asked_for(framework):
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((24, 50)), rng.integers(0, 50, 24)
    plain = jaxgpt.loss.plain_cross_entropy if framework == "jax" else torch_ref.loss.plain_cross_entropy
    given = [(jnp.asarray if framework == "jax" else torch.tensor)(each) for each in (logits, targets)]
    want = oracle.cross_entropy(logits, targets)
    assert_within(relative(plain(*given), want), LOSS["float64"], "rung 4, loss")
    assert_within(relative(plain(*given, reduction="sum"), 24 * want), LOSS["float64"], "rung 4, loss")


def test_weights_survive_the_journey_to_torchs_layout_and_back():
    for name in RECIPES:
        both, start = pair(name, "float32"), weights(name, "float32")
        again = bridge.to_torch(jax.device_get(jax_state(both, start).params), both.recipe.model)
        assert again.keys() == start.keys() == both.recipe.model.shapes.keys()
        assert all((again[n] == start[n]).all() for n in start)
