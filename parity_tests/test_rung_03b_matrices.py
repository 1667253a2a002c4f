"""Rung 3b: matrices batched by shape and dealt out over devices against one after the other on one device."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgpt.mesh
import jaxgpt.shampoo
import jaxgpt.soap
from jaxgpt.matrices import by_shape
from jaxgpt.muon import newton_schulz
from parity_tests.measured import assert_within
from parity_tests.pair import assert_alike, relative
from parity_tests.second_order import (
    SHAPES,
    Trace,
    allowed,
    by_optimizer,
    gradients,
    run_jax,
    start,
)
from parity_tests.tolerances import (
    FAST,
)

FEW = {name: SHAPES[name] for name in ("square", "layer 0", "layer 1")}


@functools.cache
def undealt(optimizer) -> Trace:
    return run_jax(optimizer, start(shapes=FEW), gradients(shapes=FEW))


@by_optimizer
@pytest.mark.parametrize("devices", [2, 8])
def test_matrices_dealt_out_over_devices_give_the_same_weights_and_states(devices, optimizer):
    mesh = jaxgpt.mesh.make_mesh_of(jax.devices()[:devices])
    settings = {"mesh": mesh, "deal": jaxgpt.mesh.split(mesh)}
    first = undealt(optimizer) if optimizer == "soap" else None
    dealt = run_jax(optimizer, start(shapes=FEW), gradients(shapes=FEW), first, **settings)
    for call, (got, want) in enumerate(zip(dealt, undealt(optimizer), strict=True)):
        for slot in want:
            what = f"rung 3b, {optimizer} over {devices} devices, {slot} after call {call}"
            assert_alike(got[slot], want[slot], allowed(slot, "float64"), what)


DECOMPOSITIONS = {"eigh": ("syevd", jnp.linalg.eigh), "qr": ("geqrf", jnp.linalg.qr)}


@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_dealt_matrices_are_decomposed_once_each(name):
    target, decompose = DECOMPOSITIONS[name]
    mesh = jaxgpt.mesh.make_mesh_of(jax.devices()[:8])
    stacks = [(jnp.ones((13, 6, 6)),), (jnp.ones((6, 6)),)]  # 14 matrices: two for each device
    run = jax.jit(lambda stacks: by_shape(lambda a: tuple(decompose(a)), stacks, jaxgpt.mesh.split(mesh)))
    program = run.lower(jax.device_put(stacks, jaxgpt.mesh.replicated(mesh))).compile().as_text()
    calls = [line for line in program.splitlines() if "custom-call(" in line and target in line]
    assert [re.search(r"= \(f64\[([\d,]+)\]", line).group(1) for line in calls] == ["2,6,6"], (
        "one call a device, of two"
    )


def test_dealt_newton_schulz_orthogonalises_each_matrix_once():
    mesh = jaxgpt.mesh.make_mesh_of(jax.devices()[:8])
    stacks = jax.device_put([(jnp.ones((12, 16, 32)),), (jnp.ones((2, 2, 16, 32)),)], jaxgpt.mesh.replicated(mesh))

    def flops(deal):
        run = jax.jit(lambda stacks: by_shape(lambda G: newton_schulz(G, dtype="float64"), stacks, deal))
        return run.lower(stacks).compile().cost_analysis()["flops"]

    assert flops(jaxgpt.mesh.split(mesh)) < 1.1 * flops(None) / 8  # per device


@pytest.mark.parametrize("devices", [None, 2, 8])
def test_by_shape_gives_every_stack_its_own_results(devices):
    rng = np.random.default_rng(3)
    deal = devices and jaxgpt.mesh.split(jaxgpt.mesh.make_mesh_of(jax.devices()[:devices]))
    leading = [(), (3,), (2, 2), ()]
    stacks = [
        (jnp.asarray(rng.standard_normal((*lead, r, 4))), jnp.asarray(rng.standard_normal((*lead, 4, 5))))
        for lead, r in zip(leading, [3, 3, 3, 2], strict=True)
    ]
    batches = []

    def product(a_nrk, b_nkc):
        batches.append(a_nrk.shape)
        return a_nrk @ b_nkc, jnp.sum(a_nrk, (-2, -1))

    got = jax.jit(lambda stacks: by_shape(product, stacks, deal))(stacks)
    for (a, b), (ab, total) in zip(stacks, got, strict=True):
        assert_within(relative(ab, a @ b), FAST["float64"])
        assert_within(relative(total, a.sum((-2, -1))), FAST["float64"])
    alike = {None: 8, 2: 4, 8: 1}[devices]
    assert batches == [(alike, 3, 4), (1, 2, 4)], "one call a shape, on a device's share"
