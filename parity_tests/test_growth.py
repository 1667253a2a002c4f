"""`python -m benchmarks.growth`: its cases, where a curve bends, going on; with --full, a real case of each trainer."""

import json
from dataclasses import asdict

import pytest

from benchmarks import growth
from benchmarks.growth_cases import AXES, Case, bend, cases, grown, measured
from benchmarks.growth_cases import main as one_case
from benchmarks.growth_plot import draw, table
from jaxgpt.errors import BadInput
from jaxgpt.recipes import RECIPES

MUON, TINY = RECIPES["muon-2024-10-12"], RECIPES["tiny"]


@pytest.mark.parametrize(
    ("rates", "at"),
    [
        ([10, 10, 9.5, 8.9, 5], 3),  # falls below 90% of the best
        ([2, 5, 9.1, 10, 9.9], 2),  # rises until it reaches that
        ([9.5, 10, 9.2], None),
        ([7], None),
    ],
)
def test_a_curve_bends_where_it_leaves_or_reaches_90_percent_of_its_best(rates, at):
    assert bend(rates) == at


def test_micro_batches_grow_from_one_sequence_to_the_recipe_s_with_the_same_tokens_a_step():
    made = cases(MUON, "micro-batch", None)
    assert [case.value for case in made] == [1, 2, 4, 8, 16, 32, 64]
    assert {grown(case).step_tokens for case in made} == {131_072}


def test_sequences_grow_from_1k_to_8k_with_the_same_tokens_a_micro_batch():
    made = cases(MUON, "sequence", None)
    assert [case.value for case in made] == [1024, 2048, 4096, 8192]
    assert {case.context * case.micro_batch for case in made} == {65_536}


