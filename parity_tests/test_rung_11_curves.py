"""Rung 11: final losses of paired seeds are equivalent, different, or too few to tell; tokens to a target."""

import json
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from jaxgpt import published
from jaxgpt.compare import main
from jaxgpt.curves import Series
from jaxgpt.equivalence import MARGIN, pairs_needed, power, tokens_to_target, tost
from jaxgpt.errors import NOT_EQUIVALENT
from parity_tests.runs import lines, refused, tables, write

SEED_SD = 0.00134
"""Of the final loss of one recipe over seeds: simple-2026-06-11, ten seeds."""
TRIALS = 4000


def spread(pairs: int, sd: float, mean: float = 0.0) -> np.ndarray:
    """Differences of exactly that mean and standard deviation, spaced as a normal sample's are expected to be."""
    scores = stats.norm.ppf((np.arange(pairs) + 0.5) / pairs)
    return mean + sd * scores / scores.std(ddof=1)


def verdicts(pairs: int, sd: float, shift: float) -> dict[str, float]:
    """How often each verdict falls for normal differences, in `TRIALS` trials of a fixed seed."""
    samples = np.random.default_rng(11).normal(shift, sd, (TRIALS, pairs))
    said = [tost(sample).verdict for sample in samples]
    return {verdict: said.count(verdict) / TRIALS for verdict in ("equivalent", "different", "underpowered")}


def near(chance: float):
    """That chance, within four standard deviations of its estimate from `TRIALS` trials."""
    return pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / TRIALS))


# Verdicts


def test_eight_pairs_of_the_same_distribution_are_equivalent():
    sides = np.random.default_rng(0).normal(3.28, SEED_SD, (2, 8))
    assert tost(sides[1] - sides[0]).verdict == "equivalent"


def test_eight_differences_of_standard_deviation_0_0013_are_equivalent():
    assert tost(spread(8, 0.0013)).verdict == "equivalent"


@pytest.mark.parametrize("shift", [0.006, -0.006])
def test_a_shift_of_twice_the_margin_is_different(shift):
    sides = np.random.default_rng(0).normal(3.28, SEED_SD, (2, 8))
    assert tost(sides[1] - sides[0] + shift).verdict == "different"


@pytest.mark.parametrize("pairs", [2, 3])
@pytest.mark.parametrize("shift", [0.0, 0.003])
def test_two_or_three_independent_pairs_are_underpowered(pairs, shift):
    assert tost(spread(pairs, SEED_SD * math.sqrt(2), shift)).verdict == "underpowered"


def test_one_pair_is_underpowered_however_equal():
    judged = tost([0.0])
    assert (judged.verdict, judged.p, power(judged.sd, 1)) == ("underpowered", 1.0, 0.0)


def test_a_significant_difference_well_within_the_margin_is_equivalent():
    judged = tost(spread(8, 0.0002, mean=0.001))
    assert judged.interval_95[0] > 0
    assert judged.verdict == "equivalent"


def test_a_significant_difference_at_the_margin_is_different():
    assert tost(spread(8, 0.0013, mean=0.0029)).verdict == "different"


@pytest.mark.parametrize(("difference", "verdict"), [(0.0, "equivalent"), (0.004, "different")])
def test_runs_without_any_scatter_are_judged_by_their_difference(difference, verdict):
    assert tost([difference] * 4).verdict == verdict


# Figures, against scipy.stats


def test_p_is_the_larger_of_two_one_sided_t_tests():
    d = np.random.default_rng(1).normal(0.001, SEED_SD, 8)
    above = stats.ttest_1samp(d, -MARGIN, alternative="greater").pvalue
    below = stats.ttest_1samp(d, MARGIN, alternative="less").pvalue
    assert tost(d).p == pytest.approx(max(above, below), rel=1e-9)


@pytest.mark.parametrize(("level", "interval"), [(0.9, "interval_90"), (0.95, "interval_95")])
def test_intervals_are_students(level, interval):
    d = np.random.default_rng(1).normal(0.001, SEED_SD, 8)
    expected = stats.ttest_1samp(d, 0).confidence_interval(level)
    assert getattr(tost(d), interval) == pytest.approx(tuple(expected), rel=1e-9)


