"""A run's checkpoints on disk, the same for both trainers: `checkpoints/<step>/`. Imports neither JAX nor PyTorch.

A folder whose name is a number is whole, for it got that name when all in it was written; any other is what a killed
save or deletion left. The bytes of a whole one may still be damaged later, so what is read is checked.
"""

import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from jaxgpt.errors import BadInput
from jaxgpt.recorded import from_json

T = TypeVar("T")


class Damaged(Exception):
    """A checkpoint can't be used. The text says why, in one line."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come: all that its loop goes on from, but for weights and the optimiser's state."""

    step: int = 0
    """Steps done."""
    shard: int = 0
    """Which shard the next step's tokens are in."""
    offset: int = 0
    """How many of its tokens come before them."""
    validated: int = -1
    """The step after which the run was last validated."""
    val_loss: float | None = None
    """What that gave."""
    skipped: int = 0
    """Steps without an update, by `--on-nonfinite skip`."""
    train_time_s: float = 0.0

    @property
    def score(self) -> float | None:
        """The validation loss of just these weights, if there is one."""
        return self.val_loss if self.validated == self.step else None


def sealed(progress: Progress, run: dict, **more: object) -> dict:
    """A checkpoint's JSON: the progress, what decides the run (as in config.json), more, and a SHA-256 of all that."""
    keys = ("trainer", "recipe", "overrides", "precision", "seed", "shards", "versions")
    facts = {"progress": dataclasses.asdict(progress), "run": {key: run[key] for key in keys}} | more
    return facts | {"sha256": _seal(facts)}


def unsealed(facts: object) -> tuple[Progress, dict]:
    """The progress in a checkpoint's JSON, and the whole object. Raises `Damaged`."""
    if not isinstance(facts, dict) or facts.get("sha256") != _seal({k: v for k, v in facts.items() if k != "sha256"}):
        raise Damaged("its JSON doesn't have the SHA-256 that it says")
    try:
        return from_json(Progress, facts.get("progress"), "progress"), facts
    except BadInput as error:
        raise Damaged(str(error)) from None


def _seal(facts: dict) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def steps_in(folder: Path) -> list[int]:
    """Steps of the whole checkpoints, latest first."""
    if not folder.is_dir():
        return []
    return sorted((int(each.name) for each in folder.iterdir() if _is_step(each.name)), reverse=True)


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdigit() and str(int(name)) == name


def newest(folder: Path, read: Callable[[Path], T]) -> tuple[T | None, list[int]]:
    """What `read` makes of the newest checkpoint that it doesn't find `Damaged`; None where the run has saved none.

    Each damaged one is named on stderr. Returns their steps too.

    Raises:
      BadInput: there are checkpoints, and none can be used.
    """
    damaged: list[int] = []
    for step in steps_in(folder):
        try:
            return read(folder / str(step)), damaged
        except Damaged as error:
            why = " ".join(str(error).split())
            print(f"checkpoint {folder / str(step)} can't be used: {why}", file=sys.stderr, flush=True)
            damaged.append(step)
    if damaged:
        raise BadInput(
            f"none of the {len(damaged)} checkpoints in {folder} can be used: put a copy of one there, or delete the "
            "folder to start from the beginning"
        )
    return None, []


def not_saved(path: Path, why: str, saved: int | None) -> None:
    """Warn that the checkpoint at `path` wasn't saved; `saved` is the step of the last one that was."""
    last = f"the last one is of step {saved}" if saved else "there is none yet"
    print(f"warning: checkpoint {path} wasn't saved ({why}); {last}", file=sys.stderr, flush=True)


def tidy(folder: Path, damaged: Iterable[int] = ()) -> None:
    """Delete what killed saves and deletions left, and put damaged checkpoints aside, out of the way of new ones."""
    for step in damaged:
        aside = folder.with_name(f"{folder.name}-damaged")
        aside.mkdir(exist_ok=True)
        _delete(aside / str(step))
        (folder / str(step)).rename(aside / str(step))
    for each in folder.iterdir() if folder.is_dir() else ():
        if not _is_step(each.name):
            _delete(each)


def prune(folder: Path, keep: int, scores: dict[int, float | None]) -> None:
    """Delete all checkpoints but the last `keep` and the one of the lowest score (validation loss)."""
    steps = steps_in(folder)
    ranked = [(score, step) for step in steps if (score := scores.get(step)) is not None]
    kept = {*steps[:keep], *([min(ranked)[1]] if ranked else [])}
    for step in steps:
        if step not in kept:
            gone = folder / f"{step}.deleted"
            (folder / str(step)).rename(gone)  # a kill in the middle must not leave half a checkpoint with its name
            _delete(gone)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
