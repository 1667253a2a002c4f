"""The three ways to make shards: a sample of the standard library, your own text, FineWeb from the hub.

The hub is a server on loopback that speaks enough of its protocol; the client is the real `huggingface_hub`, in a
process of its own because it reads HF_ENDPOINT when it is imported.
"""

import glob
import hashlib
import http.server
import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from tiktoken_ext.openai_public import r50k_pat_str

from jaxgpt import corpus
from jaxgpt.corpus import Text, fineweb, text
from jaxgpt.errors import BadInput
from jaxgpt.shards import check_header, inspect_shards, write_shard

ROOT = Path(__file__).resolve().parent.parent
GPT2_CACHE = Path(os.environ.get("TIKTOKEN_CACHE_DIR", "no cache"), "6d1cbeee0f20b3d9449abfede4726ed8212e3aee")

# GPT-2's pattern and special token over bytes and a few merges: what `text` does doesn't depend on which merges.
MERGES = [b"he", b"ll", b"hell", b"hello", b" w", b"or", b" wor", b"ld", b" world", b"  ", b"\n\n", b"'s", b"<|"]
TINY = tiktoken.Encoding(
    "tiny",
    pat_str=r50k_pat_str,
    mergeable_ranks={word: i for i, word in enumerate([bytes([b]) for b in range(256)] + MERGES)},
    special_tokens={"<|endoftext|>": 50256},
)


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m jaxgpt.corpus ARGUMENTS`, far from any network but loopback."""
    own = {name: value for name, value in os.environ.items() if not re.search("(?i)_proxy$|^HF_", name)}
    own |= {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", **environment}
    line = [sys.executable, "-m", "jaxgpt.corpus", *map(str, arguments)]
    return subprocess.run(line, env=own, capture_output=True, text=True, check=False, timeout=60)


def assert_one_line(done: subprocess.CompletedProcess[str], said: str) -> None:
    assert done.returncode == 2
    assert re.fullmatch(rf"error: .*{said}.*\n", done.stderr), done.stderr


def tokens(pattern: str | Path) -> list[int]:
    return [int(token) for path in sorted(glob.glob(str(pattern))) for token in np.fromfile(path, "<u2")[512:]]


def globs_to_type(output: str) -> list[str]:
    """The two globs of the command that the last line of output says to type next."""
    words = shlex.split(output.splitlines()[-1])
    assert words[:3] == ["python", "-m", "jaxgpt.train"]
    return [words[words.index("--data") + 1], words[words.index("--val-data") + 1]]


@pytest.fixture
def three(tmp_path) -> tuple[Path, ...]:
    paths = tuple(tmp_path / name for name in ("a b.txt", "ü.txt", "c.txt"))
    for path, words in zip(paths, ("hello world", "it's\r\nhello", "see <|endoftext|>"), strict=True):
        path.write_bytes(words.encode())
    return paths


def test_text_command_writes_each_document_after_50256_and_special_tokens_as_text(tmp_path, three, monkeypatch, capsys):
    monkeypatch.setattr(corpus, "gpt2_encoding", lambda: TINY)  # where it would be downloaded
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process's SIGTERM is pytest's
    corpus.main(["text", *map(str, three), "--out", f"{tmp_path}/o [1]", "--val-every", "3", "--workers", "1"])
    train, val = map(tokens, globs_to_type(capsys.readouterr().out))
    assert val == [50256, *TINY.encode_ordinary("hello world")]
    assert train == [50256, *TINY.encode_ordinary("it's\r\nhello"), 50256, *TINY.encode_ordinary("see <|endoftext|>")]


def test_text_is_the_same_whatever_the_number_of_workers(tmp_path):
    words = " ".join(f"hello world {i} it's\n" for i in range(80_000))  # each file takes more than one batch
    files = tuple(tmp_path / f"{i}.txt" for i in range(3))
    for i, path in enumerate(files):
        path.write_text(words[i:])
    one, three = [text(Text(files, tmp_path / f"out{n}", workers=n), TINY) for n in (1, 3)]
    digests = [[shard.sha256 for glob in globs for shard in inspect_shards(glob, "", 50257)] for globs in (one, three)]
    assert digests[0] == digests[1]
    assert tokens(one[0]) == [token for i in (1, 2) for token in [50256, *TINY.encode_ordinary(words[i:])]]


# Mostly spaces and newlines; the others are white space to Python, to GPT-2's pattern or to both.
LETTERS = st.sampled_from("ab's<|>1数é" + " \n" * 8 + "\r\t\x1c\x85\u00a0\u2003")
WRITTEN = st.text(LETTERS, min_size=20, max_size=60) | st.just("")


def pieces_of(written: str, split_on: str, block: int) -> list[tuple[int, bool, str]]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.txt").write_bytes(written.encode())
        return list(corpus._pieces([Path(folder, "a.txt")], split_on, block))


@given(WRITTEN, st.integers(1, 20))
def test_pieces_of_a_document_have_the_document_s_tokens(written, block):
    pieces = pieces_of(written, "", block)
    assert "".join(piece for _, _, piece in pieces) == written
    read = [token for _, _, piece in pieces for token in TINY.encode_ordinary(piece)]
    assert read == TINY.encode_ordinary(written)


@given(st.lists(WRITTEN, min_size=1, max_size=5), st.sampled_from(["\n\n", "<|>", "1\n1"]), st.integers(1, 20))
def test_separator_splits_documents_wherever_a_block_ends(parts, split_on, block):
    written = split_on.join(parts)
    read: dict[int, str] = {}
    for number, starts, piece in pieces_of(written, split_on, block):
        assert starts == (number not in read)
        read[number] = read.get(number, "") + piece
    assert list(read.items()) == list(enumerate(filter(None, written.split(split_on))))


def test_pieces_don_t_grow_with_the_document():
    pieces = pieces_of("hello world\n" * 1000, "", block=100)
    assert max(len(piece) for _, _, piece in pieces) < 200


def test_text_fills_shards_of_the_size_asked_for(tmp_path, three):
    train, _ = text(Text(three, tmp_path / "out", shard_tokens=10, workers=1), TINY)
    assert [check_header(path) for path in sorted(glob.glob(train))] == [10, 7, 7]


def test_shards_that_are_there_are_not_overwritten(tmp_path, three):
    write_shard(tmp_path / "text_train_000007.bin", [1])
    with pytest.raises(BadInput, match=r"text_train_000007\.bin is there already: choose another --out or --name"):
        text(Text(three, tmp_path, workers=1), TINY)
    assert tokens(tmp_path / "*.bin") == [1]


def test_file_that_is_not_utf8_is_named_and_no_shard_stays(tmp_path, three):
    three[1].write_text("hello world " * 400_000)  # shards are full before the fault is met
    three[2].write_bytes(b"caf\xe9")
    with pytest.raises(BadInput, match=r"c\.txt is not UTF-8 .*iconv"):
        text(Text(three, tmp_path / "out", shard_tokens=100_000, workers=1), TINY)
    assert list(tmp_path.glob("out/*")) == []


@pytest.mark.parametrize(("name", "said"), [("no.txt", "No such file"), (".", "is a folder")])
def test_what_cannot_be_read_is_named(tmp_path, three, name, said):
    with pytest.raises(BadInput, match=said):
        text(Text((*three, tmp_path / name), tmp_path / "out", workers=1), TINY)


def test_one_document_alone_is_refused(tmp_path, three):
    with pytest.raises(BadInput, match=r"a b\.txt: one document or none, .*--split-on"):
        text(Text(three[:1], tmp_path / "out", workers=1), TINY)
    assert list(tmp_path.glob("out/*")) == []


WRONG = [{"files": ()}, {"val_every": 1}, {"shard_tokens": 0}, {"workers": 0}, {"name": "a/b"}, {"name": ""}]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_flag_of_text_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(BadInput, match=next(iter(wrong)).replace("_", "-").replace("files", "FILES")):
        Text(**{"files": (Path("a"),), "out": Path("b")} | wrong)


class EndsItsWorker:
    """Unpickled by a worker, ends it, as running out of memory would."""

    def __reduce__(self):
        return os._exit, (1,)


def test_worker_that_dies_is_said_in_one_line(tmp_path, three):
    with pytest.raises(BadInput, match=r"--workers 1: one of them died"):
        text(Text(three, tmp_path / "out", workers=1), EndsItsWorker())


def test_vocabulary_that_cannot_be_downloaded_is_said_in_one_line(tmp_path, three):
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:9", "TIKTOKEN_CACHE_DIR": str(tmp_path / "empty")}
    assert_one_line(command("text", *three, "--out", tmp_path, **nowhere), "tiktoken can't load .*TIKTOKEN_CACHE_DIR")


@pytest.mark.skipif(not GPT2_CACHE.exists(), reason="needs the GPT-2 vocabulary in TIKTOKEN_CACHE_DIR")
def test_text_command_gives_gpt2_s_tokens(tmp_path):
    (tmp_path / "a").write_text("Hello world")
    done = command("text", tmp_path / "a", tmp_path / "a", "--out", tmp_path / "out")
    assert list(map(tokens, globs_to_type(done.stdout))) == [[50256, 15496, 995]] * 2


class Hub(http.server.ThreadingHTTPServer):
    """Serves `files` as the dataset's and notes what is asked. Hangs up on an empty one, and once after `cut` bytes."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Resolve)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.cut: int | None = None
        self.reset = False  # whether it hangs up rudely

    def got(self) -> list[str]:
        return [name for method, name, _ in self.asked if method == "GET" and name in self.files]


class Resolve(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self):
        name = self.path.removeprefix("/datasets/kjj0/fineweb10B-gpt2/resolve/main/")
        self.server.asked.append((self.command, name, self.headers["Range"]))
        data = self.server.files.get(name)
        if not data:
            return None if data == b"" else self.send_error(404)
        start = int(re.match(r"bytes=(\d+)-", self.headers["Range"] or "bytes=0-")[1])
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "GET":
            cut, self.server.cut = self.server.cut, None
            self.wfile.write(data[start:cut])
            if cut and self.server.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                os.close(self.connection.detach())

    do_GET = do_HEAD  # noqa: N815

    def log_message(self, *_):
        pass


SHARD = np.array([20240520, 1, 3000] + [0] * 253, "<i4").tobytes() + np.arange(3000, dtype="<u2").tobytes()
VAL, TRAIN1, TRAIN2 = "fineweb_val_000000.bin", "fineweb_train_000001.bin", "fineweb_train_000002.bin"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        server.files = dict.fromkeys((VAL, TRAIN1, TRAIN2), SHARD)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(hub: Hub, out: Path, shards: int = 2) -> subprocess.CompletedProcess[str]:
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    return command("fineweb", "--shards", shards, "--out", out, HF_ENDPOINT=endpoint, HF_HOME=f"{out.parent}/home")


def test_fineweb_brings_the_validation_shard_and_those_asked_for(hub, tmp_path):
    done = fetch(hub, tmp_path / "fw")
    names = [[shard.path.name for shard in inspect_shards(glob, "", 50257)] for glob in globs_to_type(done.stdout)]
    assert names == [[TRAIN1, TRAIN2], [VAL]]


def test_whole_shards_are_kept_without_asking_the_hub(hub, tmp_path):
    for name in (VAL, TRAIN1, TRAIN2):
        (tmp_path / name).write_bytes(SHARD)
    assert fetch(hub, tmp_path).returncode == 0
    assert hub.asked == []


def test_second_run_gets_only_what_the_first_could_not(hub, tmp_path):
    del hub.files[TRAIN2]
    assert_one_line(fetch(hub, tmp_path / "fw"), rf"{TRAIN2} can't be fetched from http://127.0.0.1:\d+ to .*404")
    hub.files[TRAIN2] = SHARD
    hub.asked.clear()
    assert fetch(hub, tmp_path / "fw").returncode == 0
    assert hub.got() == [TRAIN2]


def test_download_that_is_cut_off_goes_on_where_it_stopped(hub, tmp_path):
    write_shard(tmp_path / "long.bin", np.arange(12_000_000) % 50257)
    hub.files[VAL], hub.cut = (tmp_path / "long.bin").read_bytes(), 15_000_000  # the client keeps whole 10 MiB
    done = fetch(hub, tmp_path / "fw", shards=1)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "fw" / VAL).read_bytes() == hub.files[VAL]
    assert any(start for _, name, start in hub.asked if name == VAL)


def test_broken_shard_on_disk_is_fetched_again(hub, tmp_path):
    for name, data in ((VAL, SHARD), (TRAIN1, SHARD[:-2]), (TRAIN2, SHARD)):
        (tmp_path / name).write_bytes(data)
    assert fetch(hub, tmp_path).returncode == 0
    assert (hub.got(), check_header(tmp_path / TRAIN1)) == ([TRAIN1], 3000)


@pytest.mark.parametrize("fault", ["magic", "truncated"])
def test_shard_that_arrives_broken_twice_is_refused(hub, tmp_path, fault):
    hub.files[TRAIN1] = b"\1" + SHARD[1:] if fault == "magic" else SHARD[:-2]
    said = {"magic": "not the magic 20240520", "truncated": "has 7022 bytes, but its header says 3000 tokens"}[fault]
    assert_one_line(fetch(hub, tmp_path / "fw"), f"{TRAIN1} is broken, deleted here: .*{said}")
    assert hub.got() == [VAL, TRAIN1, TRAIN1]
    assert [path.name for path in tmp_path.glob("fw/*.bin")] == [VAL]


def test_download_whose_connection_is_reset_is_tried_again(hub, tmp_path):
    hub.cut, hub.reset = 5000, True
    assert fetch(hub, tmp_path / "fw").returncode == 0


def test_hub_that_hangs_up_is_said_in_one_line(hub, tmp_path):
    hub.files[VAL] = b""
    assert_one_line(fetch(hub, tmp_path / "fw"), f"{VAL} can't be fetched .*HF_ENDPOINT")


@pytest.mark.parametrize("shards", [0, 104])
def test_number_of_shards_that_the_dataset_lacks_is_refused(tmp_path, shards):
    with pytest.raises(BadInput, match=rf"--shards {shards}: .*103"):
        fineweb(shards, tmp_path)


def test_flag_that_is_misspelt_is_one_line(tmp_path):
    assert_one_line(command("sample", "--outt", tmp_path), "--outt")
