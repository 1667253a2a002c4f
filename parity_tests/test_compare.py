"""Comparing runs: the report, its folder, its pictures, the program."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import jaxgpt.curves
from jaxgpt import compare, picture, report
from jaxgpt.curves import load_run
from parity_tests.runs import (
    BLUE,
    GREEN,
    STEP_TOKENS,
    VERMILION,
    colours,
    lines,
    refused,
    report_of,
    rows_of,
    tables,
    write,
)

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


def test_tokens_to_3_28_are_given_for_a_run_and_for_the_published_curve_beside_it(tmp_path):
    short = write(tmp_path / "short", lines(val=[11, 5, 4], every=125), recipe="muon-2024-10-10")
    whole = write(tmp_path / "whole", lines(val=[11, 3.3, 3.26], every=3000), recipe="muon-2024-10-10")
    rows = rows_of(1, short, whole)
    assert [row["run"] for row in rows] == ["short", "whole", "muon-2024-10-10"]
    # whole: 3.28 half-way between steps 3000 and 6000
    assert [row["tokens to 3.28"] for row in rows] == ["not reached", "2.359B", "3.216B"]


def test_tokens_to_3_28_are_given_where_no_published_curve_is_drawn(tmp_path):
    folder = write(tmp_path / "a", lines(val=[11, 3.3, 3.26], every=3000), recipe="muon-2024-10-12")
    assert [row["tokens to 3.28"] for row in rows_of(1, folder)] == ["2.359B"]


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
    curves = jaxgpt.curves.load_curves(two)
    (legend,) = picture.figure_of(curves, picture.styles(curves), 4.0).legends
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
    picture.losses_over_tokens(axes, curves, picture.styles(curves))
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
