"""The file of a training state: what either framework writes and reads, and what they refuse."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

import jaxgpt.bridge
import jaxgpt.mesh
import jaxgpt.tokens
import jaxgpt.train
import torch_ref.bridge
import torch_ref.mesh
import torch_ref.tokens
import torch_ref.train
from jaxgpt.errors import BadInput
from jaxgpt.recipes import Recipe, reduced
from jaxgpt.statefile import moment_shapes
from parity_tests.pair import Weights
from parity_tests.test_rung_10_bridge import KINDS, State, put, read

SMALL = reduced("tiny-soap", layers=1, heads=1, width=8)


def fabricated(recipe: Recipe) -> State:
    """Any numbers that are bfloat16's, under the names of a training state."""
    shapes = {f"model.{n}": shape for n, shape in recipe.model.shapes.items()} | moment_shapes(recipe)
    rng = np.random.default_rng(3)
    drawn = {n: rng.standard_normal(shape).astype(ml_dtypes.bfloat16) for n, shape in shapes.items()}
    metadata = {"recipe": recipe.name, "step": "3", "shard": "1", "offset": "77"}
    return State({n: w.astype(np.float32) for n, w in drawn.items()}, metadata)


def write_in_jax(path: Path, tensors: Weights, recipe: Recipe, step: int) -> None:
    """The training state in a file of JAX's writer."""
    params = jaxgpt.bridge.from_torch(of_model(tensors), recipe.model)
    kept = {name: each for name, each in tensors.items() if name.startswith("opt.")}
    jaxgpt.bridge.save_state(path, params, recipe, step, kept, jaxgpt.tokens.Position(1, 77))


def write_in_torch(path: Path, tensors: Weights, recipe: Recipe, step: int) -> None:
    """The same of torch's."""
    model = {name: torch.tensor(each) for name, each in of_model(tensors).items()}
    kept = {name: torch.tensor(each) for name, each in tensors.items() if name.startswith("opt.")}
    torch_ref.bridge.save_state(path, model, recipe, step, kept, torch_ref.tokens.Position(1, 77))


def of_model(tensors: Weights) -> Weights:
    return {n.removeprefix("model."): each for n, each in tensors.items() if n.startswith("model.")}


READERS = {"jax": jaxgpt.bridge.load_training_state, "torch": torch_ref.bridge.load_training_state}
WRITERS = {"jax": write_in_jax, "torch": write_in_torch}


@pytest.mark.parametrize("framework", WRITERS)
def test_a_state_written_again_is_the_same_file(framework, tmp_path):
    state = fabricated(SMALL)
    for again in range(6):
        WRITERS[framework](tmp_path / f"{again}.safetensors", state.tensors, SMALL, 3)
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize("framework", WRITERS)
@pytest.mark.parametrize("name", KINDS)
def test_a_writer_writes_what_it_is_given(tmp_path, name, framework):
    recipe = reduced(name, layers=2, heads=1, width=8)
    state = fabricated(recipe)
    WRITERS[framework](tmp_path / "state", state.tensors, recipe, 3)
    written = read(tmp_path / "state")
    assert {each: written.metadata[each] for each in state.metadata} == state.metadata
    assert written.tensors.keys() == state.tensors.keys()
    assert {each for each, t in state.tensors.items() if not np.array_equal(written.tensors[each], t)} == set()


@pytest.mark.parametrize("framework", READERS)
def test_a_reader_gives_back_step_and_position(tmp_path, framework):
    put(tmp_path / "s", fabricated(SMALL))
    saved = READERS[framework](tmp_path / "s", SMALL)
    assert (saved.step, saved.position.shard, saved.position.offset) == (3, 1, 77)


@pytest.mark.parametrize("framework", READERS)
def test_a_bfloat16_embedding_keeps_its_dtype_and_that_of_its_moments_through_the_file(tmp_path, framework):
    recipe = reduced("simple-2026-06-11", layers=1)
    state = fabricated(recipe)
    put(tmp_path / "start", state)
    saved = READERS[framework](tmp_path / "start", recipe, "float32", "bfloat16")
    dtypes = {name for name, each in saved.moments.items() if str(each.dtype).endswith("bfloat16")}
    assert dtypes == {"opt.adamw.wte.weight.exp_avg", "opt.adamw.wte.weight.exp_avg_sq"}
    writer = jaxgpt.bridge if framework == "jax" else torch_ref.bridge
    writer.save_state(tmp_path / "end", saved[0], recipe, saved.step, saved.moments, saved.position)
    again = read(tmp_path / "end").tensors
    assert all(np.array_equal(again[name], each) and again[name].dtype == np.float32 for name, each in state[0].items())


