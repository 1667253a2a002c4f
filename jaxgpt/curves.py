"""Loss curves: read from a run's folder or the published logs, and compared in numbers.

A run's folder may come from anybody: nothing in it is executed, and what can't be used is said in one line.
Imports neither JAX nor PyTorch.
"""

import dataclasses
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxgpt import published
from jaxgpt.errors import BadInput
from jaxgpt.recipes import RECIPES

RECORD_LOSS = 3.28
"""The validation loss on FineWeb that every published record was raced to (modded-nanogpt's README)."""

_NUMBERS = {"train_loss", "val_loss", "lr", "grad_norm", "tokens_per_s", "train_time_s", "peak_bytes"}
_LARGEST_CONFIG = 4 * 2**20
_LARGEST_LINE = 2**20
_LARGEST_COUNT = 2**53
LARGEST_NUMBER = 1e30
"""Far beyond any loss, and still safe to subtract and to draw in float64."""


@dataclass(frozen=True, eq=False)
class Series:
    """One loss of one run as columns of equal length, by strictly rising step."""

    step: np.ndarray
    """Updates done, int64."""
    tokens: np.ndarray
    """Tokens trained on so far, int64, never falling."""
    loss: np.ndarray
    """Nats a token, float64, finite."""
    time_s: np.ndarray
    """Seconds of training without validation, float64; NaN where unknown."""

    def __len__(self) -> int:
        return len(self.step)


@dataclass(frozen=True, eq=False)
class Run:
    """A run's folder, or a published curve in the same form."""

    name: str
    config: dict
    train: Series
    val: Series
    tokens_per_s: np.ndarray
    """One number a training line that has it, float64."""
    peak_bytes: int | None
    is_published: bool = False

    @property
    def recipe(self) -> str:
        """The recipe's name as the run recorded it."""
        recipe = self.config.get("recipe")
        return _one_line(recipe.get("name")) if isinstance(recipe, dict) else _one_line(recipe)

    @property
    def trainer(self) -> str:
        """`jaxgpt`, `torch_ref`, or where a published curve was measured."""
        return "published (FineWeb)" if self.is_published else _one_line(self.config.get("trainer"))

    @property
    def devices(self) -> str:
        """How many devices of each kind the run recorded."""
        devices = self.config.get("devices")
        if not isinstance(devices, list):
            return _one_line(devices)
        return _one_line(", ".join(f"{n} x {kind}" for kind, n in Counter(map(_one_line, devices)).items()))

    @property
    def label(self) -> str:
        """What a legend says."""
        if self.is_published:
            return f"{self.trainer}: {self.name}"
        return f"{self.name}: {self.trainer}, {self.recipe}, {self.devices}"

    @property
    def series(self) -> tuple[Series, ...]:
        """The train and the validation losses, as far as there are any."""
        return tuple(s for s in (self.train, self.val) if len(s))

    @property
    def steps(self) -> int:
        """Updates done at the last point."""
        return max(int(s.step[-1]) for s in self.series)

    @property
    def tokens(self) -> int:
        """Tokens trained on at the last point."""
        return max(int(s.tokens[-1]) for s in self.series)

    @property
    def train_time_s(self) -> float:
        """Seconds of training at the last point that says; NaN where none does."""
        return float(max((s.time_s[-1] for s in self.series if not math.isnan(s.time_s[-1])), default=math.nan))


def load_run(path: str | Path) -> Run:
    """Read a run's folder, whoever wrote it.

    A last line that a killed run left half written is dropped. A step that goes back is a resumed run: what was logged
    beyond it before is replaced. A validation line without `train_time_s` takes it from the training lines around it.

    Raises:
      BadInput: no folder, no file, bad JSON, a number missing, not finite or out of range, tokens that fall, no points.
    """
    if not os.path.isdir(path):
        raise BadInput(f"{path}: no such run folder; give one that holds config.json and metrics.jsonl")
    config = read_config(Path(path) / "config.json")
    points = _read_metrics(Path(path) / "metrics.jsonl")
    train, val = (_as_series(points[kind], kind) for kind in ("train_loss", "val_loss"))
    timed = ~np.isnan(train.time_s)
    if timed.any():
        steps, seconds = np.append(0, train.step[timed]), np.append(0, train.time_s[timed])
        val.time_s[:] = np.where(np.isnan(val.time_s), np.interp(val.step, steps, seconds), val.time_s)
    lines = points["train_loss"] + points["val_loss"]
    return Run(
        name=_one_line(os.path.basename(os.path.abspath(path))),
        config=config,
        train=train,
        val=val,
        tokens_per_s=np.array([p["tokens_per_s"] for p in points["train_loss"] if "tokens_per_s" in p], np.float64),
        peak_bytes=max((int(p["peak_bytes"]) for p in lines if "peak_bytes" in p), default=None),
    )


