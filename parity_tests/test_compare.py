"""Comparing runs: the published curves, reading a run's folder, the numbers of a report, its files, its errors."""

import io
import json
import re
import statistics
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import jaxgpt.curves
from jaxgpt import compare, published, report
from jaxgpt.compare import main
from jaxgpt.curves import Series, load_run, tokens_to
from jaxgpt.errors import BadInput

# Last line of each published log: step, tokens, validation loss.
LAST_POINTS = {
    "adamw-2024-06-06": (9536, 4_999_610_368, 3.2760),
    "distmuon-2024-10-17": (5100, 2_673_868_800, 3.2747),
    "llmc-2024-10-13": (19560, 10_255_073_280, 3.2722),
    "modern-2024-10-14": (5100, 2_673_868_800, 3.2741),
    "muon-2024-10-10": (6200, 3_250_585_600, 3.2785),
    "opt-adam-2024-10-29": (5100, 2_673_868_800, 3.3406),
    "opt-muon-2024-10-29": (5100, 2_673_868_800, 3.2760),
    "opt-shampoo-2024-10-29": (5100, 2_673_868_800, 3.2858),
    "opt-soap-2024-10-29": (5100, 2_673_868_800, 3.2752),
    "pytorch25-2024-10-18": (5100, 2_673_868_800, 3.2755),
    "soap-2024-10-09": (6000, 3_145_728_000, 3.2763),
}
STEP_TOKENS = 524_288
BLUE, VERMILION, GREEN = (0, 0x72, 0xB2), (0xD5, 0x5E, 0), (0, 0x9E, 0x73)


def curve(losses, step_tokens=100, every=1) -> Series:
    """A series with a point every `every` steps, from step 0."""
    step = np.arange(len(losses)) * every
    return Series(step, step * step_tokens, np.array(losses, np.float64), np.full(len(losses), np.nan))


def lines(train=(), val=(), step_tokens=STEP_TOKENS, every=1, shift=0.0):
    """Lines of metrics.jsonl: training losses from step 1, validation losses from step 0 every `every` steps."""
    read = [
        {
            "step": step,
            "tokens": step * step_tokens,
            "train_loss": loss + shift,
            "lr": 0.1,
            "grad_norm": 1.5,
            "tokens_per_s": 1000.0 * step,
            "train_time_s": 2.0 * step,
            "peak_bytes": 2**28 * step,
        }
        for step, loss in enumerate(train, 1)
    ]
    read += [
        {"step": i * every, "tokens": i * every * step_tokens, "val_loss": loss + shift} for i, loss in enumerate(val)
    ]
    return sorted(read, key=lambda line: line["step"])


def write(folder: Path, metrics, recipe="tiny", trainer="jaxgpt", devices=("NVIDIA H100", "NVIDIA H100")) -> str:
    """A run's folder; `metrics` are objects, or the file's text."""
    folder.mkdir()
    config = {"trainer": trainer, "recipe": {"name": recipe}, "devices": devices}
    (folder / "config.json").write_text(json.dumps(config))
    text = metrics if isinstance(metrics, str) else "".join(json.dumps(line) + "\n" for line in metrics)
    (folder / "metrics.jsonl").write_text(text)
    return str(folder)


def tables(markdown: str) -> list[list[dict[str, str]]]:
    """The Markdown tables, each row by its headings (of two equal headings, the last)."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.M):
        cells = [[c.strip() for c in re.split(r"(?<!\\)\|", row)[1:-1]] for row in block.splitlines()]
        found.append([dict(zip(cells[0], row, strict=True)) for row in cells[2:]])
    return found


def rows_of(number: int, *folders: str, targets=(), **curves) -> list[dict[str, str]]:
    """The rows of a report's table: 0 the runs, 1 the tokens to the targets, 2 the differences."""
    return tables(report.markdown(jaxgpt.curves.compare(jaxgpt.curves.load_curves(folders, **curves), targets), ""))[
        number
    ]


def report_of(tmp_path: Path, *arguments: str) -> str:
    main([*arguments, "--out", str(tmp_path / "report")])
    return (tmp_path / "report" / "report.md").read_text()


