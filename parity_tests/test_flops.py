"""Operations of a step by formula, against what XLA counts in the lowered program."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxgpt.flops import BF16_PEAKS, matrices, newton_schulz_flops, peak_flops, token_flops
from jaxgpt.model import GPT
from jaxgpt.muon import newton_schulz
from jaxgpt.recipes import RECIPES, reduced

MUON = RECIPES["muon-2024-10-12"]


def counted(f, *like) -> float:
    """What XLA counts in the program as it was written, before it is optimised: loops would count once."""
    return jax.jit(f).lower(*like).cost_analysis()["flops"]


def test_a_token_of_the_default_recipe_takes_798_million_operations():
    # By hand: 6 (12 * 12 * 768^2 + 50304 * 768) + 6 * 12 * 1025 * 768
    assert token_flops(MUON.model) == 741_408_768 + 56_678_400


@pytest.mark.parametrize("name", ["muon-2024-10-12", "modern-2024-10-14", "simple-2026-06-11"])
def test_xla_counts_the_products_of_a_step_and_a_little_more(name):
    model = dataclasses.replace(reduced(name).model, width=384, heads=6, layers=2, context=32, compute_dtype="float32")
    gpt = nnx.eval_shape(lambda: GPT(model, rngs=nnx.Rngs(0)))
    graph, weights = nnx.split(gpt)
    tokens = jax.ShapeDtypeStruct((2, model.context), jnp.int32)

    def loss(weights, tokens):
        logits = nnx.merge(graph, weights)(tokens)
        return jnp.sum(jax.nn.logsumexp(logits, axis=-1))

    ratio = counted(jax.grad(loss), weights, tokens) / (64 * token_flops(model, causal=False))
    assert 1 <= ratio < 1.05, ratio


@pytest.mark.parametrize("form", ["product_first", "polynomial_first"])
def test_xla_counts_newton_schulz_alike(form):
    model = dataclasses.replace(reduced(MUON.name).model, width=256, heads=4, layers=1)
    optimizer = dataclasses.replace(MUON.optimizer, newton_schulz_form=form)

    def iterate(matrices):
        return [newton_schulz(G, form=form, dtype=jnp.float32) for G in matrices]

    like = [jax.ShapeDtypeStruct(s, jnp.float32) for s, count in matrices(model).items() for _ in range(count)]
    ratio = counted(iterate, like) / newton_schulz_flops(model, optimizer)
    assert 1 <= ratio < 1.02, ratio


def test_the_default_recipe_orthogonalises_48_square_and_24_long_matrices():
    counts = matrices(MUON.model)
    assert counts == {(768, 768): 48, (3072, 768): 12, (768, 3072): 12}


def test_fused_and_separate_queries_are_as_many_matrices():
    assert matrices(MUON.model) == matrices(dataclasses.replace(MUON.model, qkv="separate"))


def test_an_optimiser_without_newton_schulz_has_none_of_its_operations():
    assert newton_schulz_flops(MUON.model, RECIPES["opt-adam-2024-10-29"].optimizer) == 0


def test_eight_cards_can_do_eight_times_as_much():
    assert peak_flops(["NVIDIA H100 80GB HBM3"] * 8) == 8 * 989.5e12


def test_a_cpu_has_no_known_peak():
    assert peak_flops(["cpu"]) is None
    assert peak_flops(["x86_64", next(iter(BF16_PEAKS))]) is None
