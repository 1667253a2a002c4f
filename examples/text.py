"""A text to learn whose best possible loss is known: what the examples here train on."""

from collections.abc import Iterator

import numpy as np

VOCAB = 32
NOISE = 0.2
"""How often the next token is any of all, instead of the one that a fixed random table has for the two before it."""

_right = 1 - NOISE + NOISE / VOCAB
BEST_LOSS = -_right * np.log(_right) - (1 - _right) * np.log(NOISE / VOCAB)
"""1.157 nats: the entropy of the next token. Knowing nothing is log(32) = 3.466."""


def batches(steps: int, size: int = 1024) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of tokens, int32 (size, 2), and the token that follows each, int32 (size,). The same ones at each call."""
    generator = np.random.default_rng(0)
    table = generator.integers(0, VOCAB, (VOCAB, VOCAB))
    for _ in range(steps):
        pairs = generator.integers(0, VOCAB, (size, 2), np.int32)
        follows = np.where(generator.random(size) < NOISE, generator.integers(0, VOCAB, size), table[*pairs.T])
        yield pairs, follows.astype(np.int32)
