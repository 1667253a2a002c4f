"""Rung 10: a training state that one framework leaves in a file, the other goes on from."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import jaxgpt.bridge
import jaxgpt.mesh
import jaxgpt.tokens
import jaxgpt.train
import torch_ref.bridge
import torch_ref.mesh
import torch_ref.tokens
import torch_ref.train
from jaxgpt.moments import moments_from_torch, moments_to_torch
from jaxgpt.recipes import Recipe, precision, reduced
from jaxgpt.shards import write_shard
from parity_tests.pair import TORCH_CPU, Pair, Weights, assert_alike, jax_batch, torch_state
from parity_tests.tolerances import BRIDGE, SECOND_ORDER_BRIDGE
from torch_ref.moments import moments, set_moments

K = 6
"""Steps in each framework."""
EVERY = 5
"""Updates between SOAP's bases and Shampoo's roots: both legs pass a recomputation, the first of them late enough that
the statistics of an MLP's side, F = 4D, have full rank. Without, roots of zero amplify rounding (see NULL_SPACE)."""
KINDS = [
    "muon-2024-10-12",
    "opt-adam-2024-10-29",
    "llmc-2024-10-13",
    "simple-2026-06-11",
    "tiny-soap",
    "tiny-shampoo",
]
CASES = [(name, "float64") for name in KINDS]
CASES += [pytest.param(name, "float32", marks=pytest.mark.slow) for name in ("muon-2024-10-12", "opt-adam-2024-10-29")]
"""In float32 `test_rung_10_at_scale` does it too."""
ROUTES = ["jax then torch", "torch then jax", "jax then jax", "torch then torch"]
WHOLE = ["jax", "torch"]
"""All steps in one framework, without a file between them."""


class State(NamedTuple):
    """What a file holds, in torch's names and layout."""

    tensors: Weights
    metadata: dict[str, str]


def read(path: Path) -> State:
    with safe_open(path, framework="numpy") as file:
        return State(load_file(path), file.metadata())


def put(path: Path, state: State) -> None:
    """Write the file that these are the contents of, whatever they are."""
    save_file(state.tensors, path, metadata=state.metadata)


def recipe_of(name: str) -> Recipe:
    recipe = reduced(name)
    optimizer = recipe.optimizer
    if optimizer.kind in ("soap", "shampoo"):
        optimizer = dataclasses.replace(optimizer, precondition_every=EVERY)
    return dataclasses.replace(recipe, optimizer=optimizer)


@functools.cache
def pair_of(name: str, dtype: str) -> Pair:
    recipe = recipe_of(name)
    exactly = precision(recipe, dtype, attention="exact")
    devices = jaxgpt.mesh.make_mesh_of(jax.devices("cpu")[:1])
    in_jax = jaxgpt.train.make_step(recipe, exactly, devices, 16)
    in_torch = torch_ref.train.make_step(recipe, exactly, TORCH_CPU, 16)
    return Pair(recipe, exactly, in_jax, in_torch, devices)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[Path]:
    """Two shards of 4 steps each: the first leg crosses to the second shard, the second one to the first again."""
    folder, generator = tmp_path_factory.mktemp("shards"), np.random.default_rng(5)
    paths = [folder / f"train_{i}.bin" for i in (1, 2)]
    for path in paths:
        write_shard(path, generator.integers(0, 251, 4 * 16 * 32 + 9))
    return paths


def leg_in_jax(both: Pair, start: Path, end: Path, steps: int, shards: list[Path]) -> None:
    """From one file to the other by `steps` steps of JAX."""
    recipe = both.recipe
    saved = jaxgpt.bridge.load_training_state(start, recipe, both.precision.parameters, both.precision.embedding)
    state = both.jax.start(jax.device_put(saved.params, jaxgpt.mesh.replicated(both.devices)))
    opt_state = moments_from_torch(state.opt_state, saved.moments, recipe, saved.step)
    state = state._replace(opt_state=opt_state, step=jax.device_put(np.int32(saved.step), state.step.sharding))
    stream, position = jaxgpt.tokens.Tokens(shards, recipe.data.sequences, recipe.model.context), saved.position
    for _ in range(steps):
        state, _ = both.jax.step(state, *jax_batch(both, *stream.read(position)))
        position = stream.next(position)
    params = jax.device_get(state.params)
    kept = moments_to_torch(state.opt_state, recipe)
    jaxgpt.bridge.save_state(end, params, recipe, int(state.step), kept, position)


def leg_in_torch(both: Pair, start: Path, end: Path, steps: int, shards: list[Path]) -> None:
    """The same of PyTorch."""
    recipe = both.recipe
    saved = torch_ref.bridge.load_training_state(start, recipe, both.precision.parameters, both.precision.embedding)
    state = both.torch.start(saved.weights)
    set_moments(state.optimizers, state.model, saved.moments, saved.step)
    state = state._replace(step=saved.step)
    stream, position = torch_ref.tokens.Tokens(shards, recipe.data.sequences, recipe.model.context), saved.position
    for _ in range(steps):
        state, _ = both.torch.step(state, *stream.read(position))
        position = stream.next(position)
    kept = moments(state.optimizers, state.model)
    torch_ref.bridge.save_state(end, state.model.state_dict(), recipe, state.step, kept, position)


