"""Both trainers as a user runs them: what they print and what they write.

Nothing here imports a framework: each run is a process of its own, in a folder of its own. Many short runs of one
trainer are children of one process that has imported it (`drive`): importing a framework takes longer than they do.
"""

import dataclasses
import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from jaxgpt.recipes import RECIPES
from jaxgpt.shards import write_shard
from parity_tests.programs import KEYS, LOSS, TRAINERS, Ended, config, data_in, losses, metrics

# What is trained where nobody says what


@pytest.fixture(scope="module", params=TRAINERS)
def chosen(request, tmp_path_factory, run_all) -> dict[str, Ended]:
    """Runs without --recipe or --data, each of which stops at a folder that is there already."""
    folder = tmp_path_factory.mktemp("chosen")
    (folder / "taken").mkdir()
    for kind in ("train_000001", "val_000000"):
        write_shard(folder / f"data/fineweb10B/fineweb_{kind}.bin", np.full(1200, 50256))
    words = ["--run", "taken", "--data.sequences", "1", "--val-tokens", "1024"]
    ends = run_all(folder, request.param, {"shards and a GPU": words, "shards alone": words})
    assert all("taken exists already" in ended.stderr for ended in ends.values()), ends
    return ends


def test_without_a_gpu_tiny_is_chosen_and_the_first_line_says_so(chosen):
    said = chosen["shards alone"].stdout
    assert re.match("No recipe or data named: training `tiny` .*--recipe muon-2024-10-12", said)


def test_where_shards_and_a_gpu_are_the_real_recipe_runs_on_them(chosen):
    assert chosen["shards and a GPU"].stdout == ""


# Runs that train a little

TWO_LAYERS = "--model.layers 2 --model.width 64"
TOO_FAST = f"{TWO_LAYERS} --optimizer.lr 1e30 --optimizer.embedding-lr 1e30"


@dataclasses.dataclass(frozen=True)
class Small:
    """The folder of a trainer's small runs, and how each of them ended."""

    folder: Path
    ends: dict[str, Ended]


@pytest.fixture(scope="module", params=TRAINERS)
def small(request, shards, tmp_path_factory, run_all) -> Small:
    folder = tmp_path_factory.mktemp("small")
    start = data_in(shards)
    jobs = {
        "layers": f"{start} {TWO_LAYERS} --run layers --stop-at 1 --optimizer.lr 0.001 --val-every 7",
        "nan": f"{start} {TOO_FAST} --run nan",
        "nan weights": f"{start} {TWO_LAYERS} --run nan-weights --init-from {shards}/nan.safetensors",
    }
    return Small(folder, run_all(folder, request.param, {name: words.split() for name, words in jobs.items()}))


def test_overrides_are_recorded_and_nothing_else_is(small):
    assert small.ends["layers"].code == 0, small.ends["layers"].stderr
    want = {"model.layers": 2, "model.width": 64, "optimizer.lr": 0.001, "data.val_every": 7, "data.val_tokens": 1024}
    assert config(small.folder / "layers")["overrides"] == want


def test_a_model_of_two_layers_has_two(small):
    with safe_open(small.folder / "layers" / "weights.safetensors", framework="numpy") as file:
        assert {name.split(".")[2] for name in file.keys() if ".h." in name} == {"0", "1"}  # noqa: SIM118


def test_a_loss_that_is_not_finite_ends_the_run_with_3_and_says_where(small, shards):
    ended = small.ends["nan"]
    what = r"(?:train_loss|grad_norm) of step (\d) is (?:nan|inf)"
    said = rf"error: {what}: its tokens start at (\d+) of {shards}/text_train_000001.bin; .*\n"
    found = re.fullmatch(said, ended.stderr)
    assert ended.code == 3
    assert found, ended.stderr
    assert int(found[2]) == (int(found[1]) - 1) % 2 * 1024  # the shard holds two steps


def test_every_step_before_the_one_that_is_not_finite_is_logged(small):
    (step,) = re.findall(r" of step (\d)", small.ends["nan"].stderr)
    assert [line["step"] for line in metrics(small.folder / "nan") if "train_loss" in line] == list(range(1, int(step)))


@pytest.mark.parametrize("name", ["nan", "nan weights"])
def test_what_is_logged_is_finite(small, name):
    values = [value for line in metrics(small.folder / name.replace(" ", "-")) for value in line.values()]
    assert np.isfinite(values).all()


def test_a_validation_that_is_not_finite_ends_the_run_with_3_too(small):
    ended = small.ends["nan weights"]
    assert ended.code == 3
    assert re.fullmatch("error: val_loss after 0 steps is nan: .*weights.*\n", ended.stderr), ended.stderr


