"""One device against several at the size that `--device` chooses: `python -m parity_tests.mesh_at_scale gpu`.

Rung 9 at scale runs this in a process of its own: one of several that share the tests sees one GPU, and this takes all.
Prints one JSON object of relative differences.
"""

import json
import os
import sys
from typing import Literal

import numpy as np

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax

import jaxgpt.mesh
import jaxgpt.train
from jaxgpt.recipes import precision
from parity_tests.pair import Pair, Weights, jax_batch, jax_state, jax_tree, learnable_tokens, relative
from parity_tests.scale import Device, recipe_at_scale, weights_at_scale

RECIPE = "muon-2024-10-12"
DEVICES = 4
"""At most. They divide the 8 sequences of a step, or on a CPU the 16."""
STEPS = 3
Dtype = Literal["float32", "bfloat16"]


def on(devices: int, dtype: Dtype, device: Device) -> Pair:
    """JAX's steps on so many devices; a micro-batch is as large on one as on all, and the rest accumulates."""
    recipe = recipe_at_scale(RECIPE, device)
    attention, kernels = ("fast", "fused") if device == "gpu" else ("exact", "plain")
    exactly = precision(recipe, dtype, attention, kernels=kernels)
    mesh = jaxgpt.mesh.make_mesh_of(jax.devices(device)[:devices])
    rows = recipe.data.sequences // usable(device)
    return Pair(recipe, exactly, jaxgpt.train.make_step(recipe, exactly, mesh, rows), None, mesh)


def usable(device: Device) -> int:
    """Devices that are compared with one."""
    return 2 ** int(np.log2(min(len(jax.devices(device)), DEVICES)))


def gradients(both: Pair, start: Weights) -> tuple[float, Weights]:
    """Loss and gradients of the first batch."""
    batch = jax_batch(both, *learnable_tokens(both.recipe, 0))
    loss, found = both.jax.gradients(jax_state(both, start).params, *batch)
    return float(loss), jax_tree(both, found)


def trained(both: Pair, start: Weights) -> tuple[list[float], Weights]:
    """Losses of the first steps, and the weights after them."""
    state, losses = jax_state(both, start), []
    for step in range(STEPS):
        state, metrics = both.jax.step(state, *jax_batch(both, *learnable_tokens(both.recipe, step)))
        losses.append(float(metrics["train_loss"]))
    return losses, jax_tree(both, state.params)


def compared(device: Device) -> dict:
    """Relative differences between several devices and one, and bfloat16's errors to float32 on several and on one."""
    many, start = usable(device), weights_at_scale(RECIPE, "float32", device)
    apart = lambda got, want: {name: relative(got[name], want[name]) for name in want}  # noqa: E731
    one, all_ = on(1, "float32", device), on(many, "float32", device)
    exact_loss, exact = gradients(one, start)
    loss, found = gradients(all_, start)
    want_losses, want = trained(one, start)
    losses, weights = trained(all_, start)
    narrow = [gradients(on(n, "bfloat16", device), start)[1] for n in (many, 1)]
    return {
        "devices": many,
        "loss": relative(loss, exact_loss),
        "gradients": apart(found, exact),
        "losses": [relative(*each) for each in zip(losses, want_losses, strict=True)],
        "weights": apart(weights, want),
        "bfloat16": {name: [relative(each[name], exact[name]) for each in narrow] for name in exact},
    }


if __name__ == "__main__":
    kind: Device = "gpu" if sys.argv[1] == "gpu" else "cpu"
    jax.config.update("jax_platforms", "cuda,cpu" if kind == "gpu" else "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    print(json.dumps(compared(kind)))
