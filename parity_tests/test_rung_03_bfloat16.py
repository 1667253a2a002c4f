"""Rung 3 in bfloat16: what is taken in float32 and rounded once, and the dtypes that attention and the head get."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jaxgpt.loss
import jaxgpt.model
import torch_ref.model
from jaxgpt.recipes import precision, reduced
from parity_tests.measured import assert_within
from parity_tests.modules import alone, models, start_weights
from parity_tests.pair import MODELS, relative, tokens
from parity_tests.tolerances import ROUNDED_ONCE


@pytest.mark.parametrize("name", MODELS)
def test_modules_without_products_round_where_the_other_framework_does(name):
    recipe = reduced(name)
    exactly = precision(recipe, "bfloat16", attention="exact")
    in_jax, in_torch = models(recipe, exactly, start_weights(recipe))
    modules = {each.name: each for each in alone(recipe, exactly)}
    for module in [each for each in ("norm", "qk-norm", "rotary", "activation") if each in modules]:
        narrow = torch.tensor(modules[module].x, dtype=torch.bfloat16)
        got = modules[module].jax(in_jax, jnp.asarray(narrow.float().numpy(), jnp.bfloat16))
        want = modules[module].torch(in_torch, narrow).detach()
        assert str(got.dtype) == str(want.dtype).removeprefix("torch.")
        apart = relative(np.asarray(got, np.float32), want.float().numpy())
        assert_within(apart, ROUNDED_ONCE, f"rung 3, {module} alone in bfloat16")


@pytest.mark.parametrize("name", MODELS)
def test_attention_gets_queries_keys_and_values_of_one_dtype(name, monkeypatch):
    seen = {}
    for framework in (jaxgpt.model, torch_ref.model):

        def attend(q, k, v, *rest, of=framework.__name__, exact=framework.attend):
            seen[of] = {str(each.dtype).removeprefix("torch.") for each in (q, k, v)}
            return exact(q, k, v, *rest)

        monkeypatch.setattr(framework, "attend", attend)
    config = reduced(name).model
    inputs, _ = tokens(reduced(name))
    nnx.eval_shape(lambda: jaxgpt.model.GPT(config, rngs=nnx.Rngs(0), compute="bfloat16").hidden(jnp.asarray(inputs)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch_ref.model.GPT(config).hidden(torch.tensor(inputs, dtype=torch.int64))
    assert seen == {"jaxgpt.model": {"bfloat16"}, "torch_ref.model": {"bfloat16"}}


def test_logits_are_products_of_rounded_numbers_and_rounded_themselves():
    rng = np.random.default_rng(4)
    given = [torch.tensor(rng.standard_normal(shape), dtype=torch.float32) for shape in ((6, 32), (40, 32), (40,))]
    got = jaxgpt.loss.logits(*(jnp.asarray(each.numpy()) for each in given), "bfloat16")
    assert got.dtype == jnp.float32
    assert (got == got.astype(jnp.bfloat16)).all()
    assert (got == jaxgpt.loss.logits(*(jnp.asarray(x.bfloat16().float().numpy()) for x in given), "bfloat16")).all()
