"""Inline SVG: what was measured against what is allowed, curves, bars.

Positions across are percentages and sizes are pixels, so that a drawing fills any width while its text and its dots
keep their size; lines that need a path lie in a nested drawing that is stretched. Colours are classes of the page.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

LOWEST, HIGHEST = -18, 1
"""Powers of ten at the ends of the axis of differences; below them lies a column for exact zeros."""
LANE = 26
"""Pixels from one dtype's lane to the next."""
_ZERO, _LEFT, _RIGHT, _BEYOND = 1.5, 6.0, 95.0, 98.5
"""Per cent of the width: exact zeros, the ends of the axis, what is off it (NaN, infinite)."""

COLOURS = ("c0", "c1", "c2", "c3")


def strip(measurements: Sequence[Mapping], lanes: Sequence[str | None], label: str) -> str:
    """A lane a dtype: a dot for each measurement (a cross where it exceeds its allowance), a tick for each allowance, a
    hollow diamond for each distance from the oracle. The axis is logarithmic and the same in every drawing.
    """
    height = LANE * len(lanes) + 20
    drawn = [_grid(LANE * len(lanes))]
    for i, dtype in enumerate(lanes):
        own = [m for m in measurements if m["dtype"] == dtype]
        drawn.append(f'<g class="{_class(dtype)}" transform="translate(0 {LANE * i})">{_lane(own)}</g>')
    return _svg("".join(drawn), height, label)


def _lane(measurements: Sequence[Mapping]) -> str:
    middle = LANE / 2
    ticks = sorted({across(m["allowed"]) for m in measurements})
    drawn = [f'<line class="allowed" x1="{x}%" x2="{x}%" y1="3" y2="{LANE - 3}"/>' for x in ticks]
    for i, m in enumerate(measurements):
        x = across(m["apart"])
        y = round(middle + (i * 7 % 11 - 5) * 1.3, 1)  # spread, or equal ones would lie on each other
        name = f"{m['test']}[{m['parameters']}]" if m["parameters"] else m["test"]
        title = f"<title>{escape(name)}: {escape(m['what'])} {figure(m['apart'])}, allowed {figure(m['allowed'])}"
        title += f"{'' if m['oracle'] is None else ', oracle ' + figure(m['oracle'])}</title>"
        if m["oracle"] is not None:
            drawn.append(_mark("oracle", across(m["oracle"]), y, "M0-4.5L4.5 0L0 4.5L-4.5 0Z"))
        if exceeded(m):
            drawn.append(_mark("over", x, y, "M-5-5L5 5M-5 5L5-5", title))
        else:
            drawn.append(f'<circle cx="{x}%" cy="{y}">{title}</circle>')
    return "".join(drawn)


def _mark(kind: str, x: float, y: float, path: str, title: str = "") -> str:
    """A path about a point; only a nested drawing can stand at a percentage."""
    return f'<svg x="{x}%" y="{y}" class="{kind}" overflow="visible"><path d="{path}">{title}</path></svg>'


def _grid(height: float) -> str:
    """Lines and labels of the powers of ten, zero, and what is off the axis."""
    powers = range(LOWEST, HIGHEST + 1)
    drawn = [
        f'<line class="grid" x1="{_at(p)}%" x2="{_at(p)}%" y1="0" y2="{height}"/>'
        for p in powers
        if (p - LOWEST) % 3 == 0
    ]
    drawn.append(f'<line class="grid" x1="{_ZERO}%" x2="{_ZERO}%" y1="0" y2="{height}"/>')
    labels = [(_at(p), f"1e{p}" if p else "1") for p in powers if (p - LOWEST) % 3 == 0]
    labels.insert(0, (_ZERO, "0"))
    drawn += [
        f'<text x="{x}%" y="{height + 14}" class="{"wide " if i % 2 else ""}middle">{text}</text>'
        for i, (x, text) in enumerate(labels)
    ]
    return "".join(drawn)


def across(value: float | str) -> float:
    """Where a difference stands, in per cent of the width."""
    if isinstance(value, str):
        return _BEYOND
    return _ZERO if value <= 0 else _at(math.log10(value))


def _at(power: float) -> float:
    part = (min(max(power, LOWEST), HIGHEST) - LOWEST) / (HIGHEST - LOWEST)
    return round(_LEFT + part * (_RIGHT - _LEFT), 2)


def exceeded(measurement: Mapping) -> bool:
    """Whether more was measured than is allowed; NaN and infinite shares are strings."""
    return isinstance(measurement["share"], str) or measurement["share"] > 1


def figure(value: float | str) -> str:
    """A number of a measurement as the page says it."""
    return value if isinstance(value, str) else "0" if value == 0 else f"{value:.1e}"


def curves(
    lines: Mapping[str, Iterable[tuple[float, float]]],
    label: str,
    x: str,
    height: int = 120,
    target: float | None = None,
) -> str:
    """Lines through points, each under its name, over a linear axis named `x`, in a frame `height` pixels high.

    `target` is a level to be reached. Points that are not finite are left out.
    """
    points = {name: [p for p in line if _finite(p)] for name, line in lines.items()}
    shown = [p for line in points.values() for p in line]
    if not shown:
        return _svg('<text x="50%" y="40" class="middle">no finite values</text>', 80, label)
    left, right = min(p[0] for p in shown), max(p[0] for p in shown)
    low, high = _ends([p[1] for p in shown] + ([target] if target is not None else []))
    drawn = "".join(
        f'<polyline class="{COLOURS[i % len(COLOURS)]}" points="{_points(line, left, right, low, high)}"/>'
        for i, line in enumerate(points.values())
    )
    if target is not None:
        y = round(100 * (high - target) / (high - low), 2)
        drawn += f'<line class="target" x1="0" x2="100" y1="{y}" y2="{y}"/>'
    place = f'x="0" y="16" width="100%" height="{height}"'
    inner = f'<svg {place} viewBox="0 0 100 100" preserveAspectRatio="none">{drawn}</svg>'
    below = height + 30
    text = f'<text x="0" y="11">{high:.2f}</text><text x="0" y="{below}">{low:.2f}</text>'
    text += f'<text x="100%" y="{below}" class="end">{escape(f"{right:.4g} {x}")}</text>'
    return _svg(f'<rect class="frame" {place}/>{inner}{text}', height + 36, label)


def _finite(point: tuple[float, float]) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in point)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


def _points(line: Sequence[tuple[float, float]], left: float, right: float, low: float, high: float) -> str:
    wide, tall = (right - left) or 1.0, high - low
    return " ".join(f"{100 * (x - left) / wide:.2f},{100 * (high - y) / tall:.2f}" for x, y in line)


def bar(part: float, label: str) -> str:
    """A bar over this part of the width."""
    return _svg(f'<rect class="bar" x="0" y="2" width="{100 * part:.2f}%" height="10" rx="2"/>', 14, label)


def _class(dtype: str | None) -> str:
    return dtype or "other"


def _svg(drawn: str, height: float, label: str) -> str:
    return f'<svg role="img" aria-label="{escape(label)}" width="100%" height="{height:g}">{drawn}</svg>'