def refused(capsys, *arguments: str) -> str:
    """The one line with which the program ends."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    said = capsys.readouterr()
    assert (end.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    return said.err


def colours(png: bytes) -> set[tuple[int, ...]]:
    return {colour[:3] for _, colour in Image.open(io.BytesIO(png)).getcolors(2**24)}


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


# The report


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two runs of 6 steps, the second 0.5 above; but 0.75 above at training step 2, 0.25 below at validation 4."""
    first = lines(train=[5, 4, 3, 2.5, 2, 1.5], val=[6, 4, 3, 2], every=2)
    second = lines(train=[5, 4, 3, 2.5, 2, 1.5], val=[6, 4, 3, 2], every=2, shift=0.5)
    for line in second:
        if line["step"] == 2 and "train_loss" in line:
            line["train_loss"] += 0.25
        if line["step"] == 4 and "val_loss" in line:
            line["val_loss"] -= 0.75
    folder = tmp_path_factory.mktemp("runs")
    return write(folder / "first", first), write(folder / "second", second, trainer="torch_ref")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, two) -> Path:
    """The folder of the report on these two."""
    folder = tmp_path_factory.mktemp("drawn")
    report_of(folder, *two)
    return folder / "report"


def test_the_report_holds_each_runs_figures(two):
    assert rows_of(0, *two)[1] == {
        "run": "second",
        "trainer": "torch_ref",
        "recipe": "tiny",
        "devices": "2 x NVIDIA H100",
        "steps": "6",
        "tokens": "3.146M",
        "final val loss": "2.5000",
        "best val loss": "2.5000",
        "tokens/s": "3,500",
        "peak memory": "1.50 GiB",
        "training time": "12 s",
    }


def test_the_best_validation_loss_is_not_the_last(tmp_path):
    folder = write(tmp_path / "a", lines(val=[5, 3.25, 4]))
    row = rows_of(0, folder)[0]
    assert (row["final val loss"], row["best val loss"]) == ("4.0000", "3.2500")


def test_the_report_holds_tokens_to_a_target_and_their_ratio_to_the_first(two):
    rows = rows_of(1, *two, targets=[3.5])
    # first: 3.5 at step 3; second: 4.5 at step 2, 2.75 at step 4, so 3.5 at step 2 + 2 * 1 / 1.75
    assert [row["tokens to 3.5"] for row in rows] == ["1.573M", "1.648M"]
    assert [row["ratio"] for row in rows] == ["1.000", "1.048"]


def test_the_report_says_where_a_target_was_not_reached(two):
    rows = rows_of(1, *two, targets=[2.25])
    assert [(row["tokens to 2.25"], row["ratio"]) for row in rows] == [("2.884M", "1.000"), ("not reached", "-")]


def test_the_report_holds_largest_and_final_differences(two):
    assert [list(row.values()) for row in rows_of(2, *two)] == [
        ["second", "6", "0.75", "2", "+0.5", "4", "0.5", "0", "+0.5"]
    ]


def test_the_largest_difference_counts_by_size_not_by_sign(tmp_path):
    a = write(tmp_path / "a", lines(val=[5, 5, 5]))
    b = write(tmp_path / "b", lines(val=[5.25, 4, 5]))
    (row,) = rows_of(2, a, b)
    assert (row["max abs val"], row["at val step"], row["final val"]) == ("1", "1", "+0")


def test_the_report_holds_the_command_that_made_it(two, drawn):
    command = f"python -m jaxgpt.compare {two[0]} {two[1]} --out {drawn}"
    assert f"```\n{command}\n```" in (drawn / "report.md").read_text()


def test_a_name_with_table_signs_in_it_stays_in_its_cell(tmp_path):
    folder = write(tmp_path / "a|b", lines(val=[5, 4]), recipe="x|<b>\ny")
    assert rows_of(0, folder)[0]["recipe"] == r"x\|\<b\> y"


def test_runs_of_equal_name_are_told_apart_by_their_paths(tmp_path):
    for parent in ("x", "y"):
        (tmp_path / parent).mkdir()
    folders = [write(tmp_path / parent / "a", lines(val=[5, 4])) for parent in ("x", "y")]
    assert [row["run"][-4:] for row in rows_of(0, *folders)] == ["/x/a", "/y/a"]


def test_the_published_curve_of_a_runs_recipe_is_laid_over(tmp_path):
    folder = write(tmp_path / "a", lines(val=[11, 5, 4], every=125), recipe="muon-2024-10-10")
    row = rows_of(0, folder)[1]
    assert (row["run"], row["trainer"], row["final val loss"]) == ("muon-2024-10-10", "published (FineWeb)", "3.2785")


def test_no_overlay_leaves_the_published_curve_out(tmp_path):
    folder = write(tmp_path / "a", lines(val=[11, 5, 4], every=125), recipe="muon-2024-10-10")
    assert len(tables(report_of(tmp_path, folder, "--no-overlay"))[0]) == 1


