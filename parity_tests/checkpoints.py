"""Both trainers' checkpoints without their programs: a state that is trained a little, saved and restored."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import torch

import jaxgpt.checkpoint
import jaxgpt.mesh
import jaxgpt.train
import torch_ref.checkpoint
import torch_ref.train
from jaxgpt.recipes import Precision, Recipe, precision, reduced
from jaxgpt.saved import Progress
from parity_tests.pair import TORCH_CPU
from torch_ref.moments import set_moments

KINDS = ["muon-2024-10-12", "tiny-adamw", "tiny-soap", "tiny-shampoo", "simple-2026-06-11"]
"""Each optimiser, and a bfloat16 embedding."""
K = 3
"""Steps before a checkpoint, and as many after it."""


def recipe_of(name: str) -> Recipe:
    """Reduced; SOAP and Shampoo renew their bases in the steps before and after the checkpoint."""
    recipe = reduced(name)
    optimizer = dataclasses.replace(recipe.optimizer, precondition_every=2)
    return dataclasses.replace(recipe, optimizer=optimizer, schedule=recipe.schedule.scaled(4 * K))


def run_of(recipe: Recipe, exactly: Precision) -> dict:
    """What decides a run, as `jaxgpt.runlog.describe` has it."""
    asdict = dataclasses.asdict
    run = {"trainer": "t", "recipe": asdict(recipe), "overrides": {}, "precision": asdict(exactly), "seed": 0}
    return run | {"shards": {"train": [], "val": []}, "versions": {}}


def batch(recipe: Recipe, step: int) -> tuple[np.ndarray, np.ndarray]:
    shape = (recipe.data.sequences, recipe.model.context)
    ids = np.random.default_rng(step).integers(0, recipe.model.token_ids, (2, *shape), dtype=np.int32)
    return ids[0], ids[1]


class InJax:
    """One recipe's training and checkpoints in JAX on some of the 8 CPU devices."""

    files = "state/manifest.ocdbt", "state/_METADATA", "facts/metadata", "state/d/*", "state/ocdbt.process_0/d/*"

    def __init__(self, name: str, dtype: str | None, devices: int = 1):
        self.recipe = recipe_of(name)
        exactly = precision(self.recipe, dtype, attention="exact")
        self.mesh = jaxgpt.mesh.make_mesh_of(jax.devices("cpu")[:devices])
        self.program = jaxgpt.train.make_step(self.recipe, exactly, self.mesh, 2)
        self.run = run_of(self.recipe, exactly)

    def start(self) -> Any:
        return self.program.init(0)

    def train(self, state: Any, first: int, last: int) -> tuple[Any, list[float]]:
        losses = []
        for step in range(first, last):
            placed = (jaxgpt.mesh.place(self.mesh, each) for each in batch(self.recipe, step))
            state, metrics = self.program.step(state, *placed)
            losses += [float(metrics["train_loss"]), float(metrics["grad_norm"])]
        return state, losses

    def checkpoints(self, folder: Path, keep: int = 3) -> jaxgpt.checkpoint.Checkpoints:
        return jaxgpt.checkpoint.Checkpoints(folder, keep, self.run)

    def save(self, folder: Path, state: Any, progress: Progress) -> str | None:
        checkpoints = self.checkpoints(folder)
        broken = checkpoints.save(state, progress)
        assert checkpoints.wait()
        return broken

    def restore(self, folder: Path) -> tuple[Any, Progress] | None:
        return self.checkpoints(folder).restore(self.program.like())

    def tensors(self, state: Any) -> dict[str, np.ndarray]:
        return {name: np.array(each) for name, each in jaxgpt.checkpoint.named(state).items()}


class InTorch:
    """The same in PyTorch."""

    files = "state.safetensors", "facts.json"

    def __init__(self, name: str, dtype: str | None):
        self.recipe = recipe_of(name)
        self.precision = precision(self.recipe, dtype, attention="exact")
        self.program = torch_ref.train.make_step(self.recipe, self.precision, TORCH_CPU, 2)
        self.run = run_of(self.recipe, self.precision)

    def start(self) -> Any:
        return self.program.init(0)

    def train(self, state: Any, first: int, last: int) -> tuple[Any, list[float]]:
        losses = []
        for step in range(first, last):
            placed = (torch.from_numpy(each).long() for each in batch(self.recipe, step))
            state, metrics = self.program.step(state, *placed)
            losses += [metrics["train_loss"].item(), metrics["grad_norm"].item()]
        return state, losses

    def checkpoints(self, folder: Path, keep: int = 3) -> torch_ref.checkpoint.Checkpoints:
        return torch_ref.checkpoint.Checkpoints(folder, keep, self.run, self.recipe, TORCH_CPU)

    def save(self, folder: Path, state: Any, progress: Progress) -> str | None:
        checkpoints = self.checkpoints(folder)
        broken = checkpoints.save(state.model, state.optimizers, progress)
        assert checkpoints.wait()
        return broken

    def restore(self, folder: Path) -> tuple[Any, Progress] | None:
        found = self.checkpoints(folder).restore(self.precision)
        if found is None:
            return None
        saved, was = found
        state = self.program.start(saved.weights)._replace(step=was.step)
        set_moments(state.optimizers, state.model, saved.moments, was.step - was.skipped)
        return state, was

    def tensors(self, state: Any) -> dict[str, np.ndarray]:
        weights, kept = torch_ref.checkpoint.named(state.model, state.optimizers)
        return {name: each.float().numpy() for name, each in (weights | kept).items()}


Trainer = InJax | InTorch


@functools.cache
def trainer(framework: str, name: str, dtype: str | None) -> Trainer:
    return {"jax": InJax, "torch": InTorch}[framework](name, dtype)


class Kept(NamedTuple):
    """A folder with checkpoints of steps K and 2K, what was in them, and the losses up to 3K."""

    folder: Path
    tensors: dict[int, dict[str, np.ndarray]]
    losses: list[float]


@functools.cache
def made(folder: Path, framework: str, name: str, dtype: str | None) -> Kept:
    one = trainer(framework, name, dtype)
    state, losses, tensors = one.start(), [], {}
    for step in (0, K, 2 * K):
        if step:
            one.save(folder, state, Progress(step, shard=1, offset=step))
            tensors[step] = one.tensors(state)
        state, more = one.train(state, step, step + K)
        losses += more
    return Kept(folder, tensors, losses)
