"""Makes token shards: FineWeb from the hub, your own text, or a sample from what every Python has.

    python -m jaxgpt.corpus sample
    python -m jaxgpt.corpus text docs/*.txt --out data/docs --name docs
    python -m jaxgpt.corpus fineweb --shards 35

The last line that each prints is what to type next. Neither JAX nor PyTorch is imported.
"""

import glob
import io
import multiprocessing
import os
import shlex
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tiktoken
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from jaxgpt.commands import parse
from jaxgpt.embedded import sample
from jaxgpt.errors import BadInput, exit_codes
from jaxgpt.shards import BrokenShard, ShardWriter, check_header, opened

END_OF_TEXT = 50256  # GPT-2's; FineWeb's shards have it BEFORE each document, so ours do
BLOCK = 1 << 20  # characters read at a time, and about what one task of a worker holds

HUB_REPOSITORY, HUB_TRAIN_SHARDS = "kjj0/fineweb10B-gpt2", 103


@dataclass(frozen=True)
class Sample:
    """A few megabytes of bytes (vocabulary 256) from the Python standard library: no network, a second or two."""

    out: Path = Path("data/sample")
    """Folder of the shards."""


@dataclass(frozen=True)
class Text:
    """Your own UTF-8 text, in GPT-2 tokens."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Text files, each a document unless --split-on is given."""
    out: Path
    """Folder of the shards."""
    name: str = "text"
    """Shards are called NAME_train_000001.bin, NAME_val_000000.bin and so on."""
    val_every: int = 20
    """One document in so many is for validation, beginning with the first."""
    split_on: str = ""
    """A separator between documents of one file, such as '<|endoftext|>'; it is dropped. Empty: a file is one."""
    shard_tokens: int = 100_000_000
    """Tokens of a full shard."""
    workers: int = os.cpu_count() or 1
    """Processes that tokenize. The shards don't depend on it."""

    def __post_init__(self):
        if not self.files:
            raise BadInput("text needs FILES: python -m jaxgpt.corpus text FILES... --out DIR")
        if self.val_every < 2:
            raise BadInput(f"--val-every {self.val_every}: give 2 or more, so that documents are left to train on")
        largest = {"--shard-tokens": 2**31 - 1, "--workers": 1024}  # a shard's header counts in int32
        for flag, value in (("--shard-tokens", self.shard_tokens), ("--workers", self.workers)):
            if not 1 <= value <= largest[flag]:
                raise BadInput(f"{flag} {value}: give 1 or more, up to {largest[flag]}")
        if not self.name or Path(self.name).name != self.name:
            raise BadInput(f"--name {self.name!r}: give the first part of the shards' names, and their folder as --out")


@dataclass(frozen=True)
class Fineweb:
    """FineWeb in GPT-2 tokens from the Hugging Face hub, 200 MB a shard; run it again to go on where it stopped."""

    shards: int = 35
    """Training shards of 100M tokens, 1 to 103; 35 are enough for every recipe of 3.25B tokens or fewer."""
    out: Path = Path("data/fineweb10B")
    """Folder of the shards."""


@tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
@dataclass(frozen=True)
class Command:
    """Make token shards."""

    corpus: Sample | Text | Fineweb


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """Run one of the three commands; the last line printed is the next command to type."""
    corpus = parse(Command, sys.argv[1:] if argv is None else argv, "python -m jaxgpt.corpus").corpus
    # Ended politely, `text` takes its half of the shards with it and its workers don't outlive it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if isinstance(corpus, Sample):
            train, val = sample(corpus.out)
        elif isinstance(corpus, Text):
            train, val = text(corpus)
        else:
            train, val = fineweb(corpus.shards, corpus.out)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    recipe = "--recipe tiny " if isinstance(corpus, Sample) else ""
    print(f"python -m jaxgpt.train {recipe}--data {shlex.quote(train)} --val-data {shlex.quote(val)}")


def gpt2_encoding() -> tiktoken.Encoding:
    """tiktoken's GPT-2 encoding, downloaded on first use. Raises `BadInput` where that fails."""
    try:
        return tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:  # every network error of requests is an OSError; ValueError: a wrong hash
        raise BadInput(
            f"tiktoken can't load the GPT-2 vocabulary ({_reason(error)}): run once with a network, or set "
            "TIKTOKEN_CACHE_DIR to a folder where it has been loaded before"
        ) from error


