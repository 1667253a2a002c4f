"""Reading the project's Markdown: links, headings, commands, and tests that a page names."""

import ast
import functools
import re
from pathlib import Path
from typing import NamedTuple

from parity_tests.programs import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = ("python", ".venv/bin/", "pip ", "pytest", "torchrun", "launch/", "examples/")


class Block(NamedTuple):
    """What stands between fences; its kind is the word after the first."""

    kind: str
    text: str


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page."""
    return [Block(*found) for found in FENCE.findall(text)]


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", text)


def spans(text: str) -> list[str]:
    """What stands between backticks outside of blocks, each in one line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(text))]


def commands(text: str) -> list[str]:
    """Every command of a page, each in one line: the lines of blocks of no kind, those after $, and spans."""
    found = []
    for block in blocks(text):
        lines = block.text.replace("\\\n", " ").splitlines()
        if block.kind == "console":
            found += [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        elif not block.kind:
            found += [line.split("  #")[0] for line in lines if line.strip()]
    found += [span for span in spans(text) if span.startswith(PROGRAMS) and (" " in span or span.endswith(".sh"))]
    return list(dict.fromkeys(" ".join(each.split()) for each in found))


def links(text: str) -> list[str]:
    """Where a page's links and pictures lead within the project."""
    return [to for to in re.findall(r"\]\(([^)\s]+)\)", prose(text)) if not re.match(r"[a-z]+:", to)]


@functools.cache
def anchors(page: Path) -> set[str]:
    """A page's headings, as GitHub names them in links."""
    headings = re.findall(r"^#+ (.*)$", prose(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def named_tests(text: str) -> list[str]:
    """`test_file.py::test_name` and `test_file.py`, with what stands in brackets."""
    found = (re.fullmatch(r"(?:pytest )?(?:parity_tests/)?(test_\w+\.py(?:::.+)?)", span) for span in spans(text))
    return [each[1] for each in found if each]


@functools.cache
def tests_in(file: str) -> frozenset[str]:
    """The names of the test functions of a file in parity_tests; empty where there is no such file."""
    path = ROOT / "parity_tests" / file
    if not path.is_file():
        return frozenset()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(each.name for each in tree.body if isinstance(each, ast.FunctionDef))


def is_a_test(name: str) -> bool:
    """Whether there is a test of that name, brackets apart, or a file of tests."""
    file, _, function = name.partition("::")
    return bool(tests_in(file)) if not function else function.split("[")[0] in tests_in(file)
