"""Rung 4: the loss of fresh weights at full size on real tokens, against the first line of the published logs."""

import os

import jax
import numpy as np
import pytest
import torch
from flax import nnx

import jaxgpt.model
import torch_ref.model
from jaxgpt import tokens
from jaxgpt.loss import plain_cross_entropy
from jaxgpt.recipes import RECIPES
from parity_tests.pair import distinct

TOKENS = 16_384
SHARD = os.environ.get("JAXGPT_SHARD")
PUBLISHED = [name for name in distinct("model") if RECIPES[name].data.tokens == "gpt2"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARD, reason="JAXGPT_SHARD names no shard of GPT-2 tokens of real text"),
]


@pytest.fixture(scope="module")
def sequences() -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets (16, 1024) of the shard's first tokens."""
    return tokens.validation_sequences(SHARD, TOKENS, 1024)


def mean_loss(losses: list[float]) -> float:
    assert len(losses) == TOKENS // 1024
    return float(np.mean(losses))


@pytest.mark.parametrize("name", PUBLISHED)
def test_first_loss_in_jax_is_the_published_one(name, sequences):
    recipe = RECIPES[name]
    config = recipe.model
    gpt = jaxgpt.model.GPT(config, rngs=nnx.Rngs(0), compute="float32")
    graph, weights = nnx.split(gpt)
    pads = config.token_ids if config.pad_rows == "masked" else None

    @jax.jit
    def loss(weights, x, y):
        return plain_cross_entropy(nnx.merge(graph, weights)(x[None])[0], y, pads)

    got = mean_loss([float(loss(weights, x, y)) for x, y in zip(*sequences, strict=True)])
    assert got == pytest.approx(recipe.expected.step0_val_loss, abs=0.1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_first_loss_in_torch_is_the_published_one(name, sequences):
    recipe = RECIPES[name]
    config = recipe.model
    model = torch_ref.model.GPT(config)
    pads = config.token_ids if config.pad_rows == "masked" else None
    losses = []
    with torch.no_grad():
        for x, y in zip(*sequences, strict=True):
            logits = model(torch.tensor(x[None], dtype=torch.int64))[0]
            losses.append(torch.nn.functional.cross_entropy(logits[:, :pads], torch.tensor(y, dtype=torch.int64)))
    assert mean_loss([float(each) for each in losses]) == pytest.approx(recipe.expected.step0_val_loss, abs=0.1)
