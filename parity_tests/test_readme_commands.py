"""Every command of the README is run: here, by a test named here, or on a GPU by benchmarks/readme_gpu.sh.

A command that is new in the README is red until it has its place in one of the three.
"""

import contextlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from parity_tests.pages import commands, is_a_test
from parity_tests.programs import ROOT, losses
from parity_tests.stand_ins import Machine, tool
from parity_tests.walks import quoted, walk, without_rounding

README = (ROOT / "README.md").read_text(encoding="utf-8")
PUBLISHED = (
    "python -m jaxgpt.compare benchmarks/results/muon-2024-10-12-kernels-h100/jaxgpt "
    "benchmarks/results/muon-2024-10-12-kernels-h100/torch_ref --published muon-2024-10-10 --out report"
)
HERE = {
    "python -m benchmarks.claims results --check": "every figure, hash and verdict is what the files give",
    PUBLISHED: "muon-2024-10-10",
    "python -m launch.plan --topology h100:8 --no-compile": "predicted: 120.6 ms a step",
    "python -m benchmarks.throughput --table FILE": "torch_ref",
    "python -m jaxgpt.train --recipe tiny --dry-run": "Nothing is trained or written",
}
"""Commands that run as they stand, FILE being one of this project's, and a part of what they print."""
ELSEWHERE = {
    "python3 -m venv .venv": ".ci/run",
    ".venv/bin/pip install -q -e .": ".ci/run",
    ".venv/bin/pip install -q torch==2.13.0 -e '.[test]'": ".ci/run",
    ".venv/bin/pytest parity_tests/": ".ci/run",
    ".venv/bin/python -m jaxgpt.train --mesh 8": "test_readme_commands.py::test_the_first_command_learns_what_is_said",
    "python -m jaxgpt.bridge --recipe tiny --out w.safetensors": "test_commands.py::pair",
    "python -m jaxgpt.train --recipe tiny --mesh 8 --init-from w.safetensors --run runs/jax": "test_commands.py::pair",
    "python -m torch_ref.train --recipe tiny --init-from w.safetensors --run runs/torch": "test_commands.py::pair",
    "python -m jaxgpt.compare RUNS... --require-equivalent 0.003": (
        "test_rung_11_curves.py::test_the_program_exits_with_4_and_reports_where_it_is_not_shown"
    ),
    "python -m jaxgpt.train --run runs/a --resume --mesh 4": (
        "test_resume.py::test_another_mesh_goes_on_with_the_same_losses"
    ),
    "python -m jaxgpt.corpus fineweb --shards 35": (
        "test_corpus.py::test_fineweb_brings_the_validation_shard_and_those_asked_for"
    ),
    "python examples/muon_flax.py": "test_own_model.py::test_an_example_reaches_the_loss_that_it_says",
    "python examples/muon_equinox.py": "test_own_model.py::test_an_example_reaches_the_loss_that_it_says",
    "pip install -e '.[docs]'": "test_api_reference.py::test_an_annotation_that_cannot_be_read_is_an_error",
    "python docs/api.py": "test_api_reference.py::test_no_link_leads_nowhere",
}
"""Commands that other tests run: shorter, or with files and a hub of their own. CI begins with those of .ci/run."""
SAID = {"'GLOB_train_*.bin'": "/t_*.bin", "'GLOB_val_*.bin'": "/v_*.bin", "GLOB": "/t_*.bin", "NAME": "muon-2024-10-12"}
"""What the README leaves open, and what the script is given for it here."""


# None is missing


@pytest.fixture(scope="module")
def on_a_gpu(tmp_path_factory) -> list[list[str]]:
    """The words of each command that readme_gpu.sh starts where there are eight GPUs."""
    machine = Machine(tmp_path_factory.mktemp("gpu"), "python")
    (machine.bin / "nvidia-smi").write_text("#!/bin/sh\nseq 8\n", encoding="utf-8")
    (machine.bin / "nvidia-smi").chmod(0o755)
    ended = gpu_script(machine)
    assert ended.returncode == 0, ended.stderr
    return [words for words in machine.calls() if words[0] != "-c"]


def gpu_script(machine: Machine, **variables: str) -> subprocess.CompletedProcess:
    given = {"DATA": "/t_*.bin", "VAL_DATA": "/v_*.bin", "OUT": str(machine.folder / "out")}
    return machine.run("../benchmarks/readme_gpu.sh", **(given | variables))


def test_the_script_for_gpus_runs_only_what_it_is_asked_for(tmp_path):
    machine = Machine(tmp_path, "python", "nvidia-smi")
    assert gpu_script(machine, ONLY="compare|bridge").returncode == 0
    started = [words[1] for words in machine.calls() if words[0] == "-m"]
    assert started == ["jaxgpt.bridge", "jaxgpt.compare"]


def is_run_on_a_gpu(command: str, started: list[list[str]]) -> bool:
    """The script may give more flags than the README."""
    for open_, given in SAID.items():
        command = re.sub(rf"(?<= ){re.escape(open_)}(?= |$)", given, command)
    words = shlex.split(command)
    return words[0] == "python" and any(each[: len(words) - 1] == words[1:] for each in started)


def is_a_test_file(command: str) -> bool:
    """pytest with a file of tests, which is run by itself."""
    program, *words = command.split()
    return program == "pytest" and all(is_a_test(word.removeprefix("parity_tests/")) for word in words)


