"""A loss extrapolated to more tokens: the power law through a run's own losses, and when there is none."""

import dataclasses

import numpy as np
import pytest

from benchmarks.claim_evidence import NotThere
from benchmarks.claim_extrapolation import power_law
from jaxgpt.curves import load_run
from parity_tests.made_up_runs import empty, made


@pytest.fixture
def results(tmp_path):
    return empty(tmp_path)


def test_the_extrapolation_continues_a_power_law(results):
    run = load_run(made(results, "124m-muon-200-jax", 4.3))
    drawn = power_law(run, 3e9)
    assert drawn["loss"] == pytest.approx(60 * 3e9**-0.15)
    assert drawn["interval"] == pytest.approx([drawn["loss"]] * 2)


def test_an_uncertain_line_has_a_wide_interval(results):
    run = load_run(made(results, "124m-muon-200-jax", 4.3))
    run.train.loss[:] *= np.exp(np.random.default_rng(1).normal(scale=0.02, size=len(run.train)))
    low, high = power_law(run, 3e9)["interval"]
    assert 0.03 < high - low < 1
    assert low < 60 * 3e9**-0.15 < high


def test_nothing_is_drawn_on_from_a_few_steps(results):
    run = load_run(made(results, "20m-muon-seed0-jax", 5.0))
    short = dataclasses.replace(run, config=run.config | {"recipe": {"schedule": {"steps": 240, "warmdown": 180}}})
    with pytest.raises(NotThere, match="too few to fit"):
        power_law(short, 3e9)
