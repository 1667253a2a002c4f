"""What docs/porting.md says: its commands are run in their order and print what it quotes, rounding apart."""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from parity_tests import adapter
from parity_tests.programs import ROOT

PAGE = (ROOT / "docs" / "porting.md").read_text(encoding="utf-8")
PROG = shlex.split(adapter.PROG)


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.M | re.S)


def quoted() -> list[tuple[str, str]]:
    """Each command of the page, and what the page says that it prints."""
    parts = re.split(r"^\$ ", "\n".join(blocks("console")), flags=re.M)[1:]
    return [(command, said.strip()) for command, _, said in (part.partition("\n") for part in parts)]


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


@pytest.fixture(scope="module")
def walked(tmp_path_factory) -> Iterator[Callable[[int], str]]:
    """What the nth command prints after all before it, in a folder that holds the checkout's `parity_tests`."""
    folder = tmp_path_factory.mktemp("walk")
    (folder / "parity_tests").symlink_to(ROOT / "parity_tests")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(sys, "dont_write_bytecode", True)  # two versions of a file in one second look the same
        said: list[str] = []

        def nth_said(nth: int) -> str:
            said.extend(printed(command) for command, _ in quoted()[len(said) : nth + 1])
            return said[nth]

        yield nth_said


NTH = [pytest.param(nth, id=f"{nth} {command[:30]}") for nth, (command, _) in enumerate(quoted())]
NTH[-1] = pytest.param(*NTH[-1].values, id=NTH[-1].id, marks=pytest.mark.slow)
"""The last one climbs to the top, as `test_rung_15_adapter` does."""


@pytest.mark.parametrize("nth", NTH)
def test_a_command_prints_what_the_page_quotes(walked, nth):
    assert without_rounding(walked(nth)) == without_rounding(quoted()[nth][1])


def test_every_block_is_run_or_is_a_part_of_the_example():
    example = (ROOT / "parity_tests" / "examples" / "ladder.py").read_text(encoding="utf-8")
    assert all(block in example for block in blocks("python"))
    assert len(re.findall("^```", PAGE, re.M)) == 2 * len(blocks("python") + blocks("console"))


def test_every_link_leads_somewhere():
    entries = (ROOT / "docs" / "defaults.md").read_text(encoding="utf-8")
    headings = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in re.findall("^### (.*)", entries, re.M)}
    for path, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^)]+)\)", PAGE)):
        assert (Path(ROOT) / "docs" / path).is_file(), path
        assert not anchor or anchor in headings, anchor