def published_run(name: str) -> Run:
    """The published curve of that name as a `Run` without training losses; `BadInput` where there is none."""
    points = [{"step": p.step, "tokens": p.tokens, "val_loss": p.val_loss} for p in published.curve(name)]
    val = _as_series(points, "val_loss")
    return Run(name, {"recipe": {"name": name}}, _as_series([], ""), val, np.empty(0), None, is_published=True)


def published_beside(run: Run) -> str | None:
    """The published curve of `run`'s recipe, if there is one and `run` got to its first point after step 0."""
    if run.recipe in published.names() and any(0 < p.tokens <= run.tokens for p in published.curve(run.recipe)):
        return run.recipe
    return None


def load_curves(folders: Sequence[str], names: Sequence[str] = (), overlay: bool = True) -> list[Run]:
    """The runs in `folders`, then the published curves of `names`, then with `overlay` those of the runs' own recipes.

    Runs in folders of equal name are named by their paths. Raises `BadInput` as `load_run` and `published_run` do.
    """
    runs = [load_run(folder) for folder in folders]
    if len({run.name for run in runs}) < len(runs):
        runs = [dataclasses.replace(r, name=_one_line(path[-60:])) for r, path in zip(runs, folders, strict=True)]
    beside = [published_beside(run) for run in runs] if overlay else []
    return runs + [published_run(name) for name in dict.fromkeys([*names, *filter(None, beside)])]


def tokens_to(target: float, curve: Series) -> float | None:
    """Tokens at which `curve` first is at `target` or below, linear between its points; None where it never is."""
    reached = np.flatnonzero(curve.loss <= target)
    if not len(reached):
        return None
    i = int(reached[0])
    if i == 0:
        return float(curve.tokens[0])
    part = (curve.loss[i - 1] - target) / (curve.loss[i - 1] - curve.loss[i])
    return float(curve.tokens[i - 1] + part * (curve.tokens[i] - curve.tokens[i - 1]))


def default_targets(curves: Sequence[Run]) -> list[float]:
    """3.28 where one of `curves` is measured by it; and, unless all of them get there, what all of them reach: the
    worst of their final validation losses, rounded up to 4 digits."""
    validated = [c for c in curves if len(c.val)]
    raced = any(map(_races, validated))
    targets = [RECORD_LOSS] if raced else []
    if validated and (not raced or any(tokens_to(RECORD_LOSS, c.val) is None for c in validated)):
        worst = max(float(c.val.loss[-1]) for c in validated)
        rounded = round(worst, 4)
        targets.append(rounded if rounded >= worst else round(rounded + 1e-4, 4))
    return targets


def _races(curve: Run) -> bool:
    """Whether 3.28 is a mark for `curve`: a published run, a run of a published recipe, or another that got there on
    GPT-2's tokens. The bytes that `tiny` is trained on take other losses."""
    if curve.is_published or curve.recipe in RECIPES:
        return curve.is_published or RECIPES[curve.recipe].expected.val_loss is not None
    recipe = curve.config.get("recipe")
    data = recipe.get("data") if isinstance(recipe, dict) else None
    tokens = data.get("tokens") if isinstance(data, dict) else None
    return tokens == "gpt2" and tokens_to(RECORD_LOSS, curve.val) is not None


def difference(first: Series, other: Series) -> Series:
    """`other` minus `first` in `loss`, at the points both have: equal step and equal tokens. Time is left unknown."""
    steps, i, j = np.intersect1d(first.step, other.step, assume_unique=True, return_indices=True)
    same = first.tokens[i] == other.tokens[j]
    i, j = i[same], j[same]
    return Series(steps[same], first.tokens[i], other.loss[j] - first.loss[i], np.full(len(i), np.nan))


@dataclass(frozen=True, eq=False)
class Difference:
    """A curve minus the first one, at the points both have."""

    curve: Run
    train: Series
    val: Series


@dataclass(frozen=True, eq=False)
class Comparison:
    """All numbers of a report."""

    curves: Sequence[Run]
    """Runs, then published curves. The first is what the others are compared with."""
    targets: Sequence[float]
    tokens_to: Sequence[Sequence[float | None]]
    """A row a curve, a column a target."""
    differences: Sequence[Difference]
    """One a curve after the first."""


