"""What a file of a training state holds, and whether one fits a recipe. This file imports neither JAX nor PyTorch.

Beside the weights, `model.<name>`, it has everything that the optimiser keeps, `opt.<kind>.<name>.<slot>` (see
`jaxgpt.moments`), in torch's layout, and as metadata the recipe's name, the updates done (`step`) and where the next
step's tokens start (`shard`, `offset`). Its header says all of this but the numbers themselves, so a file is judged
before any memory is taken for them.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from jaxgpt.errors import BadInput
from jaxgpt.files import check_ordinary
from jaxgpt.recipes import Recipe

_ADAM = ("exp_avg", "exp_avg_sq")
_SLOTS = {
    "muon": ("momentum",),
    "adamw": _ADAM,
    "soap": (*_ADAM, "GG.0", "GG.1", "Q.0", "Q.1"),
    "shampoo": (*_ADAM, "GG.0", "GG.1", "roots.0", "roots.1"),
}
"""An optimiser's kind -> what it keeps of a weight; a number is the axis of the weight whose side it is."""


DTYPES = ("F32", "F64")
"""Of the tensors that either trainer writes, as safetensors calls them."""


class Header(NamedTuple):
    """The numbers of a checked file's metadata."""

    step: int
    """Updates done."""
    shard: int
    """Which shard the next step's tokens are in."""
    offset: int
    """How many of its tokens come before them."""


def moment_shapes(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all that the recipe's optimiser keeps once it has made an update, in torch's layout."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in recipe.model.shapes.items():
        kind = recipe.optimizer.kind if _is_hidden(name, shape) else "adamw"
        for slot in _SLOTS[kind]:
            _, _, axis = slot.partition(".")
            shapes[f"opt.{kind}.{name}.{slot}"] = (shape[int(axis)],) * 2 if axis else shape
    return shapes


def check_moments(shapes: Mapping[str, tuple[int, ...]], recipe: Recipe, step: int) -> None:
    """Refuse to write what `checked_header` would refuse to read.

    Raises:
      ValueError: no update done yet; moments that are missing, unknown or of another shape.
    """
    if step < 1:
        raise ValueError(f"step is {step}: before its first update an optimiser keeps nothing, so write weights alone")
    wanted = moment_shapes(recipe)
    for name in sorted(wanted.keys() | shapes.keys()):
        if shapes.get(name) != wanted.get(name):
            raise ValueError(
                f"{name} is {shapes.get(name, 'missing')} and has to be {wanted.get(name, 'absent')} in {recipe.name}: "
                "give all that the optimiser keeps, gathered from every process"
            )


def sort_metadata(path: str | Path) -> None:
    """Put the metadata of the safetensors file at `path` in order of its names, in place.

    safetensors writes them in any order (they are a hash map in its Rust source), so that the same weights, written
    twice, would be files of different SHA-256.
    """
    start = '{"__metadata__":'
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length).decode()
        metadata, end = json.JSONDecoder().raw_decode(header, len(start))
        ordered = json.dumps(metadata, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        sorted_header = (start + ordered + header[end:]).encode()
        if len(sorted_header) == length:  # another would move the tensors; no text of ours is escaped in two ways
            file.seek(8)
            file.write(sorted_header)


def checked_header(path: str | Path, recipe: Recipe) -> Header:
    """The step and the position in a file that holds the recipe's whole training state, of which no tensor is read.

    Raises:
      BadInput: no such file, or not a safetensors file; another recipe's state, or another optimiser's; a tensor that
        is missing, unknown, of another shape or of no floating dtype; a step or a position that isn't a whole number,
        or no step of the recipe's schedule.
    """
    try:
        check_ordinary(path)
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(each.get_shape()) for name, each in slices.items()}
            dtypes = {name: each.get_dtype() for name, each in slices.items()}
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise BadInput(
            f"{path} can't be read as safetensors ({error}): give a training state of either trainer"
        ) from None
    if metadata.get("recipe", recipe.name) != recipe.name:
        raise BadInput(f"{path} is a state of {metadata['recipe']!r}, not of {recipe.name}: give its own recipe")
    _check_kind(path, shapes, recipe)
    wanted = {f"model.{name}": shape for name, shape in recipe.model.shapes.items()} | moment_shapes(recipe)
    for name, shape in wanted.items():
        if shapes.get(name) != shape:
            raise BadInput(
                f"{path}: {name} is {shapes.get(name, 'missing')} there and {shape} in {recipe.name}; give the recipe "
                "and overrides that the file was written with"
            )
        if dtypes[name] not in DTYPES:
            raise BadInput(f"{path}: {name} is {dtypes[name]} there, not F32 or F64: give a file of either trainer")
    if extra := sorted(shapes.keys() - wanted.keys()):
        raise BadInput(f"{path}: {recipe.name} has no {extra[0]}; give the recipe and overrides of the file")
    header = Header(*(_whole(path, metadata, name) for name in Header._fields))
    if not 1 <= header.step <= recipe.schedule.steps:
        raise BadInput(
            f"{path} is a state after {header.step} updates, and the schedule of {recipe.name} has "
            f"{recipe.schedule.steps}: give a state from 1 up to there, or the schedule that it was written with"
        )
    return header


def _is_hidden(name: str, shape: tuple[int, ...]) -> bool:
    """Whether it is one of the blocks' matrices, which the recipe's own optimiser changes."""
    return name.startswith("h.") and len(shape) == 2


def _check_kind(path: str | Path, shapes: Mapping[str, tuple[int, ...]], recipe: Recipe) -> None:
    """Refuse a file without an optimiser's state, and one whose hidden matrices another kind of optimiser changed."""
    hidden = next(name for name, shape in recipe.model.shapes.items() if _is_hidden(name, shape))
    found = {name.split(".")[1] for name in shapes if name.startswith("opt.") and f".{hidden}." in name}
    if found and recipe.optimizer.kind not in found:
        raise BadInput(
            f"{path} holds the state of {min(found)} on the hidden matrices, and optimizer.kind is "
            f"{recipe.optimizer.kind}: give --optimizer.kind {min(found)}, or start from the weights alone"
        )
    if shapes and not any(name.startswith("opt.") for name in shapes):
        raise BadInput(f"{path} holds weights alone, no optimiser's state: start from it instead of going on from it")


def _whole(path: str | Path, metadata: Mapping[str, str], name: str) -> int:
    """That number of the metadata."""
    value = metadata.get(name, "missing")
    if not re.fullmatch("[0-9]{1,18}", value):
        raise BadInput(
            f"{path}: its metadata's {name} is {value[:40]!r}, not a whole number from 0 up: give a file of either "
            "trainer"
        )
    return int(value)
