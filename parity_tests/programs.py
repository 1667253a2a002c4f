"""Running a trainer as a user does, or many short runs of it as children of one process that has imported it."""

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

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


def imported(module: str, trains: bool = True):
    """The trainer; where its children will train, with what torch.optim imports at a first optimiser: once for all."""
    trainer = importlib.import_module(module)
    if trains and module == "torch_ref.train":
        importlib.import_module("torch._dynamo")
    return trainer


def drive(module: str, jobs: dict[str, list[str]], together: bool, trains: bool = True) -> None:
    """Fork a child for each of the jobs, with the trainer imported and no device asked for; print how they ended."""
    trainer = imported(module, trains)
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


# What is done in a child before its run


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


def signal_after(step: int, number: int) -> Callable:
    """The run gets a signal as soon as it has logged that step."""

    def arrange(trainer) -> None:
        train = trainer.RunLog.train

        def logged(self, at: int, *metrics) -> None:
            train(self, at, *metrics)
            if at == step:
                os.kill(os.getpid(), number)
                time.sleep(0.2)  # for the thread that takes note of it

        trainer.RunLog.train = logged

    return arrange


def files_stay_small(trainer) -> None:
    """No file may grow over 300 KB, as with a quota; checkpoints of these runs do."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))


def disk_fills_up(trainer) -> None:
    """Another program takes all that is free on the run's disk when the run has logged step 6, and from then on.

    A save that finds no room deletes what it had written, and that would be room again.
    """
    train = trainer.RunLog.train

    def logged(self, at: int, *metrics) -> None:
        train(self, at, *metrics)
        if at >= 6:
            with contextlib.suppress(OSError), open(self.folder.parent / "filler", "ab", buffering=0) as filler:
                while filler.write(b"x" * 4096):
                    pass

    trainer.RunLog.train = logged


BEFORE = {
    "killed": signal_after(13, signal.SIGKILL),
    "SIGTERM": signal_after(13, signal.SIGTERM),
    "SIGINT": signal_after(13, signal.SIGINT),
    "killed at the start": signal_after(2, signal.SIGKILL),
    "files stay small": files_stay_small,
    "disk fills up": disk_fills_up,
    "mesh larger than the machine": fewer_gpus_than_asked,
    "folder taken": another_run_takes_the_folder,
    "shards and a GPU": on_a_gpu,
}


def tiny_weights(width: int = 128, layers: int = 4, qkv: tuple[str, ...] = ("c_attn",)) -> dict[str, np.ndarray]:
    """Weights like `tiny`'s, all zero, in the names and shapes of files."""
    d = width
    block = {f"attn.{name}": (3 * d // len(qkv), d) for name in qkv}
    block |= {"attn.c_proj": (d, d), "mlp.c_fc": (4 * d, d), "mlp.c_proj": (d, 4 * d)}
    shapes = {f"h.{i}.{name}.weight": shape for i in range(layers) for name, shape in block.items()}
    shapes["wte.weight"] = (256, d)
    return {f"model.{name}": np.zeros(shape, np.float32) for name, shape in shapes.items()}


def data_in(folder: Path) -> str:
    """The flags of a short run of `tiny` on the shards of the fixture `shards`."""
    return f"--data {folder}/text_train_*.bin --val-tokens 1024 --recipe tiny"