def compare(curves: Sequence[Run], targets: Sequence[float] = ()) -> Comparison:
    """Compare `curves` with the first of them; without `targets`, with `default_targets`."""
    targets = targets or default_targets(curves)
    first = curves[0]
    return Comparison(
        curves,
        targets,
        [[tokens_to(target, curve.val) for target in targets] for curve in curves],
        [Difference(c, difference(first.train, c.train), difference(first.val, c.val)) for c in curves[1:]],
    )


def read_config(file: Path) -> dict:
    """The JSON object in a run's config.json. Raises `BadInput` where there is none."""
    try:
        if not file.is_file():
            raise BadInput(f"{file}: no such file; give the folder of a run, which holds one")
        with file.open("rb") as opened:
            text = opened.read(_LARGEST_CONFIG + 1)
        config = json.loads(text) if len(text) <= _LARGEST_CONFIG else None
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror}; give a file that can be read") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file}: {_why(error)}; copy it again from the run") from None
    if not isinstance(config, dict):
        raise BadInput(f"{file}: not one JSON object of at most {_LARGEST_CONFIG} bytes; copy it again from the run")
    return config


def _read_metrics(file: Path) -> dict[str, list[dict[str, float]]]:
    """The lines of `file` with a training loss, and those with a validation loss, each by strictly rising step."""
    points: dict[str, list[dict[str, float]]] = {"train_loss": [], "val_loss": []}
    try:
        if not file.is_file():
            raise BadInput(f"{file}: no such file; give the folder of a run that has logged something")
        with file.open("rb") as opened:
            for number, line in enumerate(iter(lambda: opened.readline(_LARGEST_LINE), b""), start=1):
                try:
                    read = json.loads(line.decode()) if line.strip() else None
                except (ValueError, RecursionError) as error:
                    if not line.endswith(b"\n") and len(line) < _LARGEST_LINE and not isinstance(error, RecursionError):
                        break  # the last line of a run that was killed while it wrote
                    raise BadInput(f"{file}: line {number}: {_why(error)}; delete that line") from None
                if read is not None:
                    _add(points, read, f"{file}: line {number}")
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror}; give a file that can be read") from None
    if not any(points.values()):
        raise BadInput(f"{file}: no points; let the run get to its first training or validation loss")
    return points


def _add(points: dict[str, list[dict[str, float]]], line: object, where: str) -> None:
    """Check one line and put it behind `points`, in the place of those that it logs anew; a skipped step is none."""
    if isinstance(line, dict) and "skipped" in line and not points.keys() & line.keys():
        return
    if not isinstance(line, dict) or not points.keys() & line.keys():
        raise BadInput(f"{where}: no JSON object with train_loss or val_loss; delete that line")
    point: dict[str, float] = {}
    for key in ("step", "tokens"):
        count = line.get(key)
        if type(count) is not int or not 0 <= count <= _LARGEST_COUNT:
            raise BadInput(f"{where}: {key} is {_short(count)}, not a whole number of at least 0; delete that line")
        point[key] = count
    for key in _NUMBERS & line.keys():
        value = line[key]
        if type(value) not in (int, float) or not abs(value) <= LARGEST_NUMBER:
            raise BadInput(f"{where}: {key} is {_short(value)}, not a finite number below 1e30; delete that line")
        point[key] = value
    for kind, before in points.items():
        while before and (
            before[-1]["step"] > point["step"] or (kind in point and before[-1]["step"] == point["step"])
        ):
            before.pop()
        if before and before[-1]["tokens"] > point["tokens"]:
            raise BadInput(f"{where}: tokens fall to {point['tokens']} while steps rise; delete the line that is wrong")
    for kind in points.keys() & point.keys():
        points[kind].append(point)


def _as_series(points: Sequence[dict[str, float]], kind: str) -> Series:
    return Series(
        np.array([p["step"] for p in points], np.int64),
        np.array([p["tokens"] for p in points], np.int64),
        np.array([p[kind] for p in points], np.float64),
        np.array([p.get("train_time_s", math.nan) for p in points], np.float64),
    )


def _why(error: Exception) -> str:
    return "nested too deep to be JSON of ours" if isinstance(error, RecursionError) else f"not JSON ({error})"


def _short(value: object) -> str:
    return "missing" if value is None else _one_line(value)


def _one_line(value: object) -> str:
    """What a run says of itself, fit for a terminal, a table and a legend: printable, at most 60 characters."""
    if not isinstance(value, str | int | float):
        return "unknown"
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return text if len(text) <= 60 else text[:57] + "..."
