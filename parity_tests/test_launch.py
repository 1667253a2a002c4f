"""What starts a run elsewhere: the checks of all of launch/, launch/gpu8.sh and the Dockerfile. A slow test trains."""

import json
import os
import re
import subprocess
import sys
import tomllib

import pytest

from jaxgpt.flags import recipe_and_flags
from parity_tests.programs import ROOT, config, metrics
from parity_tests.stand_ins import LAUNCH, Machine, modules, tool, value

SCRIPTS = ("gpu8.sh", "slurm.sbatch", "tpu_pod.sh")


# All of them


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script):
    checked = subprocess.run([tool("shellcheck"), "--shell", "bash", LAUNCH / script], capture_output=True, text=True)
    assert checked.stdout == ""


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_variable_is_explained_and_every_explained_one_is_used(script):
    """Those that a user may set: of the form ${NAME:-default} or ${NAME:?message}."""
    text = (LAUNCH / script).read_text(encoding="utf-8")
    used = set(re.findall(r"\$\{([A-Z_]+):[-?]", text)) - {"OUT:?", "BASH_SOURCE"}
    explained = set(re.findall(r"^#   ([A-Z_]+) ", text, re.MULTILINE))
    assert {name for name in used if not name.startswith("SLURM_")} == explained


@pytest.mark.parametrize("script", ["gpu8.sh", "tpu_pod.sh"])
def test_a_script_can_be_started(script):
    assert os.access(LAUNCH / script, os.X_OK)


# One node


@pytest.fixture
def node(tmp_path) -> Machine:
    return Machine(tmp_path, "python")


def gpu8(node: Machine, **variables: str) -> subprocess.CompletedProcess:
    return node.run("gpu8.sh", **({"OUT": str(node.folder / "out"), "CERTIFICATES": "cpu"} | variables))


def test_a_node_does_all_in_order(node):
    ended = gpu8(node)
    assert ended.returncode == 0, ended.stderr
    wanted = ["jaxgpt.corpus", "jaxgpt.bridge", "jaxgpt.train", "torch_ref.train", "jaxgpt.compare", "pytest"]
    assert modules(node.calls()) == wanted


def test_both_frameworks_train_the_same_from_the_same_weights(node):
    gpu8(node, STEPS="5", FLAGS="--val-every 2", DATA="t_*.bin", VAL_DATA="v_*.bin")
    jax, torch = (words for words in node.calls() if "--init-from" in words)
    apart = [(a, b) for a, b in zip(jax[2:], torch[torch.index("torch_ref.train") + 1 :], strict=True) if a != b]
    assert apart == [(str(node.folder / "out" / "jax"), str(node.folder / "out" / "torch"))]


def test_the_trainers_understand_their_words(node):
    gpu8(node, STEPS="5", FLAGS="--val-every 2", SEED="3")
    (words,) = (words for words in node.calls() if "jaxgpt.train" in words)
    recipe, flags, _ = recipe_and_flags(words[2:], "", "tiny")
    assert (recipe.name, recipe.schedule.steps, recipe.data.val_every) == ("muon-2024-10-12", 5, 2)
    assert (flags.mesh, flags.seed, flags.init_from) == (8, 3, str(node.folder / "out" / "weights.safetensors"))


def test_what_is_finished_is_left_alone(node):
    gpu8(node)
    before = len(node.calls())
    assert gpu8(node).returncode == 0
    again = node.calls()[before:]
    assert modules(again) == ["jaxgpt.corpus", "jaxgpt.train", "torch_ref.train", "jaxgpt.compare"]
    assert ["--resume" in words for words in again] == [False, True, True, False]


def test_a_trainer_that_fails_ends_it_with_its_code(node):
    assert gpu8(node, FAILS_jaxgpt_train="3").returncode == 3
    assert modules(node.calls())[-1] == "jaxgpt.train"


def test_a_red_ladder_is_climbed_again(node):
    assert gpu8(node, FAILS_pytest="1").returncode == 1
    assert gpu8(node).returncode == 0
    assert modules(node.calls()).count("pytest") == 2


