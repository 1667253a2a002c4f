"""A recording of a training run in a folder: the weights it starts from, and a file for each update."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxgpt.errors import BadInput
from jaxgpt.recipes import RECIPES, reduced
from jaxgpt.statefile import moment_shapes
from parity_tests.pair import DTYPES, Weights

_START = "start.safetensors"


class Update(NamedTuple):
    """One update, by torch's names in torch's layout."""

    gradients: Weights
    """Raw: before clipping."""
    change: Weights
    """What the update added to the weights, float64."""
    moments: Weights
    """All that the optimiser keeps after it, by the names of `jaxgpt.moments`."""


class Recording(NamedTuple):
    """What a folder says of itself. Its updates are read one by one, for all of them may not fit memory."""

    recipe: str
    dtype: str
    by: str
    """torch or jax: whose gradients these are."""
    start: Weights
    files: list[Path]


def new_folder(folder: Path) -> None:
    """Make it; `BadInput` where it is there already or can't be made."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise BadInput(f"--out {folder} exists: name a new folder") from None
    except OSError as error:
        raise BadInput(f"--out {folder}: {error.strerror or error}") from None


def keep(folder: Path, recipe: str, dtype: str, by: str, start: Weights, updates: Iterable[Update]) -> Iterator[Update]:
    """Hand the updates on, each saved before."""
    _save(folder / _START, start, {"recipe": recipe, "dtype": dtype, "by": by})
    for step, update in enumerate(updates):
        tensors = {f"gradient.{n}": g for n, g in update.gradients.items()} | update.moments
        _save(folder / f"{step:06d}.safetensors", tensors | {f"change.{n}": c for n, c in update.change.items()}, {})
        yield update


def read(folder: Path) -> Recording:
    """The recording that a folder holds, of which only the start is read.

    Raises:
      BadInput: no such folder, nothing recorded in it, or a start that doesn't fit a recipe.
    """
    if not folder.is_dir():
        raise BadInput(f"--from {folder}: no such folder")
    files = sorted(folder.glob("[0-9]" * 6 + ".safetensors"))
    if not files or not (folder / _START).is_file():
        missing = "recorded gradients" if not files else _START
        raise BadInput(f"--from {folder} holds no {missing}: record with --recipe NAME --out DIR and name that folder")
    for step, path in enumerate(files):
        if path.name != f"{step:06d}.safetensors":
            raise BadInput(f"--from {folder}: {step:06d}.safetensors is missing, for there is {path.name}: record anew")
    start, said = _load(folder / _START)
    recipe, dtype, by = (said.get(key, "") for key in ("recipe", "dtype", "by"))
    if recipe not in RECIPES or dtype not in DTYPES or by not in ("torch", "jax"):
        raise BadInput(f"--from {folder}: {_START} says recipe {recipe!r}, dtype {dtype!r}, by {by!r}: record anew")
    _check(folder / _START, start, reduced(recipe).model.shapes)
    return Recording(recipe, dtype, by, start, files)


def updates(recording: Recording, steps: int) -> Iterator[Update]:
    """The first `steps` of a recording. `BadInput` where a file can't be read or isn't of the recipe."""
    recipe = reduced(recording.recipe)
    weights, kept = recipe.model.shapes, moment_shapes(recipe)
    for path in recording.files[:steps]:
        tensors, _ = _load(path)
        if not any(name.startswith("gradient.") for name in tensors):
            raise BadInput(f"{path} holds no recorded gradients: record with --out")
        parts = [{f"{part}.{name}": shape for name, shape in weights.items()} for part in ("gradient", "change")]
        _check(path, tensors, parts[0] | parts[1] | kept)
        grads, change = ({name: tensors[f"{part}.{name}"] for name in weights} for part in ("gradient", "change"))
        yield Update(grads, change, {name: tensors[name] for name in kept})


def _check(path: Path, tensors: Weights, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name in sorted(shapes.keys() | tensors.keys()):
        got = tensors[name].shape if name in tensors else "missing"
        if got != (wanted := shapes.get(name, "absent")):
            raise BadInput(f"{path}: {name} is {got} and has to be {wanted}: record anew")


def _save(path: Path, tensors: Weights, said: dict[str, str]) -> None:
    try:
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path, said)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"--out: {path} can't be written ({error}): free the disk or name another folder") from None


def _load(path: Path) -> tuple[Weights, dict[str, str]]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path} can't be read ({error}): record anew") from None
