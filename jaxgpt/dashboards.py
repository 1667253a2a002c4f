"""A run's metrics for TensorBoard and for Weights & Biases, beside metrics.jsonl. Imports neither JAX nor PyTorch.

A dashboard is given each row of metrics.jsonl, and at its start the rows that are there: what a run that goes on has
thrown away it never shows, and one that a run is given late shows the whole. metrics.jsonl is the record: a dashboard
that fails is named in one line and left out, and training goes on.
"""

import datetime
import importlib.util
import json
import os
import secrets
import socket
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from jaxgpt.errors import BadInput

Row = dict[str, Any]


class Dashboard(Protocol):
    """Where rows go."""

    def row(self, row: Row) -> None:
        """Take one row of metrics.jsonl."""

    def close(self) -> None:
        """Take in that there are no more for now."""


def check_dashboards(tensorboard: bool, wandb: str | None) -> None:
    """`BadInput` where a dashboard is asked for whose package isn't installed, and for a project without a name."""
    if wandb is not None and not wandb.strip():
        raise BadInput("--wandb '': name the project, or leave it out")
    for asked, package, flag, without in (
        (tensorboard, "tensorboard", "--tensorboard", "--no-tensorboard"),
        (wandb is not None, "wandb", f"--wandb {wandb}", "--wandb None"),
    ):
        found = importlib.util.find_spec(package) if asked else None
        if asked and (found is None or found.origin is None):  # a folder of that name, as wandb makes one, is none
            raise BadInput(f"{flag} needs a package: pip install {package}, or say {without}")


def opened(folder: Path, config: dict, flags: dict) -> list[Dashboard]:
    """The dashboards that `flags` ask for, with the rows of the run's metrics.jsonl.

    Args:
      folder: the run's.
      config: what config.json says.
      flags: of this start.

    Raises:
      BadInput: one that can't be started.
    """
    dashboards: list[Dashboard] = []
    if flags.get("tensorboard"):
        dashboards.append(TensorBoard(folder / "tensorboard", config, _rows(folder)))
    if flags.get("wandb"):
        dashboards.append(Wandb(folder, flags["wandb"], config, _rows(folder)))
    return dashboards


def shown(dashboards: list[Dashboard], row: Row) -> list[Dashboard]:
    """Give each the row. Returns those that took it; of the others one line on stderr says why."""
    took = []
    for each in dashboards:
        try:
            each.row(row)
            took.append(each)
        except Exception as error:  # a service's client can raise anything
            why = " ".join(str(error).split())[:300]
            name = type(each).__name__
            print(f"warning: {name} gets no more rows ({why}); metrics.jsonl has them", file=sys.stderr, flush=True)
    return took


class TensorBoard:
    """An event file, of which each number of a row is a scalar by its name in metrics.jsonl.

    It is written anew at each start. TensorBoard's relative time is time of training.
    """

    def __init__(self, folder: Path, config: dict, rows: list[Row]):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        self._started = _started(config)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        try:
            folder.mkdir(exist_ok=True)
            before = list(folder.glob("events.out.tfevents.*"))
            # The library's own writer has a thread, which tells of a full disk by a traceback; this one is called.
            self._records = RecordWriter(open(folder / name, "wb"))  # noqa: SIM115, closed by `close`
            self._write(Event(wall_time=self._started, file_version="brain.Event:2"))
            # A TensorBoard that is looking forgets what it has read of a file before.
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=self._started, step=0, session_log=start))
            for row in rows:
                self.row(row)
            for each in before:
                each.unlink()
        except OSError as error:
            raise BadInput(
                f"--tensorboard: {folder} can't be written: {error.strerror}; make room, then go on"
            ) from None

    def row(self, row: Row) -> None:
        """Raises OSError."""
        numbers = {name: value for name, value in row.items() if name not in ("step", "tokens", "train_time_s")}
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        at = self._started + row.get("train_time_s", 0.0)
        self._write(self._event(wall_time=at, step=row["step"], summary=self._summary(value=values)))

    def close(self) -> None:
        """Raises OSError."""
        self._records.close()

    def _write(self, event) -> None:
        self._records.write(event.SerializeToString())
        self._records.flush()


class Wandb:
    """A run of Weights & Biases in RUN/wandb, by its step; where its service can't be had, set WANDB_MODE=offline.

    It is the same run there whenever this one goes on. Online, the service keeps what it has, and is given later steps
    alone; offline, each start makes a folder with the whole, so the newest is the one to sync.
    """

    def __init__(self, folder: Path, project: str, config: dict, rows: list[Row]):
        import wandb

        file = folder / "wandb" / "id"
        try:
            if not file.exists():
                file.parent.mkdir(exist_ok=True)
                file.write_text(secrets.token_hex(8), encoding="utf-8")
            name = file.read_text(encoding="utf-8").strip()
            settings = wandb.Settings(console="off")
            self._run = wandb.init(
                project=project, id=name, resume="allow", name=folder.name, dir=folder, config=config, settings=settings
            )
        except Exception as error:  # its own, of many kinds
            why = " ".join(str(error).split())[:300]
            raise BadInput(
                f"--wandb {project} can't start ({why}): run `wandb login`, see to the network, or set "
                f"WANDB_MODE=offline, then go on with --run {folder} --resume"
            ) from None
        self._first = self._run.starting_step
        for row in rows:
            self.row(row)

    def row(self, row: Row) -> None:
        """Raises whatever the client does."""
        if row["step"] >= self._first:
            self._run.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])

    def close(self) -> None:
        """Waits until the service has all rows."""
        self._run.finish()


def _rows(folder: Path) -> list[Row]:
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_bytes().splitlines()] if file.exists() else []


def _started(config: dict) -> float:
    """When the run's first start was, in seconds since 1970."""
    try:
        return datetime.datetime.fromisoformat(config["started"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return time.time()