# Error rates


@pytest.mark.parametrize("pairs", [2, 3, 8])
def test_a_difference_of_the_margin_is_called_equivalent_no_oftener_than_1_in_20(pairs):
    assert verdicts(pairs, 0.0005, MARGIN)["equivalent"] == near(0.05)


@pytest.mark.parametrize("pairs", [2, 3, 8])
def test_no_difference_is_called_different_no_oftener_than_1_in_20(pairs):
    assert verdicts(pairs, 0.01, 0.0)["different"] == near(0.05)


@pytest.mark.parametrize("pairs", [2, 3, 8])
@pytest.mark.parametrize("shift", [0.0, 0.0015])
def test_the_power_is_how_often_equivalence_is_shown(pairs, shift):
    sd = SEED_SD * math.sqrt(2)
    assert verdicts(pairs, sd, shift)["equivalent"] == near(power(sd, pairs, shift=shift))


def test_the_power_at_the_margin_is_the_error_rate():
    assert power(0.0005, 8, shift=MARGIN) == pytest.approx(0.05, abs=2e-6)


# The design


def published_finals() -> list[float]:
    return [run[-1].val_loss for run in published.runs("simple-2026-06-11")]


def test_the_scatter_assumed_is_that_of_the_ten_published_seeds():
    assert statistics.stdev(published_finals()) == pytest.approx(SEED_SD, abs=5e-6)


def test_eight_pairs_show_equivalence_where_the_differences_scatter_as_seeds_do():
    assert power(SEED_SD, 8) == pytest.approx(0.9999, abs=5e-5)


def test_eight_pairs_of_independent_runs_have_a_power_of_0_981():
    assert power(SEED_SD * math.sqrt(2), 8) == pytest.approx(0.981, abs=5e-4)


def test_independent_runs_need_nine_pairs_for_a_power_of_0_99():
    assert pairs_needed(SEED_SD * math.sqrt(2)) == 9


def test_a_scatter_beyond_all_designs_needs_no_number_of_pairs():
    assert pairs_needed(1.0) is None


def test_five_published_seeds_are_shown_to_equal_the_other_five_as_often_as_the_power_says():
    """Over 1000 random pairings: 0.83, where independent normal runs would have 0.79; `different` 1 in 100 times."""
    finals, rng = np.array(published_finals()), np.random.default_rng(0)
    said = [tost(d[5:] - d[:5]).verdict for d in (rng.permutation(finals) for _ in range(1000))]
    assert said.count("equivalent") / 1000 == pytest.approx(power(SEED_SD * math.sqrt(2), 5), abs=0.06)
    assert said.count("different") / 1000 < 0.05


# Tokens to a target


def reaching(tokens: float | None) -> Series:
    """A curve that is at 3.0 after that many tokens; None: it ends at 3.5 after 1000."""
    end = 1000 if tokens is None else round(2 * tokens)
    return Series(np.array([0, 1]), np.array([0, end]), np.array([4.0, 3.5 if tokens is None else 2.0]), np.zeros(2))


def tokens_of(first, other):
    return tokens_to_target(3.0, [(reaching(a), reaching(b)) for a, b in zip(first, other, strict=True)])


def test_ratio_and_difference_are_of_the_mean_tokens():
    found = tokens_of([100, 200, 300, 400, 500, 600], [110, 210, 310, 410, 510, 610])
    assert (found.ratio, found.difference) == ((2160 / 2100,) * 2, (10.0, 10.0))


def test_a_constant_difference_has_an_interval_of_no_width():
    found = tokens_of([100, 200, 300, 400, 500, 600], [110, 210, 310, 410, 510, 610])
    assert found.difference_interval == pytest.approx((10.0, 10.0))


def test_an_interval_is_nearly_as_wide_as_students():
    low, high = tokens_of([1e9] * 8, 1e9 + spread(8, 3e7)).difference_interval
    assert (high - low) / np.ptp(tost(spread(8, 3e7)).interval_95) == pytest.approx(0.96, abs=0.02)


