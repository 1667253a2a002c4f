"""Rung 3: each layer's output and the logits; and each module alone, fed the same input, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jaxgpt.attention
import jaxgpt.model
import torch_ref.attention
import torch_ref.model
from jaxgpt import bridge
from jaxgpt.recipes import RECIPES, reduced
from parity_tests.measured import assert_within
from parity_tests.pair import DTYPES, MODELS, assert_alike, relative, tokens, weights
from parity_tests.tolerances import HIDDEN, LOGITS

by_recipe_and_dtype = pytest.mark.parametrize(("name", "dtype"), [(n, d) for n in MODELS for d in DTYPES])


def models(name, dtype):
    """The recipe's model in both frameworks with the same weights, off their initial values."""
    config, start = reduced(name).model, weights(name, dtype)
    settings = {"parameters": dtype, "attention": "exact"}
    graph = nnx.split(nnx.eval_shape(lambda: jaxgpt.model.GPT(config, rngs=nnx.Rngs(0), compute=dtype, **settings)))[0]
    in_jax = nnx.merge(graph, nnx.State(jax.tree.map(jnp.asarray, bridge.from_torch(start, config))))
    in_torch = torch_ref.model.GPT(config, **settings)
    in_torch.load_state_dict({n: torch.tensor(w) for n, w in start.items()})
    return in_jax, in_torch


@by_recipe_and_dtype
def test_every_layers_output_is_the_same(name, dtype):
    in_jax, in_torch = models(name, dtype)
    inputs, _ = tokens(reduced(name))
    with torch.no_grad():
        want = in_torch.residuals(torch.tensor(inputs, dtype=torch.int64))
    names = ["embedding", *(f"block {i}" for i in range(len(want) - 2)), "final norm"]
    got = dict(zip(names, in_jax.residuals(jnp.asarray(inputs)), strict=True))
    assert_alike(got, dict(zip(names, want, strict=True)), HIDDEN[dtype], "rung 3, residual stream")


@by_recipe_and_dtype
def test_logits_are_the_same(name, dtype):
    in_jax, in_torch = models(name, dtype)
    inputs, _ = tokens(reduced(name))
    got, want = in_jax(jnp.asarray(inputs)), in_torch(torch.tensor(inputs, dtype=torch.int64))
    assert got.shape[-1] == reduced(name).model.vocab, "padding rows have logits too"
    assert_within(relative(got, want.detach()), LOGITS[dtype])


def alone(name, dtype):
    """module -> (function in JAX, in torch, shape of its input), each with the recipe's settings and weights."""
    in_jax, in_torch = models(name, dtype)
    config = in_jax.config
    layer, stacked = nnx.split(in_jax.h)
    block_jax, block_torch = nnx.merge(layer, jaxgpt.model.unstack(stacked)[1]), in_torch.h[1]
    length, heads = config.context, (2, config.context, config.heads, config.head_width)
    stream = (2, length, config.width)
    tables_jax = jaxgpt.model.rotary_tables(config, length, dtype)
    tables_torch = torch_ref.model.rotary_tables(config, dtype)
    return {
        "norm": (block_jax.ln_1, block_torch.ln_1, stream),
        "qk-norm": (
            lambda x: jaxgpt.model.rms_norm(x, config.qk_norm_eps),
            lambda x: torch_ref.model.rms_norm(x, config.qk_norm_eps),
            heads,
        ),
        "rotary": (
            lambda x: jaxgpt.model.rotate(x, tables_jax),
            lambda x: torch_ref.model.rotate(x, tables_torch),
            heads,
        ),
        "scores and values": (
            lambda x: jaxgpt.attention.attend(x, jnp.flip(x, 1), x * x, "exact", config.attention_scale),
            lambda x: torch_ref.attention.attend(x, x.flip(1), x * x, "exact", config.attention_scale),
            heads,
        ),
        "activation": (
            jaxgpt.model.ACTIVATIONS[config.activation],
            torch_ref.model.ACTIVATIONS[config.activation],
            stream,
        ),
        "attention": (
            lambda x: block_jax.attn(x, tables_jax, "exact"),
            lambda x: block_torch.attn(x, tables_torch, "exact"),
            stream,
        ),
        "mlp": (block_jax.mlp, block_torch.mlp, stream),
        "block": (
            lambda x: block_jax(x, tables_jax, "exact"),
            lambda x: block_torch(x, tables_torch, "exact"),
            stream,
        ),
    }


@by_recipe_and_dtype
def test_modules_fed_alike_answer_alike_forward_and_backward(name, dtype):
    rng = np.random.default_rng(2)
    for module, (in_jax, in_torch, shape) in alone(name, dtype).items():
        x, cotangent = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
        got, pull = jax.vjp(in_jax, jnp.asarray(x))
        x_torch = torch.tensor(x, requires_grad=True)
        want = in_torch(x_torch)
        want.backward(torch.tensor(cotangent).to(want.dtype))
        (got_dx,) = pull(jnp.asarray(cotangent, got.dtype))
        assert_alike(
            {"output": got, "gradient": got_dx},
            {"output": want.detach(), "gradient": x_torch.grad},
            HIDDEN[dtype],
            f"rung 3, {module} alone",
        )


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
