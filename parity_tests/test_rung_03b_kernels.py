"""Rung 3b: the kernels of `jaxgpt.kernels` against their plain forms. Without a GPU they run interpreted."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

import jaxgpt.kernels.norm
import jaxgpt.kernels.softmax
import jaxgpt.model
from jaxgpt import mesh
from jaxgpt.checkpoint import named
from jaxgpt.errors import BadInput
from jaxgpt.kernels import mlp
from jaxgpt.kernels.norm import add_norm, plain_add_norm
from jaxgpt.kernels.softmax import plain_softmax_gradient, softmax_gradient
from jaxgpt.recipes import precision, reduced
from jaxgpt.train import make_step
from parity_tests.measured import assert_within
from parity_tests.pair import assert_alike, relative
from parity_tests.tolerances import ERROR_RATIO, FAST, FUSED_GRADIENTS

TRITON, MOSAIC = "custom_call @__gpu$xla.gpu.triton", "custom_call @mosaic_gpu"

in_both_dtypes = pytest.mark.parametrize("dtype", ["float64", "float32"])


def numbers(*shape, dtype="float64", seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def norm_and_gradients(form, x, y, copies, factor):
    weights = [numbers(*x.shape, seed=seed) for seed in range(copies + 1)]

    def weighed(x, y):
        found = form(x, y, 1e-6, copies, factor)
        return sum(jnp.sum(a.astype("float64") * w) for a, w in zip(found, weights, strict=True)), found

    (_, found), (dx, dy) = jax.value_and_grad(weighed, argnums=(0, 1), has_aux=True)(x, y)
    return {"sum": found[0], "norm": found[-1], "dx": dx, "dy": dy}


@pytest.mark.parametrize("factor", [None, 24**-0.5])
@pytest.mark.parametrize("copies", [1, 3])
@in_both_dtypes
def test_the_norm_kernel_is_an_addition_and_a_norm(dtype, copies, factor):
    x, y = numbers(8, 96, dtype=dtype), numbers(8, 96, dtype=dtype, seed=9)
    got, want = (norm_and_gradients(form, x, y, copies, factor) for form in (add_norm, plain_add_norm))
    assert_alike(got, want, FAST[dtype], "rung 3b, norm kernel")


def test_the_norm_kernels_gradients_in_bfloat16_have_no_larger_error_than_the_plain_forms():
    wide, y = numbers(64, 96, dtype="float32"), numbers(64, 96, seed=9).astype("bfloat16")
    exact = norm_and_gradients(plain_add_norm, wide.astype("float64"), y.astype("float64"), 3, None)
    got, plain = (norm_and_gradients(form, wide, y, 3, None) for form in (add_norm, plain_add_norm))
    for name in ("dx", "dy"):
        error, allowed = (relative(each[name].astype("float64"), exact[name]) for each in (got, plain))
        assert_within(error, ERROR_RATIO["cpu"] * float(allowed), f"rung 3b, bfloat16 norm kernel, {name}")


@pytest.mark.parametrize("ids", [5000, 4990])
@in_both_dtypes
def test_the_softmax_kernel_is_the_softmax_less_the_target(dtype, ids):
    logits, targets = 3 * numbers(4, 5000, dtype=dtype), jnp.asarray([0, 7, 4095, 4989])
    got, want = (f(logits, targets, ids, 0.25) for f in (softmax_gradient, plain_softmax_gradient))
    assert_within(relative(got[0], want[0]), FAST[dtype], "rung 3b, gradient of the softmax kernel")
    assert_within(relative(got[1], want[1]), FAST[dtype], "rung 3b, loss of the softmax kernel")


def test_the_softmax_kernel_leaves_columns_out_whatever_stands_there():
    logits = jnp.asarray([[0.0, 1.0, jnp.inf, 50.0]], "float32")
    gradient, loss = softmax_gradient(logits, jnp.asarray([1]), 2, 1.0)
    assert (gradient[0, 2:] == 0).all()
    assert_within(relative(loss[0], jnp.log(1 + jnp.exp(jnp.float32(-1)))), FAST["float32"])


@in_both_dtypes
def test_the_mlp_that_keeps_its_activation_has_the_plain_ones_gradients(dtype):
    x, *weights = (
        numbers(24, 16, dtype=dtype),
        numbers(16, 40, dtype=dtype, seed=1),
        numbers(40, 16, dtype=dtype, seed=2),
    )
    seen = numbers(24, 16, dtype=dtype, seed=3)
    plain = lambda x, a, b: jnp.square(jax.nn.relu(x @ a)) @ b  # noqa: E731
    got, want = (
        dict(enumerate(jax.grad(lambda *args: jnp.sum(f(*args) * seen), argnums=(0, 1, 2))(x, *weights)))  # noqa: B023
        for f in (mlp.relu_squared_mlp, plain)
    )
    assert_alike(got, want, FAST[dtype], "rung 3b, ReLU^2 MLP")


def test_the_root_of_a_rounded_square_is_the_number_again_in_bfloat16():
    every = jax.lax.bitcast_convert_type(jnp.arange(2**15, dtype=jnp.uint16), jnp.bfloat16)
    squares = (every.astype("float32") ** 2).astype("bfloat16")
    is_normal = (squares.astype("float32") >= jnp.finfo("float32").tiny) & jnp.isfinite(squares)
    roots = jnp.sqrt(squares.astype("float32")).astype("bfloat16")
    assert is_normal.sum() > 2**14 - 200
    assert (roots == every)[is_normal].all()


@pytest.mark.parametrize("name", ["muon-2024-10-12", "modern-2024-10-14", "simple-2026-06-11"])
def test_a_step_with_kernels_is_the_step_without(name):
    recipe, devices = reduced(name), mesh.make_mesh_of(jax.devices()[:1])
    exactly = precision(recipe, "float32", "exact")
    ids = np.random.default_rng(0).integers(
        0, recipe.model.token_ids, (recipe.data.sequences, recipe.model.context + 1)
    )
    batch = (mesh.place(devices, a.astype(np.int32)) for a in (ids[:, :-1], ids[:, 1:]))
    batch, answers = tuple(batch), []
    for kernels in ("plain", "fused"):
        step = make_step(recipe, dataclasses.replace(exactly, kernels=kernels), devices, recipe.data.sequences)
        loss, gradients = step.gradients(step.init(0).params, *batch)
        answers.append({"loss": loss} | named(gradients))
    plain, fused = answers
    assert_alike(fused, plain, FUSED_GRADIENTS, f"rung 3b, {name} with kernels")


@pytest.mark.parametrize(("kernels", "taken"), [("plain", 0), ("fused", 1)])
def test_an_mlp_takes_the_kernels_where_they_are_asked_for(monkeypatch, kernels, taken):
    calls = []

    def recorded(x_ND, *weights):
        calls.append(x_ND.shape)
        return plain_mlp(x_ND, *weights)

    plain_mlp = jaxgpt.model.relu_squared_mlp
    monkeypatch.setattr(jaxgpt.model, "relu_squared_mlp", recorded)
    config = reduced("muon-2024-10-12").model
    linear = lambda rows, columns, _: jaxgpt.model.Linear(rows, columns, use_bias=False, rngs=nnx.Rngs(0))  # noqa: E731
    jaxgpt.model.MLP(config, linear, kernels)(jnp.ones((2, 4, config.width)))
    assert calls == [(8, config.width)] * taken


H100 = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")


@pytest.fixture
def compiled_kernels(monkeypatch):
    """Kernels as a GPU takes them, not interpreted."""
    for module in (jaxgpt.kernels.norm, jaxgpt.kernels.softmax):
        monkeypatch.setattr(module, "interpreted", lambda: False)


def lowered(function, *arguments):
    """What an H100 would be given, made without one. Since JAX 0.11 Triton's kernels ask which GPU it is."""
    with use_abstract_mesh(AbstractMesh((1,), ("data",), (AxisType.Explicit,), abstract_device=H100)):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def shaped(*shapes):
    return [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]


