"""Each claim's verdict falls where it should, on runs that are made up: declared settings, and losses put there."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.claim_list import CLAIMS
from benchmarks.claim_plan import SEEDS
from benchmarks.claim_ulp import EARLIER, NAME, START
from parity_tests.made_up_runs import LARGE, empty, entry, made, seeds, verdict
from parity_tests.programs import ROOT


@pytest.fixture
def results(tmp_path) -> Path:
    """An empty folder of results, beside the measurements that claims read."""
    return empty(tmp_path)


# What is missing


@pytest.mark.parametrize("name", [each.id for each in CLAIMS if each.id[0] in "abf"] + ["e-equal-tokens", "d-node"])
def test_without_runs_a_claim_is_not_testable(results, name):
    found = entry(results, name)
    assert (found["verdict"], found["figure"], found["interval"], found["runs"]) == ("not testable", None, None, {})


def test_a_claim_names_the_runs_that_are_missing(results):
    made(results, "124m-muon-200-jax", 4.3)
    assert entry(results, "a-muon-124m")["seen"] == "not run yet: 124m-muon-200-torch"


def test_a_run_that_has_not_come_to_its_end_is_missing(results):
    for framework in ("jax", "torch"):
        folder = made(results, f"124m-muon-200-{framework}", 4.3)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-3]), encoding="utf-8")
    assert entry(results, "a-muon-124m")["seen"] == "124m-muon-200-torch has not come to its end"


def test_a_run_with_other_settings_than_declared_is_missing(results):
    folder = made(results, "124m-muon-200-torch", 4.3)
    shutil.copytree(folder, folder.with_name("124m-muon-200-jax"))
    found = entry(results, "a-muon-124m")
    assert (found["verdict"], "another trainer or seed" in found["seen"]) == ("not testable", True)


# (a) the same curve


@pytest.mark.parametrize(
    ("difference", "wanted"),
    [
        (lambda seed: 0.0005 * (-1) ** seed, "verified"),
        (lambda seed: 0.02 + 0.001 * seed, "refuted"),
        (lambda seed: 0.02 * (-1) ** seed, "underpowered"),
    ],
    ids=["verified", "refuted", "underpowered"],
)
def test_paired_seeds_are_judged_against_the_margin(results, difference, wanted):
    seeds(results, "muon", difference)
    found = entry(results, "a-muon-seeds")
    assert found["verdict"] == wanted
    assert found["figure"] == pytest.approx(np.mean([difference(seed) for seed in SEEDS]), abs=1e-12)
    assert len(found["runs"]) == 2 * 2 * len(SEEDS)


def test_seven_of_eight_pairs_are_not_enough(results):
    seeds(results, "muon", lambda seed: 0.0)
    shutil.rmtree(results / "runs" / "20m-muon-seed3-torch")
    assert verdict(results, "a-muon-seeds") == "not testable"


def test_pairs_from_other_weights_are_no_pairs(results):
    seeds(results, "muon", lambda seed: 0.0)
    shutil.rmtree(results / "runs" / "20m-muon-seed3-torch")
    made(results, "20m-muon-seed3-torch", 5.0, start="others")
    assert "didn't start from the same weights" in entry(results, "a-muon-seeds")["seen"]


@pytest.mark.parametrize(
    ("known", "wanted"),
    [(["one", "another"], "verified"), (["one", "a third"], "not testable")],
    ids=["same", "others"],
)
def test_pairs_from_two_files_are_pairs_where_both_hold_the_same_weights(results, known, wanted):
    for framework, start in (("jax", "one"), ("torch", "another")):
        made(results, f"124m-muon-200-{framework}", 4.3, start=start)
    digests = [hashlib.sha256(each.encode()).hexdigest() for each in known]
    (results / "weights.json").write_text(json.dumps({"124m-seed0": digests}), encoding="utf-8")
    found = entry(results, "a-muon-124m")
    assert (found["verdict"], "results/weights.json" in found["runs"]) == (wanted, True)


def test_pairs_with_another_text_than_the_others_are_not_judged_with_them(results):
    seeds(results, "muon", lambda seed: 0.0)
    other = {kind: [{"path": kind, "tokens": 10**8, "sha256": "another"}] for kind in ("train", "val")}
    for framework in ("jax", "torch"):
        shutil.rmtree(results / "runs" / f"20m-muon-seed3-{framework}")
        made(results, f"20m-muon-seed3-{framework}", 5.0, shards=other)
    found = entry(results, "a-muon-seeds")
    assert (found["verdict"], "differ in shards" in found["seen"]) == ("not testable", True)


def test_pairs_on_other_text_are_no_pairs(results):
    made(results, "124m-muon-200-jax", 4.3)
    other = {kind: [{"path": kind, "tokens": 10**8, "sha256": "another"}] for kind in ("train", "val")}
    made(results, "124m-muon-200-torch", 4.3, shards=other)
    assert "weren't trained on the same shards" in entry(results, "a-muon-124m")["seen"]


@pytest.mark.parametrize(("apart", "wanted"), [(0.0029, "verified"), (0.0031, "refuted")])
def test_one_pair_at_124m_stays_within_the_margin_or_not(results, apart, wanted):
    made(results, "124m-muon-200-jax", 4.3)
    made(results, "124m-muon-200-torch", 4.3 + apart)
    found = entry(results, "a-muon-124m")
    assert (found["verdict"], found["interval"]) == (wanted, None)
    assert found["figure"] == pytest.approx(apart)


# (a) and PyTorch from itself


def moved(results: Path, until: int, end: float, torch: float = 4.4, **config) -> Path:
    """AdamW's pair at 124M, and the run beside it, whose weights are known to be moved; it has losses to `until`."""
    made(results, "124m-adamw-300-jax", 4.4)
    beside = made(results, "124m-adamw-300-torch", torch)
    folder = made(results, "124m-adamw-300-torch", end, folder=results / "yardsticks" / NAME, start="moved", **config)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = "".join(f"{json.dumps(line)}\n" for line in lines if line["step"] <= until)
    (folder / "metrics.jsonl").write_text(kept, encoding="utf-8")
    start = json.loads((folder / "config.json").read_text(encoding="utf-8"))["init_sha256"]
    (results / "weights.json").write_text(json.dumps({START: [start]}), encoding="utf-8")
    return beside


