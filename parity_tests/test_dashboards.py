"""What TensorBoard and Weights & Biases are given: each row of metrics.jsonl once, however often a run goes on."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO
from unittest import mock

import pytest

from jaxgpt import dashboards
from jaxgpt.errors import BadInput
from jaxgpt.flags import recipe_and_flags
from jaxgpt.runlog import RunLog, locked
from jaxgpt.saved import Progress
from parity_tests.programs import KEYS, ROOT, TRAINERS, data_in, metrics

CONFIG = {"recipe": {"name": "tiny"}, "devices": ["cpu"], "token_flops": 1, "started": "2026-11-24T10:00:00+00:00"}
CONFIG |= dict.fromkeys(("micro_batch", "versions", "git_commit", "command"))


def run(folder: Path, first: int, last: int, resume: bool = False, **flags) -> None:
    """A run's log of the updates `first` to `last`, validated before the first of all and after the last."""
    with unlocked():
        _run(folder, first, last, resume, **flags)


@contextlib.contextmanager
def unlocked() -> Iterator[None]:
    """A run's folder stays locked until its process ends; here that is the end of the block."""
    held = []

    def lock(folder: Path) -> TextIO:
        held.append(locked(folder))
        return held[-1]

    with mock.patch("jaxgpt.runlog.locked", lock), contextlib.ExitStack() as closing:
        closing.callback(lambda: [each.close() for each in held])
        yield


def _run(folder: Path, first: int, last: int, resume: bool, **flags) -> None:
    log = RunLog(folder, CONFIG | {"flags": flags}, last, 1024, resume=resume)
    if resume:
        saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        log.go_on(Progress(step=first - 1, validated=first - 1), saved)
    log.start_clock()
    if first == 1:
        log.validation(0, 5.5)
    for step in range(first, last + 1):
        log.train(step, 5.0 - step / 10, 1.0, 0.001, 4096)
    log.validation(last, 4.0)
    log.finish()


def interrupted(folder: Path, **flags) -> None:
    """Steps 1 to 6, then a resume from a checkpoint of step 3 up to 8."""
    run(folder, 1, 6, **flags)
    run(folder, 4, 8, resume=True, **flags)


# TensorBoard


@pytest.fixture(scope="module")
def tensorboard():
    return pytest.importorskip("tensorboard", reason="needs `pip install tensorboard`")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value) of all that is in the event files, in their order, nothing left out."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for event in LegacyEventFileLoader(str(file)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_tensorboard_has_every_number_of_every_row(tensorboard, tmp_path):
    run(tmp_path / "run", 1, 3, tensorboard=True)
    got = scalars(tmp_path / "run" / "tensorboard")
    assert got.keys() == KEYS - {"step", "tokens", "train_time_s"}
    for name, points in got.items():
        want = [(row["step"], row[name]) for row in metrics(tmp_path / "run") if name in row]
        assert [step for step, _ in points] == [step for step, _ in want]
        assert [value for _, value in points] == pytest.approx([value for _, value in want])


