"""The same recipe in both frameworks, from the same weights, on the same tokens: what the rungs compare."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import jaxgpt.mesh
import jaxgpt.train
import torch_ref.mesh
import torch_ref.train
from jaxgpt import bridge
from jaxgpt.model import GPT
from jaxgpt.moments import moments_from_torch, moments_to_torch
from jaxgpt.recipes import RECIPES, ModelConfig, Precision, Recipe, precision, reduced
from parity_tests.measured import assert_within
from torch_ref.moments import moments

DTYPES = ("float64", "float32")
TORCH_CPU = torch_ref.mesh.Mesh(0, 1, torch.device("cpu"))


def distinct(*parts: str) -> list[str]:
    """The recipes that are no other one's equal in these parts at reduced size, dtypes apart: the tests set those."""
    first: dict[object, str] = {}
    dtypes = dict.fromkeys(("embedding_dtype", "compute_dtype", "validation_dtype"), "float32")
    for name in RECIPES:
        recipe = reduced(name)
        recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, **dtypes))
        optimizer = dict.fromkeys(("newton_schulz_dtype", "newton_schulz_norm_dtype"), "float32")
        recipe = dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, **optimizer))
        first.setdefault(tuple(getattr(recipe, part) for part in parts), name)
    return list(first.values())


MODELS = distinct("model")
"""One recipe for each model there is."""
TRAINERS = distinct("model", "optimizer", "schedule")
"""One recipe for each way to train one."""

Weights = dict[str, np.ndarray]
"""torch_ref's name -> array in torch's layout: the one form in which weights, gradients and moments are compared."""


class Pair(NamedTuple):
    """Both frameworks' steps of one recipe at one precision."""

    recipe: Recipe
    precision: Precision
    jax: jaxgpt.train.Step
    torch: torch_ref.train.Step
    devices: jax.sharding.Mesh


@functools.cache
def pair(name: str, dtype: str | None, devices: int = 1, micro_batch: int = 4, schedule: int = 100) -> Pair:
    """The steps that train, of the recipe at reduced size. `devices` are JAX's; torch has one process.

    Without `dtype` the recipe's own precision. The schedule has its shape over `schedule` steps.
    """
    recipe = reduced(name)
    recipe = dataclasses.replace(recipe, schedule=recipe.schedule.scaled(schedule))
    exactly = precision(recipe, dtype, attention="exact")
    mesh = jaxgpt.mesh.make_mesh_of(jax.devices("cpu")[:devices])
    return Pair(
        recipe,
        exactly,
        jaxgpt.train.make_step(recipe, exactly, mesh, micro_batch),
        torch_ref.train.make_step(recipe, exactly, TORCH_CPU, micro_batch),
        mesh,
    )


@functools.cache
def weights(name: str, dtype: str, perturbed: bool = True) -> Weights:
    """Initial weights of the reduced recipe (JAX's), moved off their start where `perturbed`: zero-initialised
    projections make every gradient behind them exactly zero, and zero agrees with zero whatever the code does."""
    moved = np.random.default_rng(1)
    return {
        n: np.asarray(w + perturbed * 0.05 * moved.standard_normal(w.shape), dtype).copy()
        for n, w in _drawn(reduced(name).model).items()
    }


@functools.cache
def _drawn(config: ModelConfig) -> Weights:
    """JAX's initial weights in float64: drawing them takes seconds, most of it compiling."""
    gpt = GPT(config, rngs=nnx.Rngs(0), parameters="float64")
    return bridge.to_torch(nnx.to_pure_dict(nnx.split(gpt)[1]), config)


