"""Token shards: what is written, what is read, and what each fault of a file is said to be."""

import hashlib
import os
import struct
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.errors import BadInput
from jaxgpt.shards import BrokenShard, ShardWriter, check_header, inspect_shards, write_shard

ROOT = Path(__file__).resolve().parent.parent


def shard_bytes(magic: int = 20240520, version: int = 1, count: int = 3, body: bytes = b"\1\0\2\0\3\0") -> bytes:
    return struct.pack("<256i", magic, version, count, *[0] * 253) + body


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Without root's right to read everything. A file's mode says nothing to root."""
    if not hasattr(os, "geteuid"):
        pytest.skip("modes of files are POSIX's")
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    yield
    os.seteuid(was)


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that others may enter, which pytest's are not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_written_shard_is_256_int32_then_uint16_little_endian(tmp_path):
    write_shard(tmp_path / "a.bin", [1, 2, 50256])
    assert (tmp_path / "a.bin").read_bytes() == struct.pack("<256i3H", 20240520, 1, 3, *[0] * 253, 1, 2, 50256)


@settings(deadline=None)  # another process may take the core
@given(st.lists(st.integers(0, 65535), min_size=1), st.sampled_from(["<u2", ">u2", "<i4", ">i8"]))
def test_ids_of_any_integer_type_are_written_as_they_are(ids, dtype):
    with tempfile.TemporaryDirectory() as folder:
        write_shard(Path(folder, "a.bin"), np.array(ids, dtype))
        assert np.fromfile(Path(folder, "a.bin"), "<u2")[512:].tolist() == ids


@pytest.mark.parametrize("bad", [65536, -1])
def test_id_that_uint16_cannot_hold_is_refused_with_its_position(tmp_path, bad):
    with pytest.raises(BadInput, match=rf"a\.bin: token {bad} at position 1"):
        write_shard(tmp_path / "a.bin", [7, bad])


@pytest.mark.parametrize("tokens", [[], [0.5], [[1], [2]], [True]], ids=["none", "fraction", "table", "bool"])
def test_what_is_not_a_row_of_integers_is_refused(tmp_path, tokens):
    with pytest.raises(BadInput, match="integers"):
        write_shard(tmp_path / "a.bin", tokens)


def test_refused_tokens_leave_the_old_shard(tmp_path):
    write_shard(tmp_path / "a.bin", [1])
    with pytest.raises(BadInput):
        write_shard(tmp_path / "a.bin", [70000])
    assert check_header(tmp_path / "a.bin") == 1


def test_write_that_fails_leaves_no_temporary_file(tmp_path):
    (tmp_path / "a.bin").mkdir()
    with pytest.raises(BadInput, match=r"a\.bin can't be written"):
        write_shard(tmp_path / "a.bin", [1])
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_shard_is_never_seen_half_written(tmp_path, monkeypatch):
    seen = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append((Path(b).exists(), check_header(a))), replace(a, b)))
    write_shard(tmp_path / "a.bin", [1, 2])
    assert seen == [(False, 2)]


def test_header_gives_the_number_of_tokens(tmp_path):
    (tmp_path / "a.bin").write_bytes(shard_bytes())
    assert check_header(tmp_path / "a.bin") == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (shard_bytes(magic=7), "starts with 7, not the magic 20240520"),
        (shard_bytes(version=2), "version 2, not 1"),
        (shard_bytes()[:-1], "has 1029 bytes, but its header says 3 tokens, which take 1030 bytes: truncated download"),
        (shard_bytes() + b"\0", "has 1031 bytes, but its header says 3 tokens"),
        (shard_bytes(count=-1), "says that it holds -1 tokens"),
        (shard_bytes(count=0, body=b""), "says that it holds 0 tokens"),
        (shard_bytes(count=2**31 - 1), "says 2147483647 tokens, which take 4294968318 bytes"),
        (shard_bytes()[:1023], "has 1023 bytes, fewer than the 1024"),
        (b"", "has 0 bytes, fewer than the 1024"),
    ],
    ids=["magic", "version", "truncated", "too-long", "negative", "none", "huge", "half-a-header", "empty"],
)
def test_broken_shard_is_refused_with_what_was_found_and_expected(tmp_path, content, said):
    (tmp_path / "a b.bin").write_bytes(content)
    with pytest.raises(BrokenShard) as refused:
        check_header(tmp_path / "a b.bin")
    assert str(refused.value).startswith(f"{tmp_path}/a b.bin")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_hostile_count_allocates_nothing(tmp_path):
    (tmp_path / "a.bin").write_bytes(shard_bytes(count=2**31 - 1))
    tracemalloc.start()
    with pytest.raises(BrokenShard):
        inspect_shards(str(tmp_path / "a.bin"), "--data", 256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"a\.bin can't be read: No such file"):
        check_header(tmp_path / "a.bin")


def test_folder_is_not_taken_for_a_shard(tmp_path):
    with pytest.raises(BadInput, match="is a folder; name the files in one"):
        check_header(tmp_path)


def test_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.bin")
    with pytest.raises(BadInput, match="not an ordinary file"):
        check_header(tmp_path / "pipe.bin")


def test_file_without_permission_is_refused(public_folder, request):
    write_shard(public_folder / "a.bin", [1])
    (public_folder / "a.bin").chmod(0)
    request.getfixturevalue("as_nobody")
    with pytest.raises(BadInput, match=r"a\.bin can't be read: Permission denied; mend"):
        inspect_shards(f"{public_folder}/*.bin", "--data", 256)


def test_folder_without_permission_is_refused(public_folder, request):
    write_shard(public_folder / "closed" / "a.bin", [1])
    (public_folder / "closed").chmod(0)
    request.getfixturevalue("as_nobody")
    with pytest.raises(BadInput, match=r"--data .*\*\.bin: the folder .*closed can't be read: Permission denied"):
        inspect_shards(f"{public_folder}/closed/*.bin", "--data", 256)


def test_glob_that_matches_nothing_names_pattern_flag_and_mend(tmp_path):
    with pytest.raises(BadInput, match=r"--val-data .*no_\*\.bin: no file matches; .*python -m jaxgpt\.corpus fineweb"):
        inspect_shards(f"{tmp_path}/no_*.bin", "--val-data", 256)


def test_shards_come_sorted(tmp_path):
    for name in "cab":
        write_shard(tmp_path / f"{name}.bin", [1])
    assert [shard.path.name for shard in inspect_shards(f"{tmp_path}/*.bin", "--data", 256)] == [
        "a.bin",
        "b.bin",
        "c.bin",
    ]


@pytest.mark.parametrize("name", ["with space.bin", "größe-数.bin", "[1].bin"], ids=["space", "unicode", "brackets"])
def test_one_file_can_be_named_as_it_is(tmp_path, name):
    write_shard(tmp_path / name, [1])
    assert inspect_shards(str(tmp_path / name), "--data", 256)[0].path == tmp_path / name


def test_home_folder_in_a_quoted_glob_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_shard(tmp_path / "a.bin", [1])
    assert inspect_shards("~/*.bin", "--data", 256)[0].path == tmp_path / "a.bin"


def test_fingerprint_is_the_sha256_of_the_whole_file(tmp_path):
    write_shard(tmp_path / "a.bin", np.arange(60_000))
    digest = hashlib.sha256((tmp_path / "a.bin").read_bytes()).hexdigest()
    assert inspect_shards(str(tmp_path / "a.bin"), "--data", 65536)[0].sha256 == digest


def test_fingerprint_of_a_shard_longer_than_a_chunk_is_of_all_of_it(tmp_path):
    write_shard(tmp_path / "a.bin", np.arange(5_000_001) % 251)
    digest = hashlib.sha256((tmp_path / "a.bin").read_bytes()).hexdigest()
    assert inspect_shards(str(tmp_path / "a.bin"), "--data", 256)[0].sha256 == digest


def test_largest_token_and_count_are_found(tmp_path):
    write_shard(tmp_path / "a.bin", [3, 200, *[5] * 3_000_000])
    shard = inspect_shards(str(tmp_path / "a.bin"), "--data", 201)[0]
    assert (shard.largest, shard.tokens) == (200, 3_000_002)


@pytest.mark.parametrize("at", [0, 3_000_000, 4_999_999], ids=["first", "middle", "last"])
def test_token_outside_the_vocabulary_is_named_with_its_position(tmp_path, at):
    tokens = np.zeros(5_000_000, np.uint16)
    tokens[at:] = 255
    tokens[at] = 256
    write_shard(tmp_path / "a.bin", tokens)
    with pytest.raises(
        BadInput, match=rf"a\.bin \(--data\): token 256 at position {at} is outside the vocabulary of 256"
    ):
        inspect_shards(str(tmp_path / "a.bin"), "--data", 256)


def test_first_bad_shard_of_several_is_the_one_named(tmp_path):
    for name, token in (("a", 1), ("b", 300), ("c", 301)):
        write_shard(tmp_path / f"{name}.bin", [token])
    with pytest.raises(BadInput, match=r"b\.bin"):
        inspect_shards(f"{tmp_path}/*.bin", "--data", 256)


@settings(deadline=None)  # another process may take the core
@given(st.lists(st.lists(st.integers(0, 65535), max_size=9), max_size=9), st.integers(1, 7))
def test_writer_keeps_every_token_in_order(pieces, shard_tokens):
    with tempfile.TemporaryDirectory() as folder:
        writer = ShardWriter(Path(folder), "x", 1, shard_tokens)
        for piece in pieces:
            writer.add(np.array(piece, np.uint16))
        writer.finish()
        read = [token for path in sorted(Path(folder).iterdir()) for token in np.fromfile(path, "<u2")[512:]]
        assert read == [token for piece in pieces for token in piece]
        assert writer.tokens == len(read)


def test_writer_shares_the_rest_among_the_last_two_shards(tmp_path):
    writer = ShardWriter(tmp_path, "x", 1, 10)
    writer.add(np.arange(21, dtype=np.uint16))
    writer.finish()
    assert [check_header(tmp_path / f"x_{i:06d}.bin") for i in (1, 2, 3)] == [10, 6, 5]


def test_writer_takes_back_what_it_wrote(tmp_path):
    writer = ShardWriter(tmp_path, "x", 1, 10)
    writer.add(np.arange(21, dtype=np.uint16))
    writer.delete()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["jaxgpt.shards", "jaxgpt.corpus"])
def test_neither_framework_is_imported(module):
    command = f"import sys, {module}; sys.exit(' '.join({{'jax', 'torch', 'flax'}} & set(sys.modules)) or None)"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")
