"""Checkpoints of both trainers: a restored state is the saved one bit for bit, on any mesh; which ones stay.

Nothing here runs a program; that a run goes on from them as if nothing had happened is in test_resume.py.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxgpt.checkpoint
import jaxgpt.mesh
import jaxgpt.train
from jaxgpt.recipes import RECIPES, precision
from jaxgpt.saved import Damaged, Progress, newest, prune, sealed, steps_in, tidy, unsealed
from parity_tests.checkpoints import KINDS, InJax, K, trainer
from parity_tests.measured import assert_within
from parity_tests.programs import ROOT
from parity_tests.tolerances import RESUMED_ON_ANOTHER_MESH

QUICK = [("jax", "tiny-adamw", "float32"), ("jax", "tiny-adamw", "bfloat16")]
QUICK += [("torch", name, "float32") for name in KINDS] + [("torch", "simple-2026-06-11", "bfloat16")]
"""The others take JAX's compiler minutes; test_resume.py trains Muon by the programs, on two meshes."""
CASES = [
    pytest.param(
        framework,
        name,
        dtype,
        id=f"{framework}-{name}-{dtype}",
        marks=() if (framework, name, dtype) in QUICK else pytest.mark.slow,
    )
    for framework in ("jax", "torch")
    for name in KINDS
    for dtype in ("float32", "bfloat16")
]


# A restored state is the saved one


@pytest.mark.parametrize(("framework", "name", "dtype"), CASES)
def test_a_restored_state_goes_on_with_the_same_losses_bit_for_bit(kept, framework, name, dtype):
    folder, tensors, losses = kept(framework, name, dtype)
    one = trainer(framework, name, dtype)
    state, was = one.restore(folder)
    assert was == Progress(2 * K, shard=1, offset=2 * K)
    restored = one.tensors(state)
    assert restored.keys() == tensors[2 * K].keys()
    assert all(np.array_equal(restored[each], tensors[2 * K][each]) for each in restored)
    assert one.train(state, 2 * K, 3 * K)[1] == losses[4 * K :]


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "others"), [(8, 1), (1, 8), (2, 4)])
def test_a_state_is_restored_on_another_mesh(tmp_path, devices, others):
    one, another = InJax("tiny", "float32", devices), InJax("tiny", "float32", others)
    state, _ = one.train(one.start(), 0, K)
    one.save(tmp_path, state, Progress(K))
    saved = one.tensors(state)
    want = one.train(state, K, 2 * K)[1]
    state, _ = another.restore(tmp_path)
    restored = another.tensors(state)
    assert all(np.array_equal(restored[each], saved[each]) for each in saved), "the same bits"
    apart = np.abs(np.array(another.train(state, K, 2 * K)[1]) / np.array(want) - 1).max()
    assert_within(float(apart), RESUMED_ON_ANOTHER_MESH, "losses and gradient norms after a checkpoint on another mesh")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64, jnp.int32])
def test_a_fingerprint_shows_every_bit(dtype):
    array = jnp.arange(13).astype(dtype)
    raw = np.frombuffer(np.asarray(array).tobytes(), np.uint8)
    flips = np.packbits(np.eye(8 * len(raw), dtype=np.uint8), axis=1)
    flipped = jnp.asarray(np.frombuffer((raw ^ flips).tobytes(), array.dtype).reshape(-1, *array.shape))
    prints = jax.jit(jax.vmap(jaxgpt.checkpoint.fingerprint))(flipped)
    assert len(prints) == 8 * len(raw)
    assert int(jaxgpt.checkpoint.fingerprint(array)) not in prints.tolist()


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_a_state_that_is_not_finite_is_named_and_not_saved(tmp_path, framework):
    one = trainer(framework, "tiny-adamw", "float32")
    state, _ = one.train(one.start(), 0, 1)
    if framework == "jax":
        state.params["wte"] = state.params["wte"].at[3, 4].set(jnp.inf)
    else:
        with torch.no_grad():
            state.model.wte.weight[3, 4] = torch.inf
    assert "wte" in one.save(tmp_path / "checkpoints", state, Progress(1))
    assert steps_in(tmp_path / "checkpoints") == []


# What it takes on disk