def test_seeds_that_never_get_there_on_the_other_side_leave_the_interval_open_above():
    found = tokens_of([900] * 8, [900, 900, 900, 900, None, 900, 900, 900])
    assert found.reached == (8, 7)
    assert (found.ratio[1], found.ratio_interval[1], found.difference_interval[1]) == (math.inf,) * 3
    assert found.ratio_interval[0] == 1.0


def test_seeds_that_never_get_there_on_the_first_side_leave_the_interval_open_below():
    found = tokens_of([900, 900, 900, 900, None, 900, 900, 900], [900] * 8)
    assert (found.ratio_interval[0], found.difference_interval[0]) == (0.0, -math.inf)
    assert found.ratio_interval[1] == 1.0


def test_where_no_seed_gets_there_nothing_is_known():
    found = tokens_of([None] * 8, [None] * 8)
    assert (found.reached, found.ratio_interval) == ((0, 0), (0.0, math.inf))
    assert found.difference_interval == (-math.inf, math.inf)


def test_a_target_below_which_runs_start_has_no_ratio():
    assert tokens_of([0] * 8, [0] * 8).ratio == (0.0, math.inf)


@pytest.mark.parametrize("pairs", [1, 2, 3, 4])
def test_below_five_pairs_the_interval_is_open(pairs):
    found = tokens_of([100] * pairs, [110] * pairs)
    assert (found.ratio_interval, found.ratio) == ((0.0, math.inf), (1.1, 1.1))


def test_two_of_the_ten_published_seeds_never_get_to_3_28():
    curves = [
        Series(*(np.array(column) for column in zip(*run, strict=True)), np.zeros(len(run)))
        for run in published.runs("simple-2026-06-11")
    ]
    found = tokens_to_target(3.28, list(zip(curves[:5], curves[5:], strict=True)))
    assert (found.reached, found.ratio_interval) == ((4, 4), (0.0, math.inf))


def test_95_percent_intervals_of_the_ratio_hold_the_truth_in_95_percent_of_trials():
    """Eight pairs of 3% scatter, a true ratio of 1.02."""
    trials, rng = 300, np.random.default_rng(2)
    held = 0
    for first, other in zip(rng.normal(1e9, 3e7, (trials, 8)), rng.normal(1.02e9, 3e7, (trials, 8)), strict=True):
        low, high = tokens_of(first, other).ratio_interval
        held += low <= 1.02 <= high
    assert held / trials == pytest.approx(0.95, abs=0.03)


# The program


def runs_of(folder: Path, trainer: str, finals, named="tiny", seeds=None, end=2, **recorded) -> list[str]:
    """Folders of runs that end at those validation losses, each with its seed."""
    written = []
    for seed, final in zip(seeds or range(len(finals)), finals, strict=True):
        path = folder / f"{trainer}-{named}-{len(list(folder.iterdir()))}"
        write(path, lines(val=[6.0] + [final] * end), trainer=trainer, recipe=named)
        file = path / "config.json"
        config = json.loads(file.read_text()) | {"flags": {"seed": seed}}
        file.write_text(json.dumps(config | recorded))
        written.append(str(path))
    return written


SAME = 3.28 + spread(8, 0.0013, mean=0.0005)


def ended(tmp_path: Path, *folders: str) -> int:
    """The exit code of a comparison at the margin 0.003; its report is in `tmp_path`/report."""
    try:
        main([*folders, "--require-equivalent", "0.003", "--out", str(tmp_path / "report")])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_program_exits_with_0_where_equivalence_is_shown(tmp_path, capsys):
    folders = runs_of(tmp_path, "jaxgpt", [3.28] * 8) + runs_of(tmp_path, "torch_ref", SAME)
    assert ended(tmp_path, *folders) == 0
    assert "equivalent: torch_ref, tiny minus jaxgpt, tiny" in capsys.readouterr().out


