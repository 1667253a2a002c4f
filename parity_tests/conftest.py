"""Settings of the whole ladder: CPU, float64 allowed, 8 virtual devices; and which tests are chosen."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import torch

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 8)
torch.set_num_threads(1)  # at these sizes two threads wait for each other longer than they work


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run the slow tests too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--full"):
        slow = [item for item in items if item.get_closest_marker("full")]
        items[:] = [item for item in items if item not in slow]
        config.hook.pytest_deselected(items=slow)
