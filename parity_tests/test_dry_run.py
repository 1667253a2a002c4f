"""`--dry-run`: both trainers say what a run would be, leave nothing behind, and say right what it keeps."""

import dataclasses
import os
import subprocess
import sys

import jax
import pytest
import torch

from jaxgpt import mesh, train
from jaxgpt.dry_run import report, state_bytes
from jaxgpt.errors import BadInput
from jaxgpt.flags import Flags
from jaxgpt.recipes import RECIPES, precision, reduced
from parity_tests.programs import ROOT
from torch_ref.model import GPT
from torch_ref.optimizer import make_optimizer
from torch_ref.optimizer import state_bytes as kept_by

MUON = RECIPES["muon-2024-10-12"]


def exactly(recipe):
    return precision(recipe, None, attention="exact")


def said(recipe=MUON, flags: Flags | None = None, devices=("NVIDIA H100 80GB HBM3",), micro_batch=64) -> dict[str, str]:
    lines = report(recipe, flags or Flags(), exactly(recipe), micro_batch, devices).splitlines()[1:]
    return {line[2:14].strip(): line[14:] for line in lines}


@pytest.mark.parametrize("name", list(RECIPES))
def test_weights_and_moments_are_those_of_jaxgpt_s_state(name):
    recipe = reduced(name)
    like = train.make_step(recipe, exactly(recipe), mesh.make_mesh_of(jax.devices("cpu")[:1]), 1).like()
    size = lambda tree: sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree) if a.ndim)  # noqa: E731
    assert state_bytes(recipe, exactly(recipe)) == {"weights": size(like.params), "moments": size(like.opt_state)}


@pytest.mark.parametrize("name", ["tiny", "tiny-adamw", "tiny-soap", "tiny-shampoo"])
def test_moments_are_those_of_torch_ref_s_optimisers(name):
    recipe = RECIPES[name]
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, layers=1, width=32, heads=2))
    model = GPT(recipe.model, seed=0)
    optimizers = make_optimizer(recipe, exactly(recipe), model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    for optimizer in optimizers:
        optimizer.step()
    counters = 4 * len(list(model.parameters()))  # AdamW's, one number a weight at most
    assert 0 <= kept_by(optimizers)["all"] - state_bytes(recipe, exactly(recipe))["moments"] <= counters


def test_the_default_recipe_s_state_is_1_14_gb():
    # 123,568,128 weights, momentum of 84,934,656 and two moments of 38,633,472, four bytes each
    assert sum(state_bytes(MUON, exactly(MUON)).values()) == 4 * (123_568_128 + 84_934_656 + 2 * 38_633_472)


def test_steps_tokens_and_rounds_are_said():
    lines = said(flags=Flags(stop_at=100))
    assert lines["steps"] == "100, 0.05243B tokens"
    assert lines["a step"] == "524,288 tokens: 8 x 64 sequences of 1024 a device"


def test_time_on_a_measured_card_is_marked_as_an_estimate():
    assert said()["time"].startswith("an estimate: 93.6 minutes, 936 ms a step")


def test_time_on_another_card_is_not_known():
    assert said(devices=("x86_64",))["time"].startswith("not known: no rates were measured on x86_64")


def test_data_that_is_not_there_is_said_with_the_mend(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "jaxgpt.corpus fineweb" in said()["data"]


def test_data_that_is_named_and_not_there_is_refused(tmp_path):
    with pytest.raises(BadInput, match="--data"):
        said(flags=Flags(data=f"{tmp_path}/no_train_*.bin"))


@pytest.mark.parametrize("trainer", ["jaxgpt.train", "torch_ref.train"])
def test_a_dry_run_exits_with_0_and_writes_no_file(trainer, tmp_path):
    words = ["--recipe", "tiny", "--model.layers", "1", "--model.width", "32", "--dry-run", "--run", "here"]
    ended = subprocess.run(
        [sys.executable, "-m", trainer, *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Nothing is trained or written" in ended.stdout
    assert list(tmp_path.iterdir()) == []
