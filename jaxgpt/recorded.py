"""What a run computed, made again from its config.json. Imports neither JAX nor PyTorch.

A run's folder may come from anybody, and from another version: what isn't a recipe of this one is said in one line.
"""

import dataclasses
import types
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from jaxgpt.errors import BadInput
from jaxgpt.recipes import Precision, Recipe

T = TypeVar("T")

TRAINERS = ("jaxgpt", "torch_ref")


@dataclass(frozen=True)
class Recorded:
    """What a trainer was given when it made its step."""

    trainer: str
    recipe: Recipe
    """With the command line's overrides."""
    precision: Precision
    micro_batch: int
    """Sequences a device took at once."""
    devices: int
    """P."""


def recorded(config: dict, where: str) -> Recorded:
    """The object in a run's config.json as what it says.

    Args:
      config: the object.
      where: its file, for messages.

    Raises:
      BadInput: something is missing, unknown, of another type, or refused by a recipe.
    """
    trainer, devices, micro_batch = (config.get(key) for key in ("trainer", "devices", "micro_batch"))
    if trainer not in TRAINERS:
        raise BadInput(f"{where}: trainer is {_short(trainer)}; give the folder of a run of {' or '.join(TRAINERS)}")
    if not isinstance(devices, list) or not devices:
        raise BadInput(f"{where}: devices is {_short(devices)}, not a list of names; give the folder that a run wrote")
    recipe = from_json(Recipe, config.get("recipe"), f"{where}: recipe")
    sequences = recipe.data.sequences
    if type(micro_batch) is not int or micro_batch < 1 or sequences % (micro_batch * len(devices)):
        raise BadInput(
            f"{where}: micro_batch is {_short(micro_batch)} with {len(devices)} devices, and a step's {sequences} "
            "sequences don't divide so; give the folder that a run wrote"
        )
    precision = from_json(Precision, config.get("precision"), f"{where}: precision")
    return Recorded(trainer, recipe, precision, micro_batch, len(devices))


def from_json(kind: type[T], value: object, where: str) -> T:
    """`value`, as JSON has it, as a `kind`: a dataclass whose fields are such, numbers, texts, tuples, dicts or None.

    Args:
      kind: the dataclass.
      value: what `dataclasses.asdict` made of one, after JSON turned its tuples into lists.
      where: what it is, for messages: a file and dotted keys.

    Raises:
      BadInput: a field is missing, unknown, of another type, or refused by the dataclass.
    """
    return _fitted(kind, value, where)


def _fitted(kind: Any, value: object, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _fields(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        if isinstance(value, str) and value in arguments:
            return value
        raise _misfit(where, value, "one of " + ", ".join(arguments))
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (other,) = [each for each in arguments if each is not type(None)]
        return _fitted(other, value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise _misfit(where, value, "an object")
        return {name: _fitted(arguments[1], each, f"{where}.{_key(name)}") for name, each in value.items()}
    if origin is tuple and arguments[-1] is Ellipsis:
        if not isinstance(value, list | tuple):
            raise _misfit(where, value, "a list")
        return tuple(_fitted(arguments[0], each, where) for each in value)
    if origin is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(arguments):
            raise _misfit(where, value, f"a list of {len(arguments)} numbers")
        return tuple(_fitted(each, part, where) for each, part in zip(arguments, value, strict=True))
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is not kind:
        raise _misfit(
            where, value, {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "a text")
        )
    return value


def _fields(kind: Any, value: object, where: str) -> Any:
    if not isinstance(value, dict):
        raise _misfit(where, value, "an object with one value a field")
    hints = get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    for name in sorted(value.keys() ^ names):
        fault = "is unknown here" if name in value else "is missing"
        raise BadInput(f"{where}.{_key(name)} {fault}: another version wrote it; use that one")
    read = {name: _fitted(hints[name], value[name], f"{where}.{name}") for name in names}
    try:
        return kind(**read)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None


def _misfit(where: str, value: object, wanted: str) -> BadInput:
    return BadInput(f"{where} is {_short(value)}, not {wanted}; give the file as it was written")


def _key(name: str) -> str:
    return name if name.isidentifier() and len(name) <= 60 else _short(name)


def _short(value: object) -> str:
    """`value` as at most 60 printable characters."""
    try:
        text = "missing" if value is None else repr(value)
    except RecursionError:
        text = "something nested too deep"
    return text if len(text) <= 60 else text[:57] + "..."