@pytest.mark.parametrize(("pairs", "shift", "verdict"), [(8, 0.006, "different"), (2, 0.0, "underpowered")])
def test_the_program_exits_with_4_and_reports_where_it_is_not_shown(tmp_path, capsys, pairs, shift, verdict):
    others = 3.28 + spread(pairs, 0.0019, shift)
    folders = runs_of(tmp_path, "jaxgpt", [3.28] * pairs) + runs_of(tmp_path, "torch_ref", others)
    assert ended(tmp_path, *folders) == NOT_EQUIVALENT == 4
    assert f"{verdict}: " in capsys.readouterr().out
    row = tables((tmp_path / "report" / "report.md").read_text())[3][0]
    assert (row["verdict"], row["pairs"]) == (verdict, str(pairs))


def test_the_report_holds_the_figures_of_the_verdict(tmp_path):
    folders = runs_of(tmp_path, "jaxgpt", [3.28] * 8) + runs_of(tmp_path, "torch_ref", SAME)
    ended(tmp_path, *folders)
    text = (tmp_path / "report" / "report.md").read_text()
    verdict, tokens = tables(text)[3:]
    assert "\n## Equivalence\n" in text
    assert list(verdict[0].values()) == [
        *("equivalent", "0.003", "8", "+0.00050", "0.00130"),
        *("-0.00037 to +0.00137", "-0.00059 to +0.00159", "0.000483", "1.000", "6"),
    ]
    assert (tokens[0]["reached by first"], tokens[0]["reached by other"]) == ("8 of 8", "8 of 8")


def test_without_the_flag_nothing_is_judged(tmp_path, capsys):
    main([*runs_of(tmp_path, "jaxgpt", [3.28, 3.29]), "--out", str(tmp_path / "report")])
    assert "equivalent" not in capsys.readouterr().out + (tmp_path / "report" / "report.md").read_text()


def test_runs_are_paired_by_seed_in_whatever_order_they_are_given(tmp_path):
    first = runs_of(tmp_path, "jaxgpt", [3.0, 3.1, 3.2, 3.3])
    other = runs_of(tmp_path, "torch_ref", [3.3, 3.2, 3.1, 3.0], seeds=[3, 2, 1, 0])
    assert ended(tmp_path, other[0], *first, *other[1:]) == 0


def test_two_recipes_of_one_trainer_are_two_sides(tmp_path, capsys):
    ended(tmp_path, *runs_of(tmp_path, "jaxgpt", SAME), *runs_of(tmp_path, "jaxgpt", SAME, named="mine"))
    assert "equivalent: jaxgpt, mine minus jaxgpt, tiny" in capsys.readouterr().out


def test_published_curves_beside_the_runs_are_no_side(tmp_path):
    sides = [runs_of(tmp_path, trainer, [3.28] * 2) for trainer in ("jaxgpt", "torch_ref")]
    assert ended(tmp_path, *sides[0], *sides[1], "--published", "muon-2024-10-10") == 0


def refusal(tmp_path, capsys, *folders: str) -> str:
    said = refused(capsys, *folders, "--require-equivalent", "0.003", "--out", str(tmp_path / "report"))
    assert not (tmp_path / "report").exists()
    return said


@pytest.mark.parametrize("margin", ["0", "-0.003", "nan", "inf", "small"])
def test_a_margin_that_is_none_is_refused(tmp_path, capsys, margin):
    (folder,) = runs_of(tmp_path, "jaxgpt", [3.28])
    said = refused(capsys, folder, f"--require-equivalent={margin}", "--out", str(tmp_path / "report"))
    assert "--require-equivalent" in said


def test_one_side_is_refused(tmp_path, capsys):
    assert "not jaxgpt, tiny; add the runs of" in refusal(tmp_path, capsys, *runs_of(tmp_path, "jaxgpt", [3.28] * 2))


def test_three_sides_are_refused(tmp_path, capsys):
    folders = [f for trainer in ("jaxgpt", "torch_ref", "mine") for f in runs_of(tmp_path, trainer, [3.28])]
    assert "jaxgpt, tiny; torch_ref, tiny; mine, tiny; leave" in refusal(tmp_path, capsys, *folders)


