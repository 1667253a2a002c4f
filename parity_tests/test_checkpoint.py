"""Checkpoints of both trainers: a restored state is the saved one bit for bit, on any mesh, or is refused.

Nothing here runs a program; that a run goes on from them as if nothing had happened is in test_resume.py.
"""

import dataclasses
import functools
import itertools
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxgpt.checkpoint
import jaxgpt.mesh
import jaxgpt.train
import torch_ref.checkpoint
import torch_ref.train
from jaxgpt.errors import BadInput
from jaxgpt.recipes import RECIPES, Precision, Recipe, precision, reduced
from jaxgpt.saved import Damaged, Progress, newest, prune, sealed, steps_in, tidy, unsealed
from parity_tests.measured import assert_within
from parity_tests.pair import TORCH_CPU
from parity_tests.programs import ROOT
from parity_tests.tolerances import RESUMED_ON_ANOTHER_MESH
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


@functools.cache
def _kept(folder: Path, framework: str, name: str, dtype: str | None) -> Kept:
    one = trainer(framework, name, dtype)
    state, losses, tensors = one.start(), [], {}
    for step in (0, K, 2 * K):
        if step:
            one.save(folder, state, Progress(step, shard=1, offset=step))
            tensors[step] = one.tensors(state)
        state, more = one.train(state, step, step + K)
        losses += more
    return Kept(folder, tensors, losses)


@pytest.fixture
def kept(tmp_path_factory) -> Callable[..., Kept]:
    """kept(framework, name, dtype), made once and given out as a copy."""
    home = tmp_path_factory.getbasetemp() / "kept"

    def copied(*case: str) -> Kept:
        made = _kept(home / "-".join(case) / "checkpoints", *case)
        folder = tmp_path_factory.mktemp("copy") / "checkpoints"
        shutil.copytree(made.folder, folder)
        return made._replace(folder=folder)

    return copied


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
def test_the_readme_says_what_a_checkpoint_at_124m_takes(name, said):
    mesh_of_one = jaxgpt.mesh.make_mesh_of(jax.devices("cpu")[:1])
    exactly = precision(RECIPES[name], None, attention="exact")
    like = jaxgpt.train.make_step(RECIPES[name], exactly, mesh_of_one, 1).like()
    takes = sum(4 * each.size for each in jax.tree.leaves(like))
    assert said.startswith(f"{takes / 1e9:.1f} GB")
    assert said in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


# A damaged one is refused, and the one before is taken


def damage(path: Path, kind: str, at: random.Random) -> str:
    """Do it to a file; what was done."""
    content = bytearray(path.read_bytes())
    if kind == "delete":
        path.unlink()
    elif kind == "truncate":
        path.write_bytes(content[: at.randrange(len(content))])
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        bit = at.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        kind += f" {bit}"
    return f"{kind} of {path}"


def refused_or_harmless(one: Trainer, kept: Kept, done: str, capsys) -> bool:
    """Whether a damaged checkpoint of step 2K was refused for the one before; else it must still be the same bits."""
    state, was = one.restore(kept.folder)
    restored, said = one.tensors(state), capsys.readouterr().err
    same = all(np.array_equal(restored[each], kept.tensors[was.step][each]) for each in restored)
    assert same, f"{done}: step {was.step} was restored with other bits"
    if was.step == 2 * K:
        return False
    assert was.step == K
    assert said.count("\n") == 1, said
    assert f"{kept.folder}/{2 * K} can't be used: " in said
    return True


HARMLESS = "state/_METADATA", "state/manifest.ocdbt", "state/d/*"
"""What Orbax reads little of."""
DAMAGES = [("torch", *each) for each in itertools.product(InTorch.files, ("delete", "truncate", "flip"))]
DAMAGES += [("jax", "state/ocdbt.process_0/d/*", kind) for kind in ("delete", "truncate", "flip")]
DAMAGES += [("jax", "facts/metadata", kind) for kind in ("delete", "flip")]
DAMAGES += [("jax", "state/manifest.ocdbt", "delete")]
MORE = [("jax", *each) for each in itertools.product(InJax.files, ("delete", "truncate", "flip"))]


