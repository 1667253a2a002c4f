"""Token shards as a stream of steps, with a position that can be saved.

The order (both trainers): step s takes the next `sequences * T` tokens, and one more for the last target, of the
current shard. A shard is left when it holds fewer than that; after the last shard comes the first. So a step's tokens
depend neither on how many devices there are nor on accumulation.
"""

import mmap
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from jaxgpt.errors import BadInput

HEADER_BYTES = 256 * 4

T = TypeVar("T")


@dataclass(frozen=True)
class Position:
    """Where the next step's tokens start: which shard, and how many of its tokens come before."""

    shard: int = 0
    offset: int = 0


class Tokens:
    """The training stream over memory-mapped shards.

    Args:
      paths: shards, in order, already checked by `jaxgpt.shards.inspect_shards`.
      sequences: sequences a step.
      context: T, tokens a sequence.

    Raises:
      BadInput: a shard that is shorter than one step.
    """

    def __init__(self, paths: list[Path], sequences: int, context: int):
        self.shards = [_mapped(path) for path in paths]
        self.paths, self.sequences, self.context = paths, sequences, context
        for path, shard in zip(paths, self.shards, strict=True):
            if len(shard) < sequences * context + 1:
                raise BadInput(
                    f"{path} holds {len(shard)} tokens and a step takes {sequences} x {context} + 1: give longer "
                    "shards, or fewer --data.sequences"
                )

    def next(self, position: Position) -> Position:
        """Where the step after the one at `position` starts."""
        step = self.sequences * self.context
        offset = position.offset + step
        if offset + step + 1 <= len(self.shards[position.shard]):
            return Position(position.shard, offset)
        return Position((position.shard + 1) % len(self.shards), 0)

    def read(self, position: Position, rows: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """The step's inputs and targets, int32, (sequences, T) each, or the `rows` of them that a process needs."""
        _check_whole(self.paths[position.shard], self.shards[position.shard])
        first, last, _ = rows.indices(self.sequences)
        start = position.offset + first * self.context
        window = np.asarray(self.shards[position.shard][start : start + (last - first) * self.context + 1], np.int32)
        return window[:-1].reshape(-1, self.context), window[1:].reshape(-1, self.context)


def validation_sequences(path: Path, tokens: int, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, int32, (tokens / T, T) each, from the start of a validation shard.

    Raises:
      BadInput: the shard is too short, or `tokens` isn't a multiple of T.
    """
    if tokens % context:
        fits = max(tokens // context, 1) * context
        raise BadInput(f"--val-tokens {tokens} is not a multiple of the context {context}: give {fits}")
    shard = _mapped(path)
    if len(shard) < tokens + 1:
        fits = (len(shard) - 1) // context * context
        mend = f"give {fits}" if fits else "give a longer shard"
        raise BadInput(f"{path} holds {len(shard)} tokens, --val-tokens {tokens} needs one more than that: {mend}")
    window = np.asarray(shard[: tokens + 1], np.int32)
    return window[:-1].reshape(-1, context), window[1:].reshape(-1, context)


def batches(
    tokens: Tokens, position: Position, place: Callable[[np.ndarray], T], rows: slice = slice(None)
) -> Iterator[tuple[T, T, Position]]:
    """Endless (inputs, targets, position of the step after), each array put on the devices by `place`."""
    while True:
        inputs, targets = tokens.read(position, rows)
        position = tokens.next(position)
        yield place(inputs), place(targets), position


def ahead(iterator: Iterator[T], depth: int = 2) -> Generator[T, None, None]:
    """The same endless items, made by a thread `depth` of them early: the next batch is ready when the device is.

    The thread starts when the second is asked for: a copy to a GPU while a first step is being recorded there has ended
    runs ("capturing stream has unjoined work", JAX 0.11.2).
    """
    yield next(iterator)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as thread:
        making = deque(thread.submit(next, iterator) for _ in range(depth))
        while True:
            item = making.popleft().result()
            making.append(thread.submit(next, iterator))
            yield item


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES)
    except (OSError, ValueError):
        raise _changed(path) from None


def _check_whole(path: Path, shard: np.ndarray) -> None:
    """Pages of a file that was cut short since it was mapped are no memory: reading them would end the process."""
    file = shard.base
    if isinstance(file, mmap.mmap) and file.size() < HEADER_BYTES + shard.nbytes:
        raise _changed(path)


def _changed(path: Path) -> BadInput:
    return BadInput(
        f"{path} changed after it was checked: let nothing write to shards that a run reads, start it again"
    )
