"""20,000 steps: memory, open files, threads and the time of a step don't grow; by default, that it would be seen."""

import json
import subprocess
import sys

import numpy as np
import pytest

from parity_tests import soak
from parity_tests.programs import TRAINERS
from parity_tests.soak import EVERY, Runs, Turns, find, of_turns

STEPS = np.arange(10.0, 20_001, 10)


def samples(
    step: np.ndarray = STEPS,
    leak: float = 0,
    left: float = 0,
    handle: float = 0,
    thread: float = 0,
    slower: float = 0,
    saves: int = 500,
) -> np.ndarray:
    """Of a run that holds 300 MB, and 30 MB more while it saves, with noise; 2 ms a step at first.

    `left` is each save's, `leak` and so on are each step's; `slower` is how much slower its second half is.
    """
    at = np.random.default_rng(0)
    held = 3e8 + leak * step + left * (step // saves) + 3e7 * (step % saves < 20) + at.normal(0, 1e4, len(step))
    handles, threads = 20 + np.floor(handle * step), 30 + np.floor(thread * step)
    ms = at.gamma(50, 2 / 50, len(step)) * np.where(step > STEPS[-1] / 2, 1 + slower, 1)
    return np.stack([step, held, handles, threads, np.cumsum(ms) * EVERY / 1e3], axis=1)


def runs(pace: float = 0, load: float = 1, leak: float = 0, left: float = 0, **grown: float) -> Runs:
    """Of a program whose pacemaker is slower than it by `pace`, under so much more load at the end."""
    tenth = samples(STEPS[: len(STEPS) // 10]) * [1, 1, 1, 1, 1 + pace]
    whole = samples(leak=leak, slower=(load * (1 + grown.pop("slower", 0)) - 1), **grown)
    unsaved = samples(leak=leak, saves=10**6)
    turns = Turns(whole, tenth, tenth * [1, 1, 1, 1, load])
    return Runs([turns], unsaved, samples(leak=leak, left=left, saves=50), 50)


def test_a_run_in_which_nothing_grows_is_found_to_be_one():
    found = find("torch_ref.train", runs())
    assert found.grows == []
    assert found.interval[0] < 0 < found.interval[1]


@pytest.mark.parametrize(
    ("grown", "what"),
    [
        ({"leak": 60}, ["memory"]),
        ({"left": 10_000}, ["memory with each save"]),
        ({"handle": 1 / 500}, ["file handles"]),
        ({"thread": 1 / 500}, ["threads"]),
        ({"slower": 0.05}, ["time of a step"]),
    ],
)
def test_what_grows_is_found(grown, what):
    assert find("torch_ref.train", runs(**grown)).grows == what


@pytest.mark.parametrize("same", [{"load": 1.5}, {"pace": 0.2}, {"load": 0.7, "pace": -0.2}])
def test_load_on_the_machine_and_a_slow_pacemaker_are_no_slowdown(same):
    assert abs(find("torch_ref.train", runs(**same)).slowdowns[0]) < 0.01


def test_what_a_pacemaker_does_alone_is_not_of_its_turns():
    first, later = of_turns(samples(STEPS[:500]), 2000, 4000)
    assert [(rows[0, 0], rows[-1, 0]) for rows in (first, later)] == [(10, 2000), (2010, 4000)]


@pytest.mark.parametrize("load", [0.7, 1, 1.5])
def test_a_slowdown_is_found_under_any_load(load):
    (slowdown,) = find("torch_ref.train", runs(slower=0.05, load=load)).slowdowns
    assert slowdown == pytest.approx(0.05 * 9 / 8, abs=0.01)


@pytest.mark.parametrize(
    ("slower", "grows"), [((0.05, 0, 0, 0, 0.05), []), ((0.05, 0, 0.04, 0, 0.05), ["time of a step"])]
)
def test_of_several_timed_runs_the_median_is_judged(slower, grows):
    timed = [runs(slower=each).timed[0] for each in slower]
    assert find("torch_ref.train", runs()._replace(timed=timed)).grows == grows


@pytest.mark.parametrize(("slower", "times"), [(0.0, 1), (0.05, 1 + soak.AGAIN)])
def test_a_run_that_seems_slower_is_timed_again(monkeypatch, slower, times):
    names = []

    def in_turns(trainer, words, name, steps):
        names.append(name)
        return runs(slower=slower).timed[0]

    monkeypatch.setattr(soak, "_in_turns", in_turns)
    monkeypatch.setattr(soak, "_alone", lambda trainer, words, name: samples())
    assert len(soak.soak("torch_ref.train", 20_000).timed) == times == len(set(names))


def test_the_interval_holds_the_leak():
    low, high = find("torch_ref.train", runs(leak=1000)).interval
    assert 990 < low < 1000 < high < 1010


def test_the_interval_of_a_save_holds_what_one_leaves():
    low, high = find("jaxgpt.train", runs(left=50_000)).interval_of_a_save
    assert 49_000 < low < 50_000 < high < 51_000


def test_memory_that_stays_the_same_to_the_page_has_an_interval():
    flat = runs()
    flat.unsaved[:, 1] = 3e8
    found = find("jaxgpt.train", flat)
    assert found.interval == (0, 0)
    assert found.grows == []


@pytest.mark.slow
@pytest.mark.parametrize("trainer", TRAINERS)
def test_twenty_thousand_steps_grow_nothing(tmp_path, environment, trainer):
    command = [sys.executable, "-m", "parity_tests.soak", trainer]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=3600)
    assert ended.stdout, ended.stderr
    print(ended.stdout)
    assert json.loads(ended.stdout)["grows"] == []