@pytest.mark.parametrize(("axis", "largest"), [("depth", 378e6), ("width", 1514e6)])
def test_models_grow_from_124m(axis, largest):
    sizes = [grown(case).model.parameters for case in cases(MUON, axis, None)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (123_568_128, pytest.approx(largest, rel=0.02))


def test_heads_keep_their_width():
    assert {grown(case).model.head_width for case in cases(MUON, "width", None)} == {64}


@pytest.mark.parametrize("recipe", [MUON, TINY, RECIPES["modern-2024-10-14"]])
@pytest.mark.parametrize("axis", AXES)
def test_every_case_s_sequences_divide_over_its_devices_and_micro_batches(recipe, axis):
    for case in cases(recipe, axis, None, devices=(1, 2, 4, 8)):
        assert case.sequences % (case.micro_batch * case.devices) == 0


def test_replicated_muon_is_a_case_of_its_own_for_each_number_of_devices():
    made = cases(TINY, "devices", None, (1, 8), replicated=True)
    assert [(case.value, case.dealt) for case in made] == [(1, True), (1, False), (8, True), (8, False)]


def made_up(case: Case, ms: float = 100.0) -> dict:
    return measured(case, [ms] * 3, 2 * ms, "a card", {"jax": "1"})


@pytest.fixture
def run(monkeypatch):
    """The cases that were timed, in order; each takes 100 ms a step."""
    done: list[int] = []

    def timed(case, flags, left):
        done.append(case.value)
        return made_up(case)

    monkeypatch.setattr(growth, "timed", timed)
    return done


def test_a_second_call_measures_only_what_is_missing(run, tmp_path, capsys):
    out = tmp_path / "growth.json"
    words = ["--recipe", "tiny", "--axes", "depth", "--out", str(out)]
    growth.main(words)
    kept = json.loads(out.read_text())
    kept["cases"].pop()
    out.write_text(json.dumps(kept))
    growth.main(words)
    assert run == [4, 8, 16, 16]


def test_the_recipe_s_own_size_is_timed_once_for_all_axes(run):
    results = growth.measure(growth.Flags(recipe="tiny"), [cases(TINY, axis, None)[0] for axis in AXES[1:4]])
    assert run == [64]
    assert [(case["axis"], case["value"]) for case in results["cases"]] == [
        ("sequence", 64),
        ("depth", 4),
        ("width", 128),
    ]


def test_what_the_budget_leaves_is_named(run, capsys):
    growth.main(["--recipe", "tiny", "--axes", "depth", "--budget", "5.5"])
    assert run == [4, 8, 16]
    with pytest.raises(SystemExit) as end:
        growth.main(["--recipe", "tiny", "--axes", "depth", "--budget", "1"])
    assert (end.value.code, "depth 4, depth 8, depth 16" in capsys.readouterr().out) == (1, True)


def test_results_of_another_command_are_refused(run, tmp_path, capsys):
    out = tmp_path / "growth.json"
    growth.main(["--recipe", "tiny", "--axes", "depth", "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        growth.main(["--recipe", "tiny", "--axes", "depth", "--steps", "9", "--out", str(out)])
    assert (end.value.code, "--steps 5" in capsys.readouterr().err) == (2, True)


@pytest.mark.parametrize("text", ["", "[]", '{"cases": 3}', '{"recipe": "tiny"}'])
def test_another_file_is_left_as_it_is(run, tmp_path, capsys, text):
    out = tmp_path / "notes.txt"
    out.write_text(text)
    with pytest.raises(SystemExit) as end:
        growth.main(["--recipe", "tiny", "--axes", "depth", "--out", str(out)])
    assert (end.value.code, out.read_text()) == (2, text)


def test_a_case_that_does_not_fit_is_tried_with_half_the_micro_batch(monkeypatch):
    tried = []

    class Ended:
        def __init__(self, command):
            case = json.loads(command[3])
            tried.append(case["micro_batch"])
            self.returncode = int(case["micro_batch"] > 4)
            self.stderr, self.stdout = "error: out of memory (...)", '{"tokens_per_s": 1.0}'

    monkeypatch.setattr(growth.subprocess, "run", lambda command, **_: Ended(command))
    case = cases(TINY, "depth", None)[0]
    assert growth.timed(case, growth.Flags(), lambda: 100.0) == {"tokens_per_s": 1.0}
    assert tried == [16, 8, 4]


def test_the_table_marks_the_bend():
    made = cases(TINY, "depth", None)
    results = {"recipe": "tiny", "trainer": "jaxgpt", "cases": [], "failed": []}
    for case, ms in zip(made, (100.0, 100.0, 900.0), strict=True):
        results["cases"].append(asdict(case) | made_up(case, ms))
    assert [line.split("|")[2].strip() for line in table(results).splitlines() if "bends here" in line] == ["8"]


def test_the_picture_is_drawn(tmp_path):
    results = {"recipe": "tiny", "trainer": "jaxgpt", "failed": []}
    results["cases"] = [asdict(c) | made_up(c) for axis in AXES for c in cases(TINY, axis, None, (1, 2))]
    draw(results, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes()[1:4] == b"PNG"


def test_pytorch_on_several_devices_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        growth.main(["--recipe", "tiny", "--trainer", "torch_ref", "--axes", "devices"])
    assert (end.value.code, "benchmarks.scaling" in capsys.readouterr().err) == (2, True)


def test_a_step_s_rate_is_its_tokens_over_the_median():
    case = cases(TINY, "depth", None)[0]
    assert measured(case, [50.0, 100.0, 900.0], 1.0, "cpu", {})["tokens_per_s"] == pytest.approx(10_240)


SMALL = Case("tiny", "depth", 1, layers=1, heads=2, width=32, context=16, sequences=4, micro_batch=2)


@pytest.mark.parametrize("trainer", ["jaxgpt", "torch_ref"])
def test_a_case_is_really_timed(trainer):
    said = growth.timed(SMALL, growth.Flags(trainer=trainer, steps=2), lambda: 200.0)
    assert (said["step_tokens"], len(said["step_ms"]), said["tokens_per_s"] > 0) == (64, 2, True)


def test_a_file_that_is_not_a_case_is_refused():
    with pytest.raises(SystemExit) as end:
        one_case(['{"recipe": "tiny"}', "jaxgpt", "2"])
    assert end.value.code == 2


def test_results_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(BadInput, match="--out"):
        growth.read(growth.Flags(out=tmp_path))
