"""Rung 7 at scale: one trainer's gradients through the other's optimiser, float32, from perturbed weights.

At reduced size `test_rung_07_replay` goes on for 50 steps.
"""

import pytest

from parity_tests.measured import assert_within
from parity_tests.noise_floor import free
from parity_tests.replay import Allowed, record, replay
from parity_tests.scale import as_trained, pair_at_scale, weights_at_scale
from parity_tests.tolerances import REPLAY_AT_SCALE

pytestmark = pytest.mark.at_scale

STEPS = 10


@pytest.mark.parametrize("by", ["torch", "jax"])
@pytest.mark.parametrize("name", ["muon-2024-10-12", "opt-adam-2024-10-29"])
def test_gradients_of_one_do_the_same_in_the_other(device, name, by):
    both, start = pair_at_scale(name, "float32", device), weights_at_scale(name, "float32", device)
    moments, change = REPLAY_AT_SCALE[device][both.recipe.optimizer.kind]
    with as_trained("float32"):
        recorded = record(both, start, STEPS, by)
        outcome = replay(both, start, recorded, by, Allowed(moments, moments, change))
    del recorded
    free()
    found = outcome.found
    assert_within(found.apart, found.allowed, f"rung 7, gradients of {by}, step {found.step}: {found.tensor}")
    assert outcome.steps == STEPS
