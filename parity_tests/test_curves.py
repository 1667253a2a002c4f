"""Loss curves: the published ones, reading a run's folder, the numbers of a comparison."""

import json
import statistics
from pathlib import Path

import pytest

import jaxgpt.curves
from jaxgpt import published
from jaxgpt.curves import load_run, tokens_to
from jaxgpt.errors import BadInput
from parity_tests.runs import LAST_POINTS, STEP_TOKENS, curve, lines, refused, rows_of, write

# The published curves


def test_all_published_curves_are_there():
    assert published.names() == sorted([*LAST_POINTS, "simple-2026-06-11"])


@pytest.mark.parametrize("name", LAST_POINTS)
def test_a_published_curve_ends_where_its_log_ends(name):
    assert published.curve(name)[-1] == LAST_POINTS[name]


@pytest.mark.parametrize("name", [*LAST_POINTS, "simple-2026-06-11"])
def test_a_published_curve_has_half_a_million_tokens_a_step(name):
    assert [p.tokens for p in published.curve(name)] == [p.step * STEP_TOKENS for p in published.curve(name)]


@pytest.mark.parametrize("name", [*LAST_POINTS, "simple-2026-06-11"])
def test_a_published_curve_starts_at_step_0_and_rises_in_step(name):
    steps = [p.step for p in published.curve(name)]
    assert steps[0] == 0
    assert steps == sorted(set(steps))


def test_simple_was_published_with_ten_seeds():
    assert [run[-1].val_loss for run in published.runs("simple-2026-06-11")][::9] == [3.27722, 3.27825]
    assert len(published.runs("simple-2026-06-11")) == 10


def test_the_seeds_of_simple_scatter_by_0_00134():
    finals = [run[-1].val_loss for run in published.runs("simple-2026-06-11")]
    assert statistics.stdev(finals) == pytest.approx(0.00134, abs=5e-6)


def test_the_curve_of_simple_is_the_mean_of_its_seeds():
    assert published.curve("simple-2026-06-11")[-1] == (3250, 1_703_936_000, pytest.approx(3.2787, abs=5e-5))


def test_an_unknown_published_curve_is_answered_with_the_nearest_name():
    with pytest.raises(BadInput, match=r"muon-2024-10-11: no such published curve; did you mean muon-2024-10-10\?"):
        published.curve("muon-2024-10-11")


# Numbers


def test_tokens_to_a_loss_are_linear_between_validations():
    assert tokens_to(4.25, curve([6.0, 5.0, 4.0, 3.0])) == 175.0


def test_tokens_to_a_loss_that_was_measured_are_that_points():
    assert tokens_to(4.0, curve([6.0, 5.0, 4.0, 3.0])) == 200.0


def test_the_first_crossing_counts_when_the_loss_rises_again():
    assert tokens_to(4.5, curve([6.0, 4.0, 5.0, 3.0])) == 75.0


def test_the_last_points_loss_is_reached_there():
    assert tokens_to(3.0, curve([6.0, 5.0, 4.0, 3.0])) == 300.0


def test_a_loss_that_is_never_reached_has_no_tokens():
    assert tokens_to(2.9, curve([6.0, 5.0, 3.0])) is None


def test_a_loss_that_is_reached_at_the_start_needs_no_tokens():
    assert tokens_to(7.0, curve([6.0, 5.0])) == 0.0


def test_the_record_of_2024_10_10_reached_3_28_after_3_216_billion_tokens():
    # 6125 steps: 3.2802, 6200 steps: 3.2785
    reached = tokens_to(3.28, jaxgpt.curves.published_run("muon-2024-10-10").val)
    assert reached == pytest.approx((6125 + 75 * 2 / 17) * STEP_TOKENS, rel=1e-9)


def test_a_difference_is_the_other_minus_the_first():
    assert jaxgpt.curves.difference(curve([5.0, 4.0]), curve([5.5, 3.75])).loss.tolist() == [0.5, -0.25]


def test_a_difference_is_taken_at_the_steps_both_have():
    found = jaxgpt.curves.difference(curve([5, 4, 3, 2, 1], every=2), curve([9, 8, 7], every=3))
    assert (found.step.tolist(), found.loss.tolist()) == ([0, 6], [4.0, 5.0])


def test_points_of_equal_step_and_unequal_tokens_are_not_compared():
    assert jaxgpt.curves.difference(
        curve([5, 4, 3], step_tokens=100), curve([5, 4, 3], step_tokens=200)
    ).step.tolist() == [0]


def test_3_28_is_the_target_where_a_published_curve_gets_there():
    curves = [jaxgpt.curves.published_run(name) for name in ("muon-2024-10-10", "adamw-2024-06-06")]
    assert jaxgpt.curves.default_targets(curves) == [3.28]


