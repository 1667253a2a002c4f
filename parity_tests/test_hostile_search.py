"""The search for inputs that crash a reader (`python -m parity_tests.fuzz`) finds none, and would find one."""

import importlib.util
import re
import subprocess
import sys

import pytest

from parity_tests.fuzz.targets import TARGETS
from parity_tests.programs import ROOT

needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris is not installed (pip install atheris; it has wheels for Linux on x86-64)",
)
SLOW = {"train_flags", "compare_flags", "corpus_flags", "bridge_flags", "recipes_flags"}
"""Their parser takes milliseconds."""


def search(environment, name: str, runs: int, before: str = "pass") -> subprocess.CompletedProcess[str]:
    program = f"import sys; {before}; from parity_tests.fuzz.__main__ import search; search({name!r}, {runs}, 1)"
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@needs_atheris
@pytest.mark.parametrize(
    "name", ["metrics", *(pytest.param(n, marks=pytest.mark.slow) for n in TARGETS if n != "metrics")]
)
def test_search_finds_no_crash(environment, name):
    runs = 500 if name in SLOW or name == "metrics" else 5000
    ended = search(environment, name, runs)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(rf"^{name}: {runs} inputs tried .*: 0$", ended.stdout, re.M)


@needs_atheris
@pytest.mark.slow
def test_search_finds_a_planted_crash(environment):
    planted = "import jaxgpt.curves as curves; curves._short = lambda value: 1 / 0"
    ended = search(environment, "metrics", 500, planted)
    assert ended.returncode == 1
    assert "ZeroDivisionError" in ended.stdout
