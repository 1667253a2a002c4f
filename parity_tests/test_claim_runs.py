"""The programme that trains what the claims rest on: which runs it declares, where it puts them, how it goes on.

Most tests have a trainer that writes a run's folder without training; a slow one has both real ones.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import claim_runs
from benchmarks.claim_plan import SEEDS, ClaimRun, plan, weights
from benchmarks.gpu_slots import starts
from jaxgpt.errors import BadInput
from jaxgpt.flags import overrides, recipe_and_flags
from jaxgpt.recipes import RECIPES
from jaxgpt.shards import write_shard
from parity_tests.programs import ROOT

STUB = """
import dataclasses, json, os, signal, sys, time
from pathlib import Path
from jaxgpt.flags import recipe_and_flags

recipe, flags, _ = recipe_and_flags(sys.argv[1:], "python -m stub.train", "tiny")
folder = Path(flags.run)
folder.mkdir(exist_ok=flags.resume)
(folder / "checkpoints").mkdir(exist_ok=True)
calls = Path(os.environ["STUB_CALLS"])
names = ("CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_MEM_FRACTION")
said = {"words": sys.argv[1:], "began": time.time()} | {name: os.environ.get(name) for name in names}
(calls / f"{folder.name}.json").write_text(json.dumps(said))
config = {"trainer": "stub", "recipe": dataclasses.asdict(recipe), "seed": flags.seed}
config["flags"] = dataclasses.asdict(flags)
(folder / "config.json").write_text(json.dumps(config))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
time.sleep(float(os.environ.get("STUB_SECONDS", "0")) * (not flags.resume))
if folder.name in os.environ.get("STUB_FAILS", ""):
    sys.exit("no such thing")
