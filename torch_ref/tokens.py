"""Token shards as a stream of steps, with a position that can be saved.

Written apart from jaxgpt.tokens, so that the two can be compared. The order: step s takes the next `sequences * T`
tokens, and one more for the last target, of the current shard. A shard is left when it holds fewer than that; after the
last shard comes the first. So a step's tokens depend neither on how many processes there are nor on accumulation.
"""

import mmap
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from jaxgpt.errors import BadInput

HEADER = 256
"""int32 numbers before the tokens (llm.c's format)."""

Batch = tuple[Tensor, Tensor, "Position"]
"""Inputs and targets of a step, and the position of the step after."""


@dataclass(frozen=True)
class Position:
    """Where the next step's tokens start: which shard, and how many of its tokens come before."""

    shard: int = 0
    offset: int = 0


class Tokens:
    """The training stream over memory-mapped shards.

    Args:
      paths: shards, in order, already checked by `jaxgpt.shards.inspect_shards`.
      sequences: sequences a step, over all processes.
      context: T, tokens a sequence.

    Raises:
      BadInput: a shard that is shorter than one step.
    """

    def __init__(self, paths: list[Path], sequences: int, context: int):
        self.paths, self.sequences, self.context = paths, sequences, context
        self.step_tokens = sequences * context
        self.shards = [_mapped(path) for path in paths]
        for path, shard in zip(paths, self.shards, strict=True):
            if shard.size <= self.step_tokens:
                raise BadInput(
                    f"{path} holds {shard.size} tokens and a step takes {sequences} x {context} + 1: give longer "
                    "shards, or fewer --data.sequences"
                )

    def next(self, position: Position) -> Position:
        """Where the step after the one at `position` starts."""
        start = position.offset + self.step_tokens
        left = self.shards[position.shard].size - start
        if left > self.step_tokens:
            return Position(position.shard, start)
        return Position((position.shard + 1) % len(self.shards), 0)

    def read(
        self, position: Position, rows: slice = slice(None)
    ) -> tuple[Int[Tensor, "rows T"], Int[Tensor, "rows T"]]:
        """The step's inputs and targets, int64, or the `rows` of its sequences that a process needs."""
        _check_whole(self.paths[position.shard], self.shards[position.shard])
        first, last, _ = rows.indices(self.sequences)
        start = position.offset + first * self.context
        return _sequences(self.shards[position.shard], start, last - first, self.context)


def validation_sequences(
    path: Path, tokens: int, context: int
) -> tuple[Int[Tensor, "sequences T"], Int[Tensor, "sequences T"]]:
    """Inputs and targets, int64, (tokens / T, T) each, from the start of a validation shard.

    Raises:
      BadInput: the shard is too short, or `tokens` isn't a multiple of T.
    """
    if tokens % context:
        fits = max(tokens // context, 1) * context
        raise BadInput(f"--val-tokens {tokens} is not a multiple of the context {context}: give {fits}")
    shard = _mapped(path)
    if shard.size <= tokens:
        fits = (shard.size - 1) // context * context
        mend = f"give {fits}" if fits else "give a longer shard"
        raise BadInput(f"{path} holds {shard.size} tokens, --val-tokens {tokens} needs one more than that: {mend}")
    return _sequences(shard, 0, tokens // context, context)


def batches(
    tokens: Tokens, position: Position, place: Callable[[Tensor], Tensor], rows: slice = slice(None)
) -> Iterator[Batch]:
    """Endless (inputs, targets, position of the step after), each tensor put on the device by `place`."""
    while True:
        inputs, targets = tokens.read(position, rows)
        position = tokens.next(position)
        yield place(inputs), place(targets), position


def ahead(iterator: Iterator[Batch], depth: int = 2) -> Generator[Batch, None, None]:
    """The same endless items, made by a thread `depth` of them early: the next batch is ready when the device is."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as thread:
        making = deque(thread.submit(next, iterator) for _ in range(depth))
        while True:
            item = making.popleft().result()
            making.append(thread.submit(next, iterator))
            yield item


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.memmap(path, dtype="<u2", mode="r", offset=HEADER * 4)
    except (OSError, ValueError):
        raise _changed(path) from None


def _check_whole(path: Path, shard: np.ndarray) -> None:
    """Pages of a file that was cut short since it was mapped are no memory: reading them would end the process."""
    file = shard.base
    if isinstance(file, mmap.mmap) and file.size() < HEADER * 4 + shard.nbytes:
        raise _changed(path)


def _changed(path: Path) -> BadInput:
    return BadInput(
        f"{path} changed after it was checked: let nothing write to shards that a run reads, start it again"
    )


def _sequences(shard: np.ndarray, start: int, sequences: int, context: int) -> tuple[Tensor, Tensor]:
    """`sequences` rows from token `start` on, and the same one token later: two views of one copy."""
    window = torch.from_numpy(shard[start : start + sequences * context + 1].astype(np.int64))
    return window[:-1].view(sequences, context), window[1:].view(sequences, context)
