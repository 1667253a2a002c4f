"""`--rounding pinned`: from the command line to XLA, and what it does there."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgpt.flags import recipe_and_flags
from jaxgpt.mesh import compiler_options, make_mesh_of
from jaxgpt.recipes import RECIPES, precision


def test_flag_is_free_unless_said():
    assert recipe_and_flags([], "train", "tiny")[1].rounding == "free"
    assert recipe_and_flags(["--rounding", "pinned"], "train", "tiny")[1].rounding == "pinned"


@pytest.mark.parametrize("rounding", ["free", "pinned"])
def test_precision_keeps_what_the_flag_says(rounding):
    assert precision(RECIPES["muon-2024-10-12"], None, "exact", rounding).rounding == rounding


def test_pinned_rounding_makes_every_rounding_that_torch_makes():
    x, y = np.random.default_rng(0).standard_normal((2, 4096)).astype(np.float32)

    def chain(x, y, wide):
        return wide(x * y + y) * wide(x)

    want = chain(*(torch.tensor(each).bfloat16() for each in (x, y)), lambda t: t.float()).numpy()
    narrow = [jnp.asarray(each, jnp.bfloat16) for each in (x, y)]
    lowered = jax.jit(lambda x, y: chain(x, y, lambda a: a.astype(jnp.float32))).lower(*narrow)
    mesh, apart = make_mesh_of(jax.devices("cpu")[:1]), {}
    for rounding in ("free", "pinned"):
        got = lowered.compile(compiler_options(mesh, rounding))(*narrow)
        apart[rounding] = np.abs(np.asarray(got) - want).max()
    assert apart["pinned"] == 0
    assert apart["free"] > 0, "or the flag has nothing to do here"


@pytest.mark.parametrize("trainer", ["jaxgpt.train", "torch_ref.train"])
def test_a_run_records_the_rounding_that_was_asked_for(shards, tmp_path, run, trainer):
    data = f"--data {shards}/text_train_*.bin --val-data {shards}/text_val_*.bin --val-tokens 512"
    small = "--recipe tiny --model.layers 1 --model.width 32 --data.sequences 2 --steps 1 --dtype bfloat16"
    ended = run(tmp_path, trainer, *f"{data} {small} --rounding pinned --run r".split())
    assert ended.code == 0, ended.stderr
    assert json.loads((tmp_path / "r" / "config.json").read_text())["precision"]["rounding"] == "pinned"
