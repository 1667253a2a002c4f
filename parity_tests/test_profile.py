"""`--profile` of the trainers: which steps are traced, what is refused; the share of the peak in the progress bar."""

import gzip
import io
import json
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from jaxgpt import runlog
from jaxgpt.errors import BadInput
from jaxgpt.profiled import BEFORE, Profile, check_profile
from parity_tests.programs import TRAINERS
from parity_tests.test_throughput import SMALL
from torch_ref.tracer import TRACE, Tracer


def traced(steps: int | None, first: int, last: int) -> list[str]:
    """What happens in a run, in order: steps by number, and the trace's beginning and end."""
    said: list[str] = []
    tracer = SimpleNamespace(start=lambda: said.append("start"), stop=lambda: said.append("stop"))
    profile = Profile(steps, first, last, tracer, lambda: None)
    for done in range(first, last + 1):
        profile.at(done)
        if done < last:
            said.append(str(done + 1))
    return said


def test_three_steps_go_before_those_that_are_traced():
    assert BEFORE == 3
    assert traced(2, 0, 7) == ["1", "2", "3", "start", "4", "5", "stop", "6", "7"]


def test_a_trace_of_the_last_steps_ends_with_the_run():
    assert traced(2, 0, 5) == ["1", "2", "3", "start", "4", "5", "stop"]


def test_a_resumed_run_with_fewer_steps_left_traces_those():
    assert traced(2, 10, 14) == ["11", "12", "13", "start", "14", "stop"]
    assert traced(2, 12, 14) == ["13", "14"]


def test_without_the_flag_nothing_is_traced():
    assert traced(None, 0, 5) == ["1", "2", "3", "4", "5"]


def test_the_device_is_awaited_at_both_ends():
    waits: list[int] = []
    profile = Profile(1, 0, 4, SimpleNamespace(start=lambda: None, stop=lambda: None), lambda: waits.append(1))
    for done in range(5):
        profile.at(done)
    assert len(waits) == 2


@pytest.mark.parametrize(("profile", "steps"), [(0, 10), (-1, 10), (8, 10), (1, 3)])
def test_a_run_without_room_for_the_trace_is_refused(profile, steps):
    with pytest.raises(BadInput, match=f"--profile {profile}"):
        check_profile(profile, steps)


def test_a_run_with_just_enough_room_is_not():
    check_profile(7, 10)


def test_pytorch_s_trace_is_one_that_perfetto_opens(tmp_path):
    tracer = Tracer(tmp_path / "trace", torch.device("cpu"))
    tracer.start()
    torch.ones(8, 8) @ torch.ones(8, 8)
    tracer.stop()
    with gzip.open(tmp_path / "trace" / TRACE, "rt") as file:
        events = json.load(file)["traceEvents"]
    assert any(event.get("name") == "aten::mm" and event["ph"] == "X" for event in events)


def test_of_several_processes_one_writes(tmp_path):
    tracer = Tracer(tmp_path / "trace", torch.device("cpu"), writes=False)
    tracer.start()
    tracer.stop()
    assert not (tmp_path / "trace").exists()


@pytest.fixture
def bar(tmp_path, monkeypatch):
    """What the progress bar shows of a rate of half a card's peak, on devices of that name."""

    def shown(device: str) -> str:
        seen = io.StringIO()
        monkeypatch.setattr(runlog, "Console", lambda **_: Console(file=seen, force_terminal=True, width=200))
        config = {"recipe": {"name": "x"}, "devices": [device], "token_flops": 989_500_000}
        monkeypatch.setattr(runlog.time, "perf_counter", iter(range(1, 1000)).__next__)
        log = runlog.RunLog(tmp_path / device, config, 2, 500_000)
        task = SimpleNamespace(**{})
        monkeypatch.setattr(log._bar, "update", lambda _, **fields: task.__dict__.update(fields))
        log.start_clock()
        log.train(1, 3.0, 1.0, 0.1, 0)
        log._metrics.close()
        log._lock.close()
        return task.rate

    return shown


def test_the_bar_shows_the_share_of_a_known_card_s_peak(bar):
    assert bar("NVIDIA H100 80GB HBM3") == "500.0K tok/s  50% MFU"


def test_the_bar_shows_none_on_a_cpu(bar):
    assert bar("x86_64") == "500.0K tok/s"


@pytest.mark.slow
@pytest.mark.parametrize("trainer", TRAINERS)
def test_both_trainers_trace_into_the_run_s_folder_or_refuse_before_there_is_one(trainer, tmp_path, run_all):
    start = f"--recipe tiny {SMALL} --steps 5 --val-tokens 64 --val-every 5"
    jobs = {"traced": f"{start} --run traced --profile 2", "refused": f"{start} --run refused --profile 3"}
    ends = run_all(tmp_path, trainer, {name: words.split() for name, words in jobs.items()})
    assert (ends["traced"].code, ends["refused"].code) == (0, 2), ends
    assert len(list((tmp_path / "traced" / "trace").glob("**/*.trace.json.gz"))) == 1
    assert "--profile 3" in ends["refused"].stderr
    assert not (tmp_path / "refused").exists()
