"""The PyTorch reference by itself: it needs no JAX, and several processes train as one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxgpt.shards import write_shard

ROOT = Path(__file__).parents[1]
STEPS = 6


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = (sys.executable, *command)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two shards of 3 steps, so that a run crosses from one to the other, and one of validation."""
    folder = tmp_path_factory.mktemp("torch_ref")
    generator = np.random.default_rng(0)
    for name, tokens in (("train_000001", 3500), ("train_000002", 3500), ("val_000000", 1100)):
        write_shard(folder / f"text_{name}.bin", generator.integers(0, 256, tokens))
    return folder


def train(
    folder: Path,
    name: str,
    launcher: tuple[str, ...] = ("-m", "torch_ref.train"),
    distributed: bool = False,
    **flags: str,
) -> list[dict]:
    small = {"recipe": "tiny", "model.layers": "2", "model.width": "64", "steps": str(STEPS), "val-every": "3"}
    data = {"data": "text_train_*.bin", "val-data": "text_val_*.bin", "val-tokens": "1024", "run": name}
    words = [word for flag, value in (small | data | flags).items() for word in (f"--{flag}", value)]
    ended = run(folder, *launcher, *words, *["--optimizer.distributed"] * distributed)
    assert ended.returncode == 0, ended.stderr
    return metrics(folder / name)


@pytest.fixture(scope="module")
def alone(folder) -> list[dict]:
    return train(folder, "alone")


def test_importing_torch_ref_brings_in_no_jax():
    packages = "{'jax', 'jaxlib', 'flax', 'optax'} & {name.split('.')[0] for name in sys.modules}"
    ended = run(ROOT, "-c", f"import sys, torch_ref.train; print(*{packages})")
    assert (ended.returncode, ended.stdout.strip()) == (0, ""), ended.stderr


def test_a_run_writes_the_metrics_of_every_step(alone):
    assert [line["step"] for line in alone if "train_loss" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in alone if "val_loss" in line] == [0, 3, 6]
    assert set(alone[1]) == {
        "step",
        "tokens",
        "train_loss",
        "lr",
        "grad_norm",
        "tokens_per_s",
        "train_time_s",
        "peak_bytes",
    }


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "torch_ref.train")


def assert_trained_alike(ones: list[dict], twos: list[dict]) -> None:
    for one, two in zip(ones, twos, strict=True):
        compared = {"train_loss", "val_loss", "grad_norm"} & one.keys()
        assert {name: one[name] for name in compared} == pytest.approx({name: two[name] for name in compared}, rel=1e-6)


def test_two_gloo_processes_with_accumulation_train_as_one_does(folder, alone):
    assert_trained_alike(alone, train(folder, "together", TORCHRUN, **{"mesh": "2", "micro-batch": "2"}))


@pytest.mark.slow
def test_summed_gradients_and_distributed_muon_are_the_same_over_two_processes(folder, alone):
    form = {"recipe": "tiny", "model.loss-reduction": "sum", "optimizer.muon-scale": "sqrt_ratio"}
    one = train(folder, "sum", distributed=True, **form)
    assert one[1]["grad_norm"] == pytest.approx(16 * 64 * alone[1]["grad_norm"], rel=1e-5), "sums, not means"
    assert one[1]["train_loss"] == pytest.approx(alone[1]["train_loss"], rel=1e-6), "but losses are means"
    two = train(folder, "sums", TORCHRUN, distributed=True, **form, **{"mesh": "2", "micro-batch": "2"})
    assert_trained_alike(one, two)


def test_a_mesh_that_torchrun_did_not_start_is_named_with_the_command_to_type(folder):
    ended = run(folder, "-m", "torch_ref.train", "--recipe", "tiny", "--mesh", "2")
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        "error: --mesh 2: 1 process started, and PyTorch takes one a device; type torchrun --nproc-per-node 2 -m -- "
        "torch_ref.train --mesh 2 and the other flags"
    ]


def test_weights_of_another_shape_are_named_with_both_shapes(folder, tmp_path):
    import torch

    from jaxgpt.recipes import reduced
    from torch_ref import bridge
    from torch_ref.model import GPT

    recipe = reduced("muon-2024-10-12")
    bridge.save_state(tmp_path / "w.safetensors", GPT(recipe.model).state_dict(), recipe)
    again = bridge.load_state(tmp_path / "w.safetensors", recipe)
    assert all(torch.equal(weight, again[name]) for name, weight in GPT(recipe.model).state_dict().items())
    data = ("--data", "text_train_*.bin", "--val-data", "text_val_*.bin", "--val-tokens", "1024")
    weights = ("--init-from", str(tmp_path / "w.safetensors"))
    ended = run(folder, "-m", "torch_ref.train", "--recipe", "tiny", *data, *weights)
    assert ended.returncode == 2
    assert "wte.weight is (254, 64) there and (256, 128) in tiny" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
