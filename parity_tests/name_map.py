"""Which of the reference's tensors each of a port's weights is, and how it lies there."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxgpt.errors import BadInput
from parity_tests.foreign import Arrays, blame

Place = Any
"""A reference's name; or (name, way, ...), where a way is "T" or a function of the array that only moves numbers
(`lambda w: w[:64]`, a reshape, a permutation); or a list of either, stacked along a new first axis."""


def carried(names: Mapping[str, Place], reference: Arrays) -> Arrays:
    """A reference's weights, gradients or moments in the port's names and layout. A missing name is a `KeyError`."""
    return {name: _carry(place, reference) for name, place in names.items()}


def check(names: Mapping[str, Place], reference: Arrays, port: Arrays) -> None:
    """Raise `BadInput` unless the map takes all the reference's tensors to all the port's, in their shapes."""
    for name in names:
        if name not in port:
            raise BadInput(f"the name map has {name!r}, which the port lacks{_nearest(name, port)}")
    for name in port:
        if name not in names:
            raise BadInput(f"the port's {name} {port[name].shape} is not in the name map: say which tensor it is")
    used = {each: name for name, place in names.items() for each in tensors(place)}
    for each, name in used.items():
        if each not in reference:
            raise BadInput(
                f"the name map takes {name} from {each!r}, which the reference lacks{_nearest(each, reference)}"
            )
    for name, place in names.items():
        with blame(f"the name map of {name}"):
            shape = _carry(place, reference).shape
        if shape != port[name].shape:
            turned = "; turn it with 'T'" if shape == port[name].shape[::-1] else "; mend its entry in the name map"
            raise BadInput(f"{name} is {port[name].shape} in the port, and {shape} from {_words(place)}{turned}")
    for each in reference:
        if each not in used:
            raise BadInput(f"the reference's {each} {reference[each].shape} is in no entry of the name map: add one")


def _carry(place: Place, reference: Arrays) -> NDArray:
    if isinstance(place, list):
        return np.stack([_carry(each, reference) for each in place])
    name, *ways = (place,) if isinstance(place, str) else place
    array = reference[name]
    for way in ways:
        array = array.T if way == "T" else _moved(way, array)
    return np.ascontiguousarray(array)


def _moved(way: Callable[[NDArray], NDArray], array: NDArray) -> NDArray:
    if not callable(way):
        raise BadInput(f"the name map has {way!r} for a way to lay {array.shape} out: give 'T' or a function")
    return np.asarray(way(array))


def tensors(place: Place) -> list[str]:
    if isinstance(place, list):
        return [name for each in place for name in tensors(each)]
    return [place if isinstance(place, str) else place[0]]


def _words(place: Place) -> str:
    return ", ".join(dict.fromkeys(tensors(place)))


def _nearest(name: str, among: Arrays) -> str:
    near = difflib.get_close_matches(name, among, 1)
    return f"; did you mean {near[0]}?" if near else f": it has {', '.join(list(among)[:3])}, ..."
