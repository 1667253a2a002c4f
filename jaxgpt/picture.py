"""Losses drawn over tokens and over training time, as PNGs.

Drawn through matplotlib's objects, never through pyplot's global state: a trainer may ask for a picture from a thread.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from jaxgpt.curves import Comparison, Run, Series

WIDTH_INCHES = 9.0
DOTS_PER_INCH = 200
"""1800 dots wide: sharp at the 900 pixels that a README has, where 10-point text is 14 pixels high."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's palette, told apart with every common colour blindness; its yellow is too pale on white."""
MARKERS = "os^Dv<>"
TITLE, SMALL = 11, 10
"""Sizes of text in points."""

_MOST_POINTS = 4000  # more can't be told apart on 1800 dots, and a million noisy ones overflow Agg's cells

Style = dict
"""A curve's colour, marker, dashes and width, as `Line2D` takes them."""


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
    looks = styles(curves)
    figure = figure_of(curves, looks, 6.6 if kinds else 3.9)
    grid = figure.add_gridspec(1 + bool(kinds), 2, height_ratios=[3.3, 2.3] if kinds else None)
    over_tokens = figure.add_subplot(grid[0, 0])
    over_time = figure.add_subplot(grid[0, 1], sharey=over_tokens)
    losses_over_tokens(over_tokens, curves, looks)
    losses_over_time(over_time, curves, looks)
    for column, (kind, series) in enumerate(kinds.items()):
        place = grid[1, column] if len(kinds) == 2 else grid[1, :]
        _differences(figure.add_subplot(place), series, kind, looks)
    return png(figure)


def single_png(curves: Sequence[Run]) -> bytes:
    """Losses over tokens of one run and of the published curves beside it, as a PNG."""
    looks = styles(curves)
    figure = figure_of(curves, looks, 4.6)
    losses_over_tokens(figure.add_subplot(), curves, looks)
    return png(figure)


def figure_of(curves: Sequence[Run], looks: Sequence[Style], height: float) -> Figure:
    """A figure whose legend, one line a curve, stands above everything else and adds to the height (in inches)."""
    figure = Figure((WIDTH_INCHES, height + 0.21 * len(curves)), DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    handles = [
        Line2D([], [], label=drawable(c.label), **style, markersize=5) for c, style in zip(curves, looks, strict=True)
    ]
    figure.legend(
        handles=handles, loc="outside upper left", fontsize=SMALL, frameon=False, borderpad=0.4, handlelength=3
    )
    return figure


def styles(curves: Sequence[Run]) -> list[Style]:
    """A colour and a marker each. The first is broad, so that it shows under one that lies on it."""
    return [
        {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": "--" if curve.is_published else "-",
            "linewidth": 2.8 if i == 0 else 1.3,
        }
        for i, curve in enumerate(curves)
    ]


def losses_over_tokens(axes: Axes, curves: Sequence[Run], looks: Sequence[Style], shown_after: float = 0.1) -> None:
    """Training and validation losses of `curves`. The vertical axis fits what comes after this part of each: a start at
    11 to 16 would squash all that matters."""
    longest, shortest = max(c.tokens for c in curves), min(c.tokens for c in curves)
    units = ((1e9, "tokens (billions)"), (1e6, "tokens (millions)"), (1e3, "tokens (thousands)"))
    size, unit = next(((s, u) for s, u in units if longest >= s), (1.0, "tokens"))
    for i, c in enumerate(curves):
        _draw(axes, looks, i, c, c.train.tokens / size, c.val.tokens / size)
    titled(axes, "Loss over tokens", unit, "loss in nats (dots: validation, thin: train)")
    if longest > 10 * shortest > 0:  # else the shorter curve is a sliver at the left edge
        left = min(int(c.series[-1].tokens[c.series[-1].tokens > 0].min(initial=c.tokens)) for c in curves if c.tokens)
        axes.set_xscale("log", nonpositive="mask")
        axes.set_xlim(left / size / 1.2, longest / size * 1.2)
        _plain_log_ticks(axes.xaxis, longest / left)
        shown = [s.loss[s.tokens >= left] for c in curves for s in c.series]
    else:
        shown = [_after(shown_after, s.tokens, s.loss) for c in curves for s in c.series]
    shown = [values for values in shown if len(values)]
    low = min(float(np.percentile(values, 1, method="lower")) for values in shown)
    high = max(float(np.percentile(values, 99, method="higher")) for values in shown)
    if high > 8 * low > 0:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.1, high * 1.1)
        _plain_log_ticks(axes.yaxis, high / low)
    else:
        _fit(axes, low, high)