@pytest.mark.parametrize(("framework", "name"), [("jax", "tiny-adamw"), *(("torch", name) for name in KINDS)])
def test_a_checkpoint_takes_four_bytes_a_number(kept, framework, name):
    made = kept(framework, name, "float32")
    numbers = sum(each.size for each in made.tensors[2 * K].values())
    taken = sum(path.stat().st_size for path in (made.folder / str(2 * K)).rglob("*") if path.is_file())
    at_least = 1.0 if framework == "torch" else 0.8  # Orbax compresses, which takes little off
    assert at_least * 4 * numbers <= taken <= 4 * numbers + 64 * 1024


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("muon-2024-10-12", "1.1 GB at 124M with Muon"),
        ("opt-adam-2024-10-29", "1.5 GB with AdamW"),
        ("soap-2024-10-09", "3.9 GB with SOAP"),
    ],
)
def test_the_page_on_runs_says_what_a_checkpoint_at_124m_takes(name, said):
    mesh_of_one = jaxgpt.mesh.make_mesh_of(jax.devices("cpu")[:1])
    exactly = precision(RECIPES[name], None, attention="exact")
    like = jaxgpt.train.make_step(RECIPES[name], exactly, mesh_of_one, 1).like()
    takes = sum(4 * each.size for each in jax.tree.leaves(like))
    assert said.startswith(f"{takes / 1e9:.1f} GB")
    assert said in " ".join((ROOT / "docs" / "runs.md").read_text(encoding="utf-8").split())


# Which checkpoints stay


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_the_last_ones_stay_and_the_best(tmp_path, framework):
    one = trainer(framework, "tiny-adamw", "float32")
    state, _ = one.train(one.start(), 0, 1)
    checkpoints = one.checkpoints(tmp_path / "checkpoints", keep=2)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 4.0)):
        arguments = (state,) if framework == "jax" else (state.model, state.optimizers)
        checkpoints.save(*arguments, Progress(step, validated=step if loss else 0, val_loss=loss or 3.0))
    assert checkpoints.wait()
    assert steps_in(tmp_path / "checkpoints") == [5, 4, 2]


def test_the_best_of_an_earlier_start_stays_too(kept):
    made, one = kept("torch", "tiny-adamw", "float32"), trainer("torch", "tiny-adamw", "float32")
    state, _ = one.restore(made.folder)
    for step, loss in ((7, 1.0), (8, 5.0), (9, 5.0), (10, 5.0)):  # each by a start of its own
        checkpoints = one.checkpoints(made.folder, keep=1)
        checkpoints.save(state.model, state.optimizers, Progress(step, validated=step, val_loss=loss))
        assert checkpoints.wait()
    assert steps_in(made.folder) == [10, 7]


def test_without_a_validation_loss_the_last_ones_stay(tmp_path):
    for step in (5, 10, 100, 20):
        (tmp_path / str(step)).mkdir()
    prune(tmp_path, 2, dict.fromkeys((5, 10, 20, 100)))
    assert steps_in(tmp_path) == [100, 20]


@pytest.mark.parametrize("name", ["007", "1.new", "12.orbax-checkpoint-tmp", "x", "٣", "-1"])
def test_a_folder_of_another_name_is_no_checkpoint(tmp_path, name):
    (tmp_path / name).mkdir()
    assert steps_in(tmp_path) == []
    tidy(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_checkpoints_has_none(tmp_path):
    assert newest(tmp_path / "none", lambda path: path) == (None, [])


# Its JSON


def facts() -> dict:
    run = dict.fromkeys(("trainer", "recipe", "overrides", "precision", "seed", "shards", "versions"), 1)
    return json.loads(json.dumps(sealed(Progress(3, 1, 2, 3, 0.1 + 0.2, 0, 1.5), run)))


def test_progress_comes_back_exactly():
    assert unsealed(facts())[0] == Progress(3, 1, 2, 3, 0.1 + 0.2, 0, 1.5)


@pytest.mark.parametrize("change", [{"progress": {}}, {"run": 2}, {"more": 1}, {"sha256": "0"}])
def test_a_changed_json_is_damaged(change):
    with pytest.raises(Damaged, match="SHA-256"):
        unsealed(facts() | change)


@pytest.mark.parametrize("value", [None, [], "x", 3])
def test_a_json_that_is_no_object_is_damaged(value):
    with pytest.raises(Damaged):
        unsealed(value)
