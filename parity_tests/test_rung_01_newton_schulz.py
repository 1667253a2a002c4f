"""Rung 1: Newton-Schulz of both frameworks against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgpt import muon as jax_muon
from parity_tests import oracle
from parity_tests.measured import assert_within
from parity_tests.pair import DTYPES, relative
from parity_tests.tolerances import NEWTON_SCHULZ_TO_ORACLE, ORTHOGONAL_FACTOR
from torch_ref import muon as torch_muon

COEFFICIENTS = {"published": ((3.4445, -4.7750, 2.0315), 5), "convergent": ((2.0, -1.5, 0.5), 12)}
SHAPES = [(64, 64), (64, 256), (256, 64), (3, 32, 48), (2, 3, 48, 32), (1, 7)]
BIG = [(768, 768), (768, 3072), pytest.param((3072, 768), marks=pytest.mark.slow)]


def spectrum(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """A random float64 matrix, or batch, with singular values of the named kind."""
    rng = np.random.default_rng(sum(shape))
    G = rng.standard_normal(shape)
    if kind == "gaussian":
        return G
    if kind == "low rank and noise":
        thin = rng.standard_normal((*shape[:-1], 4)) @ rng.standard_normal((*shape[:-2], 4, shape[-1]))
        return thin + 1e-3 * G
    U, S, Vt = np.linalg.svd(G, full_matrices=False)
    return (U * np.arange(1, S.shape[-1] + 1) ** -1.5) @ Vt


def in_jax(G, dtype, steps, coefficients, **settings):
    return np.asarray(
        jax_muon.newton_schulz(
            jnp.asarray(G), steps, coefficients, dtype, settings.pop("norm_dtype", dtype), **settings
        )
    )


def in_torch(G, dtype, steps, coefficients):
    d = getattr(torch, dtype)
    return torch_muon.newton_schulz(torch.tensor(G), steps, coefficients, d, d).to(torch.float64).numpy()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("polynomial", COEFFICIENTS)
@pytest.mark.parametrize("kind", ["gaussian", "low rank and noise", "power law"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_newton_schulz_matches_oracle(shape, kind, polynomial, dtype):
    coefficients, steps = COEFFICIENTS[polynomial]
    G = spectrum(kind, shape).astype(dtype)
    want = oracle.newton_schulz(G, steps, coefficients)
    for framework, run in (("jax", in_jax), ("torch", in_torch)):
        got = run(G, dtype, steps, coefficients)
        assert_within(relative(got, want), NEWTON_SCHULZ_TO_ORACLE[polynomial][dtype], framework)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", BIG, ids=str)
def test_newton_schulz_matches_oracle_at_the_size_that_trains(shape, dtype):
    coefficients, steps = COEFFICIENTS["published"]
    G = spectrum("gaussian", shape).astype(dtype)
    want = oracle.newton_schulz(G, steps, coefficients)
    for framework, run in (("jax", in_jax), ("torch", in_torch)):
        got = run(G, dtype, steps, coefficients)
        assert_within(relative(got, want), NEWTON_SCHULZ_TO_ORACLE["published"][dtype], framework)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_a_zero_matrix_stays_zero(dtype):
    G = np.zeros((8, 16), np.float32)
    assert not in_jax(G, dtype, 5, COEFFICIENTS["published"][0]).any()
    assert not in_torch(G, dtype, 5, COEFFICIENTS["published"][0]).any()


def test_result_has_the_dtype_of_the_iteration():
    G = np.ones((4, 6), np.float32)
    assert jax_muon.newton_schulz(jnp.asarray(G)).dtype == jnp.bfloat16
    assert torch_muon.newton_schulz(torch.tensor(G)).dtype == torch.bfloat16
    assert jax_muon.newton_schulz(jnp.asarray(G), dtype=jnp.float32).dtype == jnp.float32
    assert torch_muon.newton_schulz(torch.tensor(G), dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_convergent_coefficients_give_the_orthogonal_factor(framework):
    G = spectrum("gaussian", (32, 96))
    U, _, Vt = np.linalg.svd(G, full_matrices=False)
    run = in_jax if framework == "jax" else in_torch
    assert_within(relative(run(G, "float64", 60, (2.0, -1.5, 0.5)), U @ Vt), 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_orthogonal_factor_is_what_the_singular_value_decomposition_says(shape, dtype):
    G = spectrum("gaussian", shape).astype(dtype)
    U, _, Vt = np.linalg.svd(G.astype(np.float64), full_matrices=False)
    for framework, got in (
        ("jax", jax_muon.orthogonal_factor(jnp.asarray(G))),
        ("torch", torch_muon.orthogonal_factor(torch.tensor(G))),
    ):
        assert_within(relative(got, U @ Vt), ORTHOGONAL_FACTOR[dtype], framework)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("polynomial", COEFFICIENTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_polynomial_first_is_the_same_iteration(shape, polynomial, dtype):
    coefficients, steps = COEFFICIENTS[polynomial]
    G = spectrum("gaussian", shape).astype(dtype)
    want, d = oracle.newton_schulz(G, steps, coefficients), getattr(torch, dtype)
    settings = {"form": "polynomial_first"}
    in_t = torch_muon.newton_schulz(torch.tensor(G), steps, coefficients, d, d, **settings).double().numpy()
    for framework, got in (("jax", in_jax(G, dtype, steps, coefficients, **settings)), ("torch", in_t)):
        assert_within(relative(got, want), NEWTON_SCHULZ_TO_ORACLE[polynomial][dtype], framework)


@pytest.mark.parametrize("norm_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["gaussian", "low rank and noise", "power law"])
@pytest.mark.parametrize("shape", [(128, 128), (64, 128), (128, 64)], ids=str)
def test_pinned_rounding_in_bfloat16_follows_torch(shape, kind, norm_dtype):
    # What is left is the order in which the two sum a product: at 128 x 128, 0 to 0.01 against 0.03 to 0.7 when free.
    G = spectrum(kind, shape).astype(np.float32)
    want = torch_muon.newton_schulz(torch.tensor(G), norm_dtype=getattr(torch, norm_dtype)).double().numpy()
    iterate = jax.jit(jax_muon.newton_schulz, static_argnames=("norm_dtype", "rounding"))
    apart = {
        rounding: relative(iterate(G, norm_dtype=norm_dtype, rounding=rounding).astype(jnp.float64), want)
        for rounding in ("pinned", "free")
    }
    assert apart["pinned"] < apart["free"] / 2