def test_a_published_curve_can_be_laid_over_any_run(tmp_path):
    folder = write(tmp_path / "a", lines(val=[11, 5, 4]))
    arguments = ("--published", "soap-2024-10-09", "adamw-2024-06-06", "--target", "3.5", "3.3")
    rows = tables(report_of(tmp_path, folder, *arguments))[1]
    assert [row["run"] for row in rows] == ["a", "soap-2024-10-09", "adamw-2024-06-06"]
    assert {"tokens to 3.5", "tokens to 3.3"} <= rows[0].keys()


def test_a_run_that_ends_before_the_first_published_point_has_none_laid_over(tmp_path):
    folder = write(tmp_path / "a", lines(val=[11, 10.9]), recipe="muon-2024-10-10")
    assert len(rows_of(0, folder)) == 1


def test_a_published_curve_is_laid_over_once_however_often_it_is_named(tmp_path):
    folder = write(tmp_path / "a", lines(val=[11, 5], every=125), recipe="muon-2024-10-10")
    assert len(rows_of(0, folder, names=["muon-2024-10-10", "muon-2024-10-10"])) == 2


def test_the_program_prints_the_main_figures_and_the_two_paths(tmp_path, capsys, two):
    report_of(tmp_path, two[1])
    said = capsys.readouterr().out
    assert "2.5000" in said
    assert said.endswith(f"{tmp_path}/report/report.md\n{tmp_path}/report/curves.png\n")


# The folder of a report


def test_an_earlier_report_is_replaced(tmp_path, two):
    report_of(tmp_path, two[0])
    assert "second" in report_of(tmp_path, *two)


def test_a_folder_with_anything_else_in_it_is_left_as_it_is(tmp_path, capsys, two):
    (tmp_path / "report").mkdir()
    for name, text in (("report.md", report.MARK), ("thesis.tex", "x")):
        (tmp_path / "report" / name).write_text(text)
    assert "holds 'thesis.tex'" in refused(capsys, *two, "--out", str(tmp_path / "report"))
    assert (tmp_path / "report" / "report.md").read_text() == report.MARK


def test_somebody_elses_report_is_left_as_it_is(tmp_path, capsys, two):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.md").write_text("# Mine\n")
    assert "holds 'report.md'" in refused(capsys, *two, "--out", str(tmp_path / "report"))


def test_a_file_in_place_of_the_folder_is_refused(tmp_path, capsys, two):
    (tmp_path / "out").write_text("")
    assert "give a new or empty folder" in refused(capsys, *two, "--out", str(tmp_path / "out"))


# Pictures


def test_the_picture_is_1800_dots_wide(drawn):
    with Image.open(drawn / "curves.png") as picture:
        assert picture.size == (1800, 1404)


def test_the_picture_shows_both_runs_in_their_colours(drawn):
    seen = colours((drawn / "curves.png").read_bytes())
    assert {BLUE, VERMILION} <= seen
    assert GREEN not in seen
    assert len(seen) > 500


def test_the_picture_shows_the_difference_below(drawn):
    with Image.open(drawn / "curves.png") as picture:
        lower = picture.crop((0, 900, 1800, 1404)).convert("RGB")
    for half in (lower.crop((0, 0, 900, 504)), lower.crop((900, 0, 1800, 504))):
        assert VERMILION in {colour for _, colour in half.getcolors(2**24)}


def test_the_legend_names_trainer_recipe_and_devices(two):
    (legend,) = report._figure(4.0, jaxgpt.curves.load_curves(two)).legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "first: jaxgpt, tiny, 2 x NVIDIA H100",
        "second: torch_ref, tiny, 2 x NVIDIA H100",
    ]


def test_a_runs_own_picture_shows_the_published_curve_of_its_recipe(tmp_path):
    compare.plot_run(write(tmp_path / "a", lines(val=[11, 5], every=125), recipe="muon-2024-10-10"), tmp_path / "a.png")
    assert {BLUE, VERMILION} <= colours((tmp_path / "a.png").read_bytes())


def test_a_runs_own_picture_shows_no_published_curve_of_another_recipe(tmp_path):
    compare.plot_run(write(tmp_path / "a", lines(val=[11, 5], every=125), recipe="tiny"), tmp_path / "a.png")
    assert VERMILION not in colours((tmp_path / "a.png").read_bytes())


def axes_of(*curves):
    axes = Figure().add_subplot()
    report._losses_over_tokens(axes, curves)
    return axes


