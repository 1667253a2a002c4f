"""docs/defaults.md says what the frameworks and the recipes do, and is what its command writes."""

import pytest

from jaxgpt.recipes import RECIPES
from parity_tests.defaults import __main__ as command
from parity_tests.defaults.page import DETAILS, PAGE, render

GROUPINGS = [(detail.slug, grouping) for detail in DETAILS for grouping in detail.recipes]


@pytest.mark.parametrize("detail", DETAILS, ids=lambda detail: detail.slug)
def test_lines_give_what_the_page_says(detail):
    assert {line.code: line.measured() for line in detail.lines} == {line.code: line.gives for line in detail.lines}


@pytest.mark.parametrize(("slug", "grouping"), GROUPINGS, ids=[f"{slug}-{grouping.by}" for slug, grouping in GROUPINGS])
def test_each_recipe_that_counts_is_in_one_group(slug, grouping):
    grouped = sorted(name for names in grouping.groups().values() for name in names)
    assert grouped == sorted(name for name, recipe in RECIPES.items() if grouping.counts(recipe))
    assert grouped


def test_page_is_what_the_command_writes():
    assert PAGE.read_text(encoding="utf-8") == render(), f"run {command.COMMAND}, and look at the difference"


def test_check_says_in_one_line_that_the_page_differs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "PAGE", tmp_path / "defaults.md")
    monkeypatch.setattr(command, "render", lambda: "new")
    assert command.main(["--check"]) == 1
    assert command.main([]) == 0
    assert command.main(["--check"]) == 0
    (tmp_path / "defaults.md").write_text("old", encoding="utf-8")
    assert command.main(["--check"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 2
