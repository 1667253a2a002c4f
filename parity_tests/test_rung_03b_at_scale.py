"""Rung 3b at scale: the kernels as they run on the GPU, at the sizes of a micro-batch, against their plain forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.kernels import mlp
from jaxgpt.kernels.norm import add_norm, plain_add_norm
from jaxgpt.kernels.softmax import plain_softmax_gradient, softmax_gradient
from parity_tests.measured import assert_within
from parity_tests.pair import relative
from parity_tests.tolerances import FUSED_AT_SCALE

pytestmark = pytest.mark.at_scale


def numbers(*shape, dtype="bfloat16", seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32), dtype)


def rows(device):
    return 8192 if device == "gpu" else 64


def assert_close(got, want, what):
    apart = relative(got.astype("float32"), want.astype("float32"))
    assert_within(apart, FUSED_AT_SCALE, f"rung 3b, {what}")


@pytest.mark.parametrize("factor", [None, 24**-0.5])
def test_norm_and_its_gradients(device, factor):
    x, y, *seen = (numbers(rows(device), 768, dtype=d, seed=i) for i, d in enumerate(["float32", *["bfloat16"] * 4]))

    def run(form):
        found, back = jax.vjp(lambda x, y: form(x, y, 1e-6, 3, factor), x, y)
        return {"sum": found[0], "norm": found[1]} | dict(zip(("dx", "dy"), back((x, *seen[:3])), strict=True))

    got, want = jax.jit(lambda: run(add_norm))(), jax.jit(lambda: run(plain_add_norm))()
    for name in want:
        assert_close(got[name], want[name], f"norm kernel, {name}")


@pytest.mark.parametrize("ids", [50304, 50257])
def test_softmax_and_its_gradient(device, ids):
    logits = 3 * numbers(rows(device) // 8, 50304)
    targets = jnp.asarray(np.random.default_rng(1).integers(0, ids, len(logits)), "int32")
    got, want = (
        jax.jit(lambda z, t, f=f: f(z, t, ids, 2**-10))(logits, targets)
        for f in (softmax_gradient, plain_softmax_gradient)
    )
    assert_close(got[0], want[0], "softmax kernel, gradient")
    assert_close(got[1], want[1], "softmax kernel, loss")


def test_mlp_products_and_their_epilogues(device, monkeypatch):
    x, w, dy = numbers(rows(device), 768), numbers(768, 3072, seed=1) / 28, numbers(rows(device), 768, seed=2)
    assert mlp.fits(x, w) == (device == "gpu" and jax.devices()[0].compute_capability == "9.0")
    active = jax.jit(mlp.activated_product)(x, w)
    gradient = jax.jit(mlp.gradient_product)(dy, w, active)
    monkeypatch.setattr(mlp, "fits", lambda *_: False)
    assert_close(active, jax.jit(lambda x, w: mlp.activated_product(x, w))(x, w), "activated product")
    want = jax.jit(lambda a, b, c: mlp.gradient_product(a, b, c))(dy, w, active)
    assert_close(gradient, want, "product times the activation's gradient")
