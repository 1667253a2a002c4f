"""The published validation curves, as data. Imports neither JAX nor PyTorch.

Each `NAME.csv` holds the columns `step,tokens,val_loss` of one published training log, row for row: step is the number
of updates done, tokens the tokens trained on so far, val_loss the mean cross-entropy in nats a token on FineWeb's
validation shard. The logs are those of modded-nanogpt (github.com/KellerJordan/modded-nanogpt, the run of the day in
the name); `llmc-2024-10-13` is the run of llm.c (github.com/karpathy/llm.c) that its records start from.
`NAME-seeds.csv` has a first column `seed`: several runs of one recipe that differ in nothing else.
"""

import csv
import math
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from importlib import resources
from statistics import fmean
from typing import NamedTuple

from jaxgpt.errors import BadInput

_SEEDS = "-seeds"


class Point(NamedTuple):
    """One validation of a published run."""

    step: int
    tokens: int
    val_loss: float


def names() -> list[str]:
    """The names of all published curves, sorted."""
    return sorted(_files())


def curve(name: str) -> list[Point]:
    """The published curve of that name, by rising step; of several published runs, their mean at each step.

    Raises:
      BadInput: there is no such curve; the message gives the nearest name.
    """
    return [Point(at[0].step, at[0].tokens, fmean(p.val_loss for p in at)) for at in zip(*runs(name), strict=True)]


def runs(name: str) -> list[list[Point]]:
    """Every published run of that name, by seed (0, 1, ...): ten for `simple-2026-06-11`, one for each of the others.

    Raises:
      BadInput: there is no such curve; the message gives the nearest name.
    """
    files = _files()
    if name not in files:
        near = get_close_matches(name, files, n=1, cutoff=0)
        raise BadInput(
            f"{name}: no such published curve; did you mean {near[0]}? There are: {', '.join(sorted(files))}"
        )
    by_seed: dict[int, list[Point]] = {}
    with resources.files(__name__).joinpath(files[name]).open(encoding="utf-8") as file:
        for seed, point in read(file, files[name]):
            by_seed.setdefault(seed, []).append(point)
    return [by_seed[seed] for seed in sorted(by_seed)]


def read(lines: Iterable[str], where: str) -> Iterator[tuple[int, Point]]:
    """The seed (0 where there is no such column) and the point of each row of such a file.

    Raises:
      BadInput: a column is missing, or a number isn't one or isn't finite; `where`, the file, is named.
    """
    try:
        for row in csv.DictReader(lines):
            point = Point(int(row["step"]), int(row["tokens"]), float(row["val_loss"]))
            if not math.isfinite(point.val_loss):
                raise ValueError(f"val_loss is {point.val_loss}")
            yield int(row.get("seed", 0)), point
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise BadInput(f"{where}: no published curve ({error}); install jaxgpt again") from None


def _files() -> dict[str, str]:
    """Name of a curve -> its file."""
    found = (entry.name for entry in resources.files(__name__).iterdir() if entry.name.endswith(".csv"))
    return {file.removesuffix(".csv").removesuffix(_SEEDS): file for file in found}