@pytest.mark.parametrize(
    ("until", "apart", "wanted"), [(150, 0.01, "verified"), (300, 0.01, "verified"), (150, 0.005, "refuted")]
)
def test_pytorch_parts_from_itself_by_more_than_the_margin_or_not(results, until, apart, wanted):
    moved(results, until, 4.4 + apart)
    found = entry(results, "a-adamw-itself")
    assert (found["verdict"], found["figure"]) == (wanted, pytest.approx(apart * until / 300))
    assert (f"up to step {until}" in found["seen"], "where that run was ended" in found["seen"]) == (True, until < 300)
    assert ("other seeds or later steps" in found["seen"]) == (until < 300)


def test_of_the_frameworks_only_the_steps_that_the_moved_run_has_are_compared(results):
    moved(results, 100, 4.43, torch=4.46)
    said = entry(results, "a-adamw-itself")["seen"]
    assert "PyTorch from itself 0.0050, 0.0100; JAX from PyTorch, from the same weights, 0.0100, 0.0200; JAX" in said


def test_an_earlier_run_from_the_moved_weights_is_told_beside_the_later_one(results):
    moved(results, 300, 4.41)
    alone = entry(results, "a-adamw-itself")
    yardsticks = results / "yardsticks"
    shutil.copytree(yardsticks / NAME, yardsticks / EARLIER)
    lines = [json.loads(line) for line in (yardsticks / EARLIER / "metrics.jsonl").read_text().splitlines()]
    shifted = [line | ({"val_loss": line["val_loss"] + 0.007} if line.get("val_loss") else {}) for line in lines[:-1]]
    (yardsticks / EARLIER / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in shifted))
    found = entry(results, "a-adamw-itself")
    assert "is 0.0070" in found["seen"]
    assert "An earlier run" not in alone["seen"]
    assert (found["verdict"], found["figure"]) == (alone["verdict"], alone["figure"])
    assert len(found["runs"]) == len(alone["runs"]) + 2


