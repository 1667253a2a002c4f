"""Rung 3b: each fast path against the plain form of the same framework."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import jaxgpt.attention
import jaxgpt.mesh
import torch_ref.attention
from jaxgpt.loss import CHUNK_TOKENS, cap, chunks, cross_entropy, logits, plain_cross_entropy
from jaxgpt.model import unstack
from jaxgpt.muon import Matrix, muon, newton_schulz, scale_by_muon
from parity_tests.measured import assert_within
from parity_tests.pair import assert_alike, relative
from parity_tests.tolerances import FAST

in_both_dtypes = pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])


def numbers(*shape, dtype="float64", seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


@pytest.mark.parametrize(
    ("n", "dtype"),
    [
        *((n, "float64") for n in (2, 24, 31, 96, 768)),
        *((n, "float32") for n in (31, 768)),
        *(pytest.param(n, "float32", marks=pytest.mark.slow) for n in (2, 24, 96)),
    ],
)
def test_chunked_cross_entropy_is_the_plain_one_with_its_gradients(n, dtype):
    x, w = numbers(n, 16, dtype=dtype), numbers(40, 16, dtype=dtype, seed=1)
    targets = jnp.asarray(np.random.default_rng(2).integers(0, 40, n))
    scaled = lambda f: jax.value_and_grad(lambda x, w: 3 * f(x, w), argnums=(0, 1))(x, w)  # noqa: E731
    loss, (dx, dw) = scaled(lambda x, w: cross_entropy(x, w, targets, dtype))
    want, (want_dx, want_dw) = scaled(lambda x, w: plain_cross_entropy(x @ w.T, targets))
    got = {"loss": loss, "dx": dx, "dw": dw}
    assert_alike(got, {"loss": want, "dx": want_dx, "dw": want_dw}, FAST[dtype], "rung 3b, chunked cross-entropy")
    assert_within(relative(cross_entropy(x, w, targets, dtype), want / 3), FAST[dtype])


FORMS = {
    "bias": {"bias": numbers(40, seed=3)},
    "capped": {"logit_cap": 2.0},
    "masked": {"token_ids": 37},
    "summed": {"reduction": "sum"},
}


@pytest.mark.parametrize("form", FORMS)
def test_chunked_cross_entropy_is_the_plain_one_in_every_form(form):
    x, w, targets = numbers(24, 16), numbers(40, 16, seed=1), jnp.asarray(np.random.default_rng(2).integers(0, 37, 24))
    settings = {"bias": None, "logit_cap": None, "token_ids": None, "reduction": "mean"} | FORMS[form]
    bias, logit_cap, *rest = settings.values()
    both = lambda f: jax.value_and_grad(f, argnums=(0, 1))(x, w)  # noqa: E731
    loss, (dx, dw) = both(lambda x, w: cross_entropy(x, w, targets, "float64", *settings.values()))
    plain = lambda x, w: plain_cross_entropy(cap(logits(x, w, bias, "float64"), logit_cap), targets, *rest)  # noqa: E731
    want, (want_dx, want_dw) = both(plain)
    got = {"loss": loss, "dx": dx, "dw": dw}
    assert_alike(got, {"loss": want, "dx": want_dx, "dw": want_dw}, FAST["float64"], f"rung 3b, {form} cross-entropy")


@pytest.mark.parametrize(
    ("n", "expected"), [(2, 2), (128, 2), (1024, 2), (65_536, 8), (24_576, 3), (2 * 8209, 2), (8209, 1)]
)
def test_chunks_are_few_and_small_unless_the_tokens_divide_into_crumbs(n, expected):
    assert chunks(n) == expected


def products(jaxpr):
    """The dtypes of each product's operands and result, also of what the program's loops and functions hold."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield tuple(str(each.aval.dtype) for each in (*equation.invars, *equation.outvars))
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)


def test_the_chunked_heads_products_take_bfloat16_and_its_own_gradient_is_summed_in_float32():
    x, w, targets = numbers(24, 16, dtype="float32"), numbers(40, 16, dtype="float32"), jnp.zeros(24, "int32")
    grad = jax.grad(lambda x, w: cross_entropy(x, w, targets, "bfloat16"), argnums=(0, 1))
    narrow = ("bfloat16", "bfloat16")
    # Values can't tell: fused on a CPU, XLA keeps what is cast to bfloat16 wider.
    assert sorted(products(jax.make_jaxpr(grad)(x, w).jaxpr)) == [(*narrow, "bfloat16")] * 2 + [(*narrow, "float32")]


def test_logits_of_a_micro_batch_never_exist_at_once():
    n, vocab = 4 * CHUNK_TOKENS, 512
    grad = jax.grad(lambda x, w, t: cross_entropy(x, w, t, "float32"), argnums=(0, 1))
    shapes = (jax.ShapeDtypeStruct(s, d) for s, d in (((n, 8), "float32"), ((vocab, 8), "float32"), ((n,), "int32")))
    memory = jax.jit(grad).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < n * vocab * 4


