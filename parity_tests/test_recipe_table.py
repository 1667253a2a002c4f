"""`python -m jaxgpt.recipes`: the table of all recipes, and one recipe in full."""

import dataclasses
import subprocess
import sys

import pytest

from jaxgpt import recipe_table
from jaxgpt.flags import recipe_and_flags
from jaxgpt.recipes import RECIPES, named


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)


def printed(capsys, *words: str) -> str:
    recipe_table.main(list(words))
    return capsys.readouterr().out


def row(text: str, name: str) -> list[str]:
    """The words of the line that starts with the recipe's name."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return line.split()


def test_the_table_has_a_row_for_every_recipe_in_order(capsys):
    names = [line.split()[0] for line in printed(capsys).splitlines() if line[:1].strip()]
    assert [name for name in names if name in RECIPES] == list(RECIPES)


def test_a_row_holds_tokens_published_loss_and_time(capsys):
    text = printed(capsys)
    assert row(text, "muon-2024-10-10")[-4:] == ["3.25B", "3.2785", "22.4", "min"]
    assert row(text, "muon-2024-10-12")[-3:] == ["3.15B", "~3.275", "-"]
    assert row(text, "tiny")[-3:] == ["246K", "-", "-"]


@pytest.mark.parametrize("columns", [80, 100])
def test_the_table_fits_its_columns_and_cuts_nothing(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = printed(capsys)
    assert max(len(line) for line in text.splitlines()) <= columns
    assert "…" not in text
    whole = "".join(text.split())
    for recipe in RECIPES.values():
        assert "".join(recipe.expected.source.split()) in whole


def test_the_summary_is_made_from_the_fields():
    recipe = named("modern-2024-10-14")
    assert recipe_table.summary(recipe) == "124M, 6 heads, ReLU^2, QK-norm after rotary, Muon"
    changed = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, heads=4, activation="gelu"))
    assert recipe_table.summary(changed) == "124M, 4 heads, GELU (erf), QK-norm after rotary, Muon"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_in_full_holds_every_field(capsys, name):
    text = printed(capsys, name)
    values = {}
    for line in text.splitlines():
        words = line.removeprefix("*").split()
        if words and words[0].startswith(("model.", "optimizer.", "schedule.", "data.")):
            values[words[0]] = " ".join(words[1:])
    for part in ("model", "optimizer", "schedule", "data"):
        for f in dataclasses.fields(getattr(named(name), part)):
            assert values.pop(f"{part}.{f.name}").startswith(str(getattr(getattr(named(name), part), f.name)))
    assert not values


def test_fields_that_differ_from_the_default_recipe_are_marked_with_its_value(capsys):
    lines = printed(capsys, "muon-2024-10-10").splitlines()
    marked = [line.split() for line in lines if line.startswith("*")]
    assert marked[:-1] == [
        ["*", "model.vocab", "50257", "(50304)"],
        ["*", "model.activation", "gelu", "(relu_squared)"],
        ["*", "schedule.steps", "6200", "(6000)"],
    ]
    assert "(3 fields)" in lines[lines.index(" ".join(marked[-1]))]


def test_the_default_recipe_differs_from_itself_in_nothing(capsys):
    assert "*" not in printed(capsys, "muon-2024-10-12")


def test_a_recipe_in_full_holds_the_published_result_and_its_source(capsys):
    text = printed(capsys, "simple-2026-06-11")
    assert "162,354,816" in text
    assert "1,703,936,000 in 3,250 steps of 524,288" in text
    assert "8.4 min (155.25 ms a step)" in text
    assert "".join(named("simple-2026-06-11").expected.source.split()) in "".join(text.split())


@pytest.mark.parametrize("name", RECIPES)
def test_its_training_commands_are_ones_both_programs_take(capsys, name):
    lines = [line.strip() for line in printed(capsys, name).splitlines()]
    typed = [line.split() for line in lines if ".train " in line]
    assert [next(word for word in words if word.endswith(".train")) for words in typed] == [
        "jaxgpt.train",
        "torch_ref.train",
    ]
    for words in typed:
        arguments = words[[word.endswith(".train") for word in words].index(True) + 1 :]
        assert recipe_and_flags(arguments, "", "tiny")[0] == named(name)


def test_a_command_is_never_wrapped(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert "    torchrun --nproc-per-node 8 -m -- torch_ref.train --recipe muon-2024-10-10 --mesh 8\n" in printed(
        capsys, "muon-2024-10-10"
    )


def test_a_recipe_asks_for_as_many_shards_as_it_trains_on(capsys):
    # 190 steps of 524,288 tokens and one more fit into a shard of 100M; 6200 / 190 = 32.6.
    assert "python -m jaxgpt.corpus fineweb --shards 33\n" in printed(capsys, "muon-2024-10-10")
    assert "jaxgpt.corpus" not in printed(capsys, "tiny")


def test_an_unknown_name_is_one_line_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as end:
        recipe_table.main(["muon-2024-10-21"])
    said = capsys.readouterr()
    assert (end.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith("error: muon-2024-10-21: no such recipe; did you mean muon-2024-10-12?")


def test_the_program_prints_plain_text_into_a_pipe_and_imports_no_framework():
    code = (
        "import runpy, sys; runpy.run_module('jaxgpt.recipes', run_name='__main__');"
        "sys.exit(bool({'jax', 'torch'} & sys.modules.keys()))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\x1b" not in ended.stdout
