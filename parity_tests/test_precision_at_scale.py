"""A run has the precision that it asked for: float32 without TF32, bfloat16 and float64 where they belong."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from parity_tests.bfloat16 import JUDGED
from parity_tests.measured import assert_within
from parity_tests.pair import jax_batch, jax_params, relative, tokens, torch_batch, torch_state
from parity_tests.scale import pair_at_scale, torch_device, weights_at_scale
from parity_tests.tolerances import FLOAT32_PRODUCT

pytestmark = pytest.mark.at_scale

LETTERS = {"float64": "f64", "float32": "f32", "bfloat16": "bf16"}
"""StableHLO's names of dtypes."""

by_dtype = pytest.mark.parametrize("dtype", LETTERS)
on_a_gpu_alone = "a CPU has no TF32, so nothing here can show that a product in it would be noticed"


def pytest_generate_tests(metafunc):
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", JUDGED[metafunc.config.getoption("--device")])


def factors():
    """Two float32 matrices and their product in float64."""
    A, B = np.random.default_rng(0).standard_normal((2, 1024, 1024)).astype(np.float32)
    return A, B, A.astype(np.float64) @ B.astype(np.float64)


def jax_product(device, precision):
    A, B, exact = factors()
    A, B = (jax.device_put(each, jax.devices(device)[0]) for each in (A, B))
    return relative(jax.jit(lambda A, B: jnp.matmul(A, B, precision=precision))(A, B), exact)


def torch_product(device):
    A, B, exact = factors()
    return relative(
        (torch.tensor(A, device=torch_device(device)) @ torch.tensor(B, device=torch_device(device))).cpu(), exact
    )


def test_a_float32_product_of_jax_is_float32(device):
    assert_within(jax_product(device, "highest"), FLOAT32_PRODUCT, "float32 product of JAX")


def test_a_float32_product_of_torch_is_float32(device):
    pair_at_scale(JUDGED[device][0], "float32", device)  # which sets it
    assert torch.get_float32_matmul_precision() == "highest"
    assert_within(torch_product(device), FLOAT32_PRODUCT, "float32 product of torch")


@pytest.mark.parametrize("precision", [jax.lax.DotAlgorithmPreset.TF32_TF32_F32, "default"], ids=["TF32", "default"])
def test_tf32_of_jax_would_be_noticed(device, precision):
    if device == "cpu":
        pytest.skip(on_a_gpu_alone)
    assert jax_product(device, precision) > 10 * FLOAT32_PRODUCT


def test_tf32_of_torch_would_be_noticed(device):
    if device == "cpu":
        pytest.skip(on_a_gpu_alone)
    torch.set_float32_matmul_precision("high")
    try:
        assert torch_product(device) > 10 * FLOAT32_PRODUCT
    finally:
        torch.set_float32_matmul_precision("highest")


def start(name, dtype, device):
    return weights_at_scale(name, "float64" if dtype == "float64" else "float32", device)


def products_of_jax(name, dtype, device):
    """How many products of the lowered gradients have (dtypes of both inputs, precisions, whether batched)."""
    both = pair_at_scale(name, dtype, device)
    params = jax_params(both, start(name, dtype, device))
    text = both.jax.gradients.lower(params, *jax_batch(both, *tokens(both.recipe))).as_text()
    found = collections.Counter()
    for line in (line for line in text.splitlines() if "stablehlo.dot_general" in line):
        precisions = re.search(r"precision = \[(\w+), (\w+)\]", line)
        inputs = re.search(r": \(tensor<(?:\d+x)*(\w+)>, tensor<(?:\d+x)*(\w+)>\)", line)
        found[inputs.groups(), precisions.groups(), "batching_dims" in line] += 1
    assert found.total() > 20, "products are written otherwise than is read here"
    return found


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_product_of_jaxs_step_has_that_dtype_at_the_highest_precision(name, dtype, device):
    for inputs, precisions, _ in products_of_jax(name, dtype, device):
        assert inputs == (LETTERS[dtype],) * 2
        assert precisions == ("HIGHEST", "HIGHEST")


def test_every_product_of_jaxs_step_is_of_bfloat16_but_written_out_attentions(name, device):
    for inputs, _, batched in products_of_jax(name, "bfloat16", device):
        written_out = batched and device == "cpu"
        assert inputs == ("bf16", "bf16") or written_out


class Products(TorchDispatchMode):
    """Keeps the dtypes that matrix products and attention kernels are given, forward and backward."""

    def __init__(self):
        super().__init__()
        self.dtypes = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "bmm", "baddbmm") or "scaled_dot_product" in name:
            for each in args[:3]:  # what comes after them in attention's backward pass is wider by right
                if isinstance(each, torch.Tensor) and each.is_floating_point() and each.ndim > 1:
                    self.dtypes[name, each.dtype] += 1
        return func(*args, **(kwargs or {}))


def products_of_torch(name, dtype, device):
    both = pair_at_scale(name, dtype, device)
    state = torch_state(both, start(name, dtype, device))
    batch = torch_batch(*tokens(both.recipe), torch_device(device))
    with Products() as products, torch.compiler.set_stance("force_eager"):
        both.torch.gradients(state, *batch)
    assert products.dtypes.total() > 20, "products are called otherwise than is read here"
    return products.dtypes


@by_dtype
def test_every_product_of_torchs_step_has_that_dtype_but_written_out_attentions(name, dtype, device):
    for (product, found), _ in products_of_torch(name, dtype, device).items():
        written_out = product == "bmm" and device == "cpu" and dtype == "bfloat16"
        assert found == getattr(torch, dtype) or (written_out and found == torch.float32), product


@by_dtype
def test_weights_of_both_are_as_wide_as_asked(name, dtype, device):
    both = pair_at_scale(name, dtype, device)
    params, gpt = jax_params(both, start(name, dtype, device)), torch_state(both, start(name, dtype, device)).model
    wide = "float64" if dtype == "float64" else "float32"
    embedding = both.recipe.model.embedding_dtype if dtype == "bfloat16" else wide
    assert str(params.pop("wte").dtype) == embedding == str(gpt.wte.weight.dtype).removeprefix("torch.")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {wide}
    others = {str(w.dtype).removeprefix("torch.") for n, w in gpt.named_parameters() if n != "wte.weight"}
    assert others == {wide}
