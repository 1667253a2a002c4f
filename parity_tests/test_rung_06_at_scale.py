"""Rung 6 at scale: the gradients of three batches into both optimisers, float32 directly, bfloat16 against float64.

Weights start at zero, so that what an update adds isn't rounded to a weight's last digits. No update here depends on
the weights, for neither recipe decays them.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest
import torch

import jaxgpt.mesh
from jaxgpt import bridge
from parity_tests.bfloat16 import assert_as_exact, moved_by_an_ulp, root_mean_square
from parity_tests.measured import assert_within
from parity_tests.pair import (
    Weights,
    assert_alike,
    jax_moments,
    jax_state,
    jax_tree,
    learnable_tokens,
    relative,
    torch_batch,
    torch_moments,
    torch_state,
    torch_tree,
    with_bases,
)
from parity_tests.scale import as_trained, pair_at_scale, torch_device, weights_at_scale
from parity_tests.tolerances import (
    ERROR_RATIO,
    FLOAT32_ERROR_RATIO,
    PINNED_UPDATE_AT_SCALE,
    SECOND_ORDER_AT_SCALE,
    UPDATE_AT_SCALE,
    UPDATE_MOMENTS_AT_SCALE,
    UPDATE_SIZE_AT_SCALE,
)
from torch_ref.optimizer import group

pytestmark = pytest.mark.at_scale

NAMES = ("muon-2024-10-12", "opt-adam-2024-10-29")
MUON = NAMES[0]
UPDATES = 3


class Updated(NamedTuple):
    """Weights after each update, and what the optimiser keeps after the last."""

    weights: list[Weights]
    moments: Weights


@pytest.fixture(scope="module")
def raw(device):
    """raw(recipe): torch's gradients of as many batches as there are updates, at perturbed weights, in float32."""
    return functools.cache(lambda name: backward(name, device))


def backward(name, device) -> list[Weights]:
    both = pair_at_scale(name, "float32", device)
    state = torch_state(both, weights_at_scale(name, "float32", device))
    with as_trained("float32"):
        batches = (torch_batch(*learnable_tokens(both.recipe, n), torch_device(device)) for n in range(UPDATES))
        found = [torch_tree(both.torch.gradients(state, *batch)[1]) for batch in batches]
    del state
    torch.cuda.empty_cache()
    return found


@pytest.fixture(scope="module")
def updated(raw, device):
    """updated(framework, recipe, dtype, rounding): from weights of zero by the gradients."""

    @functools.cache
    def updated(framework, name, dtype, rounding="free") -> Updated:
        start = {n: np.zeros_like(g, "float64" if dtype == "float64" else "float32") for n, g in raw(name)[0].items()}
        return RUN[framework](pair_at_scale(name, dtype, device, rounding), start, raw(name), dtype)

    return updated


def in_jax(both, start, gradients, dtype, bases=None) -> Updated:
    """`bases`: SOAP's, to be taken over after the first update; see `pair.with_bases`."""
    state, weights = jax_state(both, start), []
    for grads in gradients:
        placed = jax.device_put(bridge.from_torch(grads, both.recipe.model), jaxgpt.mesh.replicated(both.devices))
        state = both.jax.update(state, placed)
        state = with_bases(both, state, bases) if bases and not weights else state
        weights.append(jax_tree(both, state.params))
    return Updated(weights, jax_moments(both, state))


def in_torch(both, start, gradients, dtype) -> Updated:
    state, weights = torch_state(both, start), []
    p = state.model.wte.weight
    with as_trained(dtype):
        for grads in gradients:
            state = both.torch.update(
                state, {n: torch.tensor(g, dtype=p.dtype, device=p.device) for n, g in grads.items()}
            )
            weights.append(torch_tree(dict(state.model.named_parameters())))
    kept = torch_moments(state)
    del state, p
    torch.cuda.empty_cache()
    return Updated(weights, kept)


RUN = {"jax": in_jax, "torch": in_torch}


def hidden(weights: Weights) -> Weights:
    """Those that a recipe's own optimiser has; all others have AdamW in float32, whatever the recipe's precision."""
    return {name: w for name, w in weights.items() if group(name) == "hidden"}