@pytest.mark.parametrize("framework", READERS)
def test_weights_can_be_had_of_a_training_state(tmp_path, framework):
    state = fabricated(SMALL)
    put(tmp_path / "s", state)
    if framework == "jax":
        got = jaxgpt.bridge.to_torch(jaxgpt.bridge.load_state(tmp_path / "s", SMALL), SMALL.model)
    else:
        got = {name: w.numpy() for name, w in torch_ref.bridge.load_state(tmp_path / "s", SMALL).items()}
    assert all(np.array_equal(w, state.tensors[f"model.{name}"]) for name, w in got.items())


def without(name: str) -> Callable[[State], State]:
    return lambda s: State({n: t for n, t in s.tensors.items() if n != name}, s.metadata)


def with_tensor(name: str, tensor: np.ndarray) -> Callable[[State], State]:
    return lambda s: State(s.tensors | {name: tensor}, s.metadata)


def with_metadata(name: str, value: str) -> Callable[[State], State]:
    return lambda s: State(s.tensors, s.metadata | {name: value})


def without_metadata(name: str) -> Callable[[State], State]:
    return lambda s: State(s.tensors, {n: value for n, value in s.metadata.items() if n != name})


def of_kind(kind: str) -> Callable[[State], State]:
    optimizer = dataclasses.replace(SMALL.optimizer, kind=kind)
    return lambda _: fabricated(dataclasses.replace(SMALL, optimizer=optimizer))


FC = "opt.soap.h.0.mlp.c_fc.weight"
TRAINER = "give a file of either trainer"
REFUSED: dict[str, tuple[Callable[[State], State], tuple[str, ...]]] = {
    # name: (what is done to a file that fits, what its one line says)
    "weight missing": (without("model.wte.weight"), ("model.wte.weight is missing", "(251, 8)", "overrides")),
    "moment missing": (without(f"{FC}.exp_avg"), (f"{FC}.exp_avg is missing", "(32, 8)", "overrides")),
    "basis missing": (without(f"{FC}.Q.1"), (f"{FC}.Q.1 is missing", "(8, 8)", "overrides")),
    "embedding's moment missing": (
        without("opt.adamw.wte.weight.exp_avg_sq"),
        ("opt.adamw.wte.weight.exp_avg_sq is missing", "overrides"),
    ),
    "weight of another shape": (
        with_tensor("model.wte.weight", np.zeros((251, 16), np.float32)),
        ("model.wte.weight is (251, 16) there and (251, 8) in tiny-soap", "overrides"),
    ),
    "moment transposed": (
        with_tensor(f"{FC}.exp_avg", np.zeros((8, 32), np.float32)),
        (f"{FC}.exp_avg is (8, 32) there and (32, 8)", "overrides"),
    ),
    "sides swapped": (
        with_tensor(f"{FC}.GG.0", np.zeros((8, 8), np.float32)),
        (f"{FC}.GG.0 is (8, 8) there and (32, 32)", "overrides"),
    ),
    "a number for a matrix": (with_tensor(f"{FC}.exp_avg", np.zeros((), np.float32)), ("exp_avg is () there",)),
    "whole numbers for moments": (
        with_tensor(f"{FC}.exp_avg", np.zeros((32, 8), np.int32)),
        (f"{FC}.exp_avg is I32 there", TRAINER),
    ),
    "unknown moment": (with_tensor(f"{FC}.roots.0", np.zeros(3, np.float32)), (f"has no {FC}.roots.0", "overrides")),
    "unknown weight": (with_tensor("model.h.7.w", np.zeros(3, np.float32)), ("has no model.h.7.w", "overrides")),
    "unknown room": (with_tensor("other", np.zeros(3, np.float32)), ("has no other", "overrides")),
    "weights alone": (
        lambda s: State({n: t for n, t in s.tensors.items() if n.startswith("model.")}, s.metadata),
        ("weights alone", "start from it"),
    ),
    "no tensors": (lambda s: State({}, s.metadata), ("model.wte.weight is missing", "overrides")),
    "Muon's state": (of_kind("muon"), ("muon", "optimizer.kind is soap", "--optimizer.kind muon")),
    "AdamW's state": (of_kind("adamw"), ("adamw", "optimizer.kind is soap", "--optimizer.kind adamw")),
    "Shampoo's state": (of_kind("shampoo"), ("shampoo", "optimizer.kind is soap", "--optimizer.kind shampoo")),
    "another recipe": (with_metadata("recipe", "tiny"), ("a state of 'tiny', not of tiny-soap", "its own recipe")),
    "step of letters": (with_metadata("step", "three"), ("step is 'three'", "whole number", TRAINER)),
    "step below 0": (with_metadata("step", "-3"), ("step is '-3'", "whole number", TRAINER)),
    "step not whole": (with_metadata("step", "3.0"), ("step is '3.0'", "whole number", TRAINER)),
    "step without end": (with_metadata("step", "9" * 5000), ("step is '999", "whole number", TRAINER)),
    "step of two lines": (with_metadata("step", "3\n"), (r"step is '3\n'", "whole number", TRAINER)),
    "step missing": (without_metadata("step"), ("step is 'missing'", TRAINER)),
    "step 0": (with_metadata("step", "0"), ("after 0 updates", "from 1 up")),
    "step after the last": (with_metadata("step", "101"), ("after 101 updates", "has 100", "the schedule that")),
    "shard of letters": (with_metadata("shard", "one"), ("shard is 'one'", "whole number", TRAINER)),
    "shard missing": (without_metadata("shard"), ("shard is 'missing'", TRAINER)),
    "offset below 0": (with_metadata("offset", "-1"), ("offset is '-1'", "whole number", TRAINER)),
    "offset missing": (without_metadata("offset"), ("offset is 'missing'", TRAINER)),
    "no metadata": (lambda s: State(s.tensors, {}), ("step is 'missing'", TRAINER)),
}


