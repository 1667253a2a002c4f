"""Rung 13: GPT2LMHeadModel of transformers, with our random weights, against the recipe that is GPT-2 itself."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from parity_tests.measured import assert_within
from parity_tests.pair import (
    DTYPES,
    assert_alike,
    jax_batch,
    jax_state,
    jax_tree,
    pair,
    relative,
    tokens,
    torch_batch,
    torch_state,
    torch_tree,
    weights,
)
from parity_tests.test_rung_03_logits import models
from parity_tests.tolerances import GPT2_GRADIENTS, GPT2_LOGITS, GPT2_LOSS

LLMC = "llmc-2024-10-13"
FRAMEWORKS = ("jax", "torch")

by_framework = pytest.mark.parametrize("framework", FRAMEWORKS)
by_framework_and_dtype = pytest.mark.parametrize(("framework", "dtype"), [(f, d) for f in FRAMEWORKS for d in DTYPES])


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip(
        "transformers", reason="needs `pip install transformers`, which this project does not depend on"
    )


def gpt2(transformers, dtype, start=None):
    """Their model at the recipe's reduced size, from weights under our names. It has no padding rows."""
    config = pair(LLMC, dtype).recipe.model
    size = {"n_positions": config.context, "n_embd": config.width, "n_layer": config.layers, "n_head": config.heads}
    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0) | {"bos_token_id": None, "eos_token_id": None}
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=config.token_ids, attn_implementation="eager", **size, **off)
    ).to(getattr(torch, dtype))
    if start is not None:
        named = {f"transformer.{n}": torch.tensor(w) for n, w in in_their_layout(start).items()}
        model.load_state_dict(named | {"lm_head.weight": named["transformer.wte.weight"]})
    return model


def in_their_layout(ours):
    """Weights or gradients as theirs: Conv1D is (in, out), and no padding rows."""
    token_ids = pair(LLMC, "float64").recipe.model.token_ids
    kernel = lambda n, w: w.ndim == 2 and n.startswith("h.")  # noqa: E731
    theirs = {n: np.ascontiguousarray(w.T) if kernel(n, w) else w for n, w in ours.items()}
    return theirs | {"wte.weight": ours["wte.weight"][:token_ids]}


def loss_and_gradients(framework, dtype):
    both, start = pair(LLMC, dtype), weights(LLMC, dtype)
    batch = tokens(both.recipe)
    if framework == "jax":
        loss, grads = both.jax.gradients(jax_state(both, start).params, *jax_batch(both, *batch))
        return loss, jax_tree(both, grads)
    loss, grads = both.torch.gradients(torch_state(both, start), *torch_batch(*batch))
    return loss, torch_tree(grads)


@by_framework_and_dtype
def test_gpt2_of_transformers_has_our_logits(transformers, framework, dtype):
    in_jax, in_torch = models(LLMC, dtype)
    inputs, _ = tokens(pair(LLMC, dtype).recipe)
    at = torch.tensor(inputs, dtype=torch.int64)
    with torch.no_grad():
        want = gpt2(transformers, dtype, weights(LLMC, dtype))(at).logits
        got = np.asarray(in_jax(jnp.asarray(inputs)) if framework == "jax" else in_torch(at))
    assert_within(relative(got[..., : want.shape[-1]], want), GPT2_LOGITS[dtype])


@by_framework_and_dtype
def test_gpt2_of_transformers_has_our_loss_and_gradients(transformers, framework, dtype):
    # The loss is torch's, of their logits: their own is in float32 whatever the model is, 7e-8 off in float64.
    theirs = gpt2(transformers, dtype, weights(LLMC, dtype))
    inputs, targets = torch_batch(*tokens(pair(LLMC, dtype).recipe))
    want = F.cross_entropy(theirs(inputs).logits.flatten(0, 1), targets.flatten())
    want.backward()
    loss, grads = loss_and_gradients(framework, dtype)
    assert_within(relative(loss, want.detach()), GPT2_LOSS[dtype])
    want_grads = {n.removeprefix("transformer."): p.grad.numpy() for n, p in theirs.named_parameters()}
    assert_alike(in_their_layout(grads), want_grads, GPT2_GRADIENTS[dtype], f"rung 13, gradients in {framework}")


@by_framework
def test_our_loss_is_the_one_that_transformers_takes_itself(transformers, framework):
    inputs, targets = torch_batch(*tokens(pair(LLMC, "float32").recipe))
    theirs = gpt2(transformers, "float32", weights(LLMC, "float32"))
    with torch.no_grad():
        want = theirs(inputs, labels=inputs, shift_labels=targets).loss
    assert_within(relative(loss_and_gradients(framework, "float32")[0], want), GPT2_LOSS["float32"])


@by_framework
def test_padding_rows_that_gpt2_lacks_have_no_gradient_of_ours(framework):
    config = pair(LLMC, "float64").recipe.model
    _, grads = loss_and_gradients(framework, "float64")
    assert config.vocab > config.token_ids
    assert not grads["wte.weight"][config.token_ids :].any()


def test_our_initial_weights_spread_as_those_of_transformers(transformers):
    torch.manual_seed(0)
    theirs = gpt2(transformers, "float64").transformer.state_dict()
    mine = in_their_layout(weights(LLMC, "float64", perturbed=False))
    assert mine.keys() == theirs.keys()
    spread = lambda w: np.sqrt(np.mean(np.square(np.asarray(w))))  # noqa: E731
    assert {n: spread(w) for n, w in mine.items()} == pytest.approx({n: spread(w) for n, w in theirs.items()}, rel=0.08)
