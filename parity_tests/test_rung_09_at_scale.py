"""Rung 9 at scale: a step over several devices and over one give the same, at 124M on all GPUs of the machine."""

import json
import os
import subprocess
import sys

import pytest

from parity_tests.bfloat16 import assert_as_exact
from parity_tests.measured import assert_within
from parity_tests.programs import ROOT
from parity_tests.tolerances import ERROR_RATIO, MESH_AT_SCALE

pytestmark = pytest.mark.at_scale


@pytest.fixture(scope="module")
def found(device, all_gpus, environment) -> dict:
    """What `parity_tests.mesh_at_scale` says; in a process of its own, for this one may see one GPU of several."""
    if device == "gpu" and len(all_gpus) == 1:
        pytest.skip("one GPU; several are what this compares with it")
    here = os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(all_gpus)} if device == "gpu" else environment
    command = [sys.executable, "-m", "parity_tests.mesh_at_scale", device]
    ended = subprocess.run(command, cwd=ROOT, env=here, capture_output=True, text=True, timeout=550)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return json.loads(ended.stdout.splitlines()[-1])


def test_it_was_several_devices(found, device, all_gpus):
    assert found["devices"] == (4 if device == "cpu" else 2 if len(all_gpus) < 4 else 4)


def test_float32_gradients_do_not_depend_on_devices(found, device):
    what = f"rung 9, gradients on {found['devices']} devices"
    assert_within(found["loss"], MESH_AT_SCALE[device]["loss"], f"{what}: loss")
    for name, apart in found["gradients"].items():
        assert_within(apart, MESH_AT_SCALE[device]["gradients"], f"{what}: {name}")


def test_float32_training_with_matrices_dealt_out_is_that_of_one_device(found, device):
    what = f"rung 9, training on {found['devices']} devices"
    for step, apart in enumerate(found["losses"]):
        assert_within(apart, MESH_AT_SCALE[device]["loss"], f"{what}: loss of step {step}")
    for name, apart in found["weights"].items():
        assert_within(apart, MESH_AT_SCALE[device]["weights"], f"{what}: {name}")


def test_bfloat16_gradients_are_as_near_to_float32_on_several_devices_as_on_one(found, device):
    errors = {name: tuple(each) for name, each in found["bfloat16"].items()}
    assert_as_exact(errors, "rung 9, bfloat16 gradients on several devices, on one", ERROR_RATIO[device])
