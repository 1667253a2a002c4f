"""Muon in a model that isn't ours: the two examples learn, and a layout that is wrong shows."""

import importlib
import re
import runpy
import sys
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from jaxgpt.muon import Matrix, kernels_in_out, muon
from parity_tests.measured import assert_within
from parity_tests.programs import ROOT
from parity_tests.tolerances import OWN_MODELS

FLAX, EQUINOX = "muon_flax", "muon_equinox"
by_example = pytest.mark.parametrize("name", [FLAX, EQUINOX])


@pytest.fixture(scope="module")
def example():
    """example(name): the file of that name in examples/, imported."""

    def imported(name: str) -> ModuleType:
        if name == EQUINOX:
            pytest.importorskip("equinox", reason="needs `pip install equinox`")
        return importlib.import_module(name)

    sys.path.insert(0, str(ROOT / "examples"))
    yield imported
    sys.path.remove(str(ROOT / "examples"))
    for name in (FLAX, EQUINOX, "text"):
        sys.modules.pop(name, None)


def net(module: ModuleType):
    """The example's model, in float32 also where 64 bits are allowed."""
    made = module.Net(nnx.Rngs(0)) if module.__name__ == FLAX else module.Net(jax.random.key(0))
    return jax.tree.map(lambda w: w.astype(jnp.float32), made) if module.__name__ == EQUINOX else made


def train(module: ModuleType, start, optimizer: optax.GradientTransformation) -> list[float]:
    losses = module.train(start, optimizer)
    return losses if module.__name__ == FLAX else losses[1]


# They learn


@by_example
def test_an_example_reaches_the_loss_that_it_says(example, name, capsys):
    module = example(name)
    losses = runpy.run_path(module.__file__, run_name="__main__")["losses"]
    assert "best possible 1.16" in capsys.readouterr().out
    said = re.search(r"the loss goes from (\S+)\s+to (\S+); no model can be better than (\S+)\.\n", module.__doc__)
    first, last, best = map(float, said.groups())
    assert losses[0] == pytest.approx(first, abs=0.1)
    assert np.mean(losses[-20:]) == pytest.approx(last, abs=0.03)
    assert pytest.approx(best, abs=0.005) == module.BEST_LOSS


# Fan-in and fan-out


@by_example
def test_an_examples_fan_in_is_what_its_layers_take(example, name):
    module = example(name)
    made = net(module)
    for layer in ("up", "down"):
        part = "kernel" if name == FLAX else "weight"
        weight, has = getattr(getattr(made, layer), part), getattr(made, layer)
        matrix = module.layout(f"{layer}.{part}", weight)
        assert weight.shape[matrix.fan_in] == has.in_features
        assert weight.shape[matrix.fan_out] == has.out_features


def equal_start(example):
    """Both examples' models with the same weights."""
    import equinox as eqx

    flax, equinox = net(example(FLAX)), net(example(EQUINOX))
    for layer in ("up", "down", "head"):
        ours, theirs = getattr(flax, layer), getattr(equinox, layer)

        def where(tree, layer=layer):
            return getattr(tree, layer).weight, getattr(tree, layer).bias

        assert ours.kernel.shape == theirs.weight.shape[::-1]
        equinox = eqx.tree_at(where, equinox, (ours.kernel[...].T, ours.bias[...]))
    return flax, eqx.tree_at(lambda tree: tree.embed.weight, equinox, flax.embed.embedding[...])


def optimizer(layout) -> optax.GradientTransformation:
    return muon(0.05, layout, others=optax.adamw(0.01), scale="sqrt_ratio", dtype=jnp.float32)


def swapped(layout):
    """The same matrices, with fan-in for fan-out."""

    def wrong(name: str, weight: jax.Array) -> Matrix | None:
        matrix = layout(name, weight)
        return matrix and Matrix(fan_in=matrix.fan_out, fan_out=matrix.fan_in)

    return wrong


@pytest.fixture
def short(example, monkeypatch):
    """Both examples, cut to 20 steps."""
    modules = [example(FLAX), example(EQUINOX)]
    for module in modules:
        monkeypatch.setattr(module, "STEPS", 20)
    return modules


def test_the_two_examples_are_one_model_with_one_optimiser(example, short):
    starts = equal_start(example)
    flax, equinox = (train(m, start, optimizer(m.layout)) for m, start in zip(short, starts, strict=True))
    assert_within(np.abs(np.subtract(flax, equinox)).max(), OWN_MODELS)


@pytest.mark.parametrize("wrong", [0, 1], ids=["flax", "equinox"])
def test_with_fan_in_for_fan_out_in_either_they_part(example, short, wrong):
    starts = equal_start(example)
    layouts = [swapped(m.layout) if i == wrong else m.layout for i, m in enumerate(short)]
    flax, equinox = (
        train(m, start, optimizer(layout)) for m, start, layout in zip(short, starts, layouts, strict=True)
    )
    assert np.abs(np.subtract(flax, equinox)).max() > 500 * OWN_MODELS


# What is refused, and names


def test_a_layout_that_knows_no_weight_is_refused_where_adamw_would_train_them_all():
    torch_like = {"up": {"weight": jnp.ones((4, 3)), "bias": jnp.ones(4)}}
    with pytest.raises(ValueError, match=r"`layout` calls no weight Muon's: .* among up\.bias, up\.weight"):
        muon(0.1, kernels_in_out, others=optax.adamw(0.1)).init(torch_like)


def test_a_tree_without_weights_is_nobodys_mistake():
    muon(0.1, others=optax.adamw(0.1)).init({})


def names_seen(params) -> set[str]:
    seen = set()

    def layout(name: str, weight: jax.Array) -> Matrix | None:
        seen.add(name)
        return kernels_in_out(name, weight)

    muon(0.1, layout, others=optax.adamw(0.1)).init(params)
    return seen


def test_names_in_nnx_are_those_of_its_attributes():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.blocks = nnx.List([nnx.Linear(2, 3, rngs=rngs)])

    assert names_seen(nnx.state(Net(nnx.Rngs(0)), nnx.Param)) == {"blocks.0.kernel", "blocks.0.bias"}


def test_a_weight_that_is_itself_called_value_keeps_its_name():
    assert names_seen({"attn": {"value": jnp.ones((2, 2)), "kernel": jnp.ones((2, 2))}}) == {
        "attn.value",
        "attn.kernel",
    }


def test_a_linen_models_dense_kernels_are_muons_by_the_default_layout():
    params = linen.Dense(3).init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    assert names_seen(params) == {"kernel", "bias"}
    state = muon(0.1, others=optax.adamw(0.1)).init(params)
    momenta = [leaf for leaf in jax.tree.leaves(state.inner_states["muon"]) if leaf.ndim == 2]
    assert [each.shape for each in momenta] == [(2, 3)]