@in_both_dtypes
def test_unstacked_layers_have_the_gradient_of_slices(dtype):
    tree = {"a": numbers(3, 4, 5, dtype=dtype), "b": numbers(3, 2, dtype=dtype, seed=1)}
    weigh = lambda layers: sum((i + 1) * jnp.sum(t["a"] ** 2) * jnp.sum(t["b"]) for i, t in enumerate(layers))  # noqa: E731
    got = jax.grad(lambda t: weigh(unstack(t)))(tree)
    want = jax.grad(lambda t: weigh([jax.tree.map(lambda w: w[i], t) for i in range(3)]))(tree)  # noqa: B023
    assert_alike(got, want, FAST[dtype], "rung 3b, unstacked layers")


@pytest.mark.parametrize("scale", [None, 0.12])
@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_fast_attention_is_the_written_out_one(framework, scale):
    q, k, v = (np.random.default_rng(i).standard_normal((2, 16, 3, 8)).astype("float32") for i in range(3))
    if framework == "jax":
        run = functools.partial(jaxgpt.attention.attend, *map(jnp.asarray, (q, k, v)))
    else:
        run = functools.partial(torch_ref.attention.attend, *map(torch.tensor, (q, k, v)))
    assert_within(relative(run("fast", scale), run("exact", scale)), FAST["float32"])


def kernels(dtype):
    return {
        "attn": {"kernel": numbers(3, 16, 16, dtype=dtype)},
        "up": {"kernel": numbers(3, 16, 64, dtype=dtype, seed=1)},
        "down": {"kernel": numbers(3, 64, 16, dtype=dtype, seed=2)},
    }


@in_both_dtypes
def test_batched_newton_schulz_is_one_matrix_after_the_other(dtype):
    grads = kernels(dtype)
    transform = scale_by_muon(dtype=dtype, norm_dtype=dtype)
    got, _ = transform.update(grads, transform.init(grads))
    for name, leaf in grads.items():
        g = leaf["kernel"]
        one = lambda m: newton_schulz(m.T, dtype=dtype, norm_dtype=dtype).T * max(m.shape) ** 0.5  # noqa: E731
        want = jnp.stack([one(1.95 * layer) for layer in g])
        assert_within(relative(got[name]["kernel"], want), FAST[dtype], name)


@pytest.mark.parametrize(
    ("devices", "dtype"),
    [
        (2, "float64"),
        (8, "float64"),
        (2, "float32"),
        (8, "bfloat16"),
        pytest.param(8, "float32", marks=pytest.mark.slow),
        pytest.param(2, "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_matrices_dealt_out_over_devices_give_the_replicated_update(devices, dtype):
    grads = kernels("float32" if dtype == "bfloat16" else dtype)
    deal = jaxgpt.mesh.split(jaxgpt.mesh.make_mesh_of(jax.devices()[:devices]))
    run = lambda deal: jax.jit(  # noqa: E731
        lambda g: (t := scale_by_muon(dtype=dtype, norm_dtype=dtype, deal=deal, rounding="pinned")).update(
            g, t.init(g)
        )[0]
    )(grads)
    alone, dealt = run(None), run(deal)
    assert alone.keys() == dealt.keys() == grads.keys()
    for name, want in alone.items():
        if dtype == "bfloat16":
            assert (dealt[name]["kernel"] == want["kernel"]).all(), name
        else:
            assert_within(relative(dealt[name]["kernel"], want["kernel"]), FAST[dtype], name)


def test_dealt_matrices_are_orthogonalised_once_each():
    devices = 8
    deal = jaxgpt.mesh.split(jaxgpt.mesh.make_mesh_of(jax.devices()[:devices]))
    grads = {"attn": {"kernel": numbers(8, 32, 32, dtype="float32")}}

    def flops(deal):
        transform = scale_by_muon(dtype="float32", deal=deal)
        update = jax.jit(lambda g: transform.update(g, transform.init(g))[0])
        placed = jax.device_put(grads, jaxgpt.mesh.replicated(deal.mesh) if deal else None)
        return update.lower(placed).compile().cost_analysis()["flops"]

    assert flops(deal) < 1.5 * flops(None) / devices  # per device


def test_muon_knows_fan_out_by_the_layout_it_is_told():
    g = numbers(16, 64)
    in_out = scale_by_muon(lambda path, w: Matrix(fan_in=0, fan_out=1), dtype="float64")
    out_in = scale_by_muon(lambda path, w: Matrix(fan_in=1, fan_out=0), dtype="float64")
    got, _ = in_out.update({"w": g}, in_out.init({"w": g}))
    want, _ = out_in.update({"w": g.T}, out_in.init({"w": g.T}))
    assert_within(relative(got["w"], want["w"].T), FAST["float64"])


def test_muon_refuses_weights_that_are_not_its_own():
    weights = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    with pytest.raises(ValueError, match=r"bias \(4,\) is not Muon's"):
        muon(0.1).init(weights)
    with pytest.raises(ValueError, match=r"bias \(4,\) is not a matrix"):
        scale_by_muon().init(weights)
    update, _ = (both := muon(0.1, others=optax.sgd(1.0))).update(weights, both.init(weights))
    assert (update["bias"] == -1).all()