def test_a_run_that_goes_on_has_no_step_twice_in_tensorboard(tensorboard, tmp_path):
    interrupted(tmp_path / "run", tensorboard=True)
    got = scalars(tmp_path / "run" / "tensorboard")
    assert [step for step, _ in got["train_loss"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [step for step, _ in got["val_loss"]] == [0, 8]


def test_a_run_that_gets_tensorboard_late_shows_the_whole(tensorboard, tmp_path):
    run(tmp_path / "run", 1, 6)
    run(tmp_path / "run", 7, 8, resume=True, tensorboard=True)
    assert [step for step, _ in scalars(tmp_path / "run" / "tensorboard")["train_loss"]] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_tensorboard_itself_reads_it_and_its_relative_time_is_that_of_training(tensorboard, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path / "run", 1, 3, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload().Scalars("train_loss")
    rows = [row for row in metrics(tmp_path / "run") if "train_loss" in row]
    assert [event.step for event in events] == [1, 2, 3]
    relative = [event.wall_time - 1795514400.0 for event in events]
    assert relative == pytest.approx([row["train_time_s"] for row in rows], abs=1e-5)


def test_other_files_in_its_folder_stay(tensorboard, tmp_path):
    run(tmp_path / "run", 1, 2, tensorboard=True)
    (tmp_path / "run" / "tensorboard" / "mine").write_text("mine", encoding="utf-8")
    run(tmp_path / "run", 3, 4, resume=True, tensorboard=True)
    assert (tmp_path / "run" / "tensorboard" / "mine").read_text(encoding="utf-8") == "mine"


def test_a_skipped_update_is_shown(tensorboard, tmp_path):
    with unlocked():
        log = RunLog(tmp_path / "run", CONFIG | {"flags": {"tensorboard": True}}, 2, 1024)
        log.train(1, float("nan"), 1.0, 0.001, 4096)
        log.finish()
    assert scalars(tmp_path / "run" / "tensorboard")["skipped"] == [(1, 1.0)]


@pytest.mark.parametrize("trainer", [pytest.param(TRAINERS[0], marks=pytest.mark.slow), TRAINERS[1]])
def test_both_trainers_write_it_and_go_on_with_it(tensorboard, trainer, shards, tmp_path, run_all):
    small = "--model.layers 1 --model.width 32 --model.heads 1 --steps 6 --val-every 3 --save-every 2 --tensorboard"
    words = f"{data_in(shards)} {small} --run run"
    jobs = {"first": [*words.split(), "--stop-at", "4"], "again": ["--run", "run", "--resume", "--stop-at", "6"]}
    ends = run_all(tmp_path, trainer, jobs)
    assert {name: (ended.code, ended.stderr) for name, ended in ends.items()} == dict.fromkeys(jobs, (0, ""))
    got = scalars(tmp_path / "run" / "tensorboard")
    want = {name: [(r["step"], r[name]) for r in metrics(tmp_path / "run") if name in r] for name in got}
    assert [step for step, _ in got["train_loss"]] == [1, 2, 3, 4, 5, 6]
    assert [value for _, value in got["val_loss"]] == pytest.approx([value for _, value in want["val_loss"]])


# Weights & Biases, by a fake that takes down what it is told

FAKE = """
import json, pathlib
calls = []
last = -1
class Settings:
    def __init__(self, **more): self.more = more
class Run:
    def __init__(self, first): self.starting_step = first
    def log(self, values, step):
        global last
        last = step
        calls.append(("log", step, values))
    def finish(self): calls.append(("finish",))
def init(**given):
    calls.append(("init", given))
    if given["project"] == "nowhere":
        raise RuntimeError("No API key configured.\\n  Use `wandb login`.")
    return Run(0 if OFFLINE else last + 1)
"""


@pytest.fixture(params=["online", "offline"])
def wandb(request, tmp_path, monkeypatch):
    (tmp_path / "packages" / "wandb").mkdir(parents=True)
    source = f"OFFLINE = {request.param == 'offline'}\n{FAKE}"
    (tmp_path / "packages" / "wandb" / "__init__.py").write_text(source, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    import wandb

    wandb.online = request.param == "online"
    yield wandb
    sys.modules.pop("wandb")


def logged(wandb) -> list[list[tuple[int, str]]]:
    """For each start of the run, the steps and which loss that it was given."""
    starts: list[list[tuple[int, str]]] = []
    for kind, *rest in wandb.calls:
        if kind == "init":
            starts.append([])
        if kind == "log":
            starts[-1].append((rest[0], "val" if "val_loss" in rest[1] else "train"))
    return starts


def test_wandb_has_every_row_by_its_step(wandb, tmp_path):
    run(tmp_path / "run", 1, 3, wandb="project")
    rows = [({k: v for k, v in row.items() if k != "step"}, row["step"]) for row in metrics(tmp_path / "run")]
    assert [(values, step) for kind, step, values in wandb.calls[1:-1] if kind == "log"] == rows
    assert wandb.calls[-1] == ("finish",)


def test_a_run_that_goes_on_is_the_same_one_of_wandb_and_gives_it_no_step_twice(wandb, tmp_path):
    interrupted(tmp_path / "run", wandb="project")
    first, again = [call[1] for call in wandb.calls if call[0] == "init"]
    assert (first["id"], first["project"], first["resume"]) == (again["id"], "project", "allow")
    every = [(0, "val"), *((step, "train") for step in range(1, 9)), (8, "val")]
    before, after = logged(wandb)
    if wandb.online:  # it has steps up to 6
        assert after == [each for each in every if each[0] > 6]
    else:  # a new folder for the whole
        assert after == every
    assert before[-2:] == [(6, "train"), (6, "val")]


def test_two_runs_are_two_of_wandb(wandb, tmp_path):
    run(tmp_path / "one", 1, 1, wandb="project")
    run(tmp_path / "two", 1, 1, wandb="project")
    one, two = [call[1] for call in wandb.calls if call[0] == "init"]
    assert one["id"] != two["id"]


def test_a_wandb_that_cannot_start_is_one_line_and_the_run_can_go_on_without(wandb, tmp_path):
    with pytest.raises(BadInput) as refused:
        run(tmp_path / "run", 1, 1, wandb="nowhere")
    said = str(refused.value)
    assert said.startswith(
        "--wandb nowhere can't start (No API key configured. Use `wandb login`.): run `wandb login`, "
    )
    assert said.endswith(f"then go on with --run {tmp_path}/run --resume")
    run(tmp_path / "run", 1, 2, resume=True)
    assert [row["step"] for row in metrics(tmp_path / "run")] == [0, 1, 2, 2]


def test_a_wandb_that_fails_is_named_once_and_the_run_goes_on(wandb, tmp_path, capsys, monkeypatch):
    def broken(self, values, step):
        raise ConnectionError("gone\naway")

    monkeypatch.setattr(wandb.Run, "log", broken)
    run(tmp_path / "run", 1, 3, wandb="project")
    assert [row["step"] for row in metrics(tmp_path / "run")] == [0, 1, 2, 3, 3]
    assert capsys.readouterr().err == "warning: Wandb gets no more rows (gone away); metrics.jsonl has them\n"


def test_wandb_itself_takes_a_run_offline_that_goes_on(tmp_path):
    pytest.importorskip("wandb", reason="needs `pip install wandb`")
    program = "import sys; from pathlib import Path; from parity_tests.test_dashboards import interrupted; "
    program += "interrupted(Path(sys.argv[1]), wandb='project')"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))) == 2


# What isn't there


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--tensorboard",), "--tensorboard needs a package: pip install tensorboard, or say --no-tensorboard"),
        (("--wandb", "p"), "--wandb p needs a package: pip install wandb, or say --wandb None"),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_its_pip_install(flags, said, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput) as refused:
        recipe_and_flags(["--recipe", "tiny", *flags], "python -m jaxgpt.train", "tiny")
    assert str(refused.value) == said


def test_a_folder_called_wandb_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(BadInput, match="pip install wandb"):
        dashboards.check_dashboards(False, "p")


def test_a_project_without_a_name_is_refused():
    with pytest.raises(BadInput, match="name the project"):
        dashboards.check_dashboards(False, " ")


def test_a_run_without_dashboards_imports_none():
    program = "import sys, jaxgpt.runlog, jaxgpt.flags; print({'tensorboard', 'wandb'} & sys.modules.keys())"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.stdout == "set()\n"