def tokens(recipe: Recipe, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A step's random inputs and targets, int32 (sequences, T)."""
    shape = recipe.data.sequences, recipe.model.context + 1
    drawn = np.random.default_rng(seed).integers(0, recipe.model.token_ids, shape, np.int32)
    return drawn[:, :-1], drawn[:, 1:]


def learnable_tokens(recipe, step: int):
    """Text with something to learn: each token follows its predecessor by a fixed random map, one time in four not."""
    rng = np.random.default_rng(1000 + step)
    follows = np.random.default_rng(7).permutation(recipe.model.token_ids)
    rows = [rng.integers(0, recipe.model.token_ids, recipe.data.sequences)]
    for _ in range(recipe.model.context):
        jump = rng.random(recipe.data.sequences) < 0.25
        rows.append(np.where(jump, rng.integers(0, recipe.model.token_ids, recipe.data.sequences), follows[rows[-1]]))
    window = np.stack(rows, axis=1).astype(np.int32)
    return window[:, :-1], window[:, 1:]


def jax_params(pair: Pair, start: Weights):
    """These weights as JAX's, on its devices."""
    params = bridge.from_torch(start, pair.recipe.model)
    params["wte"] = params["wte"].astype(jnp.dtype(pair.precision.embedding))
    return jax.device_put(params, jaxgpt.mesh.replicated(pair.devices))


def jax_state(pair: Pair, start: Weights):
    """JAX's state with these weights and fresh moments."""
    return pair.jax.start(jax_params(pair, start))


def torch_state(pair: Pair, start: Weights):
    """torch's state with these weights and fresh moments."""
    return pair.torch.start({name: torch.tensor(w) for name, w in start.items()})


def jax_moments(both: Pair, state) -> Weights:
    """What JAX's optimiser keeps, by the names and in the layout of files."""
    return moments_to_torch(state.opt_state, both.recipe)


def torch_moments(state) -> Weights:
    """The same of torch's."""
    return {name: tensor.cpu().numpy().copy() for name, tensor in moments(state.optimizers, state.model).items()}


def with_bases(both: Pair, state, bases: Weights):
    """JAX's state with torch's bases of SOAP, where `bases`, torch's moments, hold some.

    An eigenvector's sign is arbitrary, and all of a basis of the null space of a gradient's statistics; from equal
    bases everything that follows is determined.
    """
    bases = {name: basis for name, basis in bases.items() if ".Q." in name}
    if not bases:
        return state
    all_of_it = jax_moments(both, state) | bases
    return state._replace(opt_state=moments_from_torch(state.opt_state, all_of_it, both.recipe, int(state.step)))


def jax_batch(pair: Pair, inputs: np.ndarray, targets: np.ndarray):
    return jaxgpt.mesh.place(pair.devices, inputs), jaxgpt.mesh.place(pair.devices, targets)


def torch_batch(inputs: np.ndarray, targets: np.ndarray, device: torch.device | None = None):
    return tuple(torch.tensor(each, dtype=torch.int64, device=device) for each in (inputs, targets))


def jax_tree(pair: Pair, tree) -> Weights:
    """JAX's weights or gradients under torch's names."""
    return bridge.to_torch(jax.device_get(tree), pair.recipe.model)


def torch_tree(named) -> Weights:
    """PyTorch's, bfloat16 as float32: NumPy has none that torch could give it."""
    wide = {n: w.detach().float() if w.dtype == torch.bfloat16 else w.detach() for n, w in named.items()}
    return {name: w.cpu().numpy().copy() for name, w in wide.items()}


def relative(got, want) -> float:
    """||got - want|| / ||want|| in float64; the norm of `got` where `want` is zero."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"shapes {got.shape} and {want.shape}"
    size = np.linalg.norm(want)
    return float(np.linalg.norm(got - want) / (size if size > 0 else 1.0))


def assert_alike(got: Weights, want: Weights, allowed: float, what: str) -> None:
    """Every tensor within `allowed`, relative; the message names the worst."""
    assert got.keys() == want.keys(), f"{what}: tensors {sorted(got.keys() ^ want.keys())} are on one side only"
    apart = {name: relative(got[name], want[name]) for name in want}
    worst = max(apart, key=lambda name: np.inf if np.isnan(apart[name]) else apart[name])
    assert_within(apart[worst], allowed, f"{what}: {worst}")
