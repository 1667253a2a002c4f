"""Commands that a page quotes with what they print: run in their order, and compared but for rounding."""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from parity_tests import adapter
from parity_tests.pages import blocks
from parity_tests.programs import ROOT

PROG = shlex.split(adapter.PROG)


class Quoted(NamedTuple):
    """A command, and what the page says that it prints."""

    command: str
    said: str


def quoted(text: str) -> list[Quoted]:
    """Each command of a page's console blocks."""
    console = "\n".join(block.text for block in blocks(text) if block.kind == "console")
    parts = re.split(r"^\$ ", console, flags=re.M)[1:]
    return [Quoted(command, said.strip()) for command, _, said in (part.partition("\n") for part in parts)]


def printed(command: str) -> str:
    """What the command prints here. The program runs in this process: importing two frameworks takes seconds."""
    words = shlex.split(command)
    if words[: len(PROG)] != PROG:
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    for name in ("plain_jax", "plain_torch"):
        sys.modules.pop(name, None)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), contextlib.suppress(SystemExit):
        adapter.main(words[len(PROG) :])
    return out.getvalue().strip()


def without_rounding(text: str) -> str:
    """Of a rung that is equal, neither figures nor the worst tensor; of one that differs, the exponent alone."""
    text = re.sub(r" +\S+ +\S+ +equal .*", " equal", text)
    return re.sub(r"\d\.\d(e[+-]\d\d)", r"#\1", text)


@contextlib.contextmanager
def walk(text: str, folder: Path) -> Iterator[Callable[[int], str]]:
    """What the nth command of a page prints after all before it, in a folder that shows `parity_tests`."""
    (folder / "parity_tests").symlink_to(ROOT / "parity_tests")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(sys, "dont_write_bytecode", True)  # two versions of a file in one second look the same
        said: list[str] = []

        def nth_said(nth: int) -> str:
            said.extend(printed(each.command) for each in quoted(text)[len(said) : nth + 1])
            return said[nth]

        yield nth_said