def test_an_earlier_run_from_other_weights_is_named(results):
    moved(results, 300, 4.41)
    yardsticks = results / "yardsticks"
    made(results, "124m-adamw-300-torch", 4.41, folder=yardsticks / EARLIER, start="not moved")
    found = entry(results, "a-adamw-itself")
    said = f"{EARLIER} isn't known to have started from weights a unit in the last place away"
    assert (found["verdict"], found["seen"]) == ("not testable", said)


def test_a_moved_run_is_named_where_it_is_missing(results):
    shutil.rmtree(moved(results, 150, 4.41).parents[1] / "yardsticks")
    assert entry(results, "a-adamw-itself")["seen"] == f"not run yet: {NAME}"


def test_weights_that_nobody_moved_are_no_yardstick(results):
    moved(results, 150, 4.41)
    (results / "weights.json").write_text(json.dumps({"124m-seed0": []}), encoding="utf-8")
    found = entry(results, "a-adamw-itself")
    assert (found["verdict"], "isn't known to have started" in found["seen"]) == ("not testable", True)


def test_a_moved_run_with_another_setting_is_no_yardstick(results):
    moved(results, 150, 4.41, seed=1)
    assert entry(results, "a-adamw-itself")["seen"] == f"{NAME} has another seed than 124m-adamw-300-torch"


def test_a_moved_run_without_a_validation_says_nothing(results):
    moved(results, 49, 4.41)
    assert verdict(results, "a-adamw-itself") == "not testable"


def test_a_moved_run_is_among_the_files_of_its_claim_alone(results):
    moved(results, 150, 4.41)
    has = {name: [f for f in entry(results, name)["runs"] if NAME in f] for name in ("a-adamw-itself", "a-adamw-124m")}
    assert {name: len(files) for name, files in has.items()} == {"a-adamw-itself": 2, "a-adamw-124m": 0}


# (b) fewer steps


def large(results: Path, muon: float, lr: float = 0.0018, swept: dict[str, float] | None = None) -> None:
    for name, end in (LARGE | {"124m-muon-200-jax": muon} | (swept or {})).items():
        made(results, name, end, lr=lr)


@pytest.mark.parametrize(("muon", "wanted"), [(4.2, "verified"), (4.6, "refuted"), (4.39, "underpowered")])
def test_muon_is_judged_by_the_scatter_of_the_seeds(results, muon, wanted):
    large(results, muon)
    for kind in ("muon", "adamw"):
        seeds(results, kind, lambda seed: 0.0)
    found = entry(results, "b-jax")
    assert found["verdict"] == wanted
    assert found["figure"] == pytest.approx(muon - 4.4)


def test_without_seeds_one_run_a_side_is_underpowered(results):
    large(results, 4.0)
    assert verdict(results, "b-jax") == "underpowered"


def test_adamw_at_another_rate_than_the_best_is_not_the_claim(results):
    large(results, 4.0, lr=0.0036)
    assert entry(results, "b-jax")["seen"].endswith("the learning rate 0.0036, and 0.0018 was the best of those tried")


def test_a_best_rate_at_the_edge_is_said(results):
    large(results, 4.0, lr=0.00045, swept={"124m-adamw-lrC-100-jax": 5.0})
    assert "0.00045, which is the lowest tried" in entry(results, "b-jax")["seen"]


# (c) memory, (d) overhead


@pytest.mark.parametrize(("name", "wanted", "ratio"), [("c-hidden", "verified", 0.5), ("c-all", "refuted", 0.6563)])
def test_muon_keeps_half_of_the_state_of_hidden_matrices_and_more_of_the_whole(results, name, wanted, ratio):
    found = entry(results, name)
    assert (found["verdict"], round(found["figure"], 4)) == (wanted, ratio)


def test_state_from_shapes_is_the_state_that_was_measured(results):
    seen = entry(results, "c-all")["seen"]
    measured = json.loads((ROOT / "benchmarks/results/optimizers-h100/optimizers.json").read_text(encoding="utf-8"))
    of_jax = [e["bytes"]["all"] for e in measured if e["trainer"] == "jaxgpt" and e["kind"] in ("muon", "adamw")]
    assert [f"{size:,}" in seen for size in of_jax] == [True, True]