loss = 5 + abs(recipe.optimizer.lr - 0.002)
rows = [{"step": s, "tokens": s * recipe.step_tokens, "val_loss": loss} for s in (0, recipe.schedule.steps)]
(folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
(folder / "weights.safetensors").write_bytes(bytes(1000))
(calls / f"{folder.name}.json").write_text(json.dumps(said | {"ended": time.time()}))
"""
TINY = ("--recipe", "tiny", "--steps", "2")


def stub(name: str, *words: str, small: bool = False, best_of: tuple[str, ...] = (), seconds: float = 1.0) -> ClaimRun:
    return ClaimRun(name, "stub", (*TINY, *words), "w", seconds, small, best_of)


SWEEP = [stub(f"lr{lr}", "--optimizer.lr", lr) for lr in ("0.001", "0.002", "0.004")]
TUNED = stub("tuned", best_of=tuple(run.name for run in SWEEP), seconds=9.0)
SMALL = [stub(f"small{i}", small=True) for i in range(3)]


@pytest.fixture
def flags(tmp_path, monkeypatch) -> claim_runs.Flags:
    """Of a folder with shards, initial weights that are there already, and the trainer `stub`."""
    for package in ("stub", "calls"):
        (tmp_path / package).mkdir()
    (tmp_path / "stub" / "train.py").write_text(STUB, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("STUB_CALLS", str(tmp_path / "calls"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    out = tmp_path / "results" / "runs"
    (claim_runs.unfinished_folder(out) / "weights").mkdir(parents=True)
    (claim_runs.unfinished_folder(out) / "weights" / "w.safetensors").write_bytes(b"weights")
    for kind in ("train", "val"):
        write_shard(tmp_path / f"text_{kind}_0.bin", np.arange(200, dtype=np.uint16))
    return claim_runs.Flags(str(tmp_path / "text_train_*.bin"), str(tmp_path / "text_val_*.bin"), out)


def calls(flags: claim_runs.Flags, name: str) -> dict:
    return json.loads((flags.out.parents[1] / "calls" / f"{name}.json").read_text(encoding="utf-8"))


def with_(flags: claim_runs.Flags, **fields) -> claim_runs.Flags:
    return claim_runs.Flags(**(vars(flags) | fields))


# What is declared


@pytest.mark.parametrize("run", plan(), ids=lambda run: run.name)
def test_a_declared_run_is_one_that_both_trainers_would_take(run):
    recipe_and_flags([*run.words, "--mesh", "1"], "python -m jaxgpt.train", "tiny")


def test_both_frameworks_get_the_same_flags():
    words = {run.name: run.words for run in plan()}
    pairs = [(name, name.replace("-jax", "-torch")) for name in words if name.replace("-jax", "-torch") in words]
    assert [words[jax] == words[torch] for jax, torch in pairs if jax != torch] == [True] * (2 + 2 * len(SEEDS))


def test_muon_and_adamw_differ_in_the_hidden_matrices_and_the_schedule_alone():
    recipes = [
        recipe_and_flags(list(run.words), "", "tiny")[0]
        for run in plan()
        if run.name.endswith("00-jax") and "llmc" not in run.name
    ]
    apart = {name for r in recipes for name in overrides(recipes[0], r) if name.startswith("optimizer")}
    assert apart == {"optimizer.kind", "optimizer.lr", "optimizer.hidden_betas"}
    assert len({(r.model, r.data) for r in recipes}) == 1


def test_adamw_has_the_published_settings():
    run = next(run for run in plan() if run.name == "124m-adamw-300-jax")
    recipe, published = recipe_and_flags(list(run.words), "", "tiny")[0], RECIPES["opt-adam-2024-10-29"]
    names = ("kind", "lr", "hidden_betas", "hidden_weight_decay", "embedding_lr", "betas", "eps", "weight_decay")
    assert [getattr(recipe.optimizer, n) for n in names] == [getattr(published.optimizer, n) for n in names]
    assert recipe.schedule == published.schedule.scaled(300)


def test_the_small_model_has_about_20_million_parameters_and_heads_of_64():
    run = next(run for run in plan() if run.name.startswith("20m"))
    model = recipe_and_flags(list(run.words), "", "tiny")[0].model
    assert (model.parameters, model.head_width) == (19_169_280, 64)


def test_every_seed_has_weights_of_its_own():
    starts_of = {run.weights for run in plan() if run.name.startswith("20m-muon")}
    assert (len(starts_of), len(set(weights().values()))) == (len(SEEDS), len(SEEDS) + 2)
    assert {run.weights for run in plan()} == weights().keys()


# Which run goes where


def test_large_runs_get_a_gpu_each():
    assert [(run.name, gpu) for run, gpu in starts(SWEEP, [3, 3], 3, (), ())] == [("lr0.001", 0), ("lr0.002", 1)]


def test_small_runs_share_gpus_evenly():
    assert [gpu for _, gpu in starts(SMALL, [3, 3], 3, (), ())] == [0, 1, 0]


def test_no_gpu_takes_more_small_runs_than_it_has_slots():
    assert len(starts(SMALL, [2], 2, (), ())) == 2


def test_a_small_run_does_not_go_before_a_large_one_that_waits_for_a_gpu():
    assert starts([SWEEP[0], *SMALL], [2], 3, (), ()) == []


def test_a_tuned_run_waits_for_all_it_is_tuned_by():
    assert starts([TUNED], [3], 3, {"lr0.001", "lr0.002"}, {"lr0.001", "lr0.002"}) == []


def test_a_gpu_is_kept_for_a_tuned_run_once_its_first_one_has_ended():
    assert starts([TUNED, *SMALL], [3], 3, {"lr0.001"}, {"lr0.001"}) == []
    assert len(starts([TUNED, *SMALL], [3], 3, (), ())) == 3


def test_a_tuned_run_goes_by_those_that_came_to_their_end():
    assert starts([TUNED], [3], 3, {"lr0.001"}, {run.name for run in SWEEP}) == [(TUNED, 0)]


def test_a_tuned_run_whose_others_all_failed_is_not_begun():
    assert starts([TUNED], [3], 3, (), {run.name for run in SWEEP}) == []


# How they are run


def test_a_tuned_run_has_the_learning_rate_of_the_lowest_last_loss(flags):
    assert claim_runs.train([*SWEEP, TUNED], {}, with_(flags, gpus=2)) == []
    words = calls(flags, "tuned")["words"]
    assert words[words.index("--optimizer.lr") + 1] == "0.002"


def test_of_a_finished_run_configuration_and_metrics_stay(flags):
    claim_runs.train(SMALL[:1], {}, flags)
    kept = [path.relative_to(flags.out.parent) for path in sorted(flags.out.parent.rglob("*"))]
    assert kept == [
        Path("runs"),
        Path("runs/small0"),
        Path("runs/small0/config.json"),
        Path("runs/small0/metrics.jsonl"),
    ]


def test_each_run_sees_one_gpu(flags, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setenv("STUB_SECONDS", "1")
    claim_runs.train(SWEEP[:2], {}, with_(flags, gpus=2))
    assert [calls(flags, run.name)["CUDA_VISIBLE_DEVICES"] for run in SWEEP[:2]] == ["5", "7"]


def test_a_small_run_takes_a_quarter_of_a_gpus_memory(flags):
    claim_runs.train([SMALL[0], SWEEP[0]], {}, flags)
    taken = [calls(flags, name)["XLA_PYTHON_CLIENT_MEM_FRACTION"] for name in ("small0", "lr0.001")]
    assert taken == ["0.25", None]


def test_a_finished_run_is_left_alone(flags):
    claim_runs.train(SMALL[:1], {}, flags)
    before = calls(flags, "small0")
    claim_runs.train(SMALL[:2], {}, _weights_again(flags))
    assert (calls(flags, "small0"), calls(flags, "small1")["began"] > before["ended"]) == (before, True)


def test_a_run_of_that_name_with_other_settings_is_named(flags):
    claim_runs.train(SMALL[:1], {}, flags)
    with pytest.raises(BadInput, match=r"small0 holds a run with another optimizer\.lr"):
        claim_runs.train([stub("small0", "--optimizer.lr", "0.5")], {}, flags)


def test_what_the_budget_cut_short_goes_on(flags, monkeypatch):
    monkeypatch.setenv("STUB_SECONDS", "60")
    assert claim_runs.train(SMALL[:1], {}, with_(flags, budget=4.0)) == ["small0"]
    assert "ended" not in calls(flags, "small0")
    assert not flags.out.exists()
    assert claim_runs.train(SMALL[:1], {}, flags) == []
    assert "--resume" in calls(flags, "small0")["words"]


def test_a_run_that_fails_leaves_the_others_alone(flags, monkeypatch, capsys):
    monkeypatch.setenv("STUB_FAILS", "small1")
    assert claim_runs.train(SMALL, {}, flags) == ["small1"]
    assert "small1 ended with exit code 1: no such thing" in capsys.readouterr().err


def test_a_run_whose_weights_cannot_be_made_fails(flags, capsys):
    (claim_runs.unfinished_folder(flags.out) / "weights" / "w.safetensors").unlink()
    assert claim_runs.train(SMALL[:1], {"w": ("--recipe", "nothing")}, flags) == ["small0"]
    assert "no such recipe" in capsys.readouterr().err


def test_sigterm_ends_the_runs_too(flags, monkeypatch):
    """The child of a program that is stopped is stopped before it."""
    monkeypatch.setenv("STUB_SECONDS", "60")
    where = f"{flags.data!r}, {flags.val_data!r}, Path({str(flags.out)!r})"
    program = (
        f"from parity_tests.test_claim_runs import *\nclaim_runs.train(SMALL[:1], {{}}, claim_runs.Flags({where}))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    call = flags.out.parents[1] / "calls" / "small0.json"
    end = time.monotonic() + 60
    while not call.exists() and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert "ended" not in calls(flags, "small0")


def test_a_name_that_no_run_has_is_bad_input():
    with pytest.raises(BadInput, match="did you mean 124m-muon-200-jax"):
        claim_runs.select(plan(), ["124m-muon-20-jax"])


def test_a_pattern_takes_what_its_runs_wait_for():
    chosen = {run.name for run in claim_runs.select(plan(), ["124m-adamw-300-torch"])}
    assert chosen == {"124m-adamw-300-torch", *(f"124m-adamw-lr{letter}-100-jax" for letter in "ABC")}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpus", "0"], "--gpus 0: give at least 1"),
        (["--budget", "-1"], "--budget -1.0: give seconds above 0"),
        (["--only", "nothing"], "no run has that name"),
        (["--data", "nowhere_*.bin"], "--data nowhere_*.bin: no file matches"),
    ],
)
def test_bad_input_is_one_line(flags, capsys, words, said):
    usual = ["--data", flags.data, "--val-data", flags.val_data, "--out", str(flags.out)]
    with pytest.raises(SystemExit) as end:
        claim_runs.main([*usual, *words])
    assert (end.value.code, said in capsys.readouterr().err) == (2, True)


@pytest.mark.slow
def test_both_trainers_from_one_file_of_weights(flags, monkeypatch):
    """The real programmes: 20 s on two cores."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for kind in ("train", "val"):
        write_shard(Path(flags.data).parent / f"text_{kind}_0.bin", np.arange(3000, dtype=np.uint16) % 256)
    (claim_runs.unfinished_folder(flags.out) / "weights" / "w.safetensors").unlink()
    words = ("--recipe", "tiny", "--steps", "2", "--val-tokens", "1024")
    runs = [ClaimRun(trainer, trainer, words, "w", 1.0, True) for trainer in ("jaxgpt", "torch_ref")]
    assert claim_runs.train(runs, {"w": ("--recipe", "tiny", "--seed", "3")}, flags) == []
    configs = [json.loads((flags.out / r.name / "config.json").read_text(encoding="utf-8")) for r in runs]
    assert len({config["init_sha256"] for config in configs} - {None}) == 1


def _weights_again(flags: claim_runs.Flags) -> claim_runs.Flags:
    """The initial weights are there, as they would be made again."""
    folder = claim_runs.unfinished_folder(flags.out) / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "w.safetensors").write_bytes(b"weights")
    return flags
