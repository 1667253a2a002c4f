"""Command lines read by tyro, with its errors said in one line. Imports neither JAX nor PyTorch."""

import contextlib
import io
import re
from typing import TypeVar

import tyro

from jaxgpt.errors import BadInput

T = TypeVar("T")


def parse(config: type[T], argv: list[str], prog: str, default: T | None = None) -> T:
    """tyro's reading of `argv` as `config`; what tyro would say in a box becomes one `BadInput` line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            start = tyro.MISSING_NONPROP if default is None else default
            return tyro.cli(config, args=argv, prog=prog, description=config.__doc__, default=start)
    except SystemExit as end:
        if not end.code:
            raise
    lines = [line.strip("│╭╮╰╯ \n") for line in said.getvalue().splitlines()]
    sections: list[str] = [""]
    for line in lines:
        if line and not line.strip("─"):
            sections.append("")
        elif line and not line.endswith("─"):
            sections[-1] += " " + line
    nearest = re.search(r"[Pp]erhaps you meant:? *(--[\w.-]+)", " ".join(sections))
    raise BadInput(sections[0].strip() + (f"; did you mean {nearest[1]}?" if nearest else f"; see {prog} --help"))
