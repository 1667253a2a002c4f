"""What the comparison of optimisers says: its tables, and its picture of four panels. Imports no JAX and no PyTorch."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from matplotlib.axes import Axes

from jaxgpt import picture
from jaxgpt.curves import Run
from jaxgpt.errors import BadInput
from jaxgpt.report import NONE, duration_text, markdown_table, tokens_text

MARK = "<!-- written by benchmarks.optimizer -->"
"""The first line of optimizers.md, by which a report that may be replaced is known."""
TABLE, FIGURES, PICTURE = "optimizers.md", "optimizers.json", "optimizers.png"

_KINDS = {"muon": "Muon", "adamw": "AdamW", "soap": "SOAP", "shampoo": "Shampoo"}
_FRAMEWORKS = {"jaxgpt": "JAX", "torch_ref": "PyTorch"}
_COLOURS = dict(zip(_KINDS, picture.COLOURS, strict=False))
_DASHES = {"jaxgpt": "-", "torch_ref": "--"}
_SHOWN_AFTER = 0.3  # optimisers end a few hundredths apart: the axis leaves out more of the steep start


@dataclass(frozen=True)
class StateBytes:
    """Optimiser state on one device between steps: of the hidden matrices, and of all weights."""

    hidden: int
    all: int


@dataclass(frozen=True)
class BytesAParameter:
    """The same over the numbers in the hidden matrices, and over those in all weights."""

    hidden: float
    all: float


@dataclass(frozen=True)
class Measured:
    """One run: what its step costs on `devices`, and what it reached where it was trained."""

    run: str
    trainer: str
    recipe: str
    kind: str
    """Of the hidden matrices' optimiser."""
    precondition_every: int | None
    """Updates between two recomputations of SOAP's bases or Shampoo's roots."""
    step_ms: float
    update_ms: float
    share: float
    """update_ms / step_ms."""
    recompute_ms: float | None
    """Of one recomputation; in the means above it counts once in `precondition_every` updates."""
    bytes: StateBytes
    per_parameter_bytes: BytesAParameter
    devices: tuple[str, ...]
    versions: dict[str, str]
    final_val_loss: float | None
    tokens: int
    train_time_s: float | None

    def __post_init__(self):
        numbers = {name: getattr(self, name) for name in ("step_ms", "update_ms", "share")}
        if not all(0 < number < math.inf for number in numbers.values()):
            raise BadInput(f"{numbers}: give a file with finite numbers above 0")
        counts = (self.bytes.hidden, self.bytes.all, self.per_parameter_bytes.hidden, self.per_parameter_bytes.all)
        if not all(0 <= count < math.inf for count in (*counts, self.recompute_ms or 0, self.train_time_s or 0)):
            raise BadInput(f"bytes, recompute_ms and train_time_s of {self.run!r:.60}: give a file with finite numbers")
        for name, known in (("kind", _KINDS), ("trainer", _FRAMEWORKS)):
            if getattr(self, name) not in known:
                raise BadInput(f"{name} is {getattr(self, name)!r:.60}: give a file with one of {', '.join(known)}")


def files(measured: Sequence[Measured], runs: Sequence[Run], command: str) -> dict[str, bytes]:
    """Name -> content of a report's files, the one with `MARK` first."""
    return {
        TABLE: markdown(measured, command).encode(errors="replace"),
        FIGURES: (json.dumps([asdict(each) for each in measured], indent=2) + "\n").encode(),
        PICTURE: optimizers_png(measured, runs),
    }


def markdown(measured: Sequence[Measured], command: str) -> str:
    """The table of costs, that of results, what they were measured with, and the command."""
    parts = [
        MARK,
        "# Optimisers compared",
        f"![Losses over tokens and training time, optimiser state, share of the step's time]({PICTURE})",
        "## What a step costs",
        markdown_table(_costs_table(measured), texts=4),
        "Measured on random tokens, whole steps and updates alone in turn: medians; for SOAP and Shampoo means over "
        "whole periods of their recomputation, whose own time is that of a period's longest update less its median "
        "one. Share is update over step. State is what a device keeps between steps, for the hidden matrices (and for "
        "all weights).",
        "## What the runs reached",
        markdown_table(_results_table(measured), texts=3),
        "Losses in nats a token. Training time is that of the run where it ran, without validation.",
        "## Measured with",
        markdown_table(_versions_table(measured), texts=3),
    ]
    return "\n\n".join([*parts, "## Command", f"```\n{command}\n```"]) + "\n"


def optimizers_png(measured: Sequence[Measured], runs: Sequence[Run]) -> bytes:
    """Losses over tokens and over training time; below, bars of the optimisers' state and of their share of a step.

    Args:
      measured: of each of `runs`, in their order.
      runs: whose losses are drawn.
    """
    looks = styles(measured)
    bars = 0.7 + 0.3 * len(runs)
    figure = picture.figure_of(runs, looks, 3.7 + bars)
    # Apart, for the names of the bars would push the losses' panels inwards.
    grid = figure.add_gridspec(2, 1, height_ratios=[3.7, bars])
    above, below = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    over_tokens, over_time = above.subplots(1, 2, sharey=True)
    picture.losses_over_tokens(over_tokens, runs, looks, _SHOWN_AFTER)
    picture.losses_over_time(over_time, runs, looks)
    state, share = below.subplots(1, 2)
    _state_bars(state, measured, looks)
    _share_bars(share, measured, looks)
    return picture.png(figure)


