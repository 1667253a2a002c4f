"""Rung 12: the ladder itself. A planted bug turns the rung red that it belongs to, and none below."""

import dataclasses
import json

import pytest

from jaxgpt.errors import BAD_INPUT
from parity_tests.planted import __main__ as command
from parity_tests.planted import page, run
from parity_tests.planted.ascent import CLIMB, rung_of
from parity_tests.planted.bugs import BUGS
from parity_tests.programs import ROOT

NAMED = {bug.name: bug for bug in BUGS}
QUICK = "target-is-the-input"
"""A bug found within seconds."""

by_bug = pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)


@by_bug
def test_a_bug_applies_in_exactly_one_place(bug):
    assert (ROOT / bug.file).read_text(encoding="utf-8").count(bug.old) == 1, f"{bug.file} has changed: mend {bug.name}"


def test_no_two_bugs_have_one_name():
    assert len(NAMED) == len(BUGS)


def test_every_rung_of_the_climb_has_a_bug():
    assert {bug.rung for bug in BUGS} == CLIMB.keys()


def test_both_trainers_have_bugs_below_and_above():
    assert {(bug.framework, bug.rung >= "6") for bug in BUGS} == {
        (f, above) for f in ("jax", "torch") for above in (0, 1)
    }


def test_every_file_of_the_climb_belongs_to_its_rung():
    assert {rung: {rung_of(test) for test in tests} for rung, tests in CLIMB.items()} == {
        rung: {rung} for rung in CLIMB
    }


def test_results_are_of_these_bugs_in_their_order():
    done = [record.bug for record in run.read(page.RESULTS)]
    assert done == [bug.name for bug in BUGS if bug.name in done]


def test_every_rung_has_a_bug_that_was_climbed_to():
    assert {NAMED[record.bug].rung for record in run.read(page.RESULTS)} == set(CLIMB)


@pytest.mark.parametrize("record", run.read(page.RESULTS), ids=lambda record: record.bug)
def test_a_bug_was_found_by_its_own_rung_and_by_none_below(record):
    assert (record.ended, record.rung) == ("red", NAMED[record.bug].rung), record.message


def test_page_says_what_was_found():
    assert page.PAGE.read_text(encoding="utf-8") == page.render(), f"run {page.COMMAND}, and look at the difference"


def test_a_planted_bug_turns_its_rung_red():
    found = run.find(NAMED[QUICK], ["0", "1"])
    assert found.caught, found


@pytest.mark.slow
@by_bug
def test_every_planted_bug_turns_its_rung_red(bug):
    found = run.find(bug)
    assert found.caught, found


@pytest.mark.slow
def test_the_unchanged_trainers_are_green():
    with run.copied() as root:
        assert run.climb(root, ["0"]).ended == "green"


@pytest.mark.slow
def test_a_test_that_hangs_is_named_when_time_is_up():
    with run.copied() as root:
        with (root / "parity_tests" / "test_rung_00_tokens.py").open("a", encoding="utf-8") as file:
            file.write("\n\ndef test_hangs():\n    import time\n\n    time.sleep(600)\n")
        outcome = run.climb(root, ["0"], timeout=60)
    assert (outcome.ended, outcome.rung) == ("timeout", "0")
    assert outcome.test.endswith("test_hangs")


def test_a_bug_whose_text_is_gone_is_refused(tmp_path):
    bug = dataclasses.replace(BUGS[0], old="no such text")
    with pytest.raises(ValueError, match="has 0 places that read 'no such text', and needs one"), run.copied() as root:
        bug.plant(root)


def test_a_climb_outside_its_own_folder_is_refused(tmp_path):
    outcome = run.climb(tmp_path, ["0"])
    assert outcome.ended == "broken"


def ends(capsys, *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        command.main(list(words))
    return end.value.code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--only", "rotary-sing"], "--only rotary-sing: no such bug; did you mean rotary-sign?"),
        (["--processes", "0"], "--processes 0: give at least 1"),
    ],
)
def test_bad_input_is_one_line_and_ends_with_2(words, says, capsys):
    code, _, error = ends(capsys, *words)
    assert (code, error) == (BAD_INPUT, f"error: {says}\n")


def test_check_is_silent_where_page_and_bugs_are_right(capsys):
    assert ends(capsys, "--check") == (0, "", "")


def test_check_says_that_the_page_differs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "PAGE", tmp_path / "planted-bugs.md")
    code, said, _ = ends(capsys, "--check")
    assert (code, said.count("\n")) == (1, 1)
    assert said.startswith("planted-bugs.md isn't what results.json gives: run python -m parity_tests.planted")


def test_a_missed_bug_ends_the_command_with_1(tmp_path, monkeypatch, capsys):
    missed = run.Record("rotary-sign", "3", "red", "5", "test_x", "apart", 1.0)
    monkeypatch.setattr(command, "run", lambda bugs, processes: [missed])
    code, said, _ = ends(capsys, "--only", "rotary-sign", "--out", str(tmp_path / "results.json"))
    assert code == 1
    assert said.startswith("MISSED")
    assert run.read(tmp_path / "results.json") == [missed]


def test_page_shows_what_survived_of_the_mutants(tmp_path, monkeypatch):
    mutant = {"id": "m1", "framework": "jax", "file": "jaxgpt/loss.py", "line": 7, "operator": "compare"}
    mutant |= {"before": "a | b", "after": "a & b", "outcome": "survived", "rung": None, "test": None}
    killed = mutant | {"id": "m2", "outcome": "killed", "rung": "4", "test": "test_x", "why": None, "seconds": 2.0}
    survivor = mutant | {"why": "both are masks", "seconds": 1.0}
    results = {"seed": 3, "generated": 2, "killed": 1, "mutants": [survivor, killed]}
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    monkeypatch.setattr(page, "MUTANTS", tmp_path / "results.json")
    shown = page.render()
    assert "| jax | `jaxgpt/loss.py` | 2 | 1 |" in shown
    assert "| `m1` | `jaxgpt/loss.py`, line 7 | `a \\| b` → `a & b` | survived | both are masks |" in shown
    assert "`m2`" not in shown
