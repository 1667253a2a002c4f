"""What a comparison looks like: the picture, the Markdown and the tables on the terminal.

The picture is drawn through matplotlib's objects, never through pyplot's global state: a trainer may ask for it from a
thread.
"""

import io
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxgpt.curves import Comparison, Run, Series
from jaxgpt.errors import BadInput

MARK = "<!-- written by jaxgpt.compare -->"
"""A report's first line, by which a report that may be replaced is known."""

WIDTH_INCHES = 9.0
DOTS_PER_INCH = 200
"""1800 dots wide: sharp at the 900 pixels that a README has, where 10-point text is 14 pixels high."""

# Okabe and Ito's palette, told apart with every common colour blindness; its yellow is too pale on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "os^Dv<>"
_TEXT, _SMALL = 11, 10
_MOST_POINTS = 4000  # more can't be told apart on 1800 dots, and a million noisy ones overflow Agg's cells
_NONE = "-"


def check_folder(out: str) -> None:
    """Refuse a folder that holds anything but an earlier report, which is known by its first line and may be replaced.

    Raises:
      BadInput: `out` is such a folder, is no folder, or can't be read.
    """
    try:
        held = set(os.listdir(out))
        if "report.md" in held and Path(out, "report.md").is_file():
            with Path(out, "report.md").open("rb") as file:
                if file.read(len(MARK)) == MARK.encode():
                    held -= {"report.md", "curves.png"}
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise BadInput(f"--out {out}: {getattr(error, 'strerror', error)}; give a new or empty folder") from None
    if held:
        raise BadInput(f"--out {out} holds {min(held)!r}, which is no report of ours; give a new or empty folder")


def write(out: str, compared: Comparison, command: str) -> list[str]:
    """Write report.md and curves.png into the folder `out`, made where it isn't there.

    Returns: the paths of the two files.

    Raises:
      BadInput: they can't be written.
    """
    files = {"report.md": markdown(compared, command).encode(errors="replace"), "curves.png": comparison_png(compared)}
    try:
        os.makedirs(out, exist_ok=True)
        for name, content in files.items():
            Path(out, name).write_bytes(content)
    except OSError as error:
        raise BadInput(f"--out {out}: {error.strerror}; give a folder that can be written") from None
    return [os.path.join(out, name) for name in files]


def comparison_png(compared: Comparison) -> bytes:
    """Losses over tokens and over training time, and below them what the other curves are off the first, as a PNG.

    Where there are two runs, the distance of a published curve is left to the table: beside it, theirs would be flat.
    """
    curves = compared.curves
    several = sum(not c.is_published for c in curves) > 1
    drawn = [(i, d) for i, d in enumerate(compared.differences, 1) if not (several and d.curve.is_published)]
    kinds = {
        "Validation": [(i, d.val) for i, d in drawn if len(d.val) > 1],
        "Train": [(i, d.train) for i, d in drawn if len(d.train) > 1],
    }
    kinds = {kind: series for kind, series in kinds.items() if series}
    figure = _figure(6.6 if kinds else 3.9, curves)
    grid = figure.add_gridspec(1 + bool(kinds), 2, height_ratios=[3.3, 2.3] if kinds else None)
    over_tokens = figure.add_subplot(grid[0, 0])
    over_time = figure.add_subplot(grid[0, 1], sharey=over_tokens)
    _losses_over_tokens(over_tokens, curves)
    _losses_over_time(over_time, curves)
    for column, (kind, series) in enumerate(kinds.items()):
        place = grid[1, column] if len(kinds) == 2 else grid[1, :]
        _differences(figure.add_subplot(place), series, kind, curves)
    return _png(figure)


def single_png(curves: Sequence[Run]) -> bytes:
    """Losses over tokens of one run and of the published curves beside it, as a PNG."""
    figure = _figure(4.6, curves)
    _losses_over_tokens(figure.add_subplot(), curves)
    return _png(figure)


def markdown(compared: Comparison, command: str) -> str:
    """The report as Markdown: every run's figures, tokens to the targets, differences, and the command that made it."""
    first = compared.curves[0].name.replace("`", "'")
    parts = [
        MARK,
        "# Comparison of training runs",
        "![Losses of the runs over tokens and training time, and their differences](curves.png)",
        "Dots are validation losses, thin lines training losses, dashed lines published curves (FineWeb). The vertical "
        "axes are fitted to what comes after the steep first tenth of a run.",
        "## Runs",
        _markdown_table(_runs_table(compared), texts=4),
        "Losses in nats a token. Training time leaves validation out.",
        "## Tokens to a validation loss",
        _markdown_table(_targets_table(compared)) if compared.targets else "No run was validated.",
        f"Linear between validations, first crossing. The ratio is to `{first}`; below 1 is fewer tokens.",
    ]
    if compared.differences:
        parts += [
            f"## Differences from `{first}`",
            _markdown_table(_differences_table(compared)),
            f"Each curve minus `{first}`, at the points both have: same step and same tokens.",
        ]
    return "\n\n".join([*parts, "## Command", f"```\n{command}\n```"]) + "\n"


