"""What a porter writes: the name map, and then who is who. `python -m parity_tests.adapter` takes this file."""

import plain_jax
import plain_torch

from parity_tests.adapter import Ladder, Program, outputs_of

NAMES = {"embed": "tokens.weight", "position": "positions.weight", "head": ("head.weight", "T")}
NAMES |= {"norm.gain": "norm.weight", "norm.bias": "norm.bias"}
for i in range(plain_torch.LAYERS):
    for port, reference in {"o": "out", "up": "fc1", "down": "fc2"}.items():
        NAMES[f"blocks.{i}.{port}.w"] = (f"layers.{i}.{reference}.weight", "T")
        NAMES[f"blocks.{i}.{port}.b"] = f"layers.{i}.{reference}.bias"
    for start, port in zip((0, 16, 32), "qkv", strict=True):
        rows = lambda w, start=start: w[start : start + 16]  # noqa: E731
        NAMES[f"blocks.{i}.{port}.w"] = (f"layers.{i}.qkv.weight", rows, "T")
        NAMES[f"blocks.{i}.{port}.b"] = (f"layers.{i}.qkv.bias", rows)
    for n in "12":
        NAMES[f"blocks.{i}.norm{n}.gain"] = f"layers.{i}.ln{n}.weight"
        NAMES[f"blocks.{i}.norm{n}.bias"] = f"layers.{i}.ln{n}.bias"


def forward(net, ids):
    return outputs_of(net, ids, "layers.0", "layers.1")


reference = Program(plain_torch.Net(), forward, plain_torch.loss, update=plain_torch.optimizer)
port = Program(plain_jax.weights(), plain_jax.forward, plain_jax.loss, update=(plain_jax.start, plain_jax.step))
ladder = Ladder(reference, port, NAMES, plain_torch.batch, moments={"m": "exp_avg", "v": "exp_avg_sq"})
