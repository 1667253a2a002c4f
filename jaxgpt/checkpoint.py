"""Checkpoints of a training state, by Orbax: written while training goes on, read on any number of devices.

A checkpoint is a folder `checkpoints/<step>/`, renamed to its step when it is whole: `state`, the arrays of a
`TrainState`, and `facts`, JSON with the progress (step, data position), what decides the run (recipe, precision, seed,
shards, versions) and a fingerprint of each array. On disk it takes 4 bytes a number, weights and the optimiser's state
(two more numbers a weight with AdamW, one with Muon; SOAP and Shampoo keep matrices for the sides of each matrix), less
what compression takes off. The last `keep` stay and the one of the lowest validation loss; one more while it is saved.

Orbax's own manager of many checkpoints isn't used: it reads all of them when it starts, and fails where an old one is
damaged; which ones stay is decided by `jaxgpt.saved`, for both trainers alike.
"""

import contextlib
import functools
import gc
import json
import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, UInt32

from jaxgpt import mesh
from jaxgpt.errors import BadInput, NotWritten
from jaxgpt.resume import check_unchanged
from jaxgpt.saved import Damaged, Progress, newest, not_saved, prune, sealed, steps_in, tidy, unsealed


def fingerprint(array: Array) -> UInt32[Array, ""]:
    """The sum over i of word i times 2i + 1, mod 2^32: exact, so the same on any mesh; any one word changed shows.

    Words are the array's bits in C order, 32 at a time; 16 of a bfloat16.
    """
    word = jnp.uint16 if array.dtype.itemsize == 2 else jnp.uint32
    words = jax.lax.bitcast_convert_type(array, word).reshape(-1).astype(jnp.uint32)
    odd = 2 * jnp.arange(words.size, dtype=jnp.uint32) + 1
    return (words * odd).sum(dtype=jnp.uint32)


def fingerprint_on_host(array: np.ndarray) -> int:
    """The same of an array of any dtype, whether or not JAX is allowed 64 bits."""
    words = np.ascontiguousarray(array).reshape(-1).view(np.uint16 if array.dtype.itemsize == 2 else np.uint32)
    return int((words.astype(np.uint32) * (2 * np.arange(words.size, dtype=np.uint32) + 1)).sum(dtype=np.uint32))