@pytest.mark.usefixtures("compiled_kernels")
def test_the_triton_kernels_can_be_made_for_a_gpu():
    scored = lambda x, y: sum(a.astype("float32").sum() for a in add_norm(x, y, 1e-6, 3, 0.2))  # noqa: E731
    norm = lowered(jax.grad(scored, argnums=(0, 1)), *shaped(((64, 768), "float32"), ((64, 768), "bfloat16")))
    logits = shaped(((64, 50304), "bfloat16"), ((64,), "int32"))
    softmax = lowered(lambda z, t: softmax_gradient(z, t, 50304, 1.0), *logits)
    assert norm.count(TRITON) == 2
    assert softmax.count(TRITON) == 1


@pytest.mark.parametrize("backward", [False, True])
def test_the_hopper_kernel_can_be_made_for_a_gpu(backward):
    shapes = [((1024, 768), "bfloat16"), ((768, 3072), "bfloat16")] + [((1024, 3072), "bfloat16")] * backward
    assert lowered(lambda *args: mlp._product(*args, processors=132), *shaped(*shapes)).count(MOSAIC) == 1


def kernels_lowered(layers):
    """How many Triton and Mosaic kernels the program of a model's gradient has: its own, not its calls of them."""
    config = reduced("muon-2024-10-12", layers=layers, width=256).model
    make = lambda: jaxgpt.model.GPT(config, rngs=nnx.Rngs(0), embedding="float32", kernels="fused")  # noqa: E731
    model, weights = nnx.split(nnx.eval_shape(make))
    loss = lambda weights, ids: nnx.merge(model, weights).hidden(ids).astype("float32").sum()  # noqa: E731
    text = lowered(jax.grad(loss), weights, *shaped(((8, config.context), "int32")))
    return text.count(TRITON), text.count(MOSAIC)


