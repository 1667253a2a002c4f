"""Rung 9: Muon's distributed form, each process orthogonalising its own matrices, against one process with all."""

import json
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.distributed as dist

import jaxgpt.mesh
from jaxgpt.muon import kernels_in_out, scale_by_muon
from parity_tests.measured import assert_within
from parity_tests.pair import relative
from parity_tests.tolerances import FAST
from torch_ref.muon import Muon, gather, keep_own

SHAPES = [(24, 24), (24, 96), (96, 24), (24, 24), (24, 24)]
"""(fan_out, fan_in) of five matrices: they don't divide evenly over two processes."""

LAUNCHED = ("float64", "bfloat16")

PROGRAM = """
import json, os, sys
import torch
import torch.distributed as dist
from parity_tests.test_rung_09_distributed_muon import updated
torch.set_num_threads(1)
dist.init_process_group("gloo")
for dtype in sys.argv[1:]:
    made = updated(dtype, distributed=True)._asdict()
    with open(f"{dtype}-{os.environ['RANK']}.json", "w") as file:
        json.dump(made | {"weights": [w.tolist() for w in made["weights"]]}, file)
dist.destroy_process_group()
"""


def gradients(step: int, dtype: str) -> list[np.ndarray]:
    rng = np.random.default_rng(step)
    return [rng.standard_normal(shape).astype("float32" if dtype == "bfloat16" else dtype) for shape in SHAPES]


class Updated(NamedTuple):
    """Weights after three updates from zero, and whose momenta this process holds."""

    weights: list[np.ndarray]
    owned: list[int]
    """Numbers of the matrices."""
    gathered: list[float]
    """Sums of all momenta, once every process had them to save; of one process none."""
    kept: list[int]
    """The same as `owned`, afterwards."""


def updated(dtype: str, distributed: bool) -> Updated:
    """Three updates from zero."""
    params = [torch.nn.Parameter(torch.zeros(g.shape, dtype=torch.tensor(g).dtype)) for g in gradients(0, dtype)]
    kind = getattr(torch, dtype)
    settings = {"scale": "sqrt_ratio", "weight_decay": 0.1, "dtype": kind, "norm_dtype": kind}
    muon = Muon(params, lr=0.02, distributed=distributed, **settings)
    for step in range(3):
        for p, g in zip(params, gradients(step, dtype), strict=True):
            p.grad = torch.tensor(g)
        muon.step()
    held = lambda: [i for i, p in enumerate(params) if "momentum" in muon.state.get(p, {})]  # noqa: E731
    owned, sums = held(), []
    if dist.is_initialized():
        gather([muon])
        sums = [float(muon.state[p]["momentum"].double().sum()) for p in params]
        keep_own([muon])
    return Updated([p.detach().numpy() for p in params], owned, sums, held())


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, environment):
    """dtype -> what each process has; one launch makes all, for starting two takes longer than what they do."""
    folder = tmp_path_factory.mktemp("muon")
    program = folder / "program.py"
    program.write_text(PROGRAM)

    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, str(program), *LAUNCHED]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return {
        dtype: [json.loads((folder / f"{dtype}-{rank}.json").read_text()) for rank in range(2)] for dtype in LAUNCHED
    }


@pytest.mark.parametrize("dtype", LAUNCHED)
def test_two_processes_make_the_updates_of_one_to_the_bit(two_processes, dtype):
    want = updated(dtype, distributed=True).weights
    ranks = two_processes[dtype]
    for rank in ranks:
        for got, w in zip(rank["weights"], want, strict=True):
            assert (np.asarray(got, w.dtype) == w).all()


def test_each_momentum_lives_in_one_process(two_processes):
    owned = [rank["owned"] for rank in two_processes["float64"]]
    assert sorted(owned) == [[0, 2, 4], [1, 3]]


def test_all_have_every_momentum_to_save_and_keep_their_own(two_processes):
    first, second = two_processes["float64"]
    assert first["gathered"] == second["gathered"]
    assert len(first["gathered"]) == len(SHAPES)
    assert 0 not in first["gathered"]
    assert (first["kept"], second["kept"]) == (first["owned"], second["owned"])


def test_replicated_and_distributed_forms_differ_by_the_rounding_of_the_scaled_update_alone():
    exact = updated("float64", False).weights
    replicated, distributed = (updated("bfloat16", form).weights for form in (False, True))
    for a, b in zip(updated("float64", True).weights, exact, strict=True):
        assert_within(relative(a, b), FAST["float64"])
    # A scale of 1 or 2 changes no bit of a bfloat16 number; only its exponent.
    for a, b in zip(distributed, replicated, strict=True):
        assert_within(relative(a, b), FAST["float32"])


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_matrices_dealt_over_devices_in_jax_give_the_replicated_update_with_the_same_rounding(dtype):
    leaves = {f"m{i}": {"kernel": jnp.asarray(g.T)} for i, g in enumerate(gradients(0, dtype))}

    def run(devices: int):
        deal = jaxgpt.mesh.split(jaxgpt.mesh.make_mesh_of(jax.devices()[:devices])) if devices > 1 else None
        rounding = {"dtype": dtype, "norm_dtype": dtype, "rounding": "pinned", "round_scaled": True}
        muon = scale_by_muon(kernels_in_out, scale="sqrt_max", deal=deal, **rounding)
        return jax.jit(lambda grads: muon.update(grads, muon.init(grads))[0])(leaves)

    want, got = run(1), run(8)
    for name, leaf in want.items():
        if dtype == "bfloat16":
            assert (got[name]["kernel"] == leaf["kernel"]).all()
            assert (leaf["kernel"] == leaf["kernel"].astype(jnp.bfloat16)).all(), "rounded to what is sent"
        else:
            assert_within(relative(got[name]["kernel"], leaf["kernel"]), FAST[dtype])


@pytest.mark.parametrize("scale", ["sqrt_max", "sqrt_ratio"])
def test_scaled_updates_are_rounded_once_as_torch_rounds_them(scale):
    o = torch.tensor(np.random.default_rng(0).standard_normal((20, 50)), dtype=torch.bfloat16)
    by = 50**0.5 if scale == "sqrt_max" else (50 / 20) ** 0.5
    want = (by * o).float().numpy()
    in_jax = jnp.asarray(o.float().numpy())
    assert (jax.lax.reduce_precision(in_jax * by, 8, 7) == want).all()