def test_what_all_reach_is_a_second_target_where_one_misses_3_28():
    curves = [jaxgpt.curves.published_run(name) for name in ("muon-2024-10-10", "opt-adam-2024-10-29")]
    assert jaxgpt.curves.default_targets(curves) == [3.28, 3.3406]


def test_a_published_curve_that_misses_3_28_is_measured_by_it_too():
    assert jaxgpt.curves.default_targets([jaxgpt.curves.published_run("opt-adam-2024-10-29")]) == [3.28, 3.3406]


@pytest.mark.parametrize("recipe", ["muon-2024-10-12", "opt-adam-2024-10-29"])
def test_a_run_of_a_published_recipe_is_measured_by_3_28_before_it_gets_there(tmp_path, recipe):
    run = load_run(write(tmp_path / "a", lines(val=[11, 10.5]), recipe=recipe))
    assert jaxgpt.curves.default_targets([run]) == [3.28, 10.5]


def test_a_run_of_a_published_recipe_is_measured_by_3_28_alone_once_it_gets_there(tmp_path):
    run = load_run(write(tmp_path / "a", lines(val=[11, 3.27]), recipe="muon-2024-10-12"))
    assert jaxgpt.curves.default_targets([run]) == [3.28]


@pytest.mark.parametrize(("tokens", "targets"), [("gpt2", [3.28]), ("bytes", [3.0])])
def test_an_unknown_recipe_that_gets_to_3_28_is_measured_by_it_on_gpt2_tokens_alone(tmp_path, tokens, targets):
    run = load_run(write(tmp_path / "a", lines(val=[5, 3.0]), recipe="mine"))
    run.config["recipe"]["data"] = {"tokens": tokens}
    assert jaxgpt.curves.default_targets([run]) == targets


def test_without_published_curves_the_target_is_the_worse_final_loss_rounded_up(tmp_path):
    runs = [load_run(write(tmp_path / f"r{loss}", lines(val=[5, loss]))) for loss in (2.5, 2.00001, 2.70001)]
    assert jaxgpt.curves.default_targets(runs) == [2.7001]


def test_a_run_that_never_got_3_28_makes_no_published_target(tmp_path):
    run = load_run(write(tmp_path / "a", lines(val=[5, 3.0])))
    assert jaxgpt.curves.default_targets([run]) == [3.0]


# Reading a run's folder


def test_a_runs_losses_come_back_by_kind(tmp_path):
    run = load_run(write(tmp_path / "a", lines(train=[5, 4, 3], val=[6, 2], every=3)))
    assert (run.train.step.tolist(), run.train.loss.tolist()) == ([1, 2, 3], [5, 4, 3])
    assert (run.val.step.tolist(), run.val.loss.tolist()) == ([0, 3], [6, 2])


def test_devices_are_counted_by_kind(tmp_path):
    assert load_run(write(tmp_path / "a", lines(val=[5]), devices=["A", "B", "A"])).devices == "2 x A, 1 x B"


@pytest.mark.parametrize("cut", ['{"step": 2, "tok', '{"step": 2, "tokens": 2, "train_loss": 4.', "{", '{"st\u00e9p'])
def test_a_last_line_cut_by_a_kill_is_dropped(tmp_path, cut):
    run = load_run(write(tmp_path / "a", '{"step": 1, "tokens": 1, "train_loss": 5.0}\n' + cut))
    assert run.train.step.tolist() == [1]


def test_a_whole_last_line_without_a_line_end_is_kept(tmp_path):
    text = '{"step": 1, "tokens": 1, "train_loss": 5.0}\n{"step": 2, "tokens": 2, "train_loss": 4.0}'
    assert load_run(write(tmp_path / "a", text)).train.loss.tolist() == [5.0, 4.0]


def test_a_resumed_run_replaces_what_it_had_logged_beyond_its_checkpoint(tmp_path):
    again = lines(train=[5, 4, 3], val=[6, 9, 9, 9]) + lines(train=[5, 4.5], val=[6, 9, 4.25])[3:]
    run = load_run(write(tmp_path / "a", again))
    assert (run.train.loss.tolist(), run.val.loss.tolist()) == ([5.0, 4.5], [6.0, 9.0, 4.25])


def test_a_repeated_validation_leaves_the_training_loss_of_its_step(tmp_path):
    run = load_run(write(tmp_path / "a", [*lines(train=[5, 4], val=[6, 9, 8]), lines(val=[0, 0, 7])[2]]))
    assert (run.train.loss.tolist(), run.val.loss.tolist()) == ([5.0, 4.0], [6.0, 9.0, 7.0])


