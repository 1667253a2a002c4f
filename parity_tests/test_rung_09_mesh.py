"""Rung 9: a step's tokens over 1, 2, 4, 8 devices, or accumulated instead: the same gradients, updates and losses."""

import jax
import pytest

import jaxgpt.mesh
from jaxgpt.errors import BadInput
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
from parity_tests.tolerances import LOSS, MESH

DIVIDED = [(1, 1), (1, 16), (2, 2), (2, 8), (4, 4), (8, 1), (8, 2)]
"""Devices, and sequences a device takes at once, of a step of 16; the reference is one device, 4 at once."""
FLOAT32 = [(4, 4), (8, 1)]
"""Of those, devices alone and both at once. In float32 the others are slow tests."""


def divided_so(devices: int, micro_batch: int, dtype: str):
    slow = dtype == "float32" and (devices, micro_batch) not in FLOAT32
    return pytest.param(devices, micro_batch, dtype, marks=[pytest.mark.slow] * slow)


@pytest.mark.parametrize(
    ("devices", "micro_batch", "dtype"), [divided_so(*d, dtype) for d in DIVIDED for dtype in DTYPES]
)
def test_gradients_do_not_depend_on_devices_or_accumulation(devices, micro_batch, dtype):
    whole, divided = pair("muon-2024-10-12", dtype), pair("muon-2024-10-12", dtype, devices, micro_batch)
    start, batch = weights("muon-2024-10-12", dtype), tokens(whole.recipe)
    want_loss, want = whole.jax.gradients(jax_state(whole, start).params, *jax_batch(whole, *batch))
    got_loss, got = divided.jax.gradients(jax_state(divided, start).params, *jax_batch(divided, *batch))
    assert_within(relative(got_loss, want_loss), LOSS[dtype])
    assert_alike(jax_tree(divided, got), jax_tree(whole, want), MESH[dtype], "rung 9, gradients")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("micro_batch", [1, 2, 8, 16])
def test_torch_gradients_do_not_depend_on_accumulation(micro_batch, dtype):
    whole, divided = pair("muon-2024-10-12", dtype), pair("muon-2024-10-12", dtype, 1, micro_batch)
    start, batch = weights("muon-2024-10-12", dtype), tokens(whole.recipe)
    want_loss, want = whole.torch.gradients(torch_state(whole, start), *torch_batch(*batch))
    got_loss, got = divided.torch.gradients(torch_state(divided, start), *torch_batch(*batch))
    assert_within(relative(got_loss, want_loss), LOSS[dtype])
    assert_alike(torch_tree(got), torch_tree(want), MESH[dtype], "rung 9, gradients")


@pytest.mark.parametrize(
    ("devices", "dtype"),
    [(2, "float64"), (8, "float64"), (8, "float32"), pytest.param(2, "float32", marks=pytest.mark.slow)],
)
def test_training_does_not_depend_on_devices(devices, dtype):
    whole, divided = pair("tiny", dtype), pair("tiny", dtype, devices, 2)
    start = weights("tiny", dtype, perturbed=False)
    one, many = jax_state(whole, start), jax_state(divided, start)
    for step in range(10):
        batch = tokens(whole.recipe, seed=step)
        one, want = whole.jax.step(one, *jax_batch(whole, *batch))
        many, got = divided.jax.step(many, *jax_batch(divided, *batch))
        assert_within(relative(got["train_loss"], want["train_loss"]), MESH[dtype], f"step {step}")
    assert_alike(jax_tree(divided, many.params), jax_tree(whole, one.params), 10 * MESH[dtype], "rung 9, weights")


def test_gradients_cross_the_mesh_once_a_step_in_the_dtype_of_the_weights():
    divided = pair("muon-2024-10-12", "float32", 8, 1)
    state = jax.eval_shape(divided.jax.init, 0)
    batch = jax.ShapeDtypeStruct(
        (16, divided.recipe.model.context), "int32", sharding=jaxgpt.mesh.split(divided.devices)
    )
    text = divided.jax.gradients.lower(state.params, batch, batch).as_text()
    assert text.count("stablehlo.all_reduce") == 1 + len(jax.tree.leaves(state.params))
    assert "stablehlo.while" in text
    loop = text[text.index("stablehlo.while") : text.index("stablehlo.all_reduce")]
    assert "all_reduce" not in loop


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((512, 3, 64, None), "512 sequences don't divide over 3 devices"),
        ((512, 8, 64, 5), "--micro-batch 5: a device's 64 sequences"),
        ((512, 8, 64, 0), "--micro-batch 0"),
    ],
)
def test_sequences_that_do_not_divide_are_refused(arguments, says):
    with pytest.raises(BadInput, match=says):
        jaxgpt.mesh.micro_batch(*arguments)


def test_micro_batch_is_the_largest_divisor_that_the_recipe_allows():
    assert jaxgpt.mesh.micro_batch(512, 8, 64, None) == 64
    assert jaxgpt.mesh.micro_batch(512, 1, 64, None) == 64
    assert jaxgpt.mesh.micro_batch(24, 2, 8, None) == 6
    assert jaxgpt.mesh.micro_batch(512, 8, 64, 16) == 16
