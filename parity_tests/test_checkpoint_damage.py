"""Damaged checkpoints of both trainers are refused for the one before; a disk that takes no more costs nothing else."""

import itertools
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jaxgpt.errors import BadInput
from jaxgpt.saved import Progress, steps_in
from parity_tests.checkpoints import InJax, InTorch, K, Kept, Trainer, trainer

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
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    checkpoints = one.checkpoints(made.folder)
    checkpoints.save(state, Progress(3 * K))
    assert not checkpoints.wait()
    assert "and 1,000 are free); there is none yet" in capsys.readouterr().err