def test_a_run_that_broke_off_leaves_no_weights(small):
    assert not (small.folder / "nan" / "weights.safetensors").exists()


def test_two_processes_cannot_both_write_one_run_folder(shards, tmp_path, run_all):
    words = f"{data_in(shards)} {TWO_LAYERS} --run runs/one --stop-at 1".split()
    ends = run_all(tmp_path, "jaxgpt.train", {"first": words, "second": words}, together=True)
    assert sorted(ended.code for ended in ends.values()) == [0, 2]
    (refused,) = (ended.stderr for ended in ends.values() if ended.code)
    assert refused.startswith("error: --run runs/one exists already and is left as it is: give another name, or ")
    assert [line["step"] for line in metrics(tmp_path / "runs" / "one")] == [0, 1, 1]


# The first command of the README, on 8 devices and on others

VALIDATION = "--val-every 3 --val-tokens 4096"


@dataclasses.dataclass(frozen=True)
class Readme:
    """The folder in which `python -m jaxgpt.train` ran, and how the runs ended."""

    folder: Path
    ends: dict[str, Ended]


@pytest.fixture(scope="module")
def readme(tmp_path_factory, run, run_all) -> Readme:
    folder = tmp_path_factory.mktemp("readme")
    ends = {"8": run(folder, "jaxgpt.train", *on_mesh(8))}
    again = f"--mesh 8 --steps 6 --stop-at 4 --run again {VALIDATION}".split()
    ends |= run_all(folder, "jaxgpt.train", {"1": on_mesh(1), "again": again}, together=True)
    for ended in ends.values():
        assert ended.code == 0, ended.stderr
    return Readme(folder, ends)


def on_mesh(devices: int) -> list[str]:
    return f"--mesh {devices} --steps 6 --run mesh{devices} {VALIDATION}".split()


@pytest.fixture(scope="module")
def meshes(readme, run_all) -> Path:
    """The folder of `readme` with runs on 2 and on 4 devices too."""
    ends = run_all(readme.folder, "jaxgpt.train", {"2": on_mesh(2), "4": on_mesh(4)}, together=True)
    for ended in ends.values():
        assert ended.code == 0, ended.stderr
    return readme.folder


def test_losses_on_8_devices_are_those_on_1(readme):
    one = losses(readme.folder / "mesh1")
    assert {step for kind, step in one if kind == "train_loss"} == {1, 2, 3, 4, 5, 6}
    assert {step for kind, step in one if kind == "val_loss"} == {0, 3, 6}
    assert losses(readme.folder / "mesh8") == pytest.approx(one, rel=0, abs=LOSS)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4])
def test_losses_do_not_depend_on_the_mesh(meshes, devices):
    one = losses(meshes / "mesh1")
    assert losses(meshes / f"mesh{devices}") == pytest.approx(one, rel=0, abs=LOSS)


def test_six_steps_of_tiny_learn(readme):
    logged = losses(readme.folder / "mesh8")
    assert 5.3 < logged["val_loss", 0] < 5.7
    assert logged["val_loss", 6] < 4.5


def test_the_first_line_says_that_tiny_was_chosen_and_what_to_type_for_the_real_one(readme):
    first = readme.ends["8"].stdout.splitlines()[0]
    assert "`tiny`" in first
    assert "python -m jaxgpt.corpus fineweb --shards 35, then --recipe muon-2024-10-12 --mesh 8" in first


def test_the_last_lines_name_the_val_loss_the_folder_and_the_plot(readme):
    loss = losses(readme.folder / "mesh8")["val_loss", 6]
    assert readme.ends["8"].stdout.splitlines()[-3:] == [
        f"val loss {loss:.4f} after 6 steps",
        "run mesh8",
        "plot mesh8/curve.png",
    ]


