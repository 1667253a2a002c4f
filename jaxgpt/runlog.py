"""A run's folder, the same for both trainers: config.json, metrics.jsonl, and the progress a person sees."""

import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jaxgpt.errors import BadInput
from jaxgpt.flags import Flags
from jaxgpt.recipes import Precision, Recipe
from jaxgpt.shards import Shard


def run_folder(flags: Flags, recipe: Recipe) -> Path:
    """The folder a run will write, by `--run` or by recipe and time.

    Raises:
      BadInput: it exists already, or can't be made.
    """
    folder = Path(flags.run or f"runs/{recipe.name}-{datetime.datetime.now():%Y%m%d-%H%M%S}")
    if folder.exists() or folder.is_symlink():
        raise _exists(folder)
    parent = next(p for p in folder.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise BadInput(f"--run {folder} can't be made: {parent} is not a folder that can be written")
    return folder


def _exists(folder: Path) -> BadInput:
    return BadInput(f"--run {folder} exists already and is left as it is: give another name")


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
        "flags": dataclasses.asdict(flags),
        "precision": dataclasses.asdict(precision),
        "micro_batch": micro_batch,
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
      folder: made here; `BadInput` where it exists or can't be made.
      config: see `describe`.
      steps: updates of the run, for the bar.
      step_tokens: tokens of one update.
      writes: whether this process is the one that writes.
    """

    def __init__(self, folder: Path, config: dict, steps: int, step_tokens: int, writes: bool = True):
        self.folder, self.config, self.step_tokens, self.writes = folder, config, step_tokens, writes
        self.train_time_s = 0.0
        self.val_loss = math.nan
        self._since: float | None = None
        if not writes:
            return
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # made by another run since `run_folder` looked
            raise _exists(folder) from None
        except OSError as error:
            raise BadInput(f"--run {folder} can't be made: {error.strerror}; give a folder that can") from None
        self.write_config()
        self._metrics = open(folder / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115, closed by finish
        self._console = Console(stderr=True)
        self._bar = Progress(
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
        devices = config["devices"]
        print(f"{config['recipe']['name']} on {len(devices)} x {devices[0]}, in {folder}: compiling", flush=True)

    def write_config(self, **more) -> None:
        """config.json, with `more` added, in place of the one before."""
        self.config |= more
        if self.writes:
            new = self.folder / "config.json.new"
            new.write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")
            new.replace(self.folder / "config.json")

    def start(self) -> None:
        """Show the bar."""
        if self.writes:
            self._bar.start()

    def start_clock(self) -> None:
        """Training goes on from here: time until the next `train` counts."""
        self._since = time.perf_counter()

    def train(self, step: int, loss: float, grad_norm: float, lr: float, peak_bytes: int) -> None:
        """Record update number `step` (from 1), whose metrics have just arrived."""
        now = time.perf_counter()
        seconds = now - (now if self._since is None else self._since)
        self._since = now
        self.train_time_s += seconds
        rate = self.step_tokens / seconds if seconds else 0.0
        self._line(
            step=step,
            train_loss=loss,
            lr=lr,
            grad_norm=grad_norm,
            tokens_per_s=round(rate, 1),
            peak_bytes=peak_bytes,
        )
        if self.writes:
            self._bar.update(self._task, completed=step, loss=f"loss {loss:.4f}", rate=f"{_short(rate)} tok/s")

    def validation(self, step: int, loss: float) -> None:
        """Record the validation loss after `step` updates."""
        self.val_loss = loss
        self._line(step=step, val_loss=loss)
        if self.writes:
            said = f"step {step:>6}/{self._steps}  val loss {loss:.4f}  {self.train_time_s:8.1f} s of training"
            self._bar.print(said) if self._console.is_terminal else print(said, flush=True)

    def finish(self) -> None:
        """Close the files and the bar."""
        if self.writes:
            self._bar.stop()
            self._metrics.close()

    def _line(self, **values) -> None:
        if not self.writes:
            return
        step = values.pop("step")
        line = (
            {"step": step, "tokens": step * self.step_tokens} | values | {"train_time_s": round(self.train_time_s, 4)}
        )
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()


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
