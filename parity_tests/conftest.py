"""Settings of the whole ladder: CPU, float64 allowed, 8 virtual devices; running a trainer."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in jaxgpt.train
os.environ.setdefault("OMP_NUM_THREADS", "1")  # there is a process for each core already
# Two thirds of a run's time is XLA's: what one process has compiled, the others and the next run find. With a limit of
# size JAX locks the folder, and processes can share it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/jaxgpt/tests"))
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2 << 30))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from jaxgpt.shards import write_shard
from parity_tests import checkpoints
from parity_tests.certificate import plugin as certificate
from parity_tests.measured import curves_taken, taken
from parity_tests.programs import ROOT, Ended, tiny_weights
from parity_tests.whole_ladder import LowestRed, named_tests, own_share, share_out, visible_gpus

LEFT_OUT = pytest.StashKey[int]()
ALL_GPUS = pytest.StashKey[list[str]]()

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 8)
torch.set_num_threads(1)  # at these sizes two threads wait for each other longer than they work


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also the tests marked slow")
    parser.addoption(
        "--device",
        choices=("cpu", "gpu"),
        default="cpu",
        help="gpu: only the rungs marked at_scale, at 124M in bfloat16 and in float32 without TF32",
    )
    certificate.add_option(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Before pytest-xdist looks at its options."""
    share_out(config)


def pytest_configure(config: pytest.Config) -> None:
    """Take the GPU for `--device gpu`, memory as it is needed, for two frameworks share the card."""
    certificate.register(config, Path(__file__).parent)
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(LowestRed(), "lowest_red")
    if config.getoption("--device") != "gpu":
        return
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    gpu, threads = own_share(os.environ, max(torch.cuda.device_count(), 1), len(os.sched_getaffinity(0)))
    torch.set_num_threads(threads)  # 124M weights are drawn and compared on the host
    config.stash[ALL_GPUS] = visible_gpus(os.environ, torch.cuda.device_count())
    if hasattr(config, "workerinput"):  # the first process's choice would be all the others'
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    jax.config.update("jax_platforms", "cuda,cpu")
    try:
        jax.devices("gpu")
    except RuntimeError:
        raise pytest.UsageError("--device gpu: JAX finds none; install .[cuda13], or leave the flag out") from None
    if not torch.cuda.is_available():
        raise pytest.UsageError("--device gpu: PyTorch finds none; install a CUDA build, or leave the flag out")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked slow unless `--full` asks for it, or the command names its file or test.

    On a GPU leave out all that isn't `at_scale`.
    """
    if config.getoption("--device") == "gpu":
        elsewhere = [item for item in items if not item.get_closest_marker("at_scale")]
        config.hook.pytest_deselected(items=elsewhere)
        items[:] = [item for item in items if item.get_closest_marker("at_scale")]
    if config.getoption("--full") or config.getoption("--device") == "gpu" or named_tests(config):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if not item.get_closest_marker("slow")]
    config.stash[LEFT_OUT] = len(slow)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of several tells the first one how many were left out: all of them collect the same."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    """The same in the first one."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if left_out := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"{left_out} slow tests were left out: --full runs them too")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    """A test's measurements and curves travel with its report."""
    taken(), curves_taken()
    try:
        return (yield)
    finally:
        item.user_properties += [("measured", tuple(each)) for each in taken()]
        item.user_properties += [("curve", tuple(each)) for each in curves_taken()]


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> str:
    """`--device`: where the tests marked at_scale run."""
    return pytestconfig.getoption("--device")


@pytest.fixture(scope="session")
def all_gpus(pytestconfig: pytest.Config) -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES of the GPUs that all processes of the tests share; none without `--device gpu`."""
    return pytestconfig.stash.get(ALL_GPUS, [])


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

    A job whose name is a key of `BEFORE` has that done first. `trains`: whether any gets as far as that.
    """

    def run_all(
        folder: Path, module: str, jobs: dict[str, list[str]], together: bool = False, trains: bool = True
    ) -> dict[str, Ended]:
        program = f"from parity_tests.programs import drive; drive({module!r}, {jobs!r}, {together!r}, {trains!r})"
        command = [sys.executable, "-c", program]
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
        assert ended.returncode == 0, ended.stderr
        return {name: Ended(*each) for name, each in json.loads(ended.stdout).items()}

    return run_all


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


@pytest.fixture
def kept(tmp_path_factory) -> Callable[..., checkpoints.Kept]:
    """kept(framework, name, dtype), made once and given out as a copy."""
    home = tmp_path_factory.getbasetemp() / "kept"

    def copied(*case: str) -> checkpoints.Kept:
        made = checkpoints.made(home / "-".join(case) / "checkpoints", *case)
        folder = tmp_path_factory.mktemp("copy") / "checkpoints"
        shutil.copytree(made.folder, folder)
        return made._replace(folder=folder)

    return copied