def test_the_plot_is_a_png(readme):
    assert (readme.folder / "mesh8" / "curve.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_quiet_run_says_nothing_on_stderr(readme):
    assert readme.ends["8"].stderr == ""


def test_a_runs_folder_holds_these_files(readme):
    files = {"config.json", "metrics.jsonl", "weights.safetensors", "curve.png", "checkpoints", "lock"}
    assert {path.name for path in (readme.folder / "mesh8").iterdir()} == files


def test_config_says_what_decided_the_run(readme):
    assert config(readme.folder / "mesh8").keys() >= {
        "recipe",
        "overrides",
        "versions",
        "devices",
        "precision",
        "shards",
        "git_commit",
    }


def test_config_lists_the_devices(readme):
    assert config(readme.folder / "mesh8")["devices"] == ["cpu"] * 8


def test_config_holds_a_fingerprint_of_each_shard(readme):
    for kind in ("train", "val"):
        (shard,) = config(readme.folder / "mesh8")["shards"][kind]
        assert shard["sha256"] == hashlib.sha256((readme.folder / shard["path"]).read_bytes()).hexdigest()


def test_metrics_have_the_keys_of_the_design(readme):
    lines = metrics(readme.folder / "mesh8")
    assert set().union(*lines) == KEYS
    assert all(line.keys() == KEYS - {"val_loss"} for line in lines if "train_loss" in line)
    assert all(line.keys() == {"step", "tokens", "val_loss", "train_time_s"} for line in lines if "val_loss" in line)


def test_metrics_count_tokens(readme):
    assert all(line["tokens"] == line["step"] * 1024 for line in metrics(readme.folder / "mesh8"))


def test_steps_scale_the_warm_down(readme):
    schedule = config(readme.folder / "mesh8")["recipe"]["schedule"]
    whole = RECIPES["tiny"].schedule
    warmdown = round(6 * whole.warmdown / whole.steps)
    assert schedule == {"steps": 6, "warmup": 0, "warmdown": warmdown, "fall": "linear"}


def test_stop_at_leaves_the_schedule_as_it_is(readme):
    assert config(readme.folder / "again")["recipe"] == config(readme.folder / "mesh8")["recipe"]


def test_stop_at_ends_after_the_same_first_losses(readme):
    whole, stopped = (losses(readme.folder / name) for name in ("mesh8", "again"))
    first = {("train_loss", step): whole["train_loss", step] for step in (1, 2, 3, 4)}
    first |= {("val_loss", step): whole["val_loss", step] for step in (0, 3)}
    assert stopped.pop(("val_loss", 4)) > 0
    assert stopped == first


def test_a_first_start_compiles(readme):
    assert config(readme.folder / "mesh8")["compile"]["cache_misses"] > 0


def test_a_second_start_finds_its_executables_in_the_cache(readme):
    compiled = config(readme.folder / "again")["compile"]
    assert compiled["cache_hits"] >= 2
    assert compiled["cache_misses"] == 0


# Both trainers from the same weights


@pytest.fixture(scope="module")
def pair(tmp_path_factory, run) -> Path:
    """The folder with w.safetensors, and each trainer's run of 12 steps from it, named like the trainer."""
    folder = tmp_path_factory.mktemp("pair")
    ended = run(folder, "jaxgpt.bridge", "--recipe", "tiny", "--out", "w.safetensors")
    assert ended.code == 0, ended.stderr
    words = "--recipe tiny --init-from w.safetensors --steps 12 --val-every 4 --val-tokens 4096 --run"
    with ThreadPoolExecutor() as both:
        ends = both.map(lambda trainer: run(folder, trainer, *words.split(), trainer), TRAINERS)
        assert [(ended.code, ended.stderr) for ended in ends] == [(0, "")] * 2
    return folder


def test_both_trainers_from_the_same_weights_log_the_same_losses(pair):
    want = losses(pair / "torch_ref.train")
    assert len(want) == 12 + 4
    assert losses(pair / "jaxgpt.train") == pytest.approx(want, rel=0, abs=LOSS)


def test_both_trainers_write_the_same_keys(pair):
    ours, theirs = ([line.keys() for line in metrics(pair / trainer)] for trainer in TRAINERS)
    assert ours == theirs


def test_both_trainers_configs_agree_on_recipe_precision_and_shards(pair):
    ours, theirs = (config(pair / trainer) for trainer in TRAINERS)
    for key in ("recipe", "overrides", "precision", "shards"):
        assert ours[key] == theirs[key], key


@pytest.mark.parametrize(("trainer", "other"), [TRAINERS, pytest.param(*TRAINERS[::-1], marks=pytest.mark.slow)])
def test_weights_that_one_trainer_wrote_start_the_other(pair, run, trainer, other):
    weights = f"{trainer}/weights.safetensors"
    words = f"--recipe tiny --init-from {weights} --run from-{trainer} --stop-at 1 --val-tokens 4096"
    ended = run(pair, other, *words.split())
    assert ended.code == 0, ended.stderr
    left, taken = losses(pair / trainer)["val_loss", 12], losses(pair / f"from-{trainer}")["val_loss", 0]
    assert taken == pytest.approx(left, rel=0, abs=LOSS)