def print_tables(compared: Comparison) -> None:
    """The main figures on standard output, in tables that fit 80 columns."""
    console = Console()
    for title, table in (
        ("Runs", _columns(_runs_table(compared), "run", "tokens", "final val loss", "tokens/s", "training time")),
        ("Tokens to a validation loss", _targets_table(compared)),
        ("Minus the first", _columns(_differences_table(compared), "run", "max abs train", "max abs val", "final val")),
    ):
        if len(table) > 1 and len(table[0]) > 1:
            shown = Table(title=title, title_justify="left")
            for i, name in enumerate(table[0]):
                shown.add_column(Text(name), justify="right" if i else "left", overflow="fold", no_wrap=i > 0)
            for row in table[1:]:
                shown.add_row(*map(Text, row))  # Text: a run's name is no markup
            console.print(shown)


def _columns(table: list[list[str]], *names: str) -> list[list[str]]:
    return [[row[table[0].index(name)] for name in names] for row in table]


def _runs_table(compared: Comparison) -> list[list[str]]:
    names = ["run", "trainer", "recipe", "devices", "steps", "tokens", "final val loss", "best val loss", "tokens/s"]
    table = [[*names, "peak memory", "training time"]]
    for c in compared.curves:
        table.append(
            [
                c.name,
                c.trainer,
                c.recipe,
                _NONE if c.is_published else c.devices,
                f"{c.steps:,}",
                _tokens(c.tokens),
                f"{c.val.loss[-1]:.4f}" if len(c.val) else _NONE,
                f"{c.val.loss.min():.4f}" if len(c.val) else _NONE,
                f"{np.median(c.tokens_per_s):,.0f}" if len(c.tokens_per_s) else _NONE,
                f"{c.peak_bytes / 2**30:.2f} GiB" if c.peak_bytes else _NONE,
                _NONE if math.isnan(c.train_time_s) else _duration(c.train_time_s),
            ]
        )
    return table


def _targets_table(compared: Comparison) -> list[list[str]]:
    table = [["run", *(name for target in compared.targets for name in (f"tokens to {target:g}", "ratio"))]]
    for curve, row in zip(compared.curves, compared.tokens_to, strict=True):
        cells = [curve.name]
        for tokens, first in zip(row, compared.tokens_to[0], strict=True):
            cells.append("not reached" if tokens is None else _tokens(tokens))
            cells.append(f"{tokens / first:.3f}" if tokens is not None and first else _NONE)
        table.append(cells)
    return table


def _differences_table(compared: Comparison) -> list[list[str]]:
    table = [["run"]]
    for kind in ("train", "val"):
        table[0] += [f"{kind} points", f"max abs {kind}", f"at {kind} step", f"final {kind}"]
    for d in compared.differences:
        cells = [d.curve.name]
        for series in (d.train, d.val):
            if len(series):
                worst = int(np.argmax(np.abs(series.loss)))
                cells += [
                    f"{len(series)}",
                    f"{abs(series.loss[worst]):.3g}",
                    f"{series.step[worst]}",
                    f"{series.loss[-1]:+.3g}",
                ]
            else:
                cells += ["0", _NONE, _NONE, _NONE]
        table.append(cells)
    return table