@pytest.mark.parametrize("name", NAMES)
def test_float32_updates_are_the_same(updated, device, name):
    got, want = (updated(framework, name, "float32").weights for framework in ("jax", "torch"))
    allowed = UPDATE_AT_SCALE[device]["muon" if name == MUON else "adamw"]
    for step in range(UPDATES):
        assert_alike(got[step], want[step], allowed, f"rung 6, float32 update {step}")


@pytest.mark.parametrize(("name", "dtype"), [*((name, "float32") for name in NAMES), (MUON, None)])
def test_moments_are_the_same(updated, device, name, dtype):
    got, want = (updated(framework, name, dtype).moments for framework in ("jax", "torch"))
    assert_alike(got, want, UPDATE_MOMENTS_AT_SCALE[device], f"rung 6, moments of {dtype or 'own precision'}")


@pytest.mark.parametrize("dtype", ["float32", None], ids=["float32", "own"])
def test_no_update_by_muon_has_a_larger_error_than_torchs(updated, device, dtype):
    exact = updated("torch", MUON, "float64").weights[0]
    got, reference = (hidden(updated(framework, MUON, dtype).weights[0]) for framework in ("jax", "torch"))
    errors = {n: (relative(got[n], exact[n]), relative(reference[n], exact[n])) for n in got}
    allowed = (FLOAT32_ERROR_RATIO if dtype == "float32" else ERROR_RATIO)[device]
    assert_as_exact(errors, f"rung 6, update in {dtype or 'own precision'}", allowed)


def test_no_update_by_adamw_has_a_larger_error_than_torchs(updated, device):
    name = NAMES[1]
    exact = updated("torch", name, "float64").weights[-1]
    got, reference = (updated(framework, name, "float32").weights[-1] for framework in ("jax", "torch"))
    errors = {n: (relative(got[n], exact[n]), relative(reference[n], exact[n])) for n in got}
    assert_as_exact(errors, "rung 6, update in float32", FLOAT32_ERROR_RATIO[device])


@pytest.mark.parametrize("rounding", ["free", "pinned"])
def test_bfloat16_updates_by_muon_have_the_size_of_torchs(updated, device, rounding):
    got, want = hidden(updated("jax", MUON, None, rounding).weights[0]), updated("torch", MUON, None).weights[0]
    for name in got:
        apart = abs(root_mean_square(got[name]) / root_mean_square(want[name]) - 1)
        assert_within(apart, UPDATE_SIZE_AT_SCALE[device], f"rung 6, {rounding} update's RMS")


def test_pinned_update_is_as_near_to_torchs_as_an_ulp_of_the_gradients_moves_that(updated, raw, device):
    # Eager, for pinned is where PyTorch rounds as it stands; compiled, it fuses sums, and rounds those once.
    both = pair_at_scale(MUON, None, device)
    grads = raw(MUON)[0]
    start = {n: np.zeros_like(g) for n, g in grads.items()}
    near = {n: moved_by_an_ulp(g) for n, g in grads.items()}
    want, moved = (hidden(in_torch(both, start, [each], "float32").weights[0]) for each in (grads, near))
    got = hidden(updated("jax", MUON, None, "pinned").weights[0])
    apart, floor = (np.hypot.reduce([relative(each[n], want[n]) for n in want]) for each in (got, moved))
    assert_within(apart, PINNED_UPDATE_AT_SCALE * floor, "rung 6, pinned update", oracle=floor)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["opt-soap-2024-10-29", "opt-shampoo-2024-10-29"])
def test_second_order_updates_and_moments_are_the_same(raw, device, name):
    both, start = pair_at_scale(name, "float32", device), weights_at_scale(name, "float32", device)
    first = in_torch(both, start, raw(name)[:1], "float32").moments
    want = in_torch(both, start, raw(name), "float32")
    got = in_jax(both, start, raw(name), "float32", first)
    weights, moments = SECOND_ORDER_AT_SCALE[device]
    assert_alike(got.weights[-1], want.weights[-1], weights, "rung 6, second-order weights")
    assert_alike(got.moments, want.moments, moments, "rung 6, second-order moments")
