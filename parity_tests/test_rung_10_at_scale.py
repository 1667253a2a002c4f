"""Rung 10 at scale: the whole training state through a file, 3 steps in one framework and 3 in the other, float32."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxgpt.bridge
import jaxgpt.mesh
import jaxgpt.tokens
import torch_ref.bridge
import torch_ref.tokens
from jaxgpt.moments import moments_from_torch, moments_to_torch
from jaxgpt.shards import write_shard
from parity_tests.noise_floor import LEARNABLE_IDS, free
from parity_tests.pair import Pair, assert_alike, jax_batch, jax_state, torch_state
from parity_tests.scale import as_trained, pair_at_scale, weights_at_scale
from parity_tests.tolerances import BRIDGE_AT_SCALE
from torch_ref.moments import moments, set_moments

pytestmark = pytest.mark.at_scale

NAME = "muon-2024-10-12"
K = 3
"""Steps in each framework."""
ROUTES = {"jax then torch": ("jax", "torch"), "torch then jax": ("torch", "jax")}


@pytest.fixture(scope="module")
def shard(tmp_path_factory, device) -> Path:
    """Tokens of 2 K steps, few ids."""
    recipe = pair_at_scale(NAME, "float32", device).recipe
    path = tmp_path_factory.mktemp("shard") / "train_000001.bin"
    ids = min(LEARNABLE_IDS, recipe.model.token_ids)
    write_shard(path, np.random.default_rng(5).integers(0, ids, 2 * K * recipe.step_tokens + 1))
    return path


def leg_in_jax(both: Pair, begin: Path | None, end: Path, steps: int, shard: Path, device) -> None:
    """From a file, or from perturbed weights, to another file by `steps` steps of JAX."""
    recipe, position = both.recipe, jaxgpt.tokens.Position()
    if begin is None:
        state = jax_state(both, weights_at_scale(NAME, "float32", device))
    else:
        saved = jaxgpt.bridge.load_training_state(begin, recipe)
        state = both.jax.start(jax.device_put(saved.params, jaxgpt.mesh.replicated(both.devices)))
        opt_state = moments_from_torch(state.opt_state, saved.moments, recipe, saved.step)
        step = jax.device_put(np.int32(saved.step), state.step.sharding)
        state, position = state._replace(opt_state=opt_state, step=step), saved.position
    stream = jaxgpt.tokens.Tokens([shard], recipe.data.sequences, recipe.model.context)
    for _ in range(steps):
        state, _ = both.jax.step(state, *jax_batch(both, *stream.read(position)))
        position = stream.next(position)
    kept = moments_to_torch(state.opt_state, recipe)
    jaxgpt.bridge.save_state(end, jax.device_get(state.params), recipe, int(state.step), kept, position)


def leg_in_torch(both: Pair, begin: Path | None, end: Path, steps: int, shard: Path, device) -> None:
    """The same of PyTorch."""
    recipe, position = both.recipe, torch_ref.tokens.Position()
    if begin is None:
        state = torch_state(both, weights_at_scale(NAME, "float32", device))
    else:
        saved = torch_ref.bridge.load_training_state(begin, recipe)
        state = both.torch.start(saved.weights)
        set_moments(state.optimizers, state.model, saved.moments, saved.step)
        state, position = state._replace(step=saved.step), saved.position
    stream = torch_ref.tokens.Tokens([shard], recipe.data.sequences, recipe.model.context)
    for _ in range(steps):
        batch = (each.to(state.model.wte.weight.device) for each in stream.read(position))
        state, _ = both.torch.step(state, *batch)
        position = stream.next(position)
    kept = moments(state.optimizers, state.model)
    torch_ref.bridge.save_state(end, state.model.state_dict(), recipe, state.step, kept, position)


LEGS = {"jax": leg_in_jax, "torch": leg_in_torch}


@pytest.fixture(scope="module")
def ended(tmp_path_factory, shard, device):
    """ended(framework, ...): the file's tensors after as many legs, each of K steps, or of all where there is one."""
    both, folder = pair_at_scale(NAME, "float32", device), tmp_path_factory.mktemp("states")

    @functools.cache
    def ended(*frameworks: str):
        begin, steps = None, 2 * K // len(frameworks)
        for leg, framework in enumerate(frameworks):
            end = folder / f"{leg} {' '.join(frameworks)}"
            with as_trained("float32"):
                LEGS[framework](both, begin, end, steps, shard, device)
            free()
            begin = end
        tensors = load_file(end)
        for path in folder.iterdir():  # gigabytes, at scale
            path.unlink()
        return tensors

    return ended


@pytest.mark.parametrize("whole", LEGS)
@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
def test_half_of_the_steps_in_each_framework_are_all_of_them_in_either(ended, device, route, whole):
    what = f"rung 10, {' then '.join(route)} against {whole}"
    assert_alike(ended(*route), ended(whole), BRIDGE_AT_SCALE[device], what)
