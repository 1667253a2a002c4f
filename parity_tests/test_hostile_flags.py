"""Command lines from anybody: whatever a flag is given, it is taken or refused in one line."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.bridge import main as bridge
from jaxgpt.corpus import main as corpus
from jaxgpt.errors import BadInput
from jaxgpt.flags import Flags, recipe_and_flags
from jaxgpt.recipes import RECIPES
from parity_tests.fuzz import targets
from parity_tests.fuzz.verdict import taken

PARTS = ("model", "optimizer", "schedule", "data")
FLAGS = [f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(Flags)] + [
    f"--{part}.{f.name.replace('_', '-')}" for part in PARTS for f in dataclasses.fields(getattr(RECIPES["tiny"], part))
]
VALUES = {
    "empty": "",
    "space": " ",
    "zero": "0",
    "below zero": "-1",
    "fraction": "0.5",
    "int64's end": str(2**63),
    "int32's end": str(2**31),
    "a trillion": str(10**12),
    "beyond a float": "9" * 400,
    "beyond Python's digits": "9" * 5000,
    "nan": "nan",
    "inf": "inf",
    "float's end": "1e400",
    "no number": "0x10",
    "None": "None",
    "unicode": "größe-数-😀",
    "digits of another script": "١٢",
    "surrogate": "\udcff",
    "NUL": "a\0b",
    "lines": "a\n\nb\r\u2028c",
    "terminal": "\x1b[2J\a",
    "markup": "[/bold] {x} %s $x$ │─╯",
    "very long": "x" * 100_000,
    "a flag": "--steps",
    "a path": "/dev/zero",
}
PROGRAMS = ("train_flags", "compare_flags", "corpus_flags", "bridge_flags", "recipes_flags")
PROGRAMS += ("sample_flags", "huggingface_flags")


def train(*words: str) -> bool:
    """Whether the trainers take that command line; what they take can be taken down as JSON."""

    def read() -> None:
        _, flags, overrides = recipe_and_flags(list(words), "python -m jaxgpt.train", "tiny")
        json.dumps([dataclasses.asdict(flags), overrides])

    return taken(read)


def deterministic(examples: int) -> settings:
    return settings(derandomize=True, deadline=None, max_examples=examples, database=None)


@deterministic(60)
@given(st.sampled_from(FLAGS), st.sampled_from(sorted(VALUES)))
def test_hostile_value_of_a_flag_is_taken_or_refused_in_one_line(flag, value):
    train(flag, VALUES[value])


@pytest.mark.slow
@pytest.mark.parametrize("flag", FLAGS)
def test_every_hostile_value_of_every_flag_is_taken_or_refused_in_one_line(flag):
    for value in VALUES.values():
        train(flag, value)
        train(f"{flag}={value}")


WORDS = st.one_of(st.sampled_from(FLAGS), st.sampled_from(sorted(VALUES)).map(VALUES.get), st.text(max_size=9))


@deterministic(30)
@given(st.lists(WORDS, max_size=6))
def test_any_words_are_taken_or_refused_in_one_line(words):
    train(*words)


@pytest.mark.parametrize("name", PROGRAMS)
@deterministic(25)
@given(data=st.data())
def test_command_line_with_hostile_words_is_taken_or_refused_in_one_line(name, data):
    words = data.draw(st.sampled_from(targets.TARGETS[name].seeds)).decode().split("\n")
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(words)))
        words[at : at + data.draw(st.integers(0, 1))] = [VALUES[data.draw(st.sampled_from(sorted(VALUES)))]]
    targets.TARGETS[name].take("\n".join(words).encode("utf-8", "surrogateescape"))


# Each of these ended in a traceback once, or in a process that was killed.

REFUSED = {
    "steps beyond a float": (("--steps", "9" * 400), "--steps 999"),
    "layers that would fill the memory": (("--model.layers", str(10**12)), "model.layers is 1000000000000"),
    "steps beyond int32": (("--schedule.steps", str(2**31)), "schedule.steps is 2147483648"),
    "rows beyond any vocabulary": (("--model.vocab", str(10**12)), "model.vocab is 1000000000000"),
    "iterations without end": (("--optimizer.newton-schulz-steps", str(10**9)), "newton_schulz_steps is 1000000000"),
    "coefficients that are no numbers": (
        ("--optimizer.newton-schulz-coefficients", "nan", "1", "1"),
        "newton_schulz_coefficients",
    ),
    "folder with a NUL": (("--run", "a\0b"), "no file can have that name"),
    "folder with a name too long": (("--run", "x" * 300), "can't be made: File name too long"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_flag_that_crashed_a_trainer_is_refused(what):
    words, said = REFUSED[what]
    with pytest.raises(BadInput) as refused:
        recipe_and_flags(list(words), "python -m jaxgpt.train", "tiny")
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("program", "words", "said"),
    [
        (corpus, ("text", "a", "--out", "b", "--shard-tokens", str(10**15)), "--shard-tokens 1000000000000000: give"),
        (corpus, ("text", "a", "--out", "b", "--workers", str(10**12)), "--workers 1000000000000: give"),
        (bridge, ("--out", "x" * 300), "File name too long"),
        (bridge, ("--out", "a\0b"), "no file can have that name"),
    ],
    ids=["tokens", "workers", "long name", "NUL"],
)
def test_flag_that_crashed_another_program_is_refused(program, words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        program(list(words))
    assert said in capsys.readouterr().err
