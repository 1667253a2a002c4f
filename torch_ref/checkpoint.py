"""Checkpoints of a training state: written by a thread while training goes on, read on any number of processes.

A checkpoint is a folder `checkpoints/<step>/`, renamed to its step when it is whole: `state.safetensors`, a training
state as `torch_ref.bridge.save_state` writes it (so `--init-from` of both trainers reads its weights), and `facts.json`
with the progress (step, data position), what decides the run (recipe, precision, seed, shards, versions) and the
SHA-256 of the other file. On disk it takes 4 bytes a number, weights and the optimiser's state (two more numbers a
weight with AdamW, one with Muon; SOAP and Shampoo keep matrices for the sides of each matrix). The last `keep` stay and
the one of the lowest validation loss; one more while it is saved.
"""

import contextlib
import hashlib
import json
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from jaxgpt.errors import BadInput
from jaxgpt.recipes import Precision, Recipe
from jaxgpt.resume import check_unchanged
from jaxgpt.saved import Damaged, Progress, newest, not_saved, prune, sealed, steps_in, tidy, unsealed
from torch_ref import bridge, mesh
from torch_ref.bridge import TrainingState
from torch_ref.mesh import Mesh
from torch_ref.model import GPT
from torch_ref.moments import moments
from torch_ref.muon import gather, keep_own
from torch_ref.tokens import Position


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def named(model: GPT, optimizers: list[torch.optim.Optimizer]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Copies of the weights and of all that the optimisers keep, on the CPU."""
    weights = {name: each.detach().to("cpu", copy=True) for name, each in model.state_dict().items()}
    return weights, {name: each.to("cpu", copy=True) for name, each in moments(optimizers, model).items()}


class Checkpoints:
    """A run's checkpoints.

    Args:
      folder: where they are; made by the first save.
      keep: how many of the last ones stay, beside the best.
      run: what `jaxgpt.runlog.describe` says; what is saved goes with it, and only what went with it is restored.
      recipe: with overrides.
      devices: the first process writes.
    """

    def __init__(self, folder: Path, keep: int, run: dict, recipe: Recipe, devices: Mesh):
        self.folder, self.keep, self.run, self.recipe, self.devices = folder, keep, run, recipe, devices
        self.saved: int | None = None
        """Step of the last checkpoint that is whole."""
        self._scores: dict[int, float | None] = {}
        self._saving: int | None = None
        self._writes = devices.rank == 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None

    def save(self, model: GPT, optimizers: list[torch.optim.Optimizer], progress: Progress) -> str | None:
        """Begin to save a state, which may change once this returns, after any save before it has ended.

        Copying to the host is waited for, writing isn't. What the disk doesn't take costs nothing but that checkpoint.

        Returns:
          The name of the first tensor that isn't finite; nothing is saved then.
        """
        self.wait()
        gather(optimizers)
        state = model.state_dict() | moments(optimizers, model)
        are_finite = torch.stack([each.isfinite().all() for each in state.values()]).tolist()
        if not all(are_finite):
            return list(state)[are_finite.index(False)]
        weights, kept = named(model, optimizers)
        keep_own(optimizers)
        if not kept:  # no update has been made: all steps were skipped, and the run would start as it did
            return None
        self._scores[progress.step], self._saving = progress.score, progress.step
        if self._writes:
            self._writing = self._thread.submit(self._write, weights, kept, progress)
        return None

    def wait(self) -> bool:
        """Wait until what is being saved is on disk. Returns whether the last save got there."""
        if not self._writes:
            return True
        try:
            if self._writing is not None:
                self._writing.result()
        except (OSError, SafetensorError) as error:
            self._failed(error)
        self._writing = None
        return self._saving is None

    def restore(self, precision: Precision) -> tuple[TrainingState, Progress] | None:
        """The newest state that can be used, and how far it had come; None where the run hasn't saved any.

        Args:
          precision: of the run, whose dtypes the tensors get.

        Raises:
          BadInput: none of those that are there can be used.
        """
        found, damaged = newest(self.folder, lambda path: _read(path, self.recipe, precision, self.run))
        mesh.wait_for_all(self.devices)
        if self._writes:
            tidy(self.folder, damaged)
        if found is not None:
            self.saved = found[1].step
        return found

    def _write(self, weights: dict[str, Tensor], kept: dict[str, Tensor], progress: Progress) -> None:
        """In a thread."""
        new = self.folder / f"{progress.step}.new"
        new.mkdir(parents=True)
        position = Position(progress.shard, progress.offset)
        bridge.save_state(new / "state.safetensors", weights, self.recipe, progress.step, kept, position)
        facts = sealed(progress, self.run, state_sha256=fingerprint(new / "state.safetensors"))
        (new / "facts.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
        for each in new.iterdir():
            with each.open("rb") as file:
                os.fsync(file.fileno())
        new.rename(self.folder / str(progress.step))
        self._finished()

    def _finished(self) -> None:
        """In the thread, when a checkpoint has its name."""
        self.saved, self._saving = self._saving, None
        for step in steps_in(self.folder):
            if step not in self._scores:
                self._scores[step] = _score(self.folder / str(step))
        with contextlib.suppress(OSError):  # what couldn't be deleted now is tried again after the next one
            prune(self.folder, self.keep, self._scores)

    def _failed(self, error: Exception) -> None:
        why = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        not_saved(self.folder / str(self._saving), why, self.saved)
        tidy(self.folder)


def _read(path: Path, recipe: Recipe, precision: Precision, run: dict) -> tuple[TrainingState, Progress]:
    """The state and the progress in one checkpoint. Raises `Damaged` whatever is wrong with it."""
    state = path / "state.safetensors"
    try:
        progress, facts = unsealed(json.loads((path / "facts.json").read_bytes()))
        check_unchanged(facts["run"], run, "it")
        if fingerprint(state) != facts.get("state_sha256"):
            raise Damaged("state.safetensors has other bytes than were saved")
        found = bridge.load_training_state(state, recipe, precision.parameters, precision.embedding)
        if found.step != progress.step or progress.step != int(path.name):
            raise Damaged("it isn't a checkpoint of this step")
    except OSError as error:
        raise Damaged(f"{Path(error.filename or state).name}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise Damaged("facts.json isn't JSON") from None
    except BadInput as error:
        raise Damaged(str(error).removeprefix("--resume: ")) from None
    return found, progress


def _score(path: Path) -> float | None:
    """The validation loss of a checkpoint that an earlier start of the run saved."""
    try:
        return unsealed(json.loads((path / "facts.json").read_bytes()))[0].score
    except (OSError, ValueError, RecursionError, Damaged):
        return None