@pytest.mark.usefixtures("compiled_kernels")
def test_more_layers_have_no_more_kernels_to_lower(monkeypatch):
    """Lowering is slow Python, and a start from XLA's cache has to wait for it."""
    monkeypatch.setattr(mlp, "fits", lambda *_: True)
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(core_count=132)])
    assert kernels_lowered(4) == kernels_lowered(3) == (6, 2)


def test_a_product_that_no_kernel_takes_is_xlas():
    assert not mlp.fits(numbers(256, 64, dtype="bfloat16"), numbers(64, 256, dtype="bfloat16"))  # there is no GPU


def of(platform):
    """As much of a mesh as is asked for its platform."""
    return SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]))


@pytest.mark.parametrize(
    ("platform", "asked", "rounding", "taken"),
    [
        ("gpu", "auto", "free", "fused"),
        ("gpu", "auto", "pinned", "plain"),
        ("gpu", "fused", "pinned", "fused"),
        ("gpu", "plain", "free", "plain"),
        ("cpu", "auto", "free", "plain"),
        ("tpu", "auto", "free", "plain"),
    ],
)
def test_kernels_are_taken_on_gpus_unless_asked_otherwise(platform, asked, rounding, taken):
    assert mesh.kernels(of(platform), asked, rounding) == taken


def test_kernels_asked_for_where_no_gpu_is_are_refused():
    with pytest.raises(BadInput, match=r"--kernels fused: they are for GPUs, and this runs on a cpu; leave it out"):
        mesh.kernels(of("cpu"), "fused")


def test_only_bfloat16_takes_kernels():
    recipe = reduced("muon-2024-10-12")
    taken = [precision(recipe, dtype, "fast", kernels="fused").kernels for dtype in ("bfloat16", "float32", "float64")]
    assert taken == ["fused", "plain", "plain"]