WALKED = [each.command for each in quoted(README)]


@pytest.mark.parametrize("command", commands(README))
def test_a_command_of_the_readme_is_run(command, on_a_gpu):
    listed = command in HERE or command in ELSEWHERE or command in WALKED
    assert listed or is_a_test_file(command) or is_run_on_a_gpu(command, on_a_gpu), (
        f"{command}: add it to HERE or ELSEWHERE in {Path(__file__).name}, or to benchmarks/readme_gpu.sh"
    )


def test_no_command_is_listed_that_the_readme_has_not():
    assert (HERE | ELSEWHERE).keys() - set(commands(README)) == set()


@pytest.mark.parametrize("test", sorted(set(ELSEWHERE.values())))
def test_a_test_that_runs_commands_exists(test):
    file, _, name = test.partition("::")
    path = ROOT / file if "/" in file else ROOT / "parity_tests" / file
    assert re.search(rf"^def {name}\(" if name else "README", path.read_text(encoding="utf-8"), re.M)


def test_the_script_for_gpus_starts_nothing_that_the_readme_has_not(on_a_gpu):
    said = [command for command in commands(README) if is_run_on_a_gpu(command, on_a_gpu)]
    assert len(on_a_gpu) == len(said)


# On a GPU


def test_a_command_that_fails_does_not_keep_the_others_from_running(tmp_path, on_a_gpu):
    machine = Machine(tmp_path, "python", "nvidia-smi")
    ended = gpu_script(machine, FAILS_jaxgpt_bridge="3")
    assert (ended.returncode, "FAILED: python -m jaxgpt.bridge" in ended.stdout) == (1, True)
    assert len([words for words in machine.calls() if words[0] != "-c"]) == len(on_a_gpu) - 1


def test_what_needs_eight_gpus_is_said_to_be_left_out(tmp_path):
    ended = gpu_script(Machine(tmp_path, "python", "nvidia-smi"))
    assert "LEFT OUT, for 8 GPUs: python -m benchmarks.scaling" in ended.stdout


def test_the_script_says_when_and_where_it_ran():
    text = (ROOT / "benchmarks" / "readme_gpu.sh").read_text(encoding="utf-8")
    assert re.search(r"^# Last run: (not run yet|\d{4}-\d\d-\d\d, NVIDIA )", text, re.M)


def test_shellcheck_finds_nothing_in_it():
    script = ROOT / "benchmarks" / "readme_gpu.sh"
    checked = subprocess.run([tool("shellcheck"), script], capture_output=True, text=True)
    assert (checked.stdout, os.access(script, os.X_OK)) == ("", True)


# Here


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A folder that shows the project's, to write in."""
    for name in ("benchmarks", "results", "parity_tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ended(command: str, monkeypatch) -> tuple[int, str]:
    """Exit code and output of a python command, in this process."""
    words = shlex.split(command.replace(" FILE", " benchmarks/results/throughput-h100/muon.json"))
    assert words[:2] == ["python", "-m"]
    monkeypatch.setattr(sys, "argv", words[2:])
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_module(words[2], run_name="__main__")
    except SystemExit as end:
        return end.code or 0, out.getvalue()
    return 0, out.getvalue()


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("command", [command for command in HERE if "train" not in command])
def test_a_command_prints_what_is_said(command, checkout, monkeypatch):
    code, said = ended(command, monkeypatch)
    assert code == 0
    assert HERE[command] in said


def test_a_dry_run_prints_what_is_said(run, tmp_path):
    (command,) = (command for command in HERE if "--dry-run" in command)
    code, said, _, _ = run(tmp_path, *shlex.split(command)[2:])
    assert (code, HERE[command] in said) == (0, True)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_picture_is_what_its_command_draws(checkout, monkeypatch):
    """But for letters, which another version of matplotlib may set otherwise."""
    ended(PUBLISHED, monkeypatch)
    drawn, shown = (imread(path) for path in ("report/curves.png", ROOT / "docs" / "img" / "both-and-published.png"))
    assert drawn.shape == shown.shape
    assert np.abs(drawn - shown).mean() < 0.002


@pytest.fixture(scope="module")
def walked(tmp_path_factory) -> Iterator[Callable[[int], str]]:
    with walk(README, tmp_path_factory.mktemp("walk")) as nth_said:
        yield nth_said


@pytest.mark.parametrize("nth", range(len(WALKED)), ids=[each[:30] for each in WALKED])
def test_the_walk_prints_what_is_quoted(walked, nth):
    assert without_rounding(walked(nth)) == without_rounding(quoted(README)[nth].said)


@pytest.mark.slow
def test_the_first_command_learns_what_is_said(run, tmp_path):
    """240 steps on 8 virtual devices: about a minute."""
    said = re.search(r"from a validation loss of (\S+) to\s+about (\S+), and", README)
    assert run(tmp_path, "jaxgpt.train", "--mesh", "8").code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    seen = [loss for (kind, _), loss in sorted(losses(folder).items()) if kind == "val_loss"]
    assert [seen[0], seen[-1]] == pytest.approx([float(each) for each in said.groups()], abs=0.02)


def test_ci_runs_the_block_of_the_test_command():
    assert "<!-- test command -->" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "<!-- test command -->\n```\npython3 -m venv .venv\n" in README
