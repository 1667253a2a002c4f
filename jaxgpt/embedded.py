"""The embedded sample: token shards of the text of the installed Python's standard library. Nothing is downloaded."""

import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxgpt.errors import BadInput
from jaxgpt.shards import inspect_shards, write_shard

TRAIN_BYTES = 8_000_000
PASSAGE_BYTES = 1024
LEAST_BYTES = 4_000_000  # a twentieth of it is what `tiny` validates on three times over
# Tests, generated tables (encodings, _sysconfigdata*: the latter differs from one machine to the next), bundled tools.
SKIPS = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "__pycache__"}


def sample(out: Path = Path("data/sample")) -> tuple[str, str]:
    """Shards of the standard library's Python text; does nothing where they are there and whole.

    Tokens are bytes (vocabulary 256). Files are taken in the order of a hash of their names, a twentieth of the bytes
    for validation, then at most 8 MB for training, and cut at line ends into passages of about 1 KB, each preceded by
    byte 0, which text doesn't hold. Passages lie in the order of a hash of their text: trainers read shards as they
    are, and a few steps of one long file would say little of the others. The same Python always gives the same shards,
    and two processes may make them at once.

    Returns the globs of the training and the validation shards. Raises `BadInput` when this Python's standard library
    has too little text, or `out` can't be written.
    """
    globs = str(out / "sample_train_*.bin"), str(out / "sample_val_*.bin")
    try:
        for pattern in globs:
            inspect_shards(pattern, "--out", vocab=256)
        return globs
    except BadInput:
        pass  # not there, or not whole: made anew
    library = Path(sysconfig.get_paths()["stdlib"])
    documents = sorted(_library_text(library), key=lambda document: hashlib.sha256(document[0].encode()).digest())
    total = sum(len(data) for _, data in documents)
    if total < LEAST_BYTES:
        raise BadInput(
            f"the standard library in {library} has {total} bytes of Python text and a sample takes "
            f"{LEAST_BYTES}: this Python was stripped or zipped; run a full one, or give --data and --val-data"
        )
    val: list[bytes] = []
    train: list[bytes] = []
    val_bytes = train_bytes = 0
    for _, data in documents:
        passages = _passages(data)
        size = len(data) + len(passages)
        if val_bytes + size < min(total, TRAIN_BYTES) // 20:
            val += passages
            val_bytes += size
        elif train_bytes + size < TRAIN_BYTES:
            train += passages
            train_bytes += size
    for name, passages in (("sample_train_000001.bin", train), ("sample_val_000000.bin", val)):
        ordered = b"".join(sorted(passages, key=lambda passage: hashlib.sha256(passage).digest()))
        write_shard(out / name, np.frombuffer(ordered, np.uint8).astype(np.uint16))
    (out / "sample_source.txt").write_text(
        f"Bytes (vocabulary 256) of passages from the standard library of Python "
        f"{platform.python_version()}, each preceded by byte 0:\n{train_bytes} tokens for training, {val_bytes} for "
        "validation. Copyright Python Software Foundation and contributors;\n"
        "licence: PSF-2.0, https://docs.python.org/3/license.html\n",
        encoding="utf-8",
    )
    return globs


def _passages(data: bytes) -> list[bytes]:
    """A file's text in pieces of whole lines, each just over `PASSAGE_BYTES` but the last, after a byte 0."""
    passages = [bytearray(b"\0")]
    for line in data.splitlines(keepends=True):
        if len(passages[-1]) > PASSAGE_BYTES:
            passages.append(bytearray(b"\0"))
        passages[-1] += line
    return [bytes(passage) for passage in passages]


def _library_text(library: Path) -> Iterator[tuple[str, bytes]]:
    """Name (relative, with slashes) and text of each Python file that is UTF-8 and holds no NUL."""
    for folder, inside, names in os.walk(library):
        inside[:] = [name for name in inside if name not in SKIPS]
        for name in names:
            path = Path(folder, name)
            if path.suffix != ".py" or name.startswith("_sysconfigdata"):
                continue
            try:
                data = path.read_bytes()
                data.decode("utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if data and b"\0" not in data:
                yield path.relative_to(library).as_posix(), data