def _markdown_table(table: list[list[str]], texts: int = 1) -> str:
    """Rows as a Markdown table whose first `texts` columns are words. What a run says of itself is no markup in it."""
    rows = [[re.sub(r"[\\|`<>\[\]*]", r"\\\g<0>", cell) for cell in row] for row in table]
    rows.insert(1, ["---"] * texts + ["---:"] * (len(table[0]) - texts))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _tokens(tokens: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if tokens >= size:
            return f"{tokens / size:.4g}{unit}"
    return f"{tokens:,.0f}"


def _duration(seconds: float) -> str:
    size, unit = _time_unit(seconds)
    return f"{seconds / size:.4g} {unit}"


def _time_unit(seconds: float) -> tuple[float, str]:
    return (3600, "h") if seconds >= 2 * 3600 else (60, "min") if seconds >= 120 else (1, "s")


def _figure(height: float, curves: Sequence[Run]) -> Figure:
    """A figure whose legend, one line a curve, stands above everything else and adds to the height."""
    figure = Figure((WIDTH_INCHES, height + 0.21 * len(curves)), DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    handles = [Line2D([], [], label=_drawable(c.label), **_style(i, c), markersize=5) for i, c in enumerate(curves)]
    figure.legend(
        handles=handles, loc="outside upper left", fontsize=_SMALL, frameon=False, borderpad=0.4, handlelength=3
    )
    return figure


def _style(i: int, curve: Run) -> dict:
    """Colour, marker and dashes of curve number `i`. The first is broad, so that it shows under one that lies on it."""
    return {
        "color": _COLOURS[i % len(_COLOURS)],
        "marker": _MARKERS[i % len(_MARKERS)],
        "linestyle": "--" if curve.is_published else "-",
        "linewidth": 2.8 if i == 0 else 1.3,
    }


def _losses_over_tokens(axes: Axes, curves: Sequence[Run]) -> None:
    longest, shortest = max(c.tokens for c in curves), min(c.tokens for c in curves)
    units = ((1e9, "tokens (billions)"), (1e6, "tokens (millions)"), (1e3, "tokens (thousands)"))
    size, unit = next(((s, u) for s, u in units if longest >= s), (1.0, "tokens"))
    for i, c in enumerate(curves):
        _draw(axes, i, c, c.train.tokens / size, c.val.tokens / size)
    _title(axes, "Loss over tokens", unit, "loss in nats (dots: validation, thin: train)")
    if longest > 10 * shortest > 0:  # else the shorter curve is a sliver at the left edge
        left = min(int(c.series[-1].tokens[c.series[-1].tokens > 0].min(initial=c.tokens)) for c in curves if c.tokens)
        axes.set_xscale("log", nonpositive="mask")
        axes.set_xlim(left / size / 1.2, longest / size * 1.2)
        _plain_log_ticks(axes.xaxis, longest / left)
        shown = [s.loss[s.tokens >= left] for c in curves for s in c.series]
    else:
        shown = [_after_first_tenth(s.tokens, s.loss) for c in curves for s in c.series]
    shown = [values for values in shown if len(values)]
    low = min(float(np.percentile(values, 1, method="lower")) for values in shown)
    high = max(float(np.percentile(values, 99, method="higher")) for values in shown)
    if high > 8 * low > 0:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.1, high * 1.1)
        _plain_log_ticks(axes.yaxis, high / low)
    else:
        _fit(axes, low, high)


def _losses_over_time(axes: Axes, curves: Sequence[Run]) -> None:
    seconds = [c.train_time_s for c in curves if not math.isnan(c.train_time_s)]
    size, unit = _time_unit(max(seconds, default=0))
    for i, c in enumerate(curves):
        if not math.isnan(c.train_time_s):
            _draw(axes, i, c, c.train.time_s / size, c.val.time_s / size)
    _title(axes, "Loss over training time", f"training time ({unit})", "")
    if not seconds:
        axes.text(0.5, 0.5, "no run recorded its training time", ha="center", transform=axes.transAxes, fontsize=_SMALL)


def _draw(axes: Axes, i: int, curve: Run, train_x: np.ndarray, val_x: np.ndarray) -> None:
    """One curve: training losses thin and pale, validation losses over them."""
    style = _style(i, curve)
    every = _stride(len(train_x), _MOST_POINTS)
    thin = {"color": style["color"], "linewidth": 0.6, "alpha": 0.45, "marker": "." if len(train_x) == 1 else ""}
    axes.plot(train_x[::every], curve.train.loss[::every], **thin, zorder=1)
    axes.plot(val_x, curve.val.loss, **style, markersize=4, markevery=_marked(len(val_x)), zorder=2 + i)


def _differences(axes: Axes, drawn: list[tuple[int, Series]], kind: str, curves: Sequence[Run]) -> None:
    for i, s in drawn:
        every = _stride(len(s), _MOST_POINTS)
        style = _style(i, curves[i]) | ({"marker": "", "linewidth": 0.9} if kind == "Train" else {"markersize": 4})
        axes.plot(s.step[::every], s.loss[::every], **style, markevery=_marked(len(s.step[::every])))
    axes.axhline(0, color=_COLOURS[0], linewidth=1.3, zorder=1)
    _title(axes, f"{kind} loss minus the first run's", "step", "difference in nats")
    shown = [_after_first_tenth(s.step, s.loss) for _, s in drawn]
    _fit(axes, min(0.0, *(float(v.min()) for v in shown)), max(0.0, *(float(v.max()) for v in shown)))


def _after_first_tenth(x: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What the vertical axis is fitted to: a start at 11 to 16 would squash all that matters."""
    return values[x >= 0.1 * x[-1]]


def _fit(axes: Axes, low: float, high: float) -> None:
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)


def _stride(points: int, most: int) -> int:
    return max(1, -(-points // most))


def _marked(points: int) -> list[int]:
    """Which points of a line get a marker: about 15, and the last."""
    return sorted({*range(0, points, _stride(points, 15)), *range(points - 1, points)} - {-1})


def _plain_log_ticks(axis: Axis, ratio: float) -> None:
    """1, 2, 5, 10 instead of powers of ten, where the axis, whose ends have this ratio, has room for so many."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 100 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _title(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=_TEXT, fontweight="bold")
    axes.set_xlabel(x, fontsize=_SMALL)
    axes.set_ylabel(y, fontsize=_SMALL)
    axes.tick_params(which="both", labelsize=_SMALL)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _drawable(text: str) -> str:
    """`text` as long as fits, with what matplotlib would read as mathematics or its font doesn't have made harmless."""
    text = text if len(text) <= 95 else text[:92] + "..."
    return "".join(c if ord(c) < 0x250 else "?" for c in text).replace("$", r"\$")


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