def styles(measured: Sequence[Measured]) -> list[picture.Style]:
    """A colour each kind of optimiser, dashes for PyTorch; a colour each run where that tells two not apart."""
    alike = len({(m.kind, m.trainer) for m in measured}) < len(measured)
    return [
        {
            "color": picture.COLOURS[i % len(picture.COLOURS)] if alike else _COLOURS[m.kind],
            "marker": picture.MARKERS[i % len(picture.MARKERS)],
            "linestyle": _DASHES[m.trainer],
            "linewidth": 1.3,
        }
        for i, m in enumerate(measured)
    ]


def names(measured: Sequence[Measured]) -> list[str]:
    """What a bar is called: optimiser and framework, or the run where that tells two not apart."""
    short = [f"{_KINDS[m.kind]}, {_FRAMEWORKS[m.trainer]}" for m in measured]
    return short if len(set(short)) == len(short) else [picture.drawable(m.run)[-24:] for m in measured]


def _costs_table(measured: Sequence[Measured]) -> list[list[str]]:
    table = [["run", "recipe", "optimiser", "framework", "step", "update", "share", "one recomputation", "state"]]
    table[0] += ["bytes a parameter"]
    for m in measured:
        every = f", every {m.precondition_every}" if m.precondition_every else ""
        table.append(
            [
                m.run,
                m.recipe,
                _KINDS[m.kind],
                _FRAMEWORKS[m.trainer],
                _ms(m.step_ms),
                _ms(m.update_ms),
                f"{m.share:.1%}",
                NONE if m.recompute_ms is None else f"{_ms(m.recompute_ms)}{every}",
                f"{_mebibytes(m.bytes.hidden)} ({_mebibytes(m.bytes.all)})",
                f"{m.per_parameter_bytes.hidden:.3g} ({m.per_parameter_bytes.all:.3g})",
            ]
        )
    return table


def _results_table(measured: Sequence[Measured]) -> list[list[str]]:
    table = [["run", "recipe", "optimiser", "final val loss", "tokens", "training time"]]
    for m in measured:
        loss = NONE if m.final_val_loss is None else f"{m.final_val_loss:.4f}"
        seconds = NONE if m.train_time_s is None else duration_text(m.train_time_s)
        table.append([m.run, m.recipe, _KINDS[m.kind], loss, tokens_text(m.tokens), seconds])
    return table


def _versions_table(measured: Sequence[Measured]) -> list[list[str]]:
    rows = []
    for m in measured:
        devices = f"{len(m.devices)} x {m.devices[0]}" if m.devices else NONE
        rows.append((_FRAMEWORKS[m.trainer], devices, ", ".join(f"{name} {each}" for name, each in m.versions.items())))
    return [["framework", "devices", "versions"], *map(list, dict.fromkeys(rows))]


def _state_bars(axes: Axes, measured: Sequence[Measured], looks: Sequence[picture.Style]) -> None:
    for i, (m, style) in enumerate(zip(measured, looks, strict=True)):
        hidden, rest = m.bytes.hidden / 2**20, (m.bytes.all - m.bytes.hidden) / 2**20
        axes.barh(i, hidden, 0.66, color=style["color"])
        axes.barh(i, rest, 0.66, left=hidden, color=style["color"], alpha=0.35)
    labels = [f"{_mebibytes(m.bytes.hidden)} of {_mebibytes(m.bytes.all)}" for m in measured]
    picture.titled(axes, "Optimiser state on a device", "MiB (pale: other than hidden matrices)", "")
    _bars(axes, measured, [m.bytes.all / 2**20 for m in measured], labels)


def _share_bars(axes: Axes, measured: Sequence[Measured], looks: Sequence[picture.Style]) -> None:
    for i, (m, style) in enumerate(zip(measured, looks, strict=True)):
        whole = 100 * m.share
        again = 100 * (m.recompute_ms or 0) / (m.precondition_every or 1) / m.step_ms
        again = min(max(again, 0), whole)
        axes.barh(i, whole - again, 0.66, color=style["color"])
        hatched = {"facecolor": "white", "edgecolor": style["color"], "hatch": "////", "linewidth": 0.8}
        axes.barh(i, again, 0.66, left=whole - again, **hatched)
    labels = [f"{m.share:.1%} ({_ms(m.update_ms)} of {_ms(m.step_ms)})" for m in measured]
    picture.titled(axes, "The update's share of a step", "% (hatched: recomputations)", "")
    _bars(axes, measured, [100 * m.share for m in measured], labels)


def _bars(axes: Axes, measured: Sequence[Measured], lengths: Sequence[float], labels: Sequence[str]) -> None:
    """Names at the left, figures behind the bars, the first run on top."""
    longest = max(lengths) or 1.0
    axes.set_xlim(0, 2.4 * longest)  # the figures behind the longest bar need more room than it
    for i, (length, label) in enumerate(zip(lengths, labels, strict=True)):
        axes.text(length + 0.03 * longest, i, label, va="center", fontsize=picture.SMALL - 1)
    axes.set_yticks(range(len(measured)), names(measured))
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(measured) - 0.4, -0.6)


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:,.0f} ms" if milliseconds >= 100 else f"{milliseconds:.3g} ms"


def _mebibytes(number: float) -> str:
    size = number / 2**20
    return f"{size:,.0f} MiB" if size >= 100 else f"{size:.1f} MiB" if size >= 10 else f"{size:.2f} MiB"