@jax.jit
def _examined(arrays: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Each array's fingerprint, and whether it is finite."""
    return jax.tree.map(fingerprint, arrays), jax.tree.map(lambda a: jnp.isfinite(a).all(), arrays)


def _examined_on_one_device(arrays: dict[str, Array]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The same on the host. The arrays are replicated, so one device of each process can say it."""
    return jax.device_get(_examined({name: array.addressable_data(0) for name, array in arrays.items()}))


def named(state: Any) -> dict[str, Any]:
    """The state's arrays by their paths, such as "params.h.attn.c_q.kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def check_folder(folder: Path) -> None:
    """`BadInput` for a run's folder whose path holds bytes that are no text: Orbax can write no checkpoint there."""
    try:
        str(folder.absolute()).encode()
    except UnicodeEncodeError:
        raise BadInput(
            f"--run {folder}: its path isn't UTF-8, so no checkpoint can be written there; give another name"
        ) from None


class Checkpoints:
    """A run's checkpoints.

    Args:
      folder: where they are; made by the first save.
      keep: how many of the last ones stay, beside the best.
      run: what `jaxgpt.runlog.describe` says; what is saved goes with it, and only what went with it is restored.
    """

    def __init__(self, folder: Path, keep: int, run: dict):
        self.folder, self.keep, self.run = folder.absolute(), keep, run
        self.saved: int | None = None
        """Step of the last checkpoint that is whole."""
        self._scores: dict[int, float | None] = {}
        self._saving: int | None = None
        self._writes = jax.process_index() == 0
        self._orbax: ocp.AsyncCheckpointer | None = None

    def save(self, state: Any, progress: Progress) -> str | None:
        """Begin to save `state`, which may be donated once this returns, after any save before it has ended.

        Copying to the host is waited for, writing isn't. What the disk doesn't take costs nothing but that checkpoint.

        Returns:
          The name of the first array that isn't finite; nothing is saved then.

        Raises:
          NotWritten: one of several processes couldn't save its part.
        """
        self.wait()
        arrays = named(state)
        prints, finite = _examined_on_one_device(arrays)
        if broken := [name for name, each in finite.items() if not each]:
            return broken[0]
        facts = sealed(progress, self.run, arrays={name: int(each) for name, each in prints.items()})
        self._scores[progress.step], self._saving = progress.score, progress.step
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            needs, free = sum(a.nbytes for a in arrays.values()), shutil.disk_usage(self.folder).free
            if needs > free and jax.process_count() == 1:  # several processes have to take the same way
                raise OSError(0, f"it takes up to {needs:,} bytes and {free:,} are free")
            if self._orbax is None:
                _quieten_orbax()
                self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
            items = {"state": ocp.args.PyTreeSave(arrays), "facts": ocp.args.JsonSave(facts)}
            self._orbax.save(self.folder / str(progress.step), args=ocp.args.Composite(**items))
        except Exception as error:
            self._failed(error)
        return None

    def wait(self) -> bool:
        """Wait until what is being saved is on disk. Returns whether the last save got there."""
        try:
            if self._orbax is not None and self._saving is not None:
                self._orbax.wait_until_finished()
                self._finished()
        except Exception as error:
            self._failed(error)
        return self._saving is None

    def restore(self, like: Any) -> tuple[Any, Progress] | None:
        """The newest state that can be used, and how far it had come; None where the run hasn't saved any.

        Args:
          like: the state's shapes, dtypes and shardings, as `jax.ShapeDtypeStruct`; the shardings may be others than
            those that it was saved with.

        Raises:
          BadInput: none of those that are there can be used.
        """
        _quieten_orbax()
        with _forgotten_coroutines():
            found, damaged = newest(self.folder, lambda path: _read(path, like, self.run))
            if damaged:
                gc.collect()
        mesh.wait_for_all()
        if self._writes:
            tidy(self.folder, damaged)
        if found is not None:
            self.saved = found[1].step
        return found

    def _finished(self) -> None:
        """When a checkpoint has its name. Orbax's callback for this comes before that."""
        self.saved, self._saving = self._saving, None
        if self._writes:
            for step in steps_in(self.folder):
                if step not in self._scores:
                    self._scores[step] = _score(self.folder / str(step))
            with contextlib.suppress(OSError):  # what couldn't be deleted now is tried again after the next one
                prune(self.folder, self.keep, self._scores)

    def _failed(self, error: Exception) -> None:
        why = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        if jax.process_count() > 1:  # the others wait in the save for this one, or this one for one that is gone
            raise NotWritten(
                f"checkpoint {self.folder / str(self._saving)} wasn't saved ({_reason(why)}); make room, then go on "
                "from the last one with --resume"
            )
        if self._writes:
            not_saved(self.folder / str(self._saving), _reason(why), self.saved)
            tidy(self.folder)
        self._orbax = None


@contextlib.contextmanager
def _forgotten_coroutines() -> Iterator[None]:
    """Of a failed restore Orbax leaves coroutines behind, unawaited or half-way: Python says so of each that goes."""
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        sys.unraisablehook = before


def _reason(why: str) -> str:
    """The part of tensorstore's long error that tells a person something."""
    for reason in ("No space left on device", "Disk quota exceeded", "File too large", "Read-only file system"):
        if reason in why:
            return reason
    return why if len(why) <= 200 else f"{why[:60]} ... {why[-137:]}"


def _read(path: Path, like: Any, run: dict) -> tuple[Any, Progress]:
    """The state and the progress in one checkpoint. Raises `Damaged` whatever is wrong with it."""
    arrays = named(like)
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as orbax:
            facts = orbax.restore(path, args=ocp.args.Composite(facts=ocp.args.JsonRestore())).facts
            progress, facts = unsealed(facts)
            check_unchanged(facts["run"], run, "it")
            if facts["arrays"].keys() != arrays.keys() or progress.step != int(path.name):
                raise Damaged("it isn't a checkpoint of this recipe's state and step")
            how = ocp.checkpoint_utils.construct_restore_args(arrays)
            restored = orbax.restore(
                path, args=ocp.args.Composite(state=ocp.args.PyTreeRestore(arrays, restore_args=how))
            ).state
        prints, _ = _examined_on_one_device(restored)
    except Damaged:
        raise
    except BadInput as error:
        raise Damaged(str(error).removeprefix("--resume: ")) from None
    except Exception as error:  # Orbax and tensorstore say what is wrong with a file in many types
        raise Damaged(_reason(f"{type(error).__name__}: {error}")) from None
    for name, each in prints.items():
        if int(each) != facts["arrays"][name]:
            raise Damaged(f"{name} has other bits than were saved")
    return jax.tree.unflatten(jax.tree.structure(like), [restored[name] for name in arrays]), progress


def restore_weights(folder: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, np.ndarray], int] | None:
    """The weights alone of the newest checkpoint that can be used, and its step; None where none was saved.

    Args:
      folder: a run's `checkpoints/`.
      shapes: of the weights, by their paths such as "h.attn.c_q.kernel".

    Raises:
      BadInput: none of those that are there can be used.
    """
    _quieten_orbax()
    with _forgotten_coroutines():
        return newest(folder.absolute(), lambda path: (_read_weights(path, shapes), int(path.name)))[0]


def _read_weights(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Raises `Damaged` whatever is wrong with the checkpoint."""
    like = {f"params.{name}": jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    as_saved = ocp.RestoreArgs(restore_type=np.ndarray)
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as orbax:
            _, facts = unsealed(orbax.restore(path, args=ocp.args.Composite(facts=ocp.args.JsonRestore())).facts)
            some = ocp.args.PyTreeRestore(like, restore_args=dict.fromkeys(like, as_saved), partial_restore=True)
            restored = orbax.restore(path, args=ocp.args.Composite(state=some)).state
    except Damaged:
        raise
    except Exception as error:  # as in `_read`
        raise Damaged(_reason(f"{type(error).__name__}: {error}")) from None
    for name, each in like.items():
        if restored[name].shape != each.shape:
            raise Damaged(f"{name} is {restored[name].shape} there and {each.shape} in the run's recipe")
        if fingerprint_on_host(restored[name]) != facts["arrays"].get(name):
            raise Damaged(f"{name} has other bits than were saved")
    return {name.removeprefix("params."): restored[name] for name in like}


def _score(path: Path) -> float | None:
    """The validation loss of a checkpoint that an earlier start of the run saved."""
    try:
        return unsealed(json.loads((path / "facts" / "metadata").read_bytes()))[0].score
    except (OSError, ValueError, RecursionError, Damaged):
        return None


@functools.cache
def _quieten_orbax() -> None:
    """Leave it to us to say, in one line, what went wrong: Orbax logs a traceback for each of its threads."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    before: Callable[[Any], Any] = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":  # tensorstore's, of writes that a failed save left
            before(unraisable)

    sys.unraisablehook = hook
