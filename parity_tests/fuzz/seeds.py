"""Inputs that the readers take: where a search for ones that break them starts."""

import dataclasses
import json
import struct

import numpy as np
from safetensors.numpy import save

from jaxgpt.recipes import RECIPES, Recipe, precision
from jaxgpt.statefile import moment_shapes

SMALL: Recipe = dataclasses.replace(
    RECIPES["tiny"],
    model=dataclasses.replace(
        RECIPES["tiny"].model, vocab=5, token_ids=5, layers=1, heads=1, width=2, mlp_ratio=1, context=3
    ),
)
"""So small that a file of its state is mostly header."""


def shard(tokens: int = 40, vocab: int = 250) -> bytes:
    """A whole shard of ids below `vocab`."""
    ids = np.arange(tokens) % vocab
    return struct.pack("<256i", 20240520, 1, tokens, *[0] * 253) + ids.astype("<u2").tobytes()


def weights() -> bytes:
    """A file of `SMALL`'s weights."""
    return save({f"model.{name}": np.ones(shape, np.float32) for name, shape in SMALL.model.shapes.items()})


def state() -> bytes:
    """A file of `SMALL`'s whole training state."""
    shapes = {f"model.{name}": shape for name, shape in SMALL.model.shapes.items()} | moment_shapes(SMALL)
    metadata = {"recipe": SMALL.name, "step": "3", "shard": "0", "offset": "9"}
    return save({name: np.ones(shape, np.float32) for name, shape in shapes.items()}, metadata=metadata)


def config() -> dict:
    """What a run of `SMALL` wrote as config.json, as far as it is read."""
    whole = {
        "trainer": "jaxgpt",
        "devices": ["cpu"],
        "micro_batch": 16,
        "recipe": dataclasses.asdict(SMALL),
        "precision": dataclasses.asdict(precision(SMALL, None, "exact")),
        "flags": {"seed": 0, "init_from": None},
        "shards": {"train": [{"path": "a.bin", "tokens": 9, "sha256": "0"}], "val": []},
    }
    return json.loads(json.dumps(whole))


def metrics() -> bytes:
    """Lines of metrics.jsonl."""
    lines = [
        {"step": 0, "tokens": 0, "val_loss": 5.5},
        {"step": 1, "tokens": 48, "train_loss": 5.4, "lr": 0.1, "grad_norm": 2.0, "tokens_per_s": 9.5, "peak_bytes": 7},
        {"step": 2, "tokens": 96, "train_loss": 5.1, "lr": 0.1, "grad_norm": 1.0, "train_time_s": 0.5},
        {"step": 2, "tokens": 96, "val_loss": 5.0, "train_time_s": 0.5},
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


PUBLISHED = b"seed,step,tokens,val_loss\n0,0,0,10.9\n0,125,65536000,5.5\n1,0,0,10.9\n"
TEXT = "A line.\r\n\ufeffUmlauts: äöü, and \U0001f600.\n\n  <|endoftext|>last".encode()
