"""What a comparison says: its folder, the Markdown and the tables on the terminal. `jaxgpt.picture` draws it."""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxgpt.curves import Comparison
from jaxgpt.equivalence import ALPHA, MOST_PAIRS, POWER, Judgement, pairs_needed, power
from jaxgpt.errors import BadInput
from jaxgpt.picture import comparison_png, time_unit

MARK = "<!-- written by jaxgpt.compare -->"
"""A report's first line, by which a report that may be replaced is known."""

REPORT, PICTURE = "report.md", "curves.png"
NONE = "-"
"""What a table has where there is no figure."""


def check_folder(out: str, names: Sequence[str] = (REPORT, PICTURE), mark: str = MARK) -> None:
    """Refuse a folder that holds anything but an earlier report, which may be replaced.

    Args:
      out: the folder, which need not be there.
      names: the files of a report.
      mark: what the first of these begins with.

    Raises:
      BadInput: `out` is such a folder, is no folder, or can't be read.
    """
    try:
        held = set(os.listdir(out))
        if names[0] in held and Path(out, names[0]).is_file():
            with Path(out, names[0]).open("rb") as file:
                if file.read(len(mark)) == mark.encode():
                    held -= set(names)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise BadInput(f"--out {out}: {getattr(error, 'strerror', error)}; give a new or empty folder") from None
    if held:
        raise BadInput(f"--out {out} holds {min(held)!r}, which is no report of ours; give a new or empty folder")


def write(out: str, compared: Comparison, command: str, judged: Judgement | None = None) -> list[str]:
    """Write report.md and curves.png into the folder `out`; see `write_files`."""
    text = markdown(compared, command, judged).encode(errors="replace")
    return write_files(out, {REPORT: text, PICTURE: comparison_png(compared)})


def write_files(out: str, files: dict[str, bytes]) -> list[str]:
    """Write files into the folder `out`, made where it isn't there.

    Returns: their paths.

    Raises:
      BadInput: they can't be written.
    """
    try:
        os.makedirs(out, exist_ok=True)
        for name, content in files.items():
            Path(out, name).write_bytes(content)
    except OSError as error:
        raise BadInput(f"--out {out}: {error.strerror}; give a folder that can be written") from None
    return [os.path.join(out, name) for name in files]


def markdown(compared: Comparison, command: str, judged: Judgement | None = None) -> str:
    """The report as Markdown: every run's figures, tokens to the targets, differences, the verdict where one was asked
    for, and the command that made it."""
    first = compared.curves[0].name.replace("`", "'")
    parts = [
        MARK,
        "# Comparison of training runs",
        "![Losses of the runs over tokens and training time, and their differences](curves.png)",
        "Dots are validation losses, thin lines training losses, dashed lines published curves (FineWeb). The vertical "
        "axes are fitted to what comes after the steep first tenth of a run.",
        "## Runs",
        markdown_table(_runs_table(compared), texts=4),
        "Losses in nats a token. Training time leaves validation out.",
        "## Tokens to a validation loss",
        markdown_table(_targets_table(compared)) if compared.targets else "No run was validated.",
        f"Linear between validations, first crossing. The ratio is to `{first}`; below 1 is fewer tokens.",
    ]
    if compared.differences:
        parts += [
            f"## Differences from `{first}`",
            markdown_table(_differences_table(compared)),
            f"Each curve minus `{first}`, at the points both have: same step and same tokens.",
        ]
    if judged is not None:
        parts += _equivalence(judged)
    return "\n\n".join([*parts, "## Command", f"```\n{command}\n```"]) + "\n"


def verdict_text(judged: Judgement) -> str:
    """The verdict and what it rests on, in one line."""
    e = judged.loss
    low, high = e.interval_90
    return (
        f"{e.verdict}: {judged.other} minus {judged.first}, final val loss {e.mean:+.5f}, 90% interval {low:+.5f} to "
        f"{high:+.5f}, margin {e.margin:g}, {e.pairs} pairs"
    )


