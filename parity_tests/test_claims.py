"""What the project claims: the files in results/, its page and README's table say what its runs give.

Where a claim's verdict falls: `test_claim_verdicts`.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import claims
from benchmarks.claim_list import CLAIMS
from benchmarks.claim_table import BEGIN, END, SHORT, with_table
from parity_tests.made_up_runs import empty, entry, made
from parity_tests.programs import ROOT

RESULTS = ROOT / "results"
VERDICTS = {"verified", "refuted", "underpowered", "not testable"}


@pytest.fixture
def results(tmp_path) -> Path:
    """An empty folder of results, beside the measurements that claims read."""
    return empty(tmp_path)


# The project's own


def test_every_figure_hash_and_verdict_in_results_is_what_the_files_give():
    assert claims.differences(RESULTS) == []


def test_every_claim_of_results_has_all_its_fields():
    entries = json.loads((RESULTS / "claims.json").read_text(encoding="utf-8"))
    fields = {"id", "claim", "verdict", "figure", "unit", "interval", "seen", "runs", "command"}
    assert {frozenset(e) - {"extrapolation"} for e in entries} == {frozenset(fields)}
    assert {e["verdict"] for e in entries} <= VERDICTS


def test_a_figure_is_only_where_something_was_tested():
    entries = json.loads((RESULTS / "claims.json").read_text(encoding="utf-8"))
    assert [e["id"] for e in entries if (e["verdict"] == "not testable") != (e["figure"] is None)] == []


def test_how_far_pytorch_parts_from_itself_is_said_in_words_as_the_files_give_it():
    entries = json.loads((RESULTS / "claims.json").read_text(encoding="utf-8"))
    said = next(e["seen"] for e in entries if e["id"] == "a-adamw-itself")
    assert said == entry(RESULTS, "a-adamw-itself")["seen"]
    assert re.findall(r"itself ([\d., ]+); JAX from PyTorch, from the same weights, ([\d., ]+);", said) == [
        ("0.0032, 0.0237, 0.0483, 0.0065, 0.0038, 0.0023", "0.0012, 0.0311, 0.0510, 0.0191, 0.0045, 0.0036")
    ]


OF_ITSELF = "0.0032 0.0237 0.0483 0.0065 0.0038 0.0023 0.0012 0.0311 0.0510 0.0191 0.0045 0.0036 0.0068 0.0204 0.0008"


@pytest.mark.parametrize(("page", "figures"), [("optimizers", OF_ITSELF), ("traps", "0.048")])
def test_a_page_says_how_far_pytorch_parts_from_itself_as_the_files_give_it(page, figures):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    (part,) = [part for part in text.split("\n\n") if "a-adamw-itself" in part]
    found = entry(RESULTS, "a-adamw-itself")
    given = re.findall(r"0\.\d{4}", found["seen"])
    assert re.findall(r"\b0\.0\d{2,3}\b", part) == figures.split()
    assert [f for f in figures.split() if f not in given and f != f"{found['figure']:.3f}"] == []


def test_the_moved_run_is_in_the_picture_of_adamw():
    assert [folder.parent.name for folder in claims.folders(RESULTS, "124m-adamw.png")] == [
        "runs",
        "runs",
        "yardsticks",
    ]


# Planted faults


@pytest.fixture(scope="module")
def written_once(tmp_path_factory) -> Path:
    """Results of one pair of runs, judged and written."""
    results = empty(tmp_path_factory.mktemp("written"))
    for framework in ("jax", "torch"):
        made(results, f"124m-muon-200-{framework}", 4.3)
    claims.main([str(results)])
    return results


@pytest.fixture
def written(written_once, tmp_path) -> Path:
    """A copy of them."""
    shutil.copytree(written_once.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "results"


def _change_figure(results: Path) -> None:
    _edit(results, lambda each: each.update(figure=0.25), "c-hidden")


def _change_verdict(results: Path) -> None:
    _edit(results, lambda each: each.update(verdict="verified"), "c-all")


def _change_hash(results: Path) -> None:
    _edit(
        results,
        lambda each: each["runs"].update({"results/runs/124m-muon-200-jax/config.json": "0" * 64}),
        "a-muon-124m",
    )


def _change_run(results: Path) -> None:
    with (results / "runs" / "124m-muon-200-torch" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n")


def _change_loss(results: Path) -> None:
    file = results / "runs" / "124m-muon-200-torch" / "metrics.jsonl"
    file.write_text(file.read_text(encoding="utf-8").replace('"val_loss": 4.3', '"val_loss": 4.4'), encoding="utf-8")


def _delete_claim(results: Path) -> None:
    file = results / "claims.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8"))[1:]), encoding="utf-8")


def _change_page(results: Path) -> None:
    file = results / "claims.md"
    file.write_text(file.read_text(encoding="utf-8").replace("refuted", "verified"), encoding="utf-8")


def _edit(results: Path, change: Callable[[dict], None], name: str) -> None:
    file = results / "claims.json"
    entries = json.loads(file.read_text(encoding="utf-8"))
    change(next(each for each in entries if each["id"] == name))
    file.write_text(json.dumps(entries), encoding="utf-8")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (_change_figure, "c-hidden: figure is 0.25"),
        (_change_verdict, "c-all: verdict is verified in claims.json, the files give refuted"),
        (_change_hash, "a-muon-124m: runs is"),
        (_change_run, "a-muon-124m: runs is"),
        (_change_loss, "a-muon-124m: verdict is verified in claims.json, the files give refuted"),
        (_delete_claim, "a-muon-seeds: declared and not in claims.json"),
        (_change_page, "claims.md isn't what claims.json gives"),
    ],
)
def test_what_differs_from_the_files_is_found(written, fault, said):
    assert claims.differences(written) == []
    fault(written)
    assert [each for each in claims.differences(written) if said in each]


@pytest.mark.parametrize(
    ("fault", "code"), [(lambda results: None, 0), (_change_figure, 1)], ids=["as_it_was", "changed"]
)
def test_check_ends_with_1_where_anything_differs(written, fault, code):
    fault(written)
    with pytest.raises(SystemExit) as end:
        claims.main([str(written), "--check"])
    assert end.value.code == code


def test_the_page_says_every_verdict(written):
    page = (written / "claims.md").read_text(encoding="utf-8")
    entries = json.loads((written / "claims.json").read_text(encoding="utf-8"))
    assert [e["id"] for e in entries if f"## {e['id']}: {e['verdict']}" not in page] == []


@pytest.fixture
def readme(written) -> Path:
    """A README beside the results, with its place for the table filled."""
    file = written.parent / "README.md"
    file.write_text(f"# Before\n\n{BEGIN}\n{END}\n\nAfter.\n", encoding="utf-8")
    claims.main([str(written)])
    return file


def test_the_readmes_table_has_a_row_with_the_verdict_of_every_claim(written, readme):
    entries = json.loads((written / "claims.json").read_text(encoding="utf-8"))
    rows = [line for line in readme.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    assert [f"[{e['verdict']}]" in row for e, row in zip(entries, rows, strict=True)] == [True] * len(entries)


def test_around_its_table_a_readme_stays_as_it_is(readme):
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(f"# Before\n\n{BEGIN}\n")
    assert text.endswith(f"{END}\n\nAfter.\n")


def test_a_readme_that_says_another_verdict_is_found(written, readme):
    readme.write_text(readme.read_text(encoding="utf-8").replace("[refuted]", "[verified]"), encoding="utf-8")
    assert claims.differences(written) == ["the table of README.md isn't what claims.json gives: write it again"]


def test_a_readme_without_a_place_for_the_table_is_left_as_it_is():
    assert with_table("# Another\n", []) == "# Another\n"


def test_every_claim_has_its_few_words_and_nothing_else_has():
    assert SHORT.keys() == {claim.id for claim in CLAIMS}


def test_runs_that_are_there_get_a_picture(written):
    assert ((written / "124m.png").read_bytes()[:4], (written / "20m.png").exists()) == (b"\x89PNG", False)


# Bad input


def test_a_folder_that_is_not_there_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        claims.main([str(tmp_path / "nothing")])
    assert (end.value.code, "no such folder" in capsys.readouterr().err) == (2, True)


def test_checking_what_was_never_written_is_one_line(results, capsys):
    with pytest.raises(SystemExit) as end:
        claims.main([str(results), "--check"])
    assert (end.value.code, "claims.json: No such file" in capsys.readouterr().err) == (2, True)
