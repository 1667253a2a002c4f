"""Token shards on disk, in llm.c's format: 256 little-endian int32 (magic, version, token count, zeros), then uint16.

    from jaxgpt.shards import inspect_shards
    inspect_shards("data/fineweb10B/fineweb_train_*.bin", "--data", vocab=50257)

numpy only: the JAX trainer, the PyTorch reference and the programs that make shards all read them through here.
"""

import contextlib
import glob
import hashlib
import os
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxgpt.errors import BadInput
from jaxgpt.files import check_ordinary

MAGIC = 20240520  # llm.c, dev/data/data_common.py
VERSION = 1
HEADER_BYTES = 256 * 4
TOKEN = np.dtype("<u2")
CHUNK_BYTES = 4 << 20


class BrokenShard(BadInput):
    """A file that can be read but isn't a whole shard. Fetching or making it again mends it."""


@dataclass(frozen=True)
class Shard:
    """One shard: `tokens` ids follow its header, `sha256` (hex) is of the whole file, `largest` is the largest id."""

    path: Path
    tokens: int
    sha256: str
    largest: int


def write_shard(path: str | Path, tokens: ArrayLike) -> None:
    """Write token ids, 1-D and of any integer type, as one shard; the folder is made if need be.

    The file appears whole under its name or not at all, and replaces one that is there. Raises `BadInput` for an id
    that uint16 can't hold, for no ids at all, and for a folder that can't be written.
    """
    path, ids = Path(path), np.asarray(tokens)
    if ids.ndim != 1 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise BadInput(f"{path}: a shard is made of one or more integers in one row, not {ids.dtype} {ids.shape}")
    if ids.dtype != TOKEN and (ids.min() < 0 or ids.max() > 0xFFFF):
        at = int(np.argmax((ids < 0) | (ids > 0xFFFF)))
        raise BadInput(
            f"{path}: token {ids[at]} at position {at} doesn't fit uint16; a shard holds ids from 0 to 65535"
        )
    header = np.zeros(256, "<i4")
    header[:3] = MAGIC, VERSION, ids.size
    # In the same folder, so that os.replace is a rename; named apart, so that two processes don't share it.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(header.tobytes())
                file.write(np.ascontiguousarray(ids, TOKEN).data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "no file can have that name"
        raise BadInput(f"{path} can't be written: {why}; choose a folder with room to write in") from error


class ShardWriter:
    """Writes a stream of tokens as shards `FOLDER/PREFIX_000001.bin` and so on, counting from `first`.

    All have `shard_tokens` tokens, but the last two share what is left evenly: trainers refuse a shard that is shorter
    than a step, which a mere rest could be. Up to two shards are held in memory. `paths` and `tokens` say what was
    written.
    """

    def __init__(self, folder: Path, prefix: str, first: int, shard_tokens: int):
        self.folder, self.prefix, self.first, self.shard_tokens = folder, prefix, first, shard_tokens
        self.paths: list[Path] = []
        self.tokens = 0
        self._buffer = np.empty(2 * shard_tokens, TOKEN)  # pages that aren't reached take no memory
        self._held = 0

    def add(self, ids: NDArray[np.uint16]) -> None:
        """Take ids, 1-D; shards that become full are written. Raises `BadInput` as `write_shard` does."""
        while ids.size:
            taken = ids[: self._buffer.size - self._held]
            self._buffer[self._held : self._held + taken.size] = taken
            self._held += taken.size
            ids = ids[taken.size :]
            if self._held == self._buffer.size:
                self._write(self.shard_tokens)

    def finish(self) -> None:
        """Write what is held as the last shard or two, if anything is."""
        if self._held > self.shard_tokens:
            self._write((self._held + 1) // 2)
        if self._held:
            self._write(self._held)

    def delete(self) -> None:
        """Delete the shards that were written."""
        for path in self.paths:
            path.unlink(missing_ok=True)

    def _write(self, tokens: int) -> None:
        self.paths.append(self.folder / f"{self.prefix}_{self.first + len(self.paths):06d}.bin")
        write_shard(self.paths[-1], self._buffer[:tokens])
        self.tokens += tokens
        self._held -= tokens
        self._buffer[: self._held] = self._buffer[tokens : tokens + self._held]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """An ordinary file, open for reading bytes. Raises `BadInput` where it can't be read, then or later."""
    try:
        check_ordinary(path)
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        if error.errno is None:
            raise BadInput(f"{path} {error}; name the files in one") from None
        raise BadInput(f"{path} can't be read: {error.strerror}; mend its path or its mode") from error


def check_header(path: str | Path) -> int:
    """The number of tokens in a shard, after checking its magic, version and size on disk.

    Only the header is read, and what it claims is compared before it is believed. Raises `BrokenShard` for a file that
    isn't a whole shard, and `BadInput` where nothing can be read.
    """
    with opened(Path(path)) as file:
        return _count(Path(path), file)


def inspect_shards(pattern: str, flag: str, vocab: int) -> list[Shard]:
    """The shards that `pattern` (a glob, or one file's path) names, sorted by path, each read once from end to end.

    `flag` is where the pattern came from, for the message; ids must lie below `vocab`. Raises `BadInput` when nothing
    matches, and for the first shard that can't be read, isn't whole or holds an id outside the vocabulary.
    """
    paths = _expand(pattern, flag)
    for path in paths:
        check_header(path)  # in milliseconds, before the minutes that reading a large corpus can take
    with ThreadPoolExecutor(min(len(paths), os.cpu_count() or 1)) as pool:  # hashlib and numpy let go of the GIL
        return list(pool.map(partial(_inspect, flag=flag, vocab=vocab), paths))


def _expand(pattern: str, flag: str) -> list[Path]:
    try:
        pattern = os.path.expanduser(pattern)  # a quoted glob reaches us with its ~
    except ValueError:  # a NUL, or half of a surrogate pair: no user has that name
        raise BadInput(f"{flag} {pattern}: no file can have that name; mend its path") from None
    # A name that exists is taken literally, even with [brackets] in it.
    paths = [Path(pattern)] if os.path.exists(pattern) else sorted(map(Path, glob.glob(pattern)))
    if paths:
        return paths
    folder = Path(pattern).parent
    try:
        os.listdir(folder)  # glob keeps quiet about a folder that it may not read
    except PermissionError as error:
        raise BadInput(
            f"{flag} {pattern}: the folder {folder} can't be read: {error.strerror}; mend its mode"
        ) from error
    except (OSError, ValueError):
        pass
    make = "python -m jaxgpt.corpus fineweb (or sample, or text FILES)"
    raise BadInput(f"{flag} {pattern}: no file matches; make shards with {make}, or quote the glob and mend its path")


def _count(path: Path, file: BinaryIO) -> int:
    size = os.fstat(file.fileno()).st_size
    header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        raise BrokenShard(
            f"{path} has {size} bytes, fewer than the {HEADER_BYTES} of a shard's header: "
            "not a shard or a truncated download; delete it and fetch or make it again"
        )
    magic, version, count = np.frombuffer(header, "<i4", 3).tolist()
    again = "make shards with python -m jaxgpt.corpus"
    if magic != MAGIC:
        raise BrokenShard(f"{path} starts with {magic}, not the magic {MAGIC} of a GPT-2 token shard; {again}")
    if version != VERSION:
        raise BrokenShard(f"{path} is a shard of version {version}, not {VERSION}; {again}")
    if count <= 0:
        raise BrokenShard(f"{path} says that it holds {count} tokens; delete it and fetch or make it again")
    expected = HEADER_BYTES + count * TOKEN.itemsize
    if size != expected:
        raise BrokenShard(
            f"{path} has {size} bytes, but its header says {count} tokens, which take {expected} bytes: "
            "truncated download or damaged; delete it and fetch or make it again"
        )
    return count


def _inspect(path: Path, flag: str, vocab: int) -> Shard:
    # Read, not memory-mapped: a file cut short meanwhile gives a short read and a message, where a map gives SIGBUS.
    buffer = np.empty(CHUNK_BYTES // TOKEN.itemsize, TOKEN)
    with opened(path) as file:
        count = _count(path, file)
        file.seek(0)
        sha256 = hashlib.sha256(file.read(HEADER_BYTES))
        done, largest = 0, 0
        while got := file.readinto(buffer.data.cast("B")):  # type: ignore[attr-defined]
            sha256.update(buffer.data.cast("B")[:got])
            ids = buffer[: got // TOKEN.itemsize]
            largest = max(largest, int(ids.max(initial=0)))
            if largest >= vocab:
                at = int(np.argmax(ids >= vocab))
                raise BadInput(
                    f"{path} ({flag}): token {ids[at]} at position {done + at} is outside the vocabulary of {vocab}; "
                    "name shards made for this recipe, or a recipe with a larger vocabulary"
                )
            done += ids.size
    if done != count:
        raise BrokenShard(f"{path} changed while it was read: {done} tokens instead of {count}; wait, then try again")
    return Shard(path, count, sha256.hexdigest(), largest)