def refusal(framework: str, path: Path) -> str:
    with pytest.raises(BadInput) as refused:
        READERS[framework](path, SMALL)
    return str(refused.value)


@pytest.mark.parametrize("framework", READERS)
@pytest.mark.parametrize("what", REFUSED)
def test_a_file_that_does_not_fit_is_refused_in_one_line(tmp_path, framework, what):
    change, said = REFUSED[what]
    put(tmp_path / "state", change(fabricated(SMALL)))
    line = refusal(framework, tmp_path / "state")
    assert re.fullmatch(rf"{re.escape(str(tmp_path))}/state[^\n]+", line), line
    for each in said:
        assert each in line


def header_of(declared: bytes) -> bytes:
    return len(declared).to_bytes(8, "little") + declared


NOT_SAFETENSORS = {
    "missing": None,
    "empty": b"",
    "text": b"model = GPT()\n" * 40,
    "a pickle": b"\x80\x04\x95" + bytes(64),
    "header without end": (2**62).to_bytes(8, "little") + b"{}",
    "more declared than there is": header_of(
        b'{"model.wte.weight": {"dtype": "F32", "shape": [251000000, 8], "data_offsets": [0, 8032000000]}}'
    ),
}


@pytest.mark.parametrize("framework", READERS)
@pytest.mark.parametrize("what", NOT_SAFETENSORS)
def test_what_is_no_safetensors_file_is_refused_in_one_line(tmp_path, framework, what):
    if (content := NOT_SAFETENSORS[what]) is not None:
        (tmp_path / "state").write_bytes(content)
    line = refusal(framework, tmp_path / "state")
    assert re.fullmatch(rf"{re.escape(str(tmp_path))}/state can't be read as safetensors \([^\n]+", line), line


@pytest.mark.parametrize("framework", WRITERS)
def test_a_state_before_the_first_update_is_not_written(tmp_path, framework):
    with pytest.raises(ValueError, match="step is 0"):
        WRITERS[framework](tmp_path / "state", fabricated(SMALL).tensors, SMALL, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("framework", WRITERS)
def test_a_state_with_a_moment_missing_is_not_written(tmp_path, framework):
    tensors = without(f"{FC}.Q.0")(fabricated(SMALL)).tensors
    with pytest.raises(ValueError, match=rf"{FC}\.Q\.0 is missing and has to be \(32, 32\)"):
        WRITERS[framework](tmp_path / "state", tensors, SMALL, 3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writer", [jaxgpt.bridge, torch_ref.bridge], ids=["jax", "torch"])
def test_a_state_without_its_position_is_not_written(tmp_path, writer):
    with pytest.raises(ValueError, match="both moments and position"):
        writer.save_state(tmp_path / "s", {}, SMALL, 3, {})
    assert list(tmp_path.iterdir()) == []