def test_training_and_validation_losses_are_drawn_over_tokens(two):
    train, val = axes_of(load_run(two[0])).lines
    assert train.get_xydata()[-1].tolist() == [6 * STEP_TOKENS / 1e6, 1.5]
    assert val.get_xydata()[:, 1].tolist() == [6, 4, 3, 2]


def test_the_loss_at_step_0_does_not_squash_the_rest():
    low, high = axes_of(jaxgpt.curves.published_run("modern-2024-10-14")).get_ylim()
    assert 3.2 < low < 3.2741
    assert 3.8 < high < 3.9  # 16.0 at step 0, 3.83 after a tenth


def test_the_end_of_a_curve_is_always_on_the_axis(tmp_path):
    run = load_run(write(tmp_path / "a", lines(val=[4.0] * 20 + [9.0])))
    assert axes_of(run).get_ylim()[1] > 9.0


def test_a_short_run_beside_a_long_one_gets_a_logarithmic_axis(tmp_path):
    run = load_run(write(tmp_path / "a", lines(val=[11, 5, 4], every=125)))
    assert axes_of(run, jaxgpt.curves.published_run("muon-2024-10-10")).get_xscale() == "log"


def test_a_logarithmic_axis_leaves_out_step_0(tmp_path):
    run = load_run(write(tmp_path / "a", lines(val=[11, 5, 4], every=125)))
    axis = axes_of(run, jaxgpt.curves.published_run("muon-2024-10-10")).xaxis
    assert not np.isfinite(axis.get_transform().transform(np.zeros(1))).any()


def test_a_run_without_tokens_yet_makes_no_logarithmic_axis(tmp_path):
    run = load_run(write(tmp_path / "a", lines(val=[11])))
    assert axes_of(run, jaxgpt.curves.published_run("muon-2024-10-10")).get_xscale() == "linear"


def test_curves_of_like_length_get_a_linear_axis():
    assert axes_of(*map(jaxgpt.curves.published_run, ("muon-2024-10-10", "llmc-2024-10-13"))).get_xscale() == "linear"


def test_a_published_curve_is_dashed():
    assert axes_of(jaxgpt.curves.published_run("muon-2024-10-10")).lines[-1].get_linestyle() == "--"


AWKWARD = {
    "one validation": lines(val=[5.5]),
    "one training step": lines(train=[5.5]),
    "no tokens at all": lines(val=[5, 5, 5], step_tokens=0),
    "enormous": lines(train=[1e30, -1e30, 1e30, -1e30]),
    "diverging": lines(train=[5, 4, 100, 1e6], val=[5, 1e7]),
    "negative": lines(val=[-1, -2, -3]),
}


@pytest.mark.parametrize("metrics", AWKWARD.values(), ids=AWKWARD)
def test_awkward_curves_are_drawn(tmp_path, two, metrics):
    folder = write(tmp_path / "a \\frac _ \u6f22", metrics, recipe="$x^$")
    report_of(tmp_path, folder, two[0])
    assert len(colours((tmp_path / "report" / "curves.png").read_bytes())) > 100


def test_a_picture_can_be_drawn_in_a_thread(tmp_path, two):
    thread = threading.Thread(target=compare.plot_run, args=(two[0], tmp_path / "a.png"))
    thread.start()
    thread.join()
    assert BLUE in colours((tmp_path / "a.png").read_bytes())


# The program as a process


def test_comparing_imports_no_framework_and_no_pyplot(tmp_path, two):
    code = (
        "import sys; from jaxgpt import compare; compare.plot_run(*sys.argv[1:]);"
        "sys.exit(bool({'jax', 'torch', 'matplotlib.pyplot'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code, two[0], str(tmp_path / "a.png")]).returncode == 0


def test_a_misspelt_flag_is_one_line_that_gives_the_right_one(tmp_path, two):
    command = [sys.executable, "-m", "jaxgpt.compare", *two, "--out", str(tmp_path / "out"), "--tarjet", "3"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert "did you mean --target?" in ended.stderr


@pytest.mark.parametrize("target", ["nan", "inf", "0", "low"])
def test_a_target_that_is_no_loss_is_refused(tmp_path, capsys, two, target):
    assert "--target" in refused(capsys, *two, "--out", str(tmp_path / "out"), "--target", target)


def test_no_run_is_refused(tmp_path, capsys):
    assert "name at least one run folder" in refused(capsys, "--out", str(tmp_path / "out"))


def test_an_unknown_published_name_is_refused(tmp_path, capsys, two):
    said = refused(capsys, *two, "--out", str(tmp_path / "out"), "--published", "muon")
    assert "did you mean muon-2024-10-10?" in said
    assert not (tmp_path / "out").exists()
