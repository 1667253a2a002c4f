"""launch/slurm.sbatch and launch/tpu_pod.sh on stand-ins for SLURM and gcloud: two processes on loopback for two nodes.

Slow tests train.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxgpt.flags import recipe_and_flags
from parity_tests.programs import ROOT, config, metrics
from parity_tests.stand_ins import LAUNCH, Machine, modules, value

checkout = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="git archive needs the repository")


# Several nodes


JOB = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "1234", "SLURM_JOB_NODELIST": "localhost", "SLURM_NTASKS_PER_NODE": "1"}


@pytest.fixture
def cluster(tmp_path) -> Machine:
    return Machine(tmp_path, "python", "srun", "scontrol")


def sbatch(cluster: Machine, **variables: str) -> subprocess.CompletedProcess:
    return cluster.run("slurm.sbatch", **({"SLURM_SUBMIT_DIR": str(cluster.folder)} | JOB | variables))


def test_what_sbatch_reads_comes_before_the_first_command():
    lines = (LAUNCH / "slurm.sbatch").read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    asked = {line.split("--")[1].split("=")[0] for line in lines[:first] if line.startswith("#SBATCH --")}
    assert {"nodes", "ntasks-per-node", "gpus-per-node", "time", "signal", "requeue"} <= asked
    assert not any(line.startswith("#SBATCH") for line in lines[first:])


def test_there_is_a_task_for_each_gpu():
    text = (LAUNCH / "slurm.sbatch").read_text(encoding="utf-8")
    per_node = [re.search(f"--{name}-per-node=(.*)", text)[1] for name in ("ntasks", "gpus")]
    assert per_node[0] == per_node[1]


def test_each_task_is_a_process_of_jax_distributed(cluster):
    assert sbatch(cluster, RUN="r").returncode == 0
    assert [modules([words])[0] for words in cluster.calls()] == ["jaxgpt.train"] * 2
    assert [(value(w, "--processes"), value(w, "--mesh"), "--resume" in w) for w in cluster.calls()] == [
        ("auto", "2", False)
    ] * 2


def test_jaxgpt_understands_the_words_of_a_task(cluster):
    sbatch(cluster, RUN="r", FLAGS="--val-every 3", INIT_FROM="w.safetensors")
    recipe, flags, _ = recipe_and_flags(cluster.calls()[0][2:], "", "tiny")
    assert (recipe.data.val_every, flags.processes, flags.init_from) == (3, "auto", "w.safetensors")


def test_each_task_of_torch_is_told_its_place(cluster):
    sbatch(cluster, RUN="r", TRAINER="torch_ref")
    places = sorted(cluster.environments(), key=lambda each: each["RANK"])
    assert [each["RANK"] for each in places] == ["0", "1"]
    assert {each["MASTER_ADDR"] for each in places} == {"127.0.0.1"}
    assert [each["WORLD_SIZE"] + each["LOCAL_RANK"] + each["LOCAL_WORLD_SIZE"] for each in places] == ["201"] * 2


def test_torch_ref_understands_the_words_of_a_task(cluster):
    sbatch(cluster, RUN="r", TRAINER="torch_ref", FLAGS="--val-every 3")
    words = cluster.calls()[0]
    assert recipe_and_flags(words[words.index("torch_ref.train") + 1 :], "", "tiny")[1].mesh == 2


def test_a_run_that_is_there_goes_on_in_all_tasks(cluster):
    sbatch(cluster, RUN="r")
    sbatch(cluster, RUN="r")
    assert ["--resume" in words for words in cluster.calls()] == [False, False, True, True]


@pytest.mark.parametrize("code", ["143", "6"])
def test_a_run_that_was_stopped_or_lost_a_node_is_queued_again(cluster, code):
    assert sbatch(cluster, SRUN_ENDS=code).returncode == 0
    assert ["requeue", "1234"] in cluster.calls("scontrol")


@pytest.mark.parametrize("code", ["0", "2", "3"])
def test_a_run_that_ended_otherwise_is_not_queued_again(cluster, code):
    assert sbatch(cluster, SRUN_ENDS=code).returncode == int(code)
    assert cluster.calls("scontrol") == []


def test_a_job_is_not_queued_again_for_ever(cluster):
    ended = sbatch(cluster, SRUN_ENDS="143", SLURM_RESTART_COUNT="3", MOST_RESTARTS="3")
    assert (ended.returncode, cluster.calls("scontrol")) == (143, [])


def test_one_task_that_ends_does_not_end_those_that_still_save(cluster):
    sbatch(cluster)
    assert "--kill-on-bad-exit=0" in cluster.calls("srun")[0]


def test_another_trainer_is_bad_input(cluster):
    ended = sbatch(cluster, TRAINER="tensorflow")
    assert (ended.returncode, "TRAINER tensorflow: give jaxgpt or torch_ref" in ended.stderr) == (2, True)


def test_outside_a_job_it_says_how_to_start_it(cluster):
    ended = cluster.run("slurm.sbatch")
    assert (ended.returncode != 0, "sbatch launch/slurm.sbatch" in ended.stderr) == (True, True)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["jaxgpt", "torch_ref"])
def test_two_nodes_train_one_run(cluster, environment, trainer):
    """Each a process on loopback."""
    run = cluster.folder / "run"
    flags = "--steps 3 --val-tokens 1024"
    here = environment | {
        "RECIPE": "tiny",
        "RUN": str(run),
        "TRAINER": trainer,
        "FLAGS": flags,
        "PYTHON": sys.executable,
    }
    port = {"SLURM_JOB_ID": str(os.getpid())}  # JAX and the script derive a port from it
    here.pop("PATH")
    ended = sbatch(cluster, **(here | port))
    assert ended.returncode == 0, ended.stderr
    assert (metrics(run)[-1]["step"], len(config(run)["devices"])) == (3, 2)


# A TPU slice


@pytest.fixture
def cloud(tmp_path) -> Machine:
    return Machine(tmp_path, "python", "gcloud")


def tpu_pod(cloud: Machine, *words: str, **variables: str) -> subprocess.CompletedProcess:
    usual = {"TPU": "slice", "ZONE": "here-1", "RUN": str(cloud.folder / "run"), "SETUP": "true", "PYTHON": "python"}
    return cloud.run("tpu_pod.sh", *words, **(usual | variables))


@checkout
def test_all_workers_get_the_code_the_shards_and_the_run(cloud):
    ended = tpu_pod(cloud)
    assert ended.returncode == 0, ended.stderr
    assert modules(cloud.calls()) == ["jaxgpt.corpus"] * 2 + ["jaxgpt.train"] * 2
    trained = [words for words in cloud.calls() if "jaxgpt.train" in words]
    assert [(value(words, "--processes"), "--resume" in words) for words in trained] == [("auto", False)] * 2
    homes = {Path(each["HOME"]).name for each in cloud.environments()}
    assert homes == {"0", "1"}
    assert all((cloud.folder / "workers" / home / "jaxgpt" / "jaxgpt" / "train.py").exists() for home in homes)


@checkout
def test_every_call_names_the_slice_and_its_zone(cloud):
    tpu_pod(cloud, PROJECT="mine")
    calls = cloud.calls("gcloud")
    assert {tuple(words[:3]) for words in calls} == {("compute", "tpus", "tpu-vm")}
    assert {(value(w, "--zone"), value(w, "--project")) for w in calls} == {("here-1", "mine")}
    assert all("slice" in words or "slice:" in words for words in calls)


@checkout
def test_the_first_worker_alone_says_whether_the_run_is_there(cloud):
    tpu_pod(cloud)
    tpu_pod(cloud)
    asked = [words for words in cloud.calls("gcloud") if any("test -d" in word for word in words)]
    assert [value(words, "--worker") for words in asked] == ["0", "0"]
    trained = [words for words in cloud.calls() if "jaxgpt.train" in words]
    assert ["--resume" in words for words in trained] == [False, False, True, True]


@checkout
def test_what_is_set_up_is_not_set_up_again(cloud):
    for _ in range(2):
        tpu_pod(cloud, SETUP="echo set up >> ../set_up")
    assert (cloud.folder / "workers" / "0" / "set_up").read_text(encoding="utf-8") == "set up\n"


@checkout
def test_a_set_up_that_fails_ends_it(cloud):
    assert tpu_pod(cloud, SETUP="false").returncode != 0
    assert cloud.calls() == []


@checkout
def test_words_come_to_the_workers_as_they_were(cloud):
    run = str(cloud.folder / "a run; $HOME 'x'")
    tpu_pod(cloud, RUN=run, DATA="t_*.bin", VAL_DATA="v_*.bin", FLAGS="--val-every 3")
    words = cloud.calls()[-1]
    assert (value(words, "--run"), value(words, "--data"), value(words, "--val-every")) == (run, "t_*.bin", "3")


@checkout
def test_jaxgpt_understands_the_words_of_a_worker(cloud):
    tpu_pod(cloud, FLAGS="--steps 7")
    assert recipe_and_flags(cloud.calls()[-1][2:], "", "tiny")[0].schedule.steps == 7


def test_stopping_asks_all_workers(cloud):
    for home in ("0", "1"):
        (cloud.folder / "workers" / home / "jaxgpt").mkdir(parents=True)
    assert tpu_pod(cloud, "stop", THERE="jaxgpt").returncode == 0
    (words,) = cloud.calls("gcloud")
    assert value(words, "--worker") == "all"
    assert cloud.calls("pkill") == [["--signal", "TERM", "--full", "[j]axgpt.train"]] * 2


@pytest.mark.parametrize("name", ["TPU", "ZONE", "RUN"])
def test_what_is_needed_is_named(cloud, name):
    ended = tpu_pod(cloud, **{name: ""})
    assert (ended.returncode != 0, f"{name}: is the" in ended.stderr, cloud.calls("gcloud")) == (True, True, [])


@pytest.mark.slow
@checkout
def test_two_workers_train_one_run(cloud, environment):
    """Each a process on loopback, told its place by SLURM's variables instead of a TPU's."""
    here = environment | {"RECIPE": "tiny", "FLAGS": "--steps 3 --val-tokens 1024", "PYTHON": sys.executable}
    here.pop("PATH")
    ended = tpu_pod(cloud, **(here | {"JOB": str(os.getpid())}))
    assert ended.returncode == 0, ended.stderr
    assert (metrics(cloud.folder / "run")[-1]["step"], len(config(cloud.folder / "run")["devices"])) == (3, 2)