def text(flags: Text, encoding: tiktoken.Encoding | None = None) -> tuple[str, str]:
    """Shards of UTF-8 text files, each document preceded by token 50256; `encoding` is GPT-2's unless given.

    Text that spells a special token is ordinary text. Document i (from 0, in the order of the files) is for validation
    when i % val_every == 0. Memory holds two shards of each side and some blocks of text, however large the files.

    Returns the globs of the training and the validation shards. Raises `BadInput` for a file that can't be used, for
    shards that are there already, and for a split with one side empty; then no shard is left behind.
    """
    files, out, name = flags.files, flags.out, flags.name
    for pattern in _globs(out, name):
        if there := sorted(glob.glob(pattern)):
            raise BadInput(f"{there[0]} is there already: choose another --out or --name, or delete {pattern}")
    size = 0
    for path in files:  # a path that is wrong is told at once, not after hours
        with opened(path) as file:
            size += os.fstat(file.fileno()).st_size
    encoding = encoding or gpt2_encoding()
    train = ShardWriter(out, f"{name}_train", 1, flags.shard_tokens)
    val = ShardWriter(out, f"{name}_val", 0, flags.shard_tokens)
    try:
        with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
            bar = progress.add_task("tokenizing", total=size)
            batches = _batches(_pieces(files, flags.split_on), flags.val_every)
            for train_ids, val_ids, done in _encoded(batches, flags.workers, encoding):
                train.add(train_ids)
                val.add(val_ids)
                progress.advance(bar, done)
        train.finish()
        val.finish()
        if not (train.paths and val.paths):
            raise BadInput(
                f"{', '.join(map(str, files))}: one document or none, and training and validation take one each: "
                "give more files, or --split-on the separator of their documents"
            )
    except BaseException as error:
        train.delete()  # half a corpus would look like a whole one
        val.delete()
        if isinstance(error, BrokenExecutor):
            raise BadInput(f"--workers {flags.workers}: one of them died (out of memory?); give fewer") from error
        raise
    print(f"{out}: {train.tokens:,} tokens for training (shards: {len(train.paths)}), {val.tokens:,} for validation")
    return _globs(out, name)


def _pieces(files: Iterable[Path], split_on: str, block: int = BLOCK) -> Iterator[tuple[int, bool, str]]:
    """Documents in pieces of about a block of characters: a document's number, whether it starts here, the text.

    A piece ends before a space or newline that follows a character which is neither. No token of GPT-2 spans such a
    place (its pattern allows white space only at the front of a match), so the pieces' tokens are the document's.
    """
    number = 0
    keep = max(len(split_on) - 1, 0)  # characters that may be the start of a separator
    for path in files:
        rest, starts, more = "", True, True
        try:
            with opened(path) as binary, io.TextIOWrapper(binary, "utf-8-sig", newline="") as file:
                while more:
                    more = bool(got := file.read(block))
                    *ended, rest = (rest + got).split(split_on) if split_on else [rest + got]
                    if not more:
                        ended.append(rest)
                    for piece in ended:
                        if piece:
                            yield number, starts, piece
                        number, starts = number + bool(piece), True
                    if more and (cut := _cut(rest, len(rest) - keep, block)):
                        yield number, starts, rest[:cut]
                        rest, starts = rest[cut:], False
        except UnicodeDecodeError as error:
            raise BadInput(f"{path} is not UTF-8 ({error.reason}): convert it, say with iconv -t UTF-8") from error


def _cut(held: str, end: int, most: int) -> int:
    """The last place before `end`, and at most `most` back from it, where tokens can't join; 0 if none."""
    for at in range(end - 1, max(0, end - 1 - most), -1):
        if held[at] in " \n" and not held[at - 1].isspace():
            return at
    return 0


Batch = list[tuple[bool, bool, str]]  # whether for validation, whether a document starts, text
Encoded = tuple[NDArray[np.uint16], NDArray[np.uint16], int]  # ids for training, ids for validation, bytes of text
_encoding: tiktoken.Encoding  # in a worker: its own


