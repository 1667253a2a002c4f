"""A run of the whole ladder: how many processes it takes, and which rung it names."""

from types import SimpleNamespace

import pytest

from parity_tests.whole_ladder import PROCESSES, WORKER, LowestRed, own_share, share_out


def processes(monkeypatch, cores: int, *words: str, device: str = "cpu", asked: int | None = None) -> int | None:
    """What `-n` is after `share_out`, of `pytest WORDS` on a machine with that many cores."""
    monkeypatch.delenv(WORKER, raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    option = SimpleNamespace(numprocesses=asked, dist="no", collectonly=False, usepdb=False)
    share_out(SimpleNamespace(option=option, args=list(words), getoption=lambda _: device))
    return option.numprocesses


@pytest.mark.parametrize(("cores", "taken"), [(1, None), (2, 2), (64, PROCESSES)])
def test_a_folder_takes_as_many_processes_as_there_are_cores_up_to_a_few(monkeypatch, cores, taken):
    assert processes(monkeypatch, cores, "parity_tests/") == taken


@pytest.mark.parametrize("word", ["parity_tests/test_curves.py", "parity_tests/test_curves.py::test_one"])
def test_a_named_test_stays_in_this_process(monkeypatch, word):
    assert processes(monkeypatch, 2, word) is None


def test_a_gpu_has_one_process(monkeypatch):
    assert processes(monkeypatch, 2, "parity_tests/", device="gpu") is None


def test_a_process_that_was_started_starts_no_others(monkeypatch):
    option = SimpleNamespace(numprocesses=None, dist="no", collectonly=False, usepdb=False)
    monkeypatch.setenv(WORKER, "gw0")
    share_out(SimpleNamespace(option=option, args=["parity_tests/"], getoption=lambda _: "cpu"))
    assert option.numprocesses is None


def test_the_command_line_decides_where_it_says_a_number(monkeypatch):
    assert processes(monkeypatch, 2, "parity_tests/", asked=0) == 0


@pytest.mark.parametrize(("number", "share"), [(0, ("0", 6)), (1, ("1", 6)), (4, ("0", 6))])
def test_processes_take_the_gpus_in_turn_and_share_the_cores(number, share):
    assert own_share({WORKER: f"gw{number}", f"{WORKER}_COUNT": "5"}, gpus=2, cores=32) == share


def test_a_process_alone_has_the_first_gpu_and_all_cores():
    assert own_share({}, gpus=2, cores=32) == ("0", 32)


@pytest.mark.parametrize(("number", "gpu"), [(0, "5"), (1, "GPU-7f"), (2, "5")])
def test_processes_take_none_but_the_gpus_that_are_visible(number, gpu):
    environment = {WORKER: f"gw{number}", f"{WORKER}_COUNT": "3", "CUDA_VISIBLE_DEVICES": "5,GPU-7f"}
    assert own_share(environment, gpus=2, cores=32)[0] == gpu


def said(*red: str) -> list[str]:
    """What stands under the results, when these tests fail: each with its own words."""
    lines: list[str] = []
    lowest = LowestRed()
    for test in red:
        crash = SimpleNamespace(message=f"AssertionError: words of {test}")
        report = SimpleNamespace(nodeid=test, outcome="failed", when="call", longrepr=SimpleNamespace(reprcrash=crash))
        lowest.pytest_runtest_logreport(report)
    lowest.pytest_terminal_summary(SimpleNamespace(write_line=lambda line, **_: lines.append(line)))
    return lines


def test_the_lowest_red_rung_and_its_words_are_said():
    rung_3b, rung_10 = "parity_tests/test_rung_03b_fast_paths.py::test_a", "parity_tests/test_rung_10_bridge.py::test_b"
    assert said(rung_10, rung_3b) == [
        "lowest red: rung 3b",
        f"  test_rung_03b_fast_paths.py::test_a: words of {rung_3b}",
    ]


def test_of_many_red_tests_the_first_are_said_and_the_others_counted():
    lines = said(*(f"parity_tests/test_rung_05_gradients.py::test_{i}" for i in range(9)))
    assert len(lines) == 5
    assert lines[-1] == "  and 6 more tests of that rung"


def test_nothing_is_said_where_nothing_is_red():
    assert said() == []


def test_a_program_stands_beside_the_ladder():
    assert said("parity_tests/test_commands.py::test_a")[0] == "lowest red: the programs, beside the ladder"
