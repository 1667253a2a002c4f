"""Both trainers as a user runs them: what they print, what they write, and what they say of bad input.

Nothing here imports a framework: each run is a process of its own, in a folder of its own. Many short runs of one
trainer are children of one process that has imported it (`drive`): importing a framework takes longer than they do.
"""

import dataclasses
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from jaxgpt.recipes import RECIPES
from jaxgpt.shards import write_shard

ROOT = Path(__file__).parents[1]
TRAINERS = ("jaxgpt.train", "torch_ref.train")
KEYS = {"step", "tokens", "train_loss", "val_loss", "lr", "grad_norm", "tokens_per_s", "train_time_s", "peak_bytes"}
LOSS = 1e-4
"""How far apart two runs may be at any logged step."""


class Ended(NamedTuple):
    """How a run ended, and whether anything in its folder differs from before."""

    code: int
    stdout: str
    stderr: str
    changed: bool = False


# Running a trainer


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    """A CPU without network or flags from outside; what is compiled is kept for this session's other tests."""
    outside = re.compile("(?i)_proxy$|^(JAX|XLA|HF|TORCH|MPL)|^(RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|COLUMNS)$")
    return {name: value for name, value in os.environ.items() if not outside.search(name)} | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
    }


@pytest.fixture(scope="session")
def run(environment) -> Callable[..., Ended]:
    """run(folder, module, words...): `python -m module words...` there."""

    def run(folder: Path, module: str, *words: str) -> Ended:
        command = [sys.executable, "-m", module, *words]
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180)
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    return run


@pytest.fixture(scope="session")
def run_all(environment) -> Callable[..., dict[str, Ended]]:
    """run_all(folder, module, jobs): name -> how the run of the job's words ended, one after another or `together`.

    A job whose name is a key of `BEFORE` has that done first.
    """

    def run_all(folder: Path, module: str, jobs: dict[str, list[str]], together: bool = False) -> dict[str, Ended]:
        program = f"from parity_tests.test_commands import drive; drive({module!r}, {jobs!r}, {together!r})"
        command = [sys.executable, "-c", program]
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
        assert ended.returncode == 0, ended.stderr
        return {name: Ended(*each) for name, each in json.loads(ended.stdout).items()}

    return run_all


def drive(module: str, jobs: dict[str, list[str]], together: bool) -> None:
    """Fork a child for each of the jobs, with the trainer imported and no device asked for; print how they ended."""
    trainer = importlib.import_module(module)
    ends = {}
    if together:
        children = {name: _child(trainer, name, words) for name, words in jobs.items()}
        ends = {name: _end(*child) for name, child in children.items()}
    else:
        for name, words in jobs.items():
            before = snapshot(Path())
            ended = _end(*_child(trainer, name, words))
            ends[name] = ended._replace(changed=snapshot(Path()) != before)
    print(json.dumps(ends))


def _child(trainer, name: str, words: list[str]) -> tuple[int, int, int]:
    """The child's process, and the files that take its stdout and stderr, which have no name on disk."""
    out, err = (os.memfd_create(kind) for kind in ("stdout", "stderr"))
    if child := os.fork():
        return child, out, err
    code = 1
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        BEFORE.get(name, lambda trainer: None)(trainer)
        trainer.main(words)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end(child: int, out: int, err: int) -> Ended:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = []
    for file in (out, err):
        os.lseek(file, 0, os.SEEK_SET)
        with open(file, encoding="utf-8") as text:
            said.append(text.read())
    return Ended(code, *said)