def losses_over_time(axes: Axes, curves: Sequence[Run], looks: Sequence[Style]) -> None:
    """The same over the time that training took, for those that recorded it."""
    seconds = [c.train_time_s for c in curves if not math.isnan(c.train_time_s)]
    size, unit = time_unit(max(seconds, default=0))
    for i, c in enumerate(curves):
        if not math.isnan(c.train_time_s):
            _draw(axes, looks, i, c, c.train.time_s / size, c.val.time_s / size)
    titled(axes, "Loss over training time", f"training time ({unit})", "")
    if not seconds:
        axes.text(0.5, 0.5, "no run recorded its training time", ha="center", transform=axes.transAxes, fontsize=SMALL)


def _draw(axes: Axes, looks: Sequence[Style], i: int, curve: Run, train_x: np.ndarray, val_x: np.ndarray) -> None:
    """Curve number `i`: training losses thin and pale (the paler the more curves), validation losses over them.

    Validated at its ends alone, a run is its training losses: a line between the two would cross all that lies between.
    """
    style, ends_alone = dict(looks[i]), len(val_x) < 3 < len(train_x)
    every = _stride(len(train_x), _MOST_POINTS)
    thin = {
        "color": style["color"],
        "linestyle": style["linestyle"] if ends_alone else "-",
        "linewidth": 1.0 if ends_alone else 0.6,
        "alpha": 0.9 if ends_alone else min(0.45, 1 / len(looks)),
        "marker": "." if len(train_x) == 1 else "",
    }
    axes.plot(train_x[::every], curve.train.loss[::every], **thin, zorder=1)
    if ends_alone:
        style["linestyle"] = ""
    axes.plot(val_x, curve.val.loss, **style, markersize=4, markevery=_marked(len(val_x)), zorder=2 + i)


def _differences(axes: Axes, drawn: list[tuple[int, Series]], kind: str, looks: Sequence[Style]) -> None:
    for i, s in drawn:
        every = _stride(len(s), _MOST_POINTS)
        style = looks[i] | ({"marker": "", "linewidth": 0.9} if kind == "Train" else {"markersize": 4})
        axes.plot(s.step[::every], s.loss[::every], **style, markevery=_marked(len(s.step[::every])))
    axes.axhline(0, color=looks[0]["color"], linewidth=1.3, zorder=1)
    titled(axes, f"{kind} loss minus the first run's", "step", "difference in nats")
    shown = [_after(0.1, s.step, s.loss) for _, s in drawn]
    _fit(axes, min(0.0, *(float(v.min()) for v in shown)), max(0.0, *(float(v.max()) for v in shown)))


def _after(part: float, x: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The values beyond this part of the largest x."""
    return values[x >= part * x[-1]]


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


def time_unit(seconds: float) -> tuple[float, str]:
    """The unit in which to say so many seconds: its own seconds, and its name."""
    return (3600, "h") if seconds >= 2 * 3600 else (60, "min") if seconds >= 120 else (1, "s")


def titled(axes: Axes, title: str, x: str, y: str) -> None:
    """The look that all panels share."""
    axes.set_title(title, loc="left", fontsize=TITLE, fontweight="bold")
    axes.set_xlabel(x, fontsize=SMALL)
    axes.set_ylabel(y, fontsize=SMALL)
    axes.tick_params(which="both", labelsize=SMALL)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def drawable(text: str) -> str:
    """`text` as long as fits, with what matplotlib would read as mathematics or its font doesn't have made harmless."""
    text = text if len(text) <= 95 else text[:92] + "..."
    return "".join(c if ord(c) < 0x250 else "?" for c in text).replace("$", r"\$")


def png(figure: Figure) -> bytes:
    """The file's content."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