@pytest.mark.parametrize(("counts", "without"), [((3, 1), "torch_ref"), ((1, 3), "jaxgpt")])
def test_a_seed_without_its_like_is_named(tmp_path, capsys, counts, without):
    folders = runs_of(tmp_path, "jaxgpt", [3.28] * counts[0]) + runs_of(tmp_path, "torch_ref", [3.28] * counts[1])
    assert f"no run of {without}, tiny with seed 1, 2; train it" in refusal(tmp_path, capsys, *folders)


def test_a_seed_that_is_twice_there_is_refused(tmp_path, capsys):
    folders = runs_of(tmp_path, "jaxgpt", [3.28] * 2, seeds=[5, 5])
    assert "jaxgpt-tiny-0 and jaxgpt-tiny-1 are both seed 5" in refusal(tmp_path, capsys, *folders)


@pytest.mark.parametrize("flags", [None, {}, {"seed": None}, {"seed": True}, {"seed": -1}, {"seed": "0"}])
def test_a_run_without_a_recorded_seed_is_refused(tmp_path, capsys, flags):
    folders = runs_of(tmp_path, "jaxgpt", [3.28], flags=flags)
    assert "jaxgpt-tiny-0: config.json has no flags.seed" in refusal(tmp_path, capsys, *folders)


def test_runs_of_unequal_length_are_refused(tmp_path, capsys):
    folders = runs_of(tmp_path, "jaxgpt", [3.28]) + runs_of(tmp_path, "torch_ref", [3.28], end=3)
    assert "at step 3 after 1572864 tokens, jaxgpt-tiny-0 at step 2" in refusal(tmp_path, capsys, *folders)


def test_a_run_without_validation_is_refused(tmp_path, capsys):
    folders = runs_of(tmp_path, "jaxgpt", [3.28]) + runs_of(tmp_path, "torch_ref", [3.28])
    Path(folders[1], "metrics.jsonl").write_text(json.dumps(lines(train=[5.0])[0]))
    assert "torch_ref-tiny-1: no validation loss" in refusal(tmp_path, capsys, *folders)


@pytest.mark.parametrize(
    ("recorded", "name"),
    [
        ({"recipe": {"name": "tiny", "optimizer": {"lr": 0.03}}}, "optimizer.lr"),
        ({"shards": {"train": [{"path": "a", "sha256": "c"}]}}, "shards.train"),
    ],
)
def test_runs_of_one_recipe_that_were_trained_otherwise_are_refused(tmp_path, capsys, recorded, name):
    recipe = {"name": "tiny", "optimizer": {"lr": 0.02}}
    like = {"recipe": recipe, "shards": {"train": [{"path": "b", "sha256": "d"}]}}
    folders = runs_of(tmp_path, "jaxgpt", [3.28], **like)
    folders += runs_of(tmp_path, "torch_ref", [3.28], **(like | recorded))
    assert f"jaxgpt-tiny-0 and torch_ref-tiny-1 differ in {name}" in refusal(tmp_path, capsys, *folders)


def test_another_micro_batch_and_another_path_of_the_same_shards_are_no_difference(tmp_path):
    folders = []
    for trainer, path, micro in (("jaxgpt", "a", 1), ("torch_ref", "b", 2)):
        recipe = {"name": "tiny", "data": {"sequences": 8, "micro_batch": micro}}
        shards = {"train": [{"path": path, "sha256": "c"}]}
        folders += runs_of(tmp_path, trainer, [3.28] * 2, recipe=recipe, shards=shards)
    assert ended(tmp_path, *folders) == 0


def test_seeds_that_start_from_one_weights_file_are_refused(tmp_path, capsys):
    folders = [runs_of(tmp_path, "jaxgpt", [3.28], flags={"seed": s, "init_from": "w"})[0] for s in (0, 1)]
    assert "jaxgpt-tiny-0 and jaxgpt-tiny-1 start from one --init-from" in refusal(tmp_path, capsys, *folders)


def test_the_sides_of_a_pair_may_start_from_one_weights_file(tmp_path):
    folders = []
    for trainer in ("jaxgpt", "torch_ref"):
        for seed in (0, 1):
            folders += runs_of(tmp_path, trainer, [3.28], flags={"seed": seed, "init_from": f"w{seed}"})
    assert ended(tmp_path, *folders) == 0
