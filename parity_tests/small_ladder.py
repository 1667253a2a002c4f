"""A ladder of a few made-up tests, climbed by pytest in a process of its own, and the certificate of that."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

SCRIPT = "<script>alert(1)</script>"
MATRIX = "h.0.attn.c_attn.weight"

CONFTEST = """
from pathlib import Path
import pytest
from parity_tests.certificate import plugin
from parity_tests.measured import curves_taken, taken

def pytest_addoption(parser):
    plugin.add_option(parser)

def pytest_configure(config):
    plugin.register(config, Path(__file__).parent)

def pytest_collection_modifyitems(config, items):
    slow = [item for item in items if "slow" in item.name]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if "slow" not in item.name]

@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    try:
        return (yield)
    finally:
        item.user_properties += [("measured", tuple(each)) for each in taken()]
        item.user_properties += [("curve", tuple(each)) for each in curves_taken()]
"""

LOGITS = """
import pytest
from parity_tests.measured import assert_within, curve

@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_logits_are_the_same(dtype):
    assert_within(2e-7, 1e-6, "rung 3, logits", oracle=1e-7)
    curve("tiny", {"jaxgpt": [5.0, 4.0], "torch_ref": [5.0, 4.5]})

def test_slow(): pass

def test_needs_a_copy():
    pytest.skip("no <copy> of it")
"""

GRADIENTS = f"""
from parity_tests.measured import assert_within

def test_a_norm_is_the_same_in_float32():
    assert_within(float("nan"), 1e-6, "rung 5, {SCRIPT}")

def test_raw_gradients_are_the_same():
    assert_within(0.25, 1e-5, "rung 5, gradients: {MATRIX}")
"""

STOPPED = """
def test_first(): pass
def test_second(): raise KeyboardInterrupt
def test_third(): pass
"""


class Session(NamedTuple):
    """How pytest ended, and what it wrote."""

    code: int
    said: str
    document: dict
    page: str


def climb(there: Path, environment: dict[str, str], files: dict[str, str], *words: str, folder: str = "c") -> Session:
    """pytest on these files, put into the folder `there`, with `--certificate folder` and more words."""
    for name, text in ({"conftest.py": CONFTEST, "pytest.ini": "[pytest]\n"} | files).items():
        (there / name).write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", ".", "--certificate", folder, *words]
    alone = environment | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "JAXGPT_PUBLISHED": ""}
    done = subprocess.run(command, cwd=there, env=alone, capture_output=True, text=True, timeout=120)
    said, made = done.stdout + done.stderr, there / folder
    if not (made / "certificate.json").is_file():
        return Session(done.returncode, said, {}, "")
    document = json.loads((made / "certificate.json").read_text(encoding="utf-8"), parse_constant=_refuse)
    return Session(done.returncode, said, document, (made / "certificate.html").read_text(encoding="utf-8"))


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")
