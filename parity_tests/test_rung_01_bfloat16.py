"""Rung 1 in bfloat16, as it trains: what two correct iterations share, and their errors to float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgpt import muon as jax_muon
from parity_tests import oracle
from parity_tests.bfloat16 import (
    assert_as_exact,
    moved_by_an_ulp,
    root_mean_square,
    spectra_apart,
    subspaces_apart,
)
from parity_tests.measured import assert_within, taken
from parity_tests.pair import relative
from parity_tests.scale import torch_device
from parity_tests.test_rung_01_newton_schulz import spectrum
from parity_tests.tolerances import (
    ERROR_RATIO,
    NEWTON_SCHULZ_BFLOAT16_SPECTRA,
    NEWTON_SCHULZ_BFLOAT16_SUBSPACES,
    NEWTON_SCHULZ_GAUSSIAN,
    NEWTON_SCHULZ_PINNED,
    NEWTON_SCHULZ_PINNED_RMS,
    NEWTON_SCHULZ_RMS,
)
from torch_ref import muon as torch_muon

SHAPES = {
    "cpu": {"square": (128, 128), "wide": (64, 256), "tall": (256, 64), "batch": (6, 64, 64)},
    "gpu": {"square": (768, 768), "wide": (768, 3072), "tall": (3072, 768), "batch": (48, 768, 768)},
}
KINDS = ("gaussian", "low rank and noise", "power law")
CASES = [(form, kind) for form in ("square", "wide", "tall") for kind in KINDS] + [("batch", "gaussian")]
RANK = 4
"""Of the kind that has one: see `spectrum`."""

RANKS_MOVED = (0, 1, 4, 16, 64, 256)
"""By size, of the numbers that are moved by an ulp, one at a time: dividing by the norm may round the move of one away,
and of all that are nearly as large."""

by_case = pytest.mark.parametrize(("form", "kind"), CASES)
by_rounding = pytest.mark.parametrize("rounding", ["free", "pinned"])

iterate = jax.jit(jax_muon.newton_schulz, static_argnames=("dtype", "norm_dtype", "rounding"))


def in_jax(device, G, rounding="free", dtype="bfloat16"):
    """Compiled, as it trains."""
    placed = jax.device_put(G, jax.devices(device)[0])
    return np.asarray(iterate(placed, dtype=dtype, norm_dtype="float32", rounding=rounding), np.float64)


def in_torch(device, G, dtype=torch.bfloat16):
    """Operation by operation, each product rounded."""
    torch.set_float32_matmul_precision("highest")  # as torch_ref.train: some containers change torch's default
    return torch_muon.newton_schulz(torch.tensor(G, device=torch_device(device)), dtype=dtype).double().cpu().numpy()


@functools.cache
def answers(device, form, kind):
    """The matrix in float32, and what float64, torch and both roundings of JAX make of it."""
    G = spectrum(kind, SHAPES[device][form]).astype(np.float32)
    exact = oracle.newton_schulz(G, 5, jax_muon.COEFFICIENTS)
    found = {"exact": exact, "torch": in_torch(device, G)}
    return G, found | {rounding: in_jax(device, G, rounding) for rounding in ("free", "pinned")}


def some(matrices):
    """At most four of a batch: decompositions take minutes at full size."""
    return matrices[:: max(len(matrices) // 4, 1)] if matrices.ndim > 2 else matrices


@pytest.mark.at_scale
@by_rounding
@by_case
def test_error_to_float64_is_no_larger_than_torchs(device, form, kind, rounding):
    _, found = answers(device, form, kind)
    errors = {rounding: (relative(found[rounding], found["exact"]), relative(found["torch"], found["exact"]))}
    assert_as_exact(errors, f"rung 1, bfloat16 update, {form}, {kind}", ERROR_RATIO[device])


@pytest.mark.at_scale
@by_rounding
@by_case
def test_updates_have_the_same_singular_values(device, form, kind, rounding):
    _, found = answers(device, form, kind)
    apart = spectra_apart(some(found[rounding]), some(found["torch"]))
    oracle_apart = spectra_apart(some(found["torch"]), some(found["exact"]))
    what = f"rung 1, singular values, {form}, {kind}, {rounding}"
    assert_within(apart, NEWTON_SCHULZ_BFLOAT16_SPECTRA[kind], what, oracle_apart)


@pytest.mark.at_scale
@by_rounding
@by_case
def test_updates_have_the_same_size(device, form, kind, rounding):
    _, found = answers(device, form, kind)
    jaxs, torchs, exact = (root_mean_square(found[each]) for each in (rounding, "torch", "exact"))
    to_exact = abs(torchs / exact - 1)
    allowed = NEWTON_SCHULZ_PINNED_RMS if rounding == "pinned" else ERROR_RATIO[device] * to_exact + NEWTON_SCHULZ_RMS
    assert_within(abs(jaxs / torchs - 1), allowed, f"rung 1, root mean square, {form}, {kind}, {rounding}", to_exact)


@pytest.mark.at_scale
@by_rounding
@pytest.mark.parametrize("form", ["square", "wide", "tall"])
def test_updates_have_the_same_leading_subspaces_where_the_gradient_has_some(device, form, rounding):
    _, found = answers(device, form, "low rank and noise")
    apart = subspaces_apart(found[rounding], found["torch"], RANK)
    of_torch = subspaces_apart(found["torch"], found["exact"], RANK)
    what = f"rung 1, first {RANK} singular vectors, {form}, {rounding}"
    assert_within(apart, NEWTON_SCHULZ_BFLOAT16_SUBSPACES, what, of_torch)


@pytest.mark.at_scale
@by_rounding
@pytest.mark.parametrize("form", ["square", "wide", "tall"])
def test_leading_subspaces_are_no_further_from_float64_than_torchs(device, form, rounding):
    _, found = answers(device, form, "low rank and noise")
    to_exact = {each: subspaces_apart(found[each], found["exact"], RANK) for each in (rounding, "torch")}
    errors = {rounding: (to_exact[rounding], to_exact["torch"])}
    assert_as_exact(errors, f"rung 1, first {RANK} singular vectors to float64, {form}", ERROR_RATIO[device])


@pytest.mark.at_scale
@by_case
def test_pinned_rounding_is_no_further_from_torch_than_torch_moved_by_an_ulp(device, form, kind):
    G, found = answers(device, form, kind)
    noise = max(relative(in_torch(device, moved_by_an_ulp(G, rank)), found["torch"]) for rank in RANKS_MOVED)
    apart = relative(found["pinned"], found["torch"])
    assert_within(apart, NEWTON_SCHULZ_PINNED[device] * noise, f"rung 1, pinned rounding, {form}, {kind}", oracle=noise)


@pytest.mark.at_scale
@pytest.mark.parametrize("form", ["square", "wide", "tall", "batch"])
@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_float32_iteration_matches_oracle(device, framework, form):
    G, found = answers(device, form, "gaussian")
    got = in_jax(device, G, dtype="float32") if framework == "jax" else in_torch(device, G, torch.float32)
    assert_within(relative(got, found["exact"]), NEWTON_SCHULZ_GAUSSIAN, f"rung 1, float32 update, {form}, {framework}")


def rotation(n, angle):
    """Turns the first axis towards the last."""
    R = np.eye(n)
    R[0, 0] = R[-1, -1] = np.cos(angle)
    R[-1, 0], R[0, -1] = np.sin(angle), -np.sin(angle)
    return R


@pytest.mark.parametrize("turned", ["left", "right"])
def test_turned_singular_vectors_are_apart_by_the_sine_of_the_angle(turned):
    A, R = np.diag([3.0, 2.5, 2.0, 0.1, 0.1]), rotation(5, 0.3)
    B = R @ A if turned == "left" else A @ R.T
    assert subspaces_apart(B, A, 3) == pytest.approx(np.sin(0.3))


def test_signs_and_order_of_singular_vectors_do_not_part_their_spans():
    A, B = np.diag([3.0, 2.0, 0.1]), np.diag([-2.0, 3.0, -0.1])
    assert subspaces_apart(B, A, 2) < 1e-14


def test_spectra_are_apart_by_the_largest_difference_in_any_matrix_of_a_batch():
    A = np.stack([np.eye(3), np.eye(3)])
    B = np.stack([np.eye(3), np.diag([1.0, 0.6, 1.1])])
    assert spectra_apart(B, A) == pytest.approx(0.4)


def test_one_number_of_each_matrix_is_moved_to_the_next_of_bfloat16():
    G = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    rounded = np.asarray(jnp.asarray(G, jnp.bfloat16), np.float32)
    changed = moved_by_an_ulp(rounded) != rounded
    assert changed.sum((1, 2)).tolist() == [1, 1, 1]
    after, before = moved_by_an_ulp(rounded)[changed], rounded[changed]
    assert (np.nextafter(before.astype(jnp.bfloat16), after.astype(jnp.bfloat16)).astype(np.float32) == after).all()


def test_an_error_above_the_allowed_ratio_fails_and_is_named():
    with pytest.raises(AssertionError, match="it: worse is"):
        assert_as_exact({"better": (0.5, 1.0), "worse": (1.6, 1.0)}, "it", 1.5)
    taken()  # no measurement of the frameworks


def test_an_error_that_is_no_number_fails():
    with pytest.raises(AssertionError, match="it: lost is"):
        assert_as_exact({"lost": (np.nan, 1.0), "better": (0.5, 1.0)}, "it", 1.5)
    taken()