def _batches(pieces: Iterable[tuple[int, bool, str]], val_every: int) -> Iterator[Batch]:
    batch: Batch = []
    size = 0
    for number, first, piece in pieces:
        batch.append((number % val_every == 0, first, piece))
        size += len(piece)
        if size >= BLOCK:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded(batches: Iterable[Batch], workers: int, encoding: tiktoken.Encoding) -> Iterator[Encoded]:
    """The batches' tokens, in their order, with a few batches for each worker under way."""
    context = multiprocessing.get_context("spawn")  # forking a process that has threads (tiktoken, rich) can hang it
    pending: deque[Future[Encoded]] = deque()
    pool = ProcessPoolExecutor(workers, context, _start_worker, (encoding,))
    try:
        for batch in batches:
            pending.append(pool.submit(_encode, batch))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(encoding: tiktoken.Encoding) -> None:
    global _encoding
    _encoding = encoding
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-c is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent can't end its workers: they would wait for work for ever."""
    multiprocessing.parent_process().join()  # type: ignore[union-attr]  # a worker has a parent
    os._exit(1)


def _encode(batch: Batch) -> Encoded:
    ids: tuple[list[int], list[int]] = [], []
    for val, first, piece in batch:
        if first:
            ids[val].append(END_OF_TEXT)
        ids[val].extend(_encoding.encode_ordinary(piece))
    return np.array(ids[0], np.uint16), np.array(ids[1], np.uint16), sum(len(piece.encode()) for *_, piece in batch)


def fineweb(shards: int = 35, out: Path = Path("data/fineweb10B")) -> tuple[str, str]:
    """FineWeb's validation shard and its first `shards` training shards (1 to 103), from the hub (or `HF_ENDPOINT`).

    A shard that is in `out` and whole is kept, without asking the hub. Each is checked: magic, version, size.

    Returns the globs of the training and the validation shards. Raises `BadInput` for a number of shards that isn't
    there, and for the first shard that can't be fetched or arrives broken twice; whole shards stay.
    """
    if not 1 <= shards <= HUB_TRAIN_SHARDS:
        raise BadInput(
            f"--shards {shards}: {HUB_REPOSITORY} has {HUB_TRAIN_SHARDS} for training; give 1 or more of them"
        )
    names = ["fineweb_val_000000.bin", *(f"fineweb_train_{number:06d}.bin" for number in range(1, shards + 1))]
    for i, name in enumerate(names, 1):
        tokens, came = _whole(name, out)
        print(f"[{i}/{len(names)}] {out / name}: {tokens:,} tokens, {came}", flush=True)
    return _globs(out, "fineweb")


def _whole(name: str, out: Path) -> tuple[int, str]:
    """The tokens of a shard that is whole, and how it came; a broken one is fetched again once."""
    path = out / name
    fetch, came = not path.exists(), "already there"
    for again in (False, True):
        if fetch:
            _download(name, out, again)
            came = "fetched"
        try:
            return check_header(path), came
        except BrokenShard as error:
            broken, fetch = error, True
    path.unlink()
    raise BadInput(f"the hub's {name} is broken, deleted here: {broken}; is HF_ENDPOINT a mirror that is out of date?")


def _download(name: str, out: Path, anew: bool) -> None:
    import huggingface_hub as hub  # slow, and only this command wants it

    print(f"fetching {name}", flush=True)  # the hub's library tries for half a minute before it gives up
    hub.logging.set_verbosity_error()  # its warnings tell of retries; what matters comes as an exception
    for more in (True, False):
        try:
            hub.hf_hub_download(HUB_REPOSITORY, name, repo_type="dataset", local_dir=out, force_download=anew)
            return
        except Exception as error:  # the hub's own, httpx's, requests' and its Rust downloader's: all mean this
            if more and not isinstance(error, (hub.errors.HfHubHTTPError, hub.errors.LocalEntryNotFoundError)):
                continue  # cut off on the way; not every version of the library goes on by itself
            raise BadInput(
                f"{name} can't be fetched from {hub.constants.ENDPOINT} to {out} ({_reason(error)}): see to the "
                "network, HF_ENDPOINT or the disk, then run this again; shards that are whole stay"
            ) from error


def _globs(out: Path, name: str) -> tuple[str, str]:
    start = glob.escape(str(out / name))
    return f"{start}_train_*.bin", f"{start}_val_*.bin"


def _reason(error: BaseException) -> str:
    """The first cause, on a line: the hub's library says "check your connection" over what happened."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


if __name__ == "__main__":
    main()