def test_an_overhead_of_a_tenth_is_refuted(results):
    file = results.parent / "benchmarks" / "results" / "optimizers-h100" / "optimizers.json"
    entries = json.loads(file.read_text(encoding="utf-8"))
    for each in entries:
        each["step_ms"] = 1100.0 if each["kind"] == "muon" else 1000.0
    file.write_text(json.dumps(entries), encoding="utf-8")
    assert (verdict(results, "d-jaxgpt"), entry(results, "d-jaxgpt")["figure"]) == ("refuted", pytest.approx(0.1))


@pytest.mark.parametrize(("work_ms", "wanted"), [(8.9, "verified"), (9.1, "refuted")])
def test_a_plans_overhead_is_its_newton_schulz_in_its_step(results, work_ms, wanted):
    file = results.parent / "benchmarks" / "results" / "plans" / "h100-8.json"
    plan = json.loads(file.read_text(encoding="utf-8"))
    plan["time"] |= {"step_ms": 100.0, "work_ms": {"newton-schulz": work_ms}}
    file.write_text(json.dumps(plan), encoding="utf-8")
    assert (verdict(results, "d-plan"), entry(results, "d-plan")["figure"]) == (wanted, pytest.approx(work_ms / 100))


def test_a_plan_for_another_number_of_gpus_is_no_evidence(results):
    file = results.parent / "benchmarks" / "results" / "plans" / "h100-8.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {"devices": 64}), encoding="utf-8")
    assert verdict(results, "d-plan") == "not testable"


def scaling(results: Path, devices: int, with_ms: float, without_ms: float) -> None:
    runs = [
        {"trainer": trainer, "alternation": 0, "devices": devices, "step_ms": [ms], "step_tokens": 1, "peak_bytes": 1}
        for trainer, ms in (("jaxgpt", with_ms), ("jaxgpt --optimizer.newton-schulz-steps 0", without_ms))
    ]
    text = json.dumps({"card": "made up", "skip": 0, "runs": [run | {"train_loss": [1.0]} for run in runs]})
    (results / "scaling.json").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(("without_ms", "wanted"), [(95.0, "verified"), (90.0, "refuted")])
def test_a_nodes_overhead_is_what_the_iterations_take(results, without_ms, wanted):
    scaling(results, 8, 100.0, without_ms)
    assert verdict(results, "d-node") == wanted


def test_four_devices_are_not_eight(results):
    scaling(results, 4, 100.0, 95.0)
    found = entry(results, "d-node")
    assert (found["verdict"], found["figure"]) == ("not testable", None)
    assert found["seen"].endswith("on 4 devices Newton-Schulz took 5.0% of a step")


# (e) llm.c, (f) the record


def test_a_third_of_llmcs_tokens_is_measured_to_the_same_loss(results):
    found = entry(results, "e-log-muon-2024-10-10")
    assert (found["verdict"], round(found["figure"], 3)) == ("refuted", 0.36)


def test_muon_below_llmc_at_equal_tokens(results):
    made(results, "124m-muon-200-jax", 4.3)
    made(results, "124m-llmc-200-jax", 4.9)
    for kind in ("muon", "adamw"):
        seeds(results, kind, lambda seed: 0.0)
    assert verdict(results, "e-equal-tokens") == "verified"


def test_llmc_on_another_text_is_no_comparison(results):
    made(results, "124m-muon-200-jax", 4.3)
    other = {kind: [{"path": kind, "tokens": 10**8, "sha256": "another"}] for kind in ("train", "val")}
    made(results, "124m-llmc-200-jax", 4.9, shards=other)
    assert verdict(results, "e-equal-tokens") == "not testable"


def test_the_record_is_not_testable_and_its_extrapolation_is_marked(results):
    made(results, "124m-muon-200-jax", 4.3)
    found = entry(results, "f-record")
    assert (found["verdict"], found["figure"], found["command"]) == ("not testable", None, "launch/gpu8.sh")
    assert found["extrapolation"]["how"].startswith("EXTRAPOLATION, not a measurement")