@pytest.mark.parametrize(
    ("framework", "pattern", "kind"),
    [*DAMAGES, *(pytest.param(*each, marks=pytest.mark.slow) for each in MORE if each not in DAMAGES)],
)
def test_a_damaged_checkpoint_is_refused_for_the_one_before(kept, capsys, framework, pattern, kind):
    made, one = kept(framework, "tiny-adamw", "float32"), trainer(framework, "tiny-adamw", "float32")
    at = random.Random(1)
    file = max((made.folder / str(2 * K)).glob(pattern), key=lambda path: path.stat().st_size)
    done = damage(file, kind, at)
    harmless = pattern in HARMLESS and (framework, pattern, kind) not in DAMAGES
    assert refused_or_harmless(one, made, done, capsys) or harmless, done


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_two_hundred_damages_at_random_never_give_other_bits(kept, capsys, framework):
    one, at = trainer(framework, "tiny-adamw", "float32"), random.Random(7)
    made = kept(framework, "tiny-adamw", "float32")
    refused, harmless = 0, []
    for _ in range(200):
        copy = made.folder.with_name("damaged")
        shutil.copytree(made.folder, copy)
        files = [path for path in sorted((copy / str(2 * K)).rglob("*")) if path.is_file()]
        done = damage(at.choice(files), at.choice(["delete", "truncate", "empty", "flip", "flip", "flip"]), at)
        if refused_or_harmless(one, made._replace(folder=copy), done, capsys):
            refused += 1
        else:
            harmless.append(done)
        shutil.rmtree(copy)
        shutil.rmtree(copy.with_name("damaged-damaged"), ignore_errors=True)
    print(f"{framework}: 200 damages, {refused} refused, {len(harmless)} left the same bits: {harmless}")
    assert refused > 30 if framework == "jax" else refused == 200  # Orbax reads few of its files


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_a_damaged_checkpoint_is_put_aside_and_leftovers_are_removed(kept, framework):
    made, one = kept(framework, "tiny-adamw", "float32"), trainer(framework, "tiny-adamw", "float32")
    shutil.rmtree(next(each for each in (made.folder / str(2 * K)).iterdir() if each.is_dir())) if (
        framework == "jax"
    ) else (made.folder / str(2 * K) / "facts.json").unlink()
    (made.folder / "9.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (made.folder / "5.deleted").mkdir()
    assert one.restore(made.folder)[1].step == K
    assert {each.name for each in made.folder.iterdir()} == {str(K)}
    assert {each.name for each in made.folder.with_name("checkpoints-damaged").iterdir()} == {str(2 * K)}


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_a_run_with_damaged_checkpoints_alone_is_refused(kept, capsys, framework):
    made, one = kept(framework, "tiny-adamw", "float32"), trainer(framework, "tiny-adamw", "float32")
    for step in (K, 2 * K):
        for file in (made.folder / str(step)).rglob("*"):
            if file.is_file():
                file.write_bytes(b"")
    with pytest.raises(BadInput, match=r"none of the 2 checkpoints in .* can be used"):
        one.restore(made.folder)
    assert capsys.readouterr().err.count("\n") == 2
    assert steps_in(made.folder) == [2 * K, K], "they stay where they are"


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_another_runs_checkpoint_is_refused(kept, capsys, framework):
    made = kept(framework, "tiny-adamw", "float32")
    other = trainer(framework, "tiny-soap", "float32")
    with pytest.raises(BadInput, match="none of the 2"):
        other.restore(made.folder)
    assert "the recipe is tiny-soap here and tiny-adamw in it" in capsys.readouterr().err


# A disk that takes no more: the earlier checkpoint stays, training goes on


def test_what_orbax_says_of_a_full_disk_is_one_line(kept, capfd, monkeypatch):
    """The disk is full for Orbax itself, which finds out in the middle of writing."""
    made, one = kept("jax", "tiny-adamw", "float32"), trainer("jax", "tiny-adamw", "float32")
    state, _ = one.restore(made.folder)
    checkpoints = one.checkpoints(made.folder)
    checkpoints.saved = 2 * K

    async def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing ... No space left on device [os_error_code='28']")

    import orbax.checkpoint._src.serialization.jax_array_handlers as handlers

    monkeypatch.setattr(handlers, "_async_serialize_replica_slices", full)
    capfd.readouterr()
    checkpoints.save(state, Progress(3 * K))
    assert not checkpoints.wait()
    said = capfd.readouterr().err
    assert said == (
        f"warning: checkpoint {made.folder}/{3 * K} wasn't saved (No space left on device); the last one is of step 6\n"
    )
    assert {each.name for each in made.folder.iterdir()} == {str(K), str(2 * K)}
    monkeypatch.undo()
    checkpoints.save(state, Progress(3 * K))
    assert checkpoints.wait()
    assert checkpoints.saved == 3 * K


def test_a_checkpoint_larger_than_what_is_free_is_not_begun(kept, capsys, monkeypatch):
    made, one = kept("jax", "tiny-adamw", "float32"), trainer("jax", "tiny-adamw", "float32")
    state, _ = one.restore(made.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: os.terminal_size((0, 0)) and type("", (), {"free": 1000}))
    checkpoints = one.checkpoints(made.folder)
    checkpoints.save(state, Progress(3 * K))
    assert not checkpoints.wait()
    assert "and 1,000 are free); there is none yet" in capsys.readouterr().err


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