LEGS = {"jax": leg_in_jax, "torch": leg_in_torch}


def first_step(both: Pair, dtype: str, path: Path, shards: list[Path]) -> None:
    """The state after one step of PyTorch: SOAP's first basis, arbitrary in its null space, is then everybody's."""
    recipe, rng = both.recipe, np.random.default_rng(1)
    start = {name: 0.1 * rng.standard_normal(shape) for name, shape in recipe.model.shapes.items()}
    state = torch_state(both, {name: (w + (".ln_" in name)).astype(dtype) for name, w in start.items()})
    stream, position = torch_ref.tokens.Tokens(shards, 16, recipe.model.context), torch_ref.tokens.Position()
    state, _ = both.torch.step(state, *stream.read(position))
    kept = moments(state.optimizers, state.model)
    torch_ref.bridge.save_state(path, state.model.state_dict(), recipe, 1, kept, stream.next(position))


@pytest.fixture(scope="module")
def ends(tmp_path_factory, shards) -> Callable[[str, str], dict[str, State]]:
    """(recipe, dtype) -> for each route the state after its 2 K steps from the same first one."""

    @functools.cache
    def ends(name: str, dtype: str) -> dict[str, State]:
        both, folder = pair_of(name, dtype), tmp_path_factory.mktemp("states")
        first_step(both, dtype, folder / "first", shards)
        for framework, leg in LEGS.items():
            leg(both, folder / "first", folder / f"half of {framework}", K, shards)
            leg(both, folder / "first", folder / framework, 2 * K, shards)
        for route in ROUTES:
            first, second = route.split(" then ")
            LEGS[second](both, folder / f"half of {first}", folder / route, K, shards)
        return {name: read(folder / name) for name in ("first", *ROUTES, *WHOLE)}

    return ends


def without_key_biases(tensors: Weights, recipe: Recipe) -> Weights:
    """A key's bias adds the same to all scores of a query: its gradient is rounding, which Adam takes for a signal."""
    if not recipe.model.biases or recipe.model.qk_norm != "none":
        return tensors
    tensors = {name: each.copy() for name, each in tensors.items()}
    for name in (name for name in tensors if ".c_attn.bias" in name):
        np.split(tensors[name], 3)[1][:] = 0
    return tensors


@pytest.mark.parametrize("whole", WHOLE)
@pytest.mark.parametrize("route", ROUTES[:2])
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_half_of_the_steps_in_each_framework_are_all_of_them_in_either(ends, name, dtype, route, whole):
    done, recipe = ends(name, dtype), recipe_of(name)
    allowed = (SECOND_ORDER_BRIDGE if recipe.optimizer.kind in ("soap", "shampoo") else BRIDGE)[dtype]
    got, want = (without_key_biases(done[each].tensors, recipe) for each in (route, whole))
    assert_alike(got, want, allowed, f"rung 10, {route} against {whole}")


@pytest.mark.parametrize("whole", WHOLE)
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_a_file_between_two_steps_changes_no_bit(ends, name, dtype, whole):
    got, want = (ends(name, dtype)[each].tensors for each in (f"{whole} then {whole}", whole))
    assert {each for each in want if not np.array_equal(got[each], want[each])} == set()


@pytest.mark.parametrize("end", [*ROUTES, *WHOLE])
@pytest.mark.parametrize("name", KINDS)
def test_step_and_position_go_on_from_file_to_file(ends, name, end):
    metadata = ends(name, "float64")[end].metadata
    # 13 steps of 512 tokens through shards of 4: three times to the end of one, then one step.
    where = {"recipe": name, "step": "13", "shard": "1", "offset": "512"}
    assert {each: metadata[each] for each in where} == where


@pytest.mark.parametrize("name", KINDS)
def test_everything_in_the_file_changes_by_training(ends, name):
    first, last = (ends(name, "float64")[each].tensors for each in ("first", ROUTES[0]))
    still = {each for each in last if np.array_equal(first[each], last[each])}
    assert still == set(), "what stays as it is agrees whatever a reader does with it"


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_to_the_other_framework_and_back_changes_no_bit(ends, tmp_path, name, dtype):
    state, both = ends(name, dtype)[ROUTES[0]], pair_of(name, dtype)
    put(tmp_path / "start", state)
    leg_in_jax(both, tmp_path / "start", tmp_path / "over", 0, [])
    leg_in_torch(both, tmp_path / "over", tmp_path / "back", 0, [])
    again = read(tmp_path / "back")
    assert again.tensors.keys() == state.tensors.keys()
    assert {each for each in again.tensors if not np.array_equal(again.tensors[each], state.tensors[each])} == set()
    for each in ("recipe", "step", "shard", "offset"):
        assert again.metadata[each] == state.metadata[each]
