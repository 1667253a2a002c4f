"""The page's part on one rung."""

from collections.abc import Mapping, Sequence
from html import escape

from parity_tests.certificate import drawing
from parity_tests.certificate.drawing import figure
from parity_tests.certificate.wording import command, duration

_LANES = ("float64", "float32", "bfloat16", None)

KEY = (
    '<p class="small soft">How far apart the two were, on a logarithmic axis that all rungs share: the worst '
    "comparison of each test. Left of a tick is within what is allowed.</p>"
    '<ul class="key"><li class="float64"><b>●</b> measured</li><li class="float64"><b>┃</b> allowed</li>'
    '<li class="float64"><b>◇</b> the reference&#8217;s own distance from float64</li>'
    '<li><span class="refuted">✕</span> more than allowed</li></ul>'
)


def rung_section(rung: Mapping) -> str:
    """A rung: its counts, its drawing, the worst of each test, the command that runs it again."""
    number, counts = rung["rung"], _counts(rung)
    about = "".join(f'<p class="small soft">{escape(said[:1].upper() + said[1:])}</p>' for said in rung["about"])
    ran = rung["passed"] + rung["failed"] + rung["skipped"]
    seconds = f", {duration(rung['seconds'])}" if ran else ""
    look = "refuted" if rung["failed"] else "verified" if rung["passed"] else "untold"
    return (
        f'<article class="rung" aria-labelledby="rung-{escape(number)}"><header>'
        f'<h3 id="rung-{escape(number)}">Rung {escape(number)}: {escape(rung["title"])}</h3>'
        f'<p class="small {look}">{escape(counts)}{seconds}</p></header>'
        f"{about}{_strip(rung) if rung['measurements'] else ''}{command(rung['command'])}</article>"
    )


def _counts(rung: Mapping) -> str:
    names = ("passed", "failed", "skipped", "left_out", "not_reached")
    said = [f"{rung[name]:,} {name.replace('_', ' ')}" for name in names if rung[name]]
    return ", ".join(said) or "not run"


def _strip(rung: Mapping) -> str:
    measurements = rung["measurements"]
    present = {m["dtype"] for m in measurements}
    lanes = [dtype for dtype in _LANES if dtype in present]
    worst = rung["worst"]
    label = f"Rung {rung['rung']}: {len(measurements)} comparisons; {_worst(worst)}"
    names = "".join(f'<li class="{dtype or "other"}">{dtype or "other"}</li>' for dtype in lanes)
    return (
        f'<figure><div class="strip"><ul aria-hidden="true">{names}</ul>'
        f"<div>{drawing.strip(measurements, lanes, label)}</div></div>"
        f'<figcaption class="soft">{escape(_worst(worst))}</figcaption></figure>'
        f"{_functions(measurements)}"
    )


def _worst(worst: Mapping) -> str:
    place = "furthest beyond" if drawing.exceeded(worst) else "nearest to"
    what = "" if worst["what"] == "it" else f" ({worst['what']})"
    parameters = f" [{worst['parameters']}]" if worst["parameters"] else ""
    return (
        f"{place} its allowance: {_in_words(worst['test'])}{parameters}{what}, "
        f"{figure(worst['apart'])} of {figure(worst['allowed'])}"
    )


def _functions(measurements: Sequence[Mapping]) -> str:
    """A line for each test function and dtype: the worst of its parameters."""
    groups: dict[tuple, list[Mapping]] = {}
    for m in measurements:
        groups.setdefault((m["test"], m["dtype"]), []).append(m)
    rows = "".join(f"<tr>{_function(*key, group)}</tr>" for key, group in groups.items())
    names = ("test", "dtype", "cases", "measured", "allowed", "share", "oracle")
    head = "".join(f'<th scope="col"{"" if i < 2 else _NUMBER}>{name}</th>' for i, name in enumerate(names))
    table = f'<table class="stack small"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f"<details><summary>The worst of each test and dtype ({len(groups)})</summary>{table}</details>"


_NUMBER = ' class="number"'


def _function(name: str, dtype: str | None, group: Sequence[Mapping]) -> str:
    worst = max(group, key=_share)
    cells = {
        "cases": f"{len(group)}",
        "measured": figure(worst["apart"]),
        "allowed": figure(worst["allowed"]),
        "share": f"{_share(worst):.0%}" if _share(worst) < float("inf") else "more than all",
        "oracle": "" if worst["oracle"] is None else figure(worst["oracle"]),
    }
    numbers = "".join(
        f'<td class="number" data-name="{key}">{escape(value)}</td>' if value else '<td class="number"></td>'
        for key, value in cells.items()
    )
    return f"<td>{escape(_in_words(name))}</td><td>{escape(dtype or '')}</td>{numbers}"


def _share(measurement: Mapping) -> float:
    return float("inf") if isinstance(measurement["share"], str) else measurement["share"]


def _in_words(test: str) -> str:
    return test.removeprefix("test_").replace("_", " ")
