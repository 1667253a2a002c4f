"""What `--device` chooses: 124M on an accelerator, or the same recipe reduced on a CPU, where every test runs it too.

The tests marked `at_scale` get their steps, weights and tokens here. On a GPU the recipes have a step of 8 sequences of
1024 and the kernels that train; PyTorch's loss is compiled in bfloat16, as its trainer does, and eager in the others.
float64 in PyTorch is the oracle of both frameworks.
"""

import contextlib
import dataclasses
import functools
from typing import Literal

import jax
import numpy as np
import torch
from flax import nnx

import jaxgpt.mesh
import jaxgpt.train
import torch_ref.mesh
import torch_ref.train
from jaxgpt import bridge
from jaxgpt.model import GPT
from jaxgpt.recipes import RECIPES, Recipe, precision, reduced
from parity_tests.pair import Pair, Weights

Device = Literal["cpu", "gpu"]
SEQUENCES = 8
WIDE_SEQUENCES = 2
"""At once in float32 and float64: all 8 of a step in float64 take 47 to 66 GiB in either framework, and both hold on to
theirs on one card."""
MOVED = 0.02
"""Standard deviation of what moves weights off their start."""


def recipe_at_scale(name: str, device: Device) -> Recipe:
    """The recipe at full size with 8 sequences a step on a GPU, reduced on a CPU."""
    if device == "cpu":
        return reduced(name)
    recipe = RECIPES[name]
    return dataclasses.replace(
        recipe, data=dataclasses.replace(recipe.data, sequences=SEQUENCES, micro_batch=SEQUENCES)
    )


@functools.cache
def pair_at_scale(name: str, dtype: str | None, device: Device, rounding: Literal["free", "pinned"] = "free") -> Pair:
    """Both frameworks' steps on that device: in bfloat16 a step's sequences at once, in wider dtypes a few on a GPU."""
    recipe = recipe_at_scale(name, device)
    attention = "exact" if device == "cpu" else "fast"
    kernels = "fused" if device == "gpu" and rounding == "free" else "plain"
    exactly = precision(recipe, dtype, attention, rounding, kernels)
    mesh = jaxgpt.mesh.make_mesh_of(jax.devices(device)[:1])
    place = torch_ref.mesh.Mesh(0, 1, torch_device(device))
    rows = recipe.data.sequences if device == "cpu" or exactly.compute == "bfloat16" else WIDE_SEQUENCES
    return Pair(
        recipe,
        exactly,
        jaxgpt.train.make_step(recipe, exactly, mesh, rows),
        torch_ref.train.make_step(recipe, exactly, place, rows),
        mesh,
    )


def torch_device(device: Device) -> torch.device:
    """PyTorch's name for it."""
    return torch.device("cuda", 0) if device == "gpu" else torch.device("cpu")


def as_trained(dtype: str | None) -> contextlib.AbstractContextManager:
    """PyTorch's loss compiled where the trainer's is: in bfloat16. Other dtypes run eagerly, which saves minutes."""
    return contextlib.nullcontext() if dtype in (None, "bfloat16") else torch.compiler.set_stance("force_eager")


@functools.cache
def weights_at_scale(name: str, dtype: str, device: Device, perturbed: bool = True) -> Weights:
    """Initial weights (JAX's) by torch's names, moved off their start where `perturbed`; see `pair.weights`."""
    moved = np.random.default_rng(1)
    return {
        n: np.asarray(w + MOVED * moved.standard_normal(w.shape, np.float32) if perturbed else w, dtype).copy()
        for n, w in _drawn(name, device).items()
    }


@functools.cache
def _drawn(name: str, device: Device) -> Weights:
    config = recipe_at_scale(name, device).model
    with jax.default_device(jax.devices(device)[0]):
        gpt = GPT(config, rngs=nnx.Rngs(0), parameters="float32")
        return bridge.to_torch(jax.device_get(nnx.to_pure_dict(nnx.split(gpt)[1])), config)


def error_ratio(got: float, reference: float) -> float:
    """One framework's error in the other's; both zero are 1."""
    return got / reference if reference else float(got == 0) or np.inf
