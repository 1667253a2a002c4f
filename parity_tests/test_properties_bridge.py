"""What both bridges do for any small model: nothing that is carried over changes a bit."""

import dataclasses
import tempfile
from pathlib import Path

import jax
import numpy as np
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxgpt.bridge
import jaxgpt.optimizer
import torch_ref.bridge
import torch_ref.model
import torch_ref.moments
import torch_ref.optimizer
import torch_ref.tokens
from jaxgpt.model import GPT
from jaxgpt.moments import moments_from_torch, moments_to_torch
from jaxgpt.recipes import RECIPES, ModelConfig, OptimizerConfig, Recipe, precision
from jaxgpt.statefile import moment_shapes
from parity_tests.pair import Weights


def deterministic(examples: int) -> settings:
    return settings(derandomize=True, deadline=None, max_examples=examples)


@st.composite
def models(draw) -> ModelConfig:
    heads, token_ids = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    positions = draw(st.sampled_from(["rotary", "half_rotary", "learned"]))
    qk_norms = ["none"] if positions == "learned" else ["none", "before_rotary", "after_rotary"]
    return ModelConfig(
        vocab=token_ids + draw(st.integers(0, 3)),
        token_ids=token_ids,
        layers=draw(st.integers(1, 3)),
        heads=heads,
        width=heads * 4 * draw(st.integers(1, 2)),
        mlp_ratio=draw(st.integers(1, 4)),
        context=draw(st.integers(1, 5)),
        norm=draw(st.sampled_from(["rms", "rms_gain", "layer"])),
        embedding_norm=draw(st.booleans()),
        biases=draw(st.booleans()),
        qkv=draw(st.sampled_from(["fused", "separate"])),
        qk_norm=draw(st.sampled_from(qk_norms)),
        positions=positions,
        head=draw(st.sampled_from(["tied", "untied"])),
    )


@st.composite
def recipes(draw) -> Recipe:
    """Any such model with an optimiser that fits it."""
    model, kind = draw(models()), draw(st.sampled_from(["muon", "adamw", "soap", "shampoo"]))
    if kind in ("soap", "shampoo"):
        model = dataclasses.replace(model, qkv="separate")
    optimizer = OptimizerConfig(
        kind=kind,
        head_lr=0.1 if model.head == "untied" else None,
        vector_lr=0.1 if any(len(shape) < 2 for shape in model.shapes.values()) else None,
    )
    return dataclasses.replace(RECIPES["tiny"], model=model, optimizer=optimizer)


def drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


SEEDS = st.integers(0, 2**32 - 1)


def to_the_bit(got: Weights, want: Weights) -> None:
    assert got.keys() == want.keys()
    changed = [n for n in want if not np.array_equal(np.asarray(got[n]), np.asarray(want[n]))]
    assert changed == []


def in_torch(weights: Weights) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(each) for name, each in weights.items()}


@deterministic(50)
@given(models(), SEEDS)
def test_weights_to_jax_and_back_are_the_same_to_the_bit(config, seed):
    want = drawn(config.shapes, seed)
    to_the_bit(jaxgpt.bridge.to_torch(jaxgpt.bridge.from_torch(want, config), config), want)


@deterministic(25)
@given(models(), SEEDS)
def test_moments_of_one_side_of_a_matrix_are_the_same_to_the_bit(config, seed):
    config = dataclasses.replace(config, qkv="separate")
    want = drawn({n: shape[:1] * 2 for n, shape in config.shapes.items() if n.startswith("h.")}, seed)
    there = jaxgpt.bridge.from_torch(want, config, transpose=False)
    to_the_bit(jaxgpt.bridge.to_torch(there, config, transpose=False), want)


@deterministic(12)
@given(models())
def test_weights_have_the_names_and_shapes_of_jaxs_model(config):
    model = nnx.eval_shape(lambda: GPT(config, rngs=nnx.Rngs(0)))
    want = jax.tree.map(lambda w: w.shape, nnx.to_pure_dict(nnx.split(model)[1]))
    params = jaxgpt.bridge.from_torch(drawn(config.shapes, 0), config)
    assert jax.tree.map(lambda w: w.shape, params) == want


@deterministic(25)
@given(models())
def test_weights_have_the_names_and_shapes_of_torchs_model(config):
    named = torch_ref.model.GPT(config).state_dict()
    assert {name: tuple(w.shape) for name, w in named.items()} == config.shapes


@deterministic(25)
@given(recipes(), SEEDS)
def test_a_file_that_jax_writes_torch_reads_to_the_bit(recipe, seed):
    want = drawn(recipe.model.shapes, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weights")
        jaxgpt.bridge.save_state(path, jaxgpt.bridge.from_torch(want, recipe.model), recipe)
        to_the_bit(torch_ref.bridge.load_state(path, recipe), want)


@deterministic(25)
@given(recipes(), SEEDS)
def test_a_file_that_torch_writes_jax_reads_to_the_bit(recipe, seed):
    want = drawn(recipe.model.shapes, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weights")
        torch_ref.bridge.save_state(path, in_torch(want), recipe)
        to_the_bit(jaxgpt.bridge.to_torch(jaxgpt.bridge.load_state(path, recipe), recipe.model), want)


@deterministic(25)
@given(recipes(), SEEDS, st.integers(1, 240), st.integers(0, 9), st.integers(0, 10**12))
def test_a_training_state_goes_from_torch_to_jax_and_back_to_the_bit(recipe, seed, step, shard, offset):
    weights, moments = drawn(recipe.model.shapes, seed), drawn(moment_shapes(recipe), seed)
    with tempfile.TemporaryDirectory() as folder:
        path, again = Path(folder, "state"), Path(folder, "again")
        position = torch_ref.tokens.Position(shard, offset)
        torch_ref.bridge.save_state(path, in_torch(weights), recipe, step, in_torch(moments), position)
        there = jaxgpt.bridge.load_training_state(path, recipe)
        jaxgpt.bridge.save_state(again, there.params, recipe, there.step, there.moments, there.position)
        back = torch_ref.bridge.load_training_state(again, recipe)
    assert (back.step, back.position) == (step, position)
    to_the_bit(back.weights | back.moments, weights | moments)


@deterministic(12)
@given(recipes(), SEEDS, st.integers(1, 240))
def test_moments_put_into_torchs_optimisers_come_out_to_the_bit(recipe, seed, step):
    model, want = torch_ref.model.GPT(recipe.model), drawn(moment_shapes(recipe), seed)
    optimizers = torch_ref.optimizer.make_optimizer(recipe, precision(recipe, "float32", "exact"), model)
    torch_ref.moments.set_moments(optimizers, model, in_torch(want), step)
    to_the_bit(torch_ref.moments.moments(optimizers, model), want)


@deterministic(12)
@given(recipes(), SEEDS, st.integers(1, 240))
def test_moments_put_into_jaxs_optimiser_come_out_to_the_bit(recipe, seed, step):
    params = jaxgpt.bridge.from_torch(drawn(recipe.model.shapes, 0), recipe.model)
    opt_state = jaxgpt.optimizer.make_optimizer(recipe, precision(recipe, "float32", "exact")).init(params)
    want = drawn(moment_shapes(recipe), seed)
    to_the_bit(moments_to_torch(moments_from_torch(opt_state, want, recipe, step), recipe), want)
