"""The entries as Markdown."""

from pathlib import Path

from parity_tests.defaults import model, muon, optimizer, preamble, training
from parity_tests.defaults.detail import Detail, Grouping

PAGE = Path(__file__).parents[2] / "docs" / "defaults.md"
COMMAND = "python -m parity_tests.defaults"
TEST = "test_defaults.py::test_lines_give_what_the_page_says"
SECTIONS = {"The model": model, "Muon": muon, "Optimisers": optimizer, "Training": training}
DETAILS: list[Detail] = [detail for section in SECTIONS.values() for detail in section.DETAILS]

INTRODUCTION = f"""\
# Defaults that ports get wrong

What PyTorch does, what JAX, Flax and optax do, and what each recipe here does, detail by detail.

`{COMMAND}` writes this page: it runs every line of Python below, on a CPU after
[this](#what-the-lines-start-from), prints what it gives, rounded, and groups the recipes by their fields. The test at
an entry's end runs the entry's lines too and asserts what they give. The frameworks are PyTorch 2.11 and later,
JAX 0.10 and later, Flax 0.12 and optax 0.2.8; where an older version differs, the entry says so."""


def render() -> str:
    """The page."""
    contents = [
        f"**{title}.** " + " · ".join(f"[{detail.title}](#{detail.slug})" for detail in section.DETAILS)
        for title, section in SECTIONS.items()
    ]
    parts = [INTRODUCTION, "## Contents", *contents]
    for title, section in SECTIONS.items():
        parts += [f"## {title}", *map(_entry, section.DETAILS)]
    source = Path(preamble.__file__).read_text(encoding="utf-8")
    parts += ["## What the lines start from", f"```python\n{source}```"]
    return "\n\n".join(parts) + "\n"


def _entry(detail: Detail) -> str:
    rows = [("PyTorch", detail.torch), ("JAX, Flax, optax", detail.jax), ("here", detail.here)]
    table = ["| | |", "|---|---|", *(f"| {who} | {does.replace('|', chr(92) + '|')} |" for who, does in rows if does)]
    parts = [f"### {detail.title}", detail.why, "\n".join(table)]
    if detail.lines:
        shown = ["```pycon"]
        for line in detail.lines:
            shown += [f">>> {statement}" for statement in line.statements()]
            shown.append(line.measured() + (f"  # {line.remark}" if line.remark else ""))
        parts.append("\n".join([*shown, "```"]))
    parts += [_grouped(grouping) for grouping in detail.recipes]
    return "\n\n".join([*parts, f"Test: `{TEST}[{detail.slug}]`"])


def _grouped(grouping: Grouping) -> str:
    groups = sorted(grouping.groups().items(), key=lambda group: len(group[1]))
    among = f" {grouping.among}" if grouping.among else ""
    lines = [f"Recipes{among} by {_named(grouping.by)}:", ""]
    for i, (does, names) in enumerate(groups):
        rest = i == len(groups) - 1 and len(names) > 4
        which = ("all others" if i else f"all{among}") if rest else ", ".join(f"`{name}`" for name in names)
        lines.append(f"- {_named(does) if grouping.of is None else does}: {which}")
    return "\n".join(lines)


def _named(text: str) -> str:
    return f"`{text}`" if " " not in text or text[0] in "([" else text
