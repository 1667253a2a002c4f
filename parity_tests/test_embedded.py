"""The embedded sample: shards of the text of the installed Python's standard library."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from jaxgpt.embedded import sample
from jaxgpt.errors import BadInput
from jaxgpt.shards import inspect_shards
from parity_tests.test_corpus import ROOT, globs_to_type, tokens


@pytest.fixture
def library(tmp_path, monkeypatch) -> Path:
    """A standard library of 220 modules of 27 kB, and what a sample must leave out."""
    folder = tmp_path / "lib" / "python"
    for i in range(220):
        path = folder / f"package{i % 7}" / f"module{i}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"# module {i} é {n:04}\n" for n in range(1300)), encoding="utf-8")
    for name in ("test/a.py", "json/tests/b.py", "site-packages/c.py", "encodings/d.py", "_sysconfigdata_x.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("# left out\n")
    (folder / "latin1.py").write_bytes(b"# left out \xe9\n")
    (folder / "nul.py").write_bytes(b"# left out \0\n")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(folder)})
    return folder


def documents(pattern: str) -> list[str]:
    return [document.decode("utf-8") for document in bytes(tokens(pattern)).split(b"\0")[1:]]


def test_sample_of_this_python_is_valid_bytes_and_large_enough(tmp_path):
    train, val = [inspect_shards(pattern, "--data", 256) for pattern in sample(tmp_path)]
    assert 150_000 <= val[0].tokens < train[0].tokens <= 8_000_000


def modules(passages: list[str]) -> list[str]:
    return [passage.split(" ")[2] for passage in passages]


def test_sample_holds_the_library_s_lines_each_file_in_one_side(tmp_path, library):
    train, val = map(documents, sample(tmp_path / "out"))
    written = [line for path in library.glob("package*/*.py") for line in path.read_text("utf-8").splitlines()]
    assert sorted("".join(train + val).splitlines()) == sorted(written)
    assert not set(modules(train)) & set(modules(val))


def test_sample_s_passages_are_short_and_mixed(tmp_path, library):
    train, _ = map(documents, sample(tmp_path / "out"))
    assert max(len(passage.encode()) for passage in train) < 1100
    assert len(set(modules(train[:100]))) > 50


def test_sample_s_validation_is_about_a_twentieth(tmp_path, library):
    train, val = map(tokens, sample(tmp_path / "out"))
    assert 0.04 < len(val) / (len(train) + len(val)) <= 0.05


def test_whole_sample_is_left_alone(tmp_path, library):
    sample(tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    sample(tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_broken_sample_is_made_anew_and_is_the_same(tmp_path, library):
    train, _ = sample(tmp_path / "out")
    whole = tokens(train)
    os.truncate(tmp_path / "out" / "sample_train_000001.bin", 5000)
    sample(tmp_path / "out")
    assert tokens(train) == whole


def test_two_processes_can_make_the_sample_at_once(tmp_path):
    line = [sys.executable, "-m", "jaxgpt.corpus", "sample", "--out", tmp_path]
    both = [subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert inspect_shards(globs_to_type(outputs[0])[0], "--data", 256)
    assert len(list(tmp_path.iterdir())) == 3


def test_sample_says_what_it_was_made_from(tmp_path, library):
    sample(tmp_path / "out")
    assert re.search(r"(?s)passages .* Python 3\.\d+.*PSF", (tmp_path / "out" / "sample_source.txt").read_text())


def test_library_with_too_little_text_is_refused(tmp_path, library):
    for path in library.glob("package[012]/*.py"):
        path.unlink()
    with pytest.raises(BadInput, match=r"stripped or zipped; run a full one, or give --data"):
        sample(tmp_path / "out")
