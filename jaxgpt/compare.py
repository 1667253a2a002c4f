"""Runs of either trainer beside each other, and beside the published curves: numbers, a table, a picture.

    python -m jaxgpt.compare runs/a runs/b --published muon-2024-10-10 --out report/

writes `report/report.md` and `report/curves.png`. A run's folder may come from anybody: nothing in it is executed, and
what can't be used is said in one line. Imports neither JAX nor PyTorch.

    python -m jaxgpt.compare runs/jax-{0,1,2,3,4,5,6,7,8} runs/torch-{0,1,2,3,4,5,6,7,8} \\
        --require-equivalent 0.003 --out report/

says besides whether the two trainers end at equal losses (`jaxgpt.equivalence`), and exits with 4 where not shown.
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxgpt import picture, report
from jaxgpt.commands import parse
from jaxgpt.curves import LARGEST_NUMBER, compare, load_curves, load_run, published_beside, published_run
from jaxgpt.equivalence import judge
from jaxgpt.errors import NOT_EQUIVALENT, BadInput, exit_codes

_PROG = "python -m jaxgpt.compare"


def plot_run(run_folder: str | Path, out_png: str | Path) -> None:
    """Draw one run: train and validation loss over tokens, and its recipe's published curve (see `published_beside`).

    Raises:
      BadInput: the folder isn't a run's, or holds no points (see `load_run`).
      OSError: `out_png` can't be written.
    """
    run = load_run(run_folder)
    beside = published_beside(run)
    Path(out_png).write_bytes(picture.single_png([run] if beside is None else [run, published_run(beside)]))


@dataclass(frozen=True)
class Flags:
    """Compare runs of either trainer with each other and with published curves."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN ...")]
    """Run folders; the others are compared with the first."""
    out: str
    """Folder for report.md and curves.png: new, empty, or holding an earlier report, which is replaced."""
    published: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """Published curves to lay over."""
    target: Annotated[tuple[float, ...], tyro.conf.arg(metavar="LOSS ...")] = ()
    """Validation losses to count the tokens to. Absent: 3.28 for published recipes and curves, and what all reach."""
    overlay: bool = True
    """Lay over the published curve of each run's own recipe without being asked."""
    require_equivalent: Annotated[float | None, tyro.conf.arg(metavar="MARGIN")] = None
    """Judge whether two sides' final validation losses are within MARGIN nats a token (0.003 is one to fix beforehand),
    and exit with 4 unless that is shown. Sides are told apart by trainer and recipe, and paired by seed."""


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program: read, compare, write two files, print the main figures; judge where that is asked for."""
    argv = sys.argv[1:] if argv is None else argv
    flags = parse(Flags, argv, _PROG)
    if not flags.runs:
        raise BadInput("no run given; name at least one run folder")
    for target in flags.target:
        if not 0 < target < LARGEST_NUMBER:
            raise BadInput(f"--target {target}: give a loss above 0")
    margin = flags.require_equivalent
    if margin is not None and not 0 < margin < LARGEST_NUMBER:
        raise BadInput(f"--require-equivalent {margin}: give a margin above 0, in nats a token")
    report.check_folder(flags.out)
    compared = compare(load_curves(flags.runs, flags.published, flags.overlay), flags.target)
    runs = [curve for curve in compared.curves if not curve.is_published]
    judged = None if margin is None else judge(runs, margin, compared.targets)
    written = report.write(flags.out, compared, shlex.join([*_PROG.split(), *argv]), judged)
    report.print_tables(compared)
    if judged is not None:
        print(report.verdict_text(judged))
    print(*written, sep="\n")
    if judged is not None and judged.loss.verdict != "equivalent":
        sys.exit(NOT_EQUIVALENT)


if __name__ == "__main__":
    main()