def test_own_shards_are_taken_instead_of_fineweb(node):
    gpu8(node, DATA="t_*.bin", VAL_DATA="v_*.bin")
    assert "jaxgpt.corpus" not in modules(node.calls())
    assert [value(words, "--data") for words in node.calls() if "--data" in words] == ["t_*.bin"] * 2


def test_training_shards_without_validation_shards_are_named(node):
    ended = gpu8(node, DATA="t_*.bin")
    assert (ended.returncode != 0, "VAL_DATA" in ended.stderr, node.calls()) == (True, True, [])


def test_the_published_curve_is_laid_over(node):
    gpu8(node)
    (words,) = (words for words in node.calls() if "jaxgpt.compare" in words)
    assert value(words, "--published") == "muon-2024-10-10"


def test_one_gpu_needs_no_torchrun(node):
    gpu8(node, GPUS="1")
    assert [words for words in node.calls() if "torch.distributed.run" in words] == []


def test_where_a_gpu_is_the_ladder_is_climbed_there_too(tmp_path):
    machine = Machine(tmp_path, "python", "nvidia-smi")
    machine.run("gpu8.sh", OUT=str(tmp_path / "out"))
    ladders = [words for words in machine.calls() if "pytest" in words]
    assert ["--device" in words for words in ladders] == [False, True]


@pytest.mark.slow
def test_a_node_trains_both_frameworks_and_goes_on(tmp_path, environment):
    """Two virtual devices, two gloo processes: a minute on two cores."""
    out = tmp_path / "out"
    tests = "parity_tests/test_rung_00_tokens.py"
    here = environment | {"RECIPE": "tiny", "GPUS": "2", "STEPS": "4", "OUT": str(out), "PYTHON": sys.executable}
    here |= {"CERTIFICATES": "cpu", "TESTS": tests}
    for flags in ("--stop-at 2 --val-tokens 1024", "--stop-at 4"):
        command = ["bash", str(LAUNCH / "gpu8.sh")]
        ended = subprocess.run(command, env=here | {"FLAGS": flags}, capture_output=True, text=True, timeout=200)
        assert ended.returncode == 0, ended.stderr
    ends = [metrics(out / framework)[-1] for framework in ("jax", "torch")]
    assert [line["step"] for line in ends] == [4, 4]
    assert abs(ends[0]["val_loss"] - ends[1]["val_loss"]) < 1e-5
    assert len({config(out / framework)["init_sha256"] for framework in ("jax", "torch")} - {None}) == 1
    assert (out / "certificate-cpu" / "certificate.html").exists()
    assert (out / "report" / "report.md").exists()


# The container


def test_hadolint_finds_nothing():
    checked = subprocess.run([tool("hadolint"), LAUNCH / "Dockerfile"], capture_output=True, text=True)
    assert checked.stdout == ""


def copied() -> list[str]:
    """What the Dockerfile takes from the project's folder."""
    text = (LAUNCH / "Dockerfile").read_text(encoding="utf-8")
    return [name for line in re.findall(r"^COPY (.*)", text, re.MULTILINE) for name in line.split()[:-1]]


def test_what_the_container_takes_is_there():
    assert [name for name in copied() if not (ROOT / name).exists()] == []


def test_the_container_takes_every_package_and_every_test():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert {name.split(".")[0] for name in declared} | {"parity_tests", "launch"} <= set(copied())


def test_every_argument_of_the_container_is_explained():
    text = (LAUNCH / "Dockerfile").read_text(encoding="utf-8")
    assert set(re.findall(r"^ARG ([A-Z_]+)=", text, re.MULTILINE)) == set(
        re.findall(r"^#   ([A-Z_]+) ", text, re.MULTILINE)
    )


def test_the_container_runs_what_is_there_and_can_be_started():
    text = (LAUNCH / "Dockerfile").read_text(encoding="utf-8")
    (command,) = re.findall(r"^CMD (.*)", text, re.MULTILINE)
    assert os.access(ROOT / json.loads(command)[0], os.X_OK)
