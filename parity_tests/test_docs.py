"""README, CONTRIBUTING and docs/: links lead somewhere, tests they name exist, programs they name have their help."""

import json
import re
import subprocess
import sys

import pytest

from parity_tests.defaults.page import DETAILS
from parity_tests.pages import PAGES, anchors, blocks, commands, is_a_test, links, named_tests, prose
from parity_tests.planted.bugs import BUGS
from parity_tests.planted.run import read
from parity_tests.programs import ROOT

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def lost(page) -> list[str]:
    """The page's links that lead nowhere."""
    found = []
    for to in links(page.read_text(encoding="utf-8")):
        path, _, anchor = to.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(to)
    return found


@by_page
def test_every_link_and_picture_leads_somewhere(page):
    assert lost(page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[a](gone.md) [b](#here) [c](#there) ![d](e.png)\n[f](https://example.org)\n", encoding="utf-8"
    )
    assert lost(page) == ["gone.md", "#there", "e.png"]


@by_page
def test_every_test_that_a_page_names_exists(page):
    assert [name for name in named_tests(page.read_text(encoding="utf-8")) if not is_a_test(name)] == []


@pytest.mark.parametrize("name", ["test_nowhere.py", "test_docs.py::test_nothing", "test_nowhere.py::test_docs[a]"])
def test_a_test_that_is_not_there_is_none(name):
    assert not is_a_test(name)


# Programs

ELSEWHERES = {"venv", "pip", "pytest", "torch.distributed.run"}
HELP = """
import contextlib, io, json, runpy, sys
said = {}
for module in sys.argv[1:]:
    sys.argv, out = [module, "--help"], io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException as error:
        code = repr(error)
    said[module] = [code, out.getvalue()]
print(json.dumps(said))
"""


def modules() -> list[str]:
    """Every module that a page runs by python -m, or torchrun by -m."""
    words = {each for page in PAGES for each in commands(page.read_text(encoding="utf-8"))}
    found = {name for each in words for name in re.findall(r"(?:^| )-m (?:-- )?([a-z]\w*(?:\.\w+)*)", each)}
    return sorted(found - ELSEWHERES)


@pytest.fixture(scope="module")
def helped(environment) -> dict[str, list]:
    """Module -> exit code and what it prints when it is asked for help; one process imports the frameworks for all."""
    command = [sys.executable, "-c", HELP, *modules()]
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize("module", modules())
def test_a_program_that_a_page_names_answers_help(helped, module):
    code, said = helped[module]
    assert code == 0
    assert "usage" in said.lower() or "--help" in said


def test_pages_name_programs_of_every_room_that_has_some():
    assert {name.split(".")[0] for name in modules()} == {"jaxgpt", "torch_ref", "benchmarks", "launch", "parity_tests"}


# Traps

TRAPS = (ROOT / "docs" / "traps.md").read_text(encoding="utf-8")
NAMED = {bug.name: bug for bug in BUGS}


def traps() -> list[tuple[str, str, str]]:
    """Each trap of the page: its rung, its name, and its text."""
    found = []
    for rung, section in re.findall(r"^## Rung (\w+):.*?\n(.*?)(?=^## |\Z)", TRAPS, re.M | re.S):
        found += [
            (rung, name, text) for name, text in re.findall(r"^\*\*(.+?)\*\*(.*?)(?=^\*\*|\Z)", section, re.M | re.S)
        ]
    return found


TRAP = pytest.mark.parametrize(("rung", "name", "text"), traps(), ids=[name for _, name, _ in traps()])


@TRAP
def test_a_trap_names_a_test_that_shows_it(rung, name, text):
    assert [each for each in named_tests(text) if "::" in each]


@TRAP
def test_bugs_planted_for_a_trap_are_of_its_rung(rung, name, text):
    planted = re.findall(r"`([\w-]+)`", prose(text).partition("Planted:")[2])
    assert [bug for bug in planted if NAMED[bug].rung != rung] == []


@TRAP
def test_the_test_that_found_a_planted_bug_is_among_those_named(rung, name, text):
    found = {
        record.bug: record.test for record in read(ROOT / "parity_tests" / "planted" / "results.json") if record.test
    }
    by = {found[bug] for bug in re.findall(r"`([\w-]+)`", text.partition("Planted:")[2]) if bug in found}
    assert {test.split("/")[-1].split("[")[0] for test in by} <= set(named_tests(text))


def test_lines_of_defaults_that_a_trap_names_are_there():
    slugs = {detail.slug for detail in DETAILS}
    assert set(re.findall(r"test_lines_give_what_the_page_says\[([\w-]+)\]", TRAPS)) <= slugs


def test_every_rung_of_the_ladder_that_compares_the_frameworks_has_a_trap():
    assert list(dict.fromkeys(rung for rung, _, _ in traps())) == ["0", "1", "2", "3", "3b", *map(str, range(4, 11))]


def test_every_page_is_led_to_from_the_readme():
    to = {link.partition("#")[0] for link in links((ROOT / "README.md").read_text(encoding="utf-8"))}
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= to


@by_page
def test_fences_are_closed(page):
    text = page.read_text(encoding="utf-8")
    assert len(re.findall("^```", text, re.M)) == 2 * len(blocks(text))


def test_a_kept_certificate_has_what_the_ladder_s_page_says_of_it():
    said = (ROOT / "docs/ladder.md").read_text(encoding="utf-8").replace("\n", " ")
    found = re.findall(
        r"\(\.\./(results/certificates/\S+)\.html\), ([\d,]+) tests of (\d+) rungs, none red, ([\d-]+)", said
    )
    assert found
    for path, tests, rungs, day in found:
        kept = json.loads((ROOT / f"{path}.json").read_text(encoding="utf-8"))
        assert kept["failures"] == []
        assert f"{tests} of {tests} tests, {rungs} " in kept["verdict"]["says"]
        assert kept["written"].startswith(day)
        assert kept["verdict"]["says"] in (ROOT / f"{path}.html").read_text(encoding="utf-8")