def snapshot(folder: Path) -> dict[str, object]:
    """Everything in a folder: name -> content, time of change."""
    return {
        str(path): (path.read_bytes() if path.is_file() else None, path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def losses(folder: Path) -> dict[tuple[str, int], float]:
    """(train_loss or val_loss, step) -> its value."""
    kinds = ("train_loss", "val_loss")
    return {(kind, line["step"]): line[kind] for line in metrics(folder) for kind in kinds if kind in line}


# Bad input


def fewer_gpus_than_asked(trainer) -> None:
    """A machine with one GPU; on PyTorch's side torchrun has started 8 processes there."""
    if trainer.__name__ == "jaxgpt.train":
        import jax

        jax.devices = lambda *_: [SimpleNamespace(platform="gpu", device_kind="fake")]
    else:
        import torch

        torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="8", LOCAL_WORLD_SIZE="8")


def another_run_takes_the_folder(trainer) -> None:
    """Just after this run has seen that its folder isn't there, another one makes it."""
    describe = trainer.describe

    def late(*arguments):
        Path("runs/taken").mkdir(parents=True)
        Path("runs/taken/config.json").write_text("another's", encoding="utf-8")
        return describe(*arguments)

    trainer.describe = late


def on_a_gpu(trainer) -> None:
    """This machine's one device is a GPU, as far as the program sees before it trains."""
    if trainer.__name__ == "jaxgpt.train":
        devices = SimpleNamespace(size=1, devices=np.array([SimpleNamespace(platform="gpu")]))
    else:
        devices = SimpleNamespace(size=1, rank=0, device=SimpleNamespace(type="cuda"))
    trainer.mesh.make_mesh = lambda _: devices


BEFORE = {
    "mesh larger than the machine": fewer_gpus_than_asked,
    "folder taken": another_run_takes_the_folder,
    "shards and a GPU": on_a_gpu,
}

DATA = "--data text_train_*.bin --val-data text_val_*.bin --val-tokens 1024"
MAKE = "python -m jaxgpt.corpus"

BAD_INPUT: dict[str, tuple[str, tuple[str, ...]]] = {
    # name: (command line, what its one line says: the value, the mend)
    "unknown recipe": ("--recipe tinny", ("--recipe tinny", "did you mean tiny?")),
    "recipe of another day": ("--recipe=muon-2024-10-21", ("muon-2024-10-21", "did you mean muon-2024-10-12?")),
    "unknown flag": ("--setps 6", ("--setps", "did you mean --steps?")),
    "unknown field": ("--recipe tiny --model.layer 4", ("--model.layer", "did you mean --model.layers?")),
    "stray word": ("tiny", ("tiny", "--help")),
    "flag without its value": ("--steps", ("--steps", "--help")),
    "steps of another type": ("--steps six", ("six", "--steps", "--help")),
    "rate of another type": ("--optimizer.lr fast", ("fast", "--optimizer.lr", "--help")),
    "unknown dtype": ("--dtype float16", ("float16", "--dtype", "float32", "--help")),
    "no steps": (f"{DATA} --steps 0", ("--steps 0", "at least 1")),
    "stop at 0": (f"{DATA} --stop-at 0", ("--stop-at 0", "at least 1")),
    "negative seed": (f"{DATA} --seed -1", ("--seed -1", "from 0 up to")),
    "seed too large": (f"{DATA} --seed 99999999999999999999", ("--seed 99999999999999999999", "2**32")),
    "mesh 0": (f"{DATA} --mesh 0", ("--mesh 0", "at least 1")),
    "mesh larger than the machine": (f"{DATA} --mesh 8", ("--mesh 8", "this machine has 1")),
    "micro-batch that doesn't divide": (f"{DATA} --micro-batch 5", ("--micro-batch 5", "16 sequences", "divisor")),
    "micro-batch 0": (f"{DATA} --micro-batch 0", ("micro_batch is 0", "at least 1")),
    "layers 0": (f"{DATA} --model.layers 0", ("model.layers is 0", "at least 1")),
    "heads that don't divide": (f"{DATA} --model.heads 3", ("model.heads 3", "model.width 128", "even multiple")),
    "more ids than rows": (f"{DATA} --model.vocab 200", ("model.token_ids 256", "model.vocab 200", "needs a row")),
    "schedule too short": (f"{DATA} --schedule.steps 9", ("9 steps", "schedule.warmdown", "at most")),
    "steps and schedule": (f"{DATA} --steps 9 --schedule.warmdown 3", ("--steps", "--schedule", "one of the two")),
    "rate below 0": (f"{DATA} --optimizer.lr -1", ("optimizer.lr is -1", "above 0")),
    "no shard matches": (f"{DATA} --data none_*.bin", ("--data none_*.bin", MAKE)),
    "no validation shard matches": (f"{DATA} --val-data none_*.bin", ("--val-data none_*.bin", MAKE)),
    "data without validation": ("--data text_val_000000.bin", ("--data text_val_000000.bin", "--val-data")),
    "validation without data": ("--val-data text_val_000000.bin", ("--val-data text_val_000000.bin", "--data")),
    "GPT-2's vocabulary without data": ("--recipe muon-2024-10-12", ("muon-2024-10-12", f"{MAKE} fineweb", "--data")),
    "shard of another magic": (f"{DATA} --data magic.bin", ("magic.bin starts with 20240801", "20240520", MAKE)),
    "shard of another version": (f"{DATA} --data version.bin", ("version.bin", "version 7, not 1", MAKE)),
    "shard cut short": (f"{DATA} --data cut.bin", ("cut.bin has 5000 bytes", "5224 bytes", "fetch or make it again")),
    "shard longer than it says": (f"{DATA} --data long.bin", ("long.bin has 5300 bytes", "5224 bytes", "again")),
    "shard shorter than its header": (f"{DATA} --data stub.bin", ("stub.bin has 100 bytes", "1024", "again")),
    "token outside the vocabulary": (
        f"{DATA} --data ids.bin",
        ("ids.bin", "token 256 at position 77", "larger"),
    ),
    "token outside, in validation": (f"{DATA} --val-data ids.bin", ("ids.bin", "--val-data", "token 256")),
    "shard shorter than a step": (f"{DATA} --data short.bin", ("short.bin holds 1024", "16 x 64 + 1", "longer")),
    "validation shard too short": (
        f"{DATA} --val-tokens 2048",
        ("text_val_000000.bin", "1100 tokens", "give 1088"),
    ),
    "validation of half a sequence": (f"{DATA} --val-tokens 100", ("--val-tokens 100", "context 64", "give 64")),
    "folder for a shard": (f"{DATA} --data folder", ("folder is a folder", "name the files in one")),
    "path through a file": (f"{DATA} --data stub.bin/*.bin", ("--data stub.bin/*.bin", "mend its path")),
    "run folder that exists": (f"{DATA} --run runs/old", ("--run runs/old exists already", "give another name")),
    "run where a file is": (f"{DATA} --run stub.bin", ("--run stub.bin exists already", "give another name")),
    "run below a file": (f"{DATA} --run stub.bin/new", ("--run stub.bin/new", "stub.bin is not a folder")),
    "no weights": (f"{DATA} --init-from none.safetensors", ("--init-from none.safetensors", "give a file of")),
    "a folder for weights": (f"{DATA} --init-from folder", ("--init-from folder", "give a file of")),
    "weights that aren't safetensors": (f"{DATA} --init-from stub.bin", ("--init-from stub.bin", "give a file of")),
    "weights cut short": (f"{DATA} --init-from cut.safetensors", ("--init-from cut.safetensors", "give a file of")),
    "weights of another shape": (
        f"{DATA} --init-from wide.safetensors",
        ("--init-from wide.safetensors", "wte.weight is (256, 192) there and (256, 128) in tiny", "overrides"),
    ),
    "weights of another recipe": (
        f"{DATA} --init-from modern.safetensors",
        ("--init-from modern.safetensors", "h.0.attn.c_attn.weight is missing", "recipe"),
    ),
    "weights of more layers": (
        f"{DATA} --init-from tiny.safetensors --model.layers 3",
        ("--init-from tiny.safetensors", "h.3.attn.c_attn.weight", "recipe"),
    ),
}

BAD_INPUT_OF_ONE = {
    "jaxgpt.train": {
        "mesh that doesn't divide a step": (f"{DATA} --mesh 3", ("--mesh 3", "16 sequences", "a divisor of 16")),
        "mesh that doesn't divide validation": (
            f"{DATA} --mesh 8 --val-tokens 768",
            ("--val-tokens 768", "--mesh 8", "give 512"),
        ),
    },
    "torch_ref.train": {
        "mesh without torchrun": (
            f"{DATA} --mesh 3",
            ("--mesh 3", "1 process started", "torchrun --nproc-per-node 3 -m -- torch_ref.train --mesh 3"),
        ),
    },
}


def bad_inputs(trainer: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    return BAD_INPUT | BAD_INPUT_OF_ONE[trainer]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """A folder with good and bad shards, weights, and a run."""
    folder = tmp_path_factory.mktemp("shards")
    ids = np.random.default_rng(0).integers(0, 256, 2100)
    for name, each in (("text_train_000001", ids), ("text_val_000000", ids[:1100]), ("short", ids[:1024])):
        write_shard(folder / f"{name}.bin", each)
    good = (folder / "text_train_000001.bin").read_bytes()
    for name, word, value in (("magic", 0, 20240801), ("version", 1, 7)):
        header = np.frombuffer(good[:1024], "<i4").copy()
        header[word] = value
        (folder / f"{name}.bin").write_bytes(header.tobytes() + good[1024:])
    (folder / "cut.bin").write_bytes(good[:5000])
    (folder / "long.bin").write_bytes(good + b"\0" * 76)
    (folder / "stub.bin").write_bytes(good[:100])
    ids[77] = 256
    write_shard(folder / "ids.bin", ids)
    save_file(tiny_weights(), folder / "tiny.safetensors")
    nan = {name: weight * np.nan for name, weight in tiny_weights(width=64, layers=2).items()}
    save_file(nan, folder / "nan.safetensors")
    save_file(tiny_weights(width=192), folder / "wide.safetensors")
    save_file(tiny_weights(qkv=("c_q", "c_k", "c_v")), folder / "modern.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "tiny.safetensors").read_bytes()[:-100])
    (folder / "folder").mkdir()
    (folder / "runs" / "old").mkdir(parents=True)
    (folder / "runs" / "old" / "metrics.jsonl").write_text('{"step": 0}\n', encoding="utf-8")
    return folder


def tiny_weights(width: int = 128, layers: int = 4, qkv: tuple[str, ...] = ("c_attn",)) -> dict[str, np.ndarray]:
    """Weights like `tiny`'s, all zero, in the names and shapes of files."""
    d = width
    block = {f"attn.{name}": (3 * d // len(qkv), d) for name in qkv}
    block |= {"attn.c_proj": (d, d), "mlp.c_fc": (4 * d, d), "mlp.c_proj": (d, 4 * d)}
    shapes = {f"h.{i}.{name}.weight": shape for i in range(layers) for name, shape in block.items()}
    shapes["wte.weight"] = (256, d)
    return {f"model.{name}": np.zeros(shape, np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def refused(shards, run_all) -> Callable[[str, str], Ended]:
    """(trainer, name of a bad input) -> how that run ended. A trainer runs all of its bad inputs at the first ask."""
    ends: dict[str, dict[str, Ended]] = {}

    def end(trainer: str, name: str) -> Ended:
        if trainer not in ends:
            jobs = {each: words.split() for each, (words, _) in bad_inputs(trainer).items()}
            ends[trainer] = run_all(shards, trainer, jobs)
        return ends[trainer][name]

    return end


EACH_BAD_INPUT = [(trainer, name) for trainer in TRAINERS for name in bad_inputs(trainer)]


@pytest.mark.parametrize(("trainer", "name"), EACH_BAD_INPUT)
def test_bad_input_is_said_in_one_line_with_its_mend(refused, trainer, name):
    ended = refused(trainer, name)
    assert re.fullmatch(r"error: [^\n]+\n", ended.stderr), ended.stderr
    for said in bad_inputs(trainer)[name][1]:
        assert said in ended.stderr


@pytest.mark.parametrize(("trainer", "name"), EACH_BAD_INPUT)
def test_bad_input_exits_with_2_and_leaves_the_disk_as_it_was(refused, trainer, name):
    ended = refused(trainer, name)
    assert (ended.code, ended.changed) == (2, False), ended.stderr


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root can read anything")
@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_folder_that_cannot_be_read_is_named(shards, tmp_path, run, trainer):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    ended = run(shards, trainer, *f"--data {locked}/text_train_*.bin --val-data text_val_*.bin".split())
    assert ended.code == 2
    assert re.fullmatch(rf"error: --data {locked}/\S+: the folder {locked} can't be read: .*\n", ended.stderr)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_bad_input_reaches_the_shell(shards, run, trainer):
    ended = run(shards, trainer, *f"{DATA} --run runs/old".split())
    error = "error: --run runs/old exists already and is left as it is: give another name\n"
    assert (ended.code, ended.stderr) == (2, error)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_folder_that_another_run_takes_meanwhile_is_left_to_it(shards, tmp_path, run_all, trainer):
    ended = run_all(tmp_path, trainer, {"folder taken": f"{data_in(shards)} --stop-at 1 --run runs/taken".split()})[
        "folder taken"
    ]
    assert (ended.code, ended.stderr) == (
        2,
        "error: --run runs/taken exists already and is left as it is: give another name\n",
    )
    written = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "runs" / "taken").iterdir()}
    assert written == {"config.json": "another's"}


def data_in(folder: Path) -> str:
    return f"--data {folder}/text_train_*.bin --val-tokens 1024 --recipe tiny"


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
    assert refused == "error: --run runs/one exists already and is left as it is: give another name\n"
    assert [line["step"] for line in metrics(tmp_path / "runs" / "one")] == [0, 1, 1]


# The first command of the README, on 1, 2, 4 and 8 devices

VALIDATION = "--val-every 3 --val-tokens 4096"


@dataclasses.dataclass(frozen=True)
class Readme:
    """The folder in which `python -m jaxgpt.train` ran on each mesh, and how the runs ended."""

    folder: Path
    ends: dict[str, Ended]


@pytest.fixture(scope="module")
def readme(tmp_path_factory, run, run_all) -> Readme:
    folder = tmp_path_factory.mktemp("readme")
    words = {mesh: f"--mesh {mesh} --steps 6 --run mesh{mesh} {VALIDATION}".split() for mesh in "8124"}
    ends = {"8": run(folder, "jaxgpt.train", *words.pop("8"))}
    ends |= run_all(folder, "jaxgpt.train", words, together=True)
    ends["again"] = run(folder, "jaxgpt.train", *f"--mesh 8 --steps 6 --stop-at 4 --run again {VALIDATION}".split())
    for ended in ends.values():
        assert ended.code == 0, ended.stderr
    return Readme(folder, ends)


@pytest.mark.parametrize("devices", ["2", "4", "8"])
def test_losses_do_not_depend_on_the_mesh(readme, devices):
    one = losses(readme.folder / "mesh1")
    assert {step for kind, step in one if kind == "train_loss"} == {1, 2, 3, 4, 5, 6}
    assert {step for kind, step in one if kind == "val_loss"} == {0, 3, 6}
    assert losses(readme.folder / f"mesh{devices}") == pytest.approx(one, rel=0, abs=LOSS)


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
    files = {"config.json", "metrics.jsonl", "weights.safetensors", "curve.png"}
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
    assert schedule == {"steps": 6, "warmup": 0, "warmdown": round(6 * whole.warmdown / whole.steps)}


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


@pytest.mark.parametrize(("trainer", "other"), [TRAINERS, TRAINERS[::-1]])
def test_weights_that_one_trainer_wrote_start_the_other(pair, run, trainer, other):
    weights = f"{trainer}/weights.safetensors"
    words = f"--recipe tiny --init-from {weights} --run from-{trainer} --stop-at 1 --val-tokens 4096"
    ended = run(pair, other, *words.split())
    assert ended.code == 0, ended.stderr
    left, taken = losses(pair / trainer)["val_loss", 12], losses(pair / f"from-{trainer}")["val_loss", 0]
    assert taken == pytest.approx(left, rel=0, abs=LOSS)
