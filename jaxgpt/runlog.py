"""A run's folder, the same for both trainers: config.json, metrics.jsonl, and the progress a person sees."""

import contextlib
import dataclasses
import datetime
import fcntl
import importlib.metadata
import json
import math
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from safetensors import SafetensorError

from jaxgpt import compare, dashboards
from jaxgpt.errors import BadInput, NotWritten
from jaxgpt.files import sha256
from jaxgpt.flags import Flags
from jaxgpt.flops import peak_flops, token_flops
from jaxgpt.recipes import Precision, Recipe
from jaxgpt.resume import rows_until
from jaxgpt.saved import Progress
from jaxgpt.shards import Shard


def run_folder(flags: Flags, recipe: Recipe, started: float) -> Path:
    """The folder a run will write, by `--run` or by recipe and time; with `--resume`, the one that is there.

    Args:
      flags: of the command line.
      recipe: whose name the folder gets.
      started: seconds since 1970, the same in all of a run's processes.

    Raises:
      BadInput: it exists already, or can't be made.
    """
    folder = Path(flags.run or f"runs/{recipe.name}-{datetime.datetime.fromtimestamp(started):%Y%m%d-%H%M%S}")
    if flags.resume:
        return folder
    if folder.exists() or folder.is_symlink():
        raise _exists(folder)
    parent = next(p for p in folder.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise BadInput(f"--run {folder} can't be made: {parent} is not a folder that can be written")
    return folder


def _exists(folder: Path) -> BadInput:
    return BadInput(
        f"--run {folder} exists already and is left as it is: give another name, or go on with that run by --resume"
    )


def locked(folder: Path) -> TextIO:
    """The run's lock, held until the file is closed or the process ends, however it ends.

    Raises:
      BadInput: another process holds it, or the folder can't be written.
    """
    try:
        lock = open(folder / "lock", "a+", encoding="utf-8")  # noqa: SIM115, held as long as the run
    except OSError as error:
        raise BadInput(f"--run {folder} can't be written: {error.strerror}; mend its mode") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read(200).strip() or "another process"
        lock.close()
        raise BadInput(f"--run {folder} is being written by {holder}: wait for it to end, or end it") from None
    except OSError:
        pass  # a file system without locks
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()
    return lock


def describe(
    trainer: str,
    recipe: Recipe,
    overrides: dict[str, object],
    flags: Flags,
    precision: Precision,
    micro_batch: int,
    devices: list[str],
    shards: dict[str, list[Shard]],
    packages: Iterable[str],
) -> dict:
    """What config.json says: all that decided the run, and what it ran on."""
    versions = {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages}
    return {
        "trainer": trainer,
        "framework": "jax" if trainer == "jaxgpt" else "torch",
        "recipe": dataclasses.asdict(recipe),
        "overrides": overrides,
        "seed": flags.seed,
        "flags": dataclasses.asdict(flags),
        "init_sha256": sha256(flags.init_from) if flags.init_from and os.path.isfile(flags.init_from) else None,
        "precision": dataclasses.asdict(precision),
        "micro_batch": micro_batch,
        "token_flops": token_flops(recipe.model),
        "devices": devices,
        "shards": {
            kind: [{"path": str(s.path), "tokens": s.tokens, "sha256": s.sha256} for s in each]
            for kind, each in shards.items()
        },
        "versions": versions,
        "git_commit": _git_commit(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


class RunLog:
    """Writes a run's folder and shows its progress; does nothing on processes other than the first.

    Args:
      folder: made here, and locked. `BadInput` where it exists or can't be made, or another process holds it.
      config: see `describe`.
      steps: updates of the run, for the bar.
      step_tokens: tokens of one update.
      writes: whether this process is the one that writes.
      resume: the folder is there, and `go_on` will be called.
    """

    def __init__(
        self, folder: Path, config: dict, steps: int, step_tokens: int, writes: bool = True, resume: bool = False
    ):
        self.folder, self.config, self.step_tokens, self.writes = folder, config, step_tokens, writes
        self.train_time_s = 0.0
        self.val_loss = math.nan
        self.validated, self.skipped = -1, 0
        self._since: float | None = None
        self._flags: dict = config.get("flags", {})
        self._dashboards: list[dashboards.Dashboard] = []
        if not writes:
            return
        if not resume:
            try:
                folder.mkdir(parents=True)
            except FileExistsError:  # made by another run since `run_folder` looked
                raise _exists(folder) from None
            except OSError as error:
                raise BadInput(f"--run {folder} can't be made: {error.strerror}; give a folder that can") from None
        self._lock = locked(folder)
        if not resume:
            self.write_config()
            self._open()
        self._console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(config["recipe"]["name"], total=steps, loss="loss -", rate="- tok/s")
        self._steps = steps
        self._devices = config["devices"]  # of this start; a run that goes on keeps the first one's in its config
        peak = peak_flops(config["devices"])
        self._peak_tokens_per_s = peak / config["token_flops"] if peak else None
        self._say("compiling")

    def _say(self, what: str) -> None:
        where = f"{len(self._devices)} x {self._devices[0]}, in {self.folder}"
        print(f"{self.config['recipe']['name']} on {where}: {what}", flush=True)

    def _open(self) -> None:
        self._dashboards = dashboards.opened(self.folder, self.config, self._flags)
        self._metrics = open(self.folder / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115, closed by finish

    def go_on(self, was: Progress, config: dict | None) -> None:
        """Continue the metrics of a run that got as far as `was`; its config.json gains this start.

        Args:
          was: of the checkpoint; of step 0 where there is none. What was logged beyond it is removed.
          config: what the first start recorded; None where it was killed before that.
        """
        self.train_time_s, self.validated, self.skipped = was.train_time_s, was.validated, was.skipped
        if was.val_loss is not None:
            self.val_loss = was.val_loss
        if not self.writes:
            return
        keys = ("flags", "devices", "micro_batch", "versions", "git_commit", "command", "started")
        start = {"step": was.step} | {key: self.config[key] for key in keys}
        try:
            metrics = self.folder / "metrics.jsonl"
            _replace(metrics, rows_until(metrics, was.step, was.validated))
            if config is not None:
                self.config = config | {"resumes": [*config.get("resumes", []), start]}
            self.write_config()
            self._open()
        except OSError as error:
            raise BadInput(
                f"--run {self.folder} can't be written: {error.strerror}; make room, or mend its mode"
            ) from None
        self._bar.update(self._task, completed=was.step)
        self._say(f"going on after {was.step} steps" if was.step else "no checkpoint yet, starting from the beginning")

    def write_config(self, **more) -> None:
        """config.json, with `more` said of this start, in place of the one before."""
        starts = self.config.get("resumes") or [self.config]
        starts[-1] |= more
        if self.writes:
            _replace(self.folder / "config.json", (json.dumps(self.config, indent=2) + "\n").encode())

    def start(self) -> None:
        """Show the bar."""
        if self.writes:
            self._bar.start()

    def start_clock(self) -> None:
        """Training goes on from here: time until the next `train` counts."""
        self._since = time.perf_counter()

    def train(self, step: int, loss: float, grad_norm: float, lr: float, peak_bytes: int) -> None:
        """Record update number `step` (from 1), whose metrics have just arrived; not finite ones were skipped."""
        now = time.perf_counter()
        seconds = now - (now if self._since is None else self._since)
        self._since = now
        self.train_time_s += seconds
        rate = self.step_tokens / seconds if seconds else 0.0
        values = {"train_loss": loss, "lr": lr, "grad_norm": grad_norm}
        if skipped := not (math.isfinite(loss) and math.isfinite(grad_norm)):
            values = {"skipped": True, "lr": lr}  # JSON has no NaN
            self.skipped += 1
        self._line(step=step, **values, tokens_per_s=round(rate, 1), peak_bytes=peak_bytes)
        if self.writes and not skipped:
            said = f"{_short(rate)} tok/s"
            if self._peak_tokens_per_s:
                said += f"  {rate / self._peak_tokens_per_s:.0%} MFU"
            self._bar.update(self._task, completed=step, loss=f"loss {loss:.4f}", rate=said)

    def validation(self, step: int, loss: float) -> None:
        """Record the validation loss after `step` updates."""
        self.val_loss, self.validated = loss, step
        self._line(step=step, val_loss=loss)
        if self.writes:
            said = f"step {step:>6}/{self._steps}  val loss {loss:.4f}  {self.train_time_s:8.1f} s of training"
            self._bar.print(said) if self._console.is_terminal else print(said, flush=True)

    def progress(self, step: int, shard: int, offset: int) -> Progress:
        """What a checkpoint after `step` updates says, with where the next step's tokens start."""
        val_loss = None if math.isnan(self.val_loss) else self.val_loss
        return Progress(step, shard, offset, self.validated, val_loss, self.skipped, self.train_time_s)

    def finished(self, save_weights: Callable[[Path], None]) -> None:
        """Plot the run, write weights.safetensors, which marks its end, and say so."""
        weights, plot = self.folder / "weights.safetensors", self.folder / "curve.png"
        try:
            compare.plot_run(self.folder, plot)
            save_weights(weights)
        except (OSError, SafetensorError) as error:
            why = (isinstance(error, OSError) and error.strerror) or error
            raise NotWritten(
                f"{weights} can't be written: {why}; make room, then write it with --run {self.folder} --resume"
            ) from None
        skipped = f", {self.skipped} of them skipped" if self.skipped else ""
        print(
            f"val loss {self.val_loss:.4f} after {self._steps} steps{skipped}\nrun {self.folder}\nplot {plot}",
            flush=True,
        )

    def finish(self) -> None:
        """Close the files and the bar."""
        if self.writes:
            self._bar.stop()
            with contextlib.suppress(OSError):  # what a full disk didn't take was reported when it was written
                self._metrics.close()
            for each in self._dashboards:
                with contextlib.suppress(Exception):  # metrics.jsonl is the record
                    each.close()

    def _line(self, **values) -> None:
        if not self.writes:
            return
        step = values.pop("step")
        line = (
            {"step": step, "tokens": step * self.step_tokens} | values | {"train_time_s": round(self.train_time_s, 4)}
        )
        try:
            self._metrics.write(json.dumps(line) + "\n")
            self._metrics.flush()
        except OSError as error:
            raise NotWritten(
                f"{self.folder / 'metrics.jsonl'} can't be written at step {step}: {error.strerror}; make room, then "
                f"go on from the last checkpoint with --run {self.folder} --resume"
            ) from None
        self._dashboards = dashboards.shown(self._dashboards, line)


def _replace(file: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    new = file.with_name(f"{file.name}.new")
    new.write_bytes(content)
    new.replace(file)


def _short(rate: float) -> str:
    return f"{rate / 1e3:.1f}K" if rate < 1e6 else f"{rate / 1e6:.2f}M"


def _git_commit() -> str | None:
    """The commit of the checkout that this file is in, with "+" where files differ from it."""

    def git(*words: str) -> str:
        here = Path(__file__).parent
        done = subprocess.run(["git", *words], cwd=here, check=True, capture_output=True, text=True, timeout=5)
        return done.stdout.strip()

    try:
        commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "-uno")
        return commit + "+" * bool(changed)
    except (OSError, subprocess.SubprocessError):
        return None