def _equivalence(judged: Judgement) -> list[str]:
    """The section's paragraphs."""
    e = judged.loss
    first, other = (side.replace("`", "'") for side in (judged.first, judged.other))
    names = ["verdict", "margin", "pairs", "mean", "sd", "90% interval", "95% interval", "p", "power"]
    needed = NONE if math.isnan(e.sd) else str(pairs_needed(e.sd, e.margin) or f"more than {MOST_PAIRS}")
    row = [e.verdict, f"{e.margin:g}", f"{e.pairs}", f"{e.mean:+.5f}"]
    row += [
        NONE if math.isnan(e.sd) else f"{e.sd:.5f}",
        _from_to(e.interval_90, "+.5f"),
        _from_to(e.interval_95, "+.5f"),
    ]
    row += [f"{e.p:.3g}", f"{power(e.sd, e.pairs, e.margin):.3f}", needed]
    tokens = [["validation loss", "reached by first", "reached by other", "ratio", "95% interval"]]
    tokens[0] += ["difference", "95% interval of the difference"]
    for t in judged.tokens:
        reached = [f"{n} of {e.pairs}" for n in t.reached]
        row_of_target = [f"{t.target:g}", *reached, _from_to(t.ratio, ".4f"), _from_to(t.ratio_interval, ".4f")]
        tokens.append([*row_of_target, _from_to(t.difference, "+,.0f"), _from_to(t.difference_interval, "+,.0f")])
    return [
        "## Equivalence",
        f"Final validation losses of `{other}` minus `{first}`, in pairs of equal seed "
        f"({', '.join(map(str, judged.seeds))}), against a margin that must have been fixed beforehand.",
        markdown_table([[*names, f"pairs for power {POWER:g}"], row]),
        f"Paired two one-sided tests at {ALPHA:g} each: equivalent where the 90% interval lies within the margin; else "
        "different where the 95% interval excludes 0; else underpowered: these pairs can't tell. Power is the chance "
        "of `equivalent` at this sd without a difference; few pairs know the sd badly.",
        *([markdown_table(tokens)] if judged.tokens else []),
        "Mean tokens of the other side by, and minus, the first's: a paired bootstrap over seeds. What never got to a "
        "loss takes any number of tokens from its last validation's up, so that its intervals are open (inf, or a "
        "ratio from 0); so are all below 5 pairs.",
    ]


def _from_to(bounds: tuple[float, float], form: str) -> str:
    low, high = bounds
    return f"{low:{form}}" if low == high else f"{low:{form}} to {high:{form}}"


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
                NONE if c.is_published else c.devices,
                f"{c.steps:,}",
                tokens_text(c.tokens),
                f"{c.val.loss[-1]:.4f}" if len(c.val) else NONE,
                f"{c.val.loss.min():.4f}" if len(c.val) else NONE,
                f"{np.median(c.tokens_per_s):,.0f}" if len(c.tokens_per_s) else NONE,
                f"{c.peak_bytes / 2**30:.2f} GiB" if c.peak_bytes else NONE,
                NONE if math.isnan(c.train_time_s) else duration_text(c.train_time_s),
            ]
        )
    return table


def _targets_table(compared: Comparison) -> list[list[str]]:
    table = [["run", *(name for target in compared.targets for name in (f"tokens to {target:g}", "ratio"))]]
    for curve, row in zip(compared.curves, compared.tokens_to, strict=True):
        cells = [curve.name]
        for tokens, first in zip(row, compared.tokens_to[0], strict=True):
            cells.append("not reached" if tokens is None else tokens_text(tokens))
            cells.append(f"{tokens / first:.3f}" if tokens is not None and first else NONE)
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
                cells += ["0", NONE, NONE, NONE]
        table.append(cells)
    return table


def markdown_table(table: list[list[str]], texts: int = 1) -> str:
    """Rows as a Markdown table whose first `texts` columns are words. What a run says of itself is no markup in it."""
    rows = [[re.sub(r"[\\|`<>\[\]*]", r"\\\g<0>", cell) for cell in row] for row in table]
    rows.insert(1, ["---"] * texts + ["---:"] * (len(table[0]) - texts))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def tokens_text(tokens: float) -> str:
    """A number of tokens in four digits."""
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if tokens >= size:
            return f"{tokens / size:.4g}{unit}"
    return f"{tokens:,.0f}"


def duration_text(seconds: float) -> str:
    """Seconds in the unit that fits."""
    size, unit = time_unit(seconds)
    return f"{seconds / size:.4g} {unit}"
