"""certificate.html from what certificate.json holds: one page that loads nothing and runs nothing.

Every string is escaped where it is put between tags; the template holds no data.
"""

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from parity_tests.certificate import drawing
from parity_tests.certificate.claims import REFUTED, VERIFIED
from parity_tests.certificate.drawing import COLOURS, LANE, figure
from parity_tests.certificate.outcome import PROGRAMS
from parity_tests.certificate.rung_section import KEY, rung_section
from parity_tests.certificate.wording import command, duration, place

TEMPLATE = Path(__file__).with_name("template.html")

_SIGNS = {VERIFIED: ("verified", "✓"), REFUTED: ("refuted", "✕")}


def page(document: Mapping) -> str:
    """The page of `document.document`'s object."""
    said = document["verdict"]
    rungs = document["rungs"]
    parts = {
        "title": escape(said["says"]),
        "verdict": said["verdict"],
        "says": escape(said["says"]),
        "notes": f"<p>{escape('; '.join(said['notes']))}</p>" if said["notes"] else "",
        "written": escape(f"{document['written'][:16].replace('T', ' ')} UTC"),
        "seconds": escape(duration(document["seconds"])),
        "command": escape(shlex.join(document["command"])),
        "failures": _failures(document["failures"]),
        "claims": _claims(document["claims"]),
        "key": KEY,
        "rungs": "\n".join(rung_section(rung) for rung in rungs if rung["rung"] != PROGRAMS),
        "curves": _curves(document["curves"]) + _published(document["published"]),
        "time": _time(rungs),
        "skipped": _skipped(document["skipped"], rungs),
        "environment": _environment(document["environment"]),
        "lane": str(LANE),
    }
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(parts)


def _failures(failures: Sequence[Mapping]) -> str:
    if not failures:
        return ""
    lines = "".join(
        f"<li><code>{escape(f['test'])}</code> {escape('' if f['phase'] == 'call' else '(' + f['phase'] + ')')}"
        f"<br>{escape(f['line'])}</li>"
        for f in failures
    )
    return f'<section aria-labelledby="failures"><h2 id="failures">Failures</h2><ul>{lines}</ul></section>'


def _claims(claims: Sequence[Mapping]) -> str:
    rows = "".join(f"<tr>{_claim(claim)}</tr>" for claim in claims)
    head = '<thead><tr><th scope="col">Claim</th><th scope="col">Verdict</th><th scope="col">Why</th></tr></thead>'
    return f'<table class="claims stack">{head}<tbody>{rows}</tbody></table>'


def _claim(claim: Mapping) -> str:
    look, sign = _SIGNS.get(claim["verdict"], ("untold", "○"))
    return (
        f"<td>{escape(claim['claim'])}</td>"
        f'<td><span class="verdict {look}">{sign} {escape(claim["verdict"])}</span></td>'
        f"<td>{escape(claim['why'])}{''.join(map(command, claim['commands']))}</td>"
    )


def _curves(curves: Sequence[Mapping]) -> str:
    if not curves:
        return "<p>No training rung was run, so there are none of this run.</p>"
    frameworks = list(dict.fromkeys(name for curve in curves for name in curve["values"]))
    panels = "".join(_curve(curve) for curve in curves)
    return (
        "<h3>Training at reduced size</h3>"
        '<p class="small soft">Loss in nats over steps, from the same weights on the same tokens.</p>'
        f'{_colours(frameworks)}<div class="panels">{panels}</div>'
    )


def _curve(curve: Mapping) -> str:
    lines = {name: list(enumerate(values, start=1)) for name, values in curve["values"].items()}
    drawn = drawing.curves(lines, f"Loss of {curve['name']}, {_apart(curve)}", "steps")
    caption = f'<b>{escape(curve["name"])}</b> <span class="soft">{escape(_apart(curve))}</span>'
    return f"<figure>{drawn}<figcaption>{caption}</figcaption></figure>"


def _apart(curve: Mapping) -> str:
    """The largest difference from the first framework's, over the steps that all have."""
    first, *others = curve["values"].values()
    gaps = [
        (abs(a - b), step)
        for other in others
        for step, (a, b) in enumerate(zip(first, other, strict=False), start=1)
        if not isinstance(a, str) and not isinstance(b, str)
    ]
    if not gaps:
        return ""
    gap, step = max(gaps)
    return f"at most {figure(gap)} apart" + (f", at step {step}" if gap else "")


def _published(published: Mapping) -> str:
    """The claim's own data, apart from this run's: other sizes, other tokens."""
    lines = {name: [(t / 1e9, loss) for t, loss in points] for name, points in published["curves"].items()}
    late = {name: [(t, loss) for t, loss in line if loss < 5] for name, line in lines.items()}
    ends = "; ".join(f"{name} {line[-1][1]:.4f} at {line[-1][0]:.2f}B" for name, line in lines.items())
    label = f"Published validation losses on FineWeb over billions of tokens: {ends}"
    drawn = drawing.curves(late, label, "B tokens", 240, published["target"])
    return (
        "<h3>Published, at 124M</h3>"
        '<p class="small soft">Validation loss on FineWeb of the published logs, below 5; dashed: '
        f"{published['target']}. Not of this run, and not to be compared with the losses above.</p>"
        f"{_colours(list(lines))}<figure>{drawn}<figcaption class='soft'>{escape(ends)}</figcaption></figure>"
    )


def _colours(names: Iterable[str]) -> str:
    items = (f'<li class="{COLOURS[i % len(COLOURS)]}"><i></i>{escape(name)}</li>' for i, name in enumerate(names))
    return f'<ul class="key">{"".join(items)}</ul>'


def _time(rungs: Sequence[Mapping]) -> str:
    longest = max((rung["seconds"] for rung in rungs), default=0) or 1.0
    rows = "".join(_bar(place(rung["rung"]), rung["seconds"], longest) for rung in rungs if rung["seconds"])
    return f'<dl class="bars">{rows}</dl>' if rows else "<p>Nothing was run.</p>"


def _bar(name: str, seconds: float, longest: float) -> str:
    took = duration(seconds)
    drawn = drawing.bar(seconds / longest, f"{name}: {took}")
    return f'<dt>{escape(name)}</dt><dd>{drawn}</dd><dd class="number">{took}</dd>'


def _skipped(skipped: Sequence[Mapping], rungs: Sequence[Mapping]) -> str:
    reasons = Counter((s["rung"], s["why"]) for s in skipped)
    said = [f"{place(rung)}: {count:,} skipped: {why}" for (rung, why), count in reasons.items()]
    said += [f"{place(r['rung'])}: {r['left_out']:,} left out" for r in rungs if r["left_out"]]
    said += [f"{place(r['rung'])}: {r['not_reached']:,} not reached" for r in rungs if r["not_reached"]]
    if not said:
        return "<p>None.</p>"
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in said)}</ul>"


def _environment(environment: Mapping) -> str:
    git = environment["git"]
    commit = "none" if git["commit"] is None else git["commit"] + (", with changes" if git["dirty"] else ", unchanged")
    facts = {name: version or "not installed" for name, version in environment["versions"].items()}
    facts |= {f"devices of {trainer}": _devices(names) for trainer, names in environment["devices"].items()}
    facts |= {"machine": environment["machine"], "git commit": commit}
    facts |= {
        name: "not set" if value is None else str(value) for name, value in environment["precision_flags"].items()
    }
    rows = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
    note = "Flags are the process's; a training step sets its own matmul precision, as its Precision says."
    return f'<dl class="facts">{rows}</dl><p class="small soft">{note}</p>'


def _devices(names: Sequence[str]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in Counter(names).items()) or "not loaded"
