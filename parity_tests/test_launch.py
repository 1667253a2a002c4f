"""What starts a run on other machines: launch/gpu8.sh, slurm.sbatch, tpu_pod.sh and the Dockerfile.

srun, scontrol, gcloud and nvidia-smi are stand-ins on PATH that record how they were called; where they start
something, it runs on this machine, two processes on loopback for two nodes. Slow tests train.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jaxgpt.flags import Flags, recipe_and_flags
from parity_tests.programs import ROOT, config, metrics

LAUNCH = ROOT / "launch"
SCRIPTS = ("gpu8.sh", "slurm.sbatch", "tpu_pod.sh")
TOOLS = os.pathsep.join(["/usr/local/bin", "/usr/bin", "/bin"])
several = pytest.mark.skipif(not hasattr(Flags, "processes"), reason="jaxgpt.train has no --processes here")
checkout = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="git archive needs the repository")

PYTHON = """
import os, pathlib, sys
from stand_in import called

words = sys.argv[1:]
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "HOME")
called("python", words, {name: os.environ[name] for name in names if name in os.environ})
module = next(word for word in words if "." in word or word == "pytest")
for flag, made in (("--run", pathlib.Path.mkdir), ("--certificate", pathlib.Path.mkdir), ("--out", pathlib.Path.touch)):
    if flag in words and module not in ("jaxgpt.compare", "jaxgpt.corpus"):
        made(pathlib.Path(words[words.index(flag) + 1]), exist_ok=True)
sys.exit(int(os.environ.get("FAILS_" + module.replace(".", "_"), "0")))
"""
SRUN = """
import os, subprocess, sys
from stand_in import called

words = sys.argv[1:]
called("srun", words, {})
command = [word for word in words if not word.startswith("--cpus") and not word.startswith("--kill")]
if "SRUN_ENDS" in os.environ:
    sys.exit(int(os.environ["SRUN_ENDS"]))
said = {"SLURM_STEP_NODELIST": "localhost,localhost", "SLURM_STEP_NUM_NODES": "2"}
places = [{"SLURM_PROCID": str(i), "SLURM_LOCALID": "0"} for i in range(int(os.environ["SLURM_NTASKS"]))]
tasks = [subprocess.Popen(command, env=os.environ | said | place) for place in places]
sys.exit(max(task.wait() for task in tasks))
"""
GCLOUD = """
import os, pathlib, subprocess, sys
from stand_in import called

words = sys.argv[1:]
called("gcloud", words, {})
value = lambda flag: words[words.index(flag) + 1]
homes = [pathlib.Path(os.environ["WORKERS"], str(i)) for i in range(2)]
if "scp" in words:
    for home in homes:
        home.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", words[words.index("scp") + 1], home], check=True)
    sys.exit()
workers = range(2) if value("--worker") == "all" else [int(value("--worker"))]
shared = {"SLURM_JOB_ID": os.environ.get("JOB", "7"), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
codes = [
    subprocess.Popen(
        ["bash", "-c", value("--command")],
        cwd=homes[i],
        env=os.environ | shared | {"HOME": str(homes[i]), "SLURM_PROCID": str(i), "SLURM_LOCALID": "0"},
    )
    for i in workers
]
sys.exit(max(code.wait() for code in codes))
"""
SCONTROL = """
import sys
from stand_in import called

called("scontrol", sys.argv[1:], {})
print("127.0.0.1\\n127.0.0.1" if "hostnames" in sys.argv else "")
"""
NVIDIA_SMI = "from stand_in import called"
STAND_IN = """
import json, os

def called(name, words, environment):
    line = json.dumps([name, words, environment]) + chr(10)
    with open(os.environ["CALLS"], "a") as file:
        file.write(line)
"""


class Machine:
    """A folder with stand-ins on its PATH, where a script is run as a user would."""

    def __init__(self, folder: Path, *stand_ins: str):
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()
        (self.bin / "stand_in.py").write_text(STAND_IN, encoding="utf-8")
        sources = {"python": PYTHON, "srun": SRUN, "gcloud": GCLOUD, "scontrol": SCONTROL, "nvidia-smi": NVIDIA_SMI}
        for name in stand_ins:
            (self.bin / name).write_text(f"#!{sys.executable}\n{sources[name]}", encoding="utf-8")
            (self.bin / name).chmod(0o755)

    def run(self, script: str, *words: str, **variables: str) -> subprocess.CompletedProcess:
        here = {"PATH": f"{self.bin}{os.pathsep}{TOOLS}", "CALLS": str(self.folder / "calls"), "HOME": str(self.folder)}
        here |= {"WORKERS": str(self.folder / "workers"), "GIT_CONFIG_COUNT": "1"}
        here |= {"GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
        command = ["bash", str(LAUNCH / script), *words]
        return subprocess.run(
            command, env=here | variables, cwd=self.folder, capture_output=True, text=True, timeout=170
        )

    def calls(self, name: str = "python") -> list[list[str]]:
        """The words of each call of a stand-in so far, in order."""
        return [words for called, words, _ in self._recorded() if called == name]

    def environments(self, name: str = "python") -> list[dict[str, str]]:
        return [environment for called, _, environment in self._recorded() if called == name]

    def _recorded(self) -> list:
        file = self.folder / "calls"
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def modules(calls: list[list[str]]) -> list[str]:
    """Which program each call of python is."""
    return [next(word for word in words if re.fullmatch(r"(jaxgpt|torch_ref)\.\w+|pytest", word)) for words in calls]


def value(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def tool(name: str) -> str:
    """A checker of the extra `dev`."""
    found = shutil.which(name) or shutil.which(name, path=Path(sys.executable).parent)
    if found is None:
        pytest.skip(f"{name} isn't installed: pip install -e '.[dev]'")
    return found


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


@several
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
@pytest.mark.parametrize("trainer", [pytest.param("jaxgpt", marks=several), "torch_ref"])
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


@several
@checkout
def test_jaxgpt_understands_the_words_of_a_worker(cloud):
    tpu_pod(cloud, FLAGS="--steps 7")
    assert recipe_and_flags(cloud.calls()[-1][2:], "", "tiny")[0].schedule.steps == 7


def test_stopping_asks_all_workers(cloud):
    for home in ("0", "1"):
        (cloud.folder / "workers" / home / "jaxgpt").mkdir(parents=True)
    assert tpu_pod(cloud, "stop", THERE="jaxgpt").returncode == 0
    (words,) = cloud.calls("gcloud")
    assert (value(words, "--worker"), "pkill --signal TERM" in value(words, "--command")) == ("all", True)


@pytest.mark.parametrize("name", ["TPU", "ZONE", "RUN"])
def test_what_is_needed_is_named(cloud, name):
    ended = tpu_pod(cloud, **{name: ""})
    assert (ended.returncode != 0, f"{name}: is the" in ended.stderr, cloud.calls("gcloud")) == (True, True, [])


@pytest.mark.slow
@several
@checkout
def test_two_workers_train_one_run(cloud, environment):
    """Each a process on loopback, told its place by SLURM's variables instead of a TPU's."""
    here = environment | {"RECIPE": "tiny", "FLAGS": "--steps 3 --val-tokens 1024", "PYTHON": sys.executable}
    here.pop("PATH")
    ended = tpu_pod(cloud, **(here | {"JOB": str(os.getpid())}))
    assert ended.returncode == 0, ended.stderr
    assert (metrics(cloud.folder / "run")[-1]["step"], len(config(cloud.folder / "run")["devices"])) == (3, 2)


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