def test_a_validation_takes_its_time_from_the_training_lines(tmp_path):
    every_other_step = lines(train=[5, 4, 3, 2])[1::2]
    run = load_run(write(tmp_path / "a", sorted(every_other_step + lines(val=[6] * 5), key=lambda line: line["step"])))
    assert run.val.time_s.tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]


GOOD = '{"step": 1, "tokens": 1, "train_loss": 5.0}\n'
BAD_LINES = {
    "not JSON": "{step: 2}",
    "cut in the middle": '{"step": 2, "tok',
    "not UTF-8": "\udcff",
    "no object": "[1, 2]",
    "no loss": '{"step": 2, "tokens": 2}',
    "NaN": '{"step": 2, "tokens": 2, "train_loss": NaN}',
    "infinite by overflow": '{"step": 2, "tokens": 2, "val_loss": 1e999}',
    "infinite beside the loss": '{"step": 2, "tokens": 2, "val_loss": 1, "tokens_per_s": Infinity}',
    "too large to draw": '{"step": 2, "tokens": 2, "val_loss": 1e31}',
    "a word": '{"step": 2, "tokens": 2, "train_loss": "low"}',
    "a truth value": '{"step": 2, "tokens": 2, "train_loss": true}',
    "null": '{"step": 2, "tokens": 2, "train_loss": null}',
    "no step": '{"tokens": 2, "train_loss": 4}',
    "no tokens": '{"step": 2, "train_loss": 4}',
    "half a step": '{"step": 2.5, "tokens": 2, "train_loss": 4}',
    "a negative step": '{"step": -2, "tokens": 2, "train_loss": 4}',
    "a huge step": '{"step": 1' + 30 * "0" + ', "tokens": 2, "train_loss": 4}',
    "an endless number": '{"step": ' + 5000 * "1" + ', "tokens": 2, "train_loss": 4}',
    "falling tokens": '{"step": 2, "tokens": 0, "train_loss": 4}',
    "deep nesting": 100_000 * "[",
    "an endless line": '{"step": 2, "tokens": 2, "note": "' + 2**20 * "a" + '", "train_loss": 4}',
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named_with_its_file_and_number(tmp_path, capsys, line):
    folder = write(tmp_path / "a", "")
    text = GOOD + line + "\n" + GOOD
    Path(folder, "metrics.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    said = refused(capsys, folder, "--out", str(tmp_path / "out"))
    assert f"{folder}/metrics.jsonl: line 2: " in said
    assert "; delete " in said
    assert len(said) < 600


def test_a_last_line_that_is_not_finite_is_no_cut_line(tmp_path):
    with pytest.raises(BadInput, match="line 2: train_loss is nan"):
        load_run(write(tmp_path / "a", GOOD + '{"step": 2, "tokens": 2, "train_loss": NaN}'))


@pytest.mark.parametrize("text", ["", "\n\n", '{"step": 1'])
def test_a_run_without_points_is_refused(tmp_path, text):
    with pytest.raises(BadInput, match=r"metrics\.jsonl: no points; "):
        load_run(write(tmp_path / "a", text))


def test_a_folder_that_is_not_there_is_refused(tmp_path, capsys):
    assert "no such run folder; give one" in refused(capsys, str(tmp_path / "a"), "--out", str(tmp_path / "out"))


@pytest.mark.parametrize("file", ["config.json", "metrics.jsonl"])
def test_a_missing_file_is_named(tmp_path, file):
    folder = write(tmp_path / "a", lines(val=[5]))
    Path(folder, file).unlink()
    with pytest.raises(BadInput, match=f"{file}: no such file; give"):
        load_run(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", 100_000 * "["])
def test_a_config_that_is_no_json_object_is_refused(tmp_path, text):
    folder = write(tmp_path / "a", lines(val=[5]))
    Path(folder, "config.json").write_text(text)
    with pytest.raises(BadInput, match=r"config\.json: .*; copy it again"):
        load_run(folder)


def test_a_config_of_more_than_4_mebibytes_is_refused(tmp_path):
    folder = write(tmp_path / "a", lines(val=[5]))
    Path(folder, "config.json").write_text("{}" + 2**22 * " ")
    with pytest.raises(BadInput, match="at most 4194304 bytes"):
        load_run(folder)


@pytest.mark.parametrize(
    "config", [{}, {"recipe": ["x"], "devices": {"a": 1}}, {"recipe": {"name": None}, "devices": []}]
)
def test_a_config_that_says_nothing_useful_is_still_compared(tmp_path, config):
    folder = write(tmp_path / "a", lines(val=[5, 4]))
    Path(folder, "config.json").write_text(json.dumps(config))
    assert rows_of(0, folder)[0]["recipe"] == "unknown"
