"""What a schedule does, whatever its steps, warm-up and fall, in both frameworks."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxgpt.optimizer
import torch_ref.optimizer
from jaxgpt.errors import BadInput
from jaxgpt.recipes import ScheduleConfig
from parity_tests.measured import assert_within
from parity_tests.tolerances import SCHEDULE

MOST = 64
deterministic = settings(derandomize=True, deadline=None, max_examples=50)
FALLS = st.sampled_from(["linear", "cosine"])


@st.composite
def schedules(draw) -> ScheduleConfig:
    steps = draw(st.integers(1, MOST))
    warmup = draw(st.integers(0, steps))
    return ScheduleConfig(steps, warmup, draw(st.integers(0, steps - warmup)), draw(FALLS))


def in_jax(schedule: ScheduleConfig) -> np.ndarray:
    # All at once, always as many: each other length would be compiled anew.
    return np.asarray(jaxgpt.optimizer.multiplier(schedule)(jnp.arange(MOST)))[: schedule.steps]


def in_torch(schedule: ScheduleConfig) -> np.ndarray:
    at = torch_ref.optimizer.multiplier(schedule)
    return np.array([at(step) for step in range(schedule.steps)])


in_both = pytest.mark.parametrize("multipliers", [in_jax, in_torch], ids=["jax", "torch"])


@deterministic
@given(schedules())
def test_multipliers_are_the_same_at_every_step(schedule):
    assert_within(np.abs(in_jax(schedule) - in_torch(schedule)).max(), SCHEDULE, "a multiplier, absolute")


@in_both
@deterministic
@given(schedule=schedules())
def test_no_multiplier_is_zero_or_more_than_one(multipliers, schedule):
    at = multipliers(schedule)
    assert at.min() > 0
    assert at.max() <= 1


@in_both
@deterministic
@given(schedule=schedules())
def test_warm_up_rises_to_one_at_its_last_step(multipliers, schedule):
    at = multipliers(schedule)[: schedule.warmup]
    assert (np.diff(at) > 0).all()
    assert (at[-1:] == 1).all()


@in_both
@deterministic
@given(schedule=schedules())
def test_between_warm_up_and_fall_every_multiplier_is_one(multipliers, schedule):
    assert (multipliers(schedule)[schedule.warmup : schedule.steps - schedule.warmdown] == 1).all()


@in_both
@deterministic
@given(schedule=schedules())
def test_fall_begins_at_one_and_never_rises(multipliers, schedule):
    at = multipliers(schedule)[schedule.steps - schedule.warmdown :]
    assert (at[:1] == 1).all()
    assert (np.diff(at) < 0).all()


@deterministic
@given(schedules())
def test_scaled_to_its_own_steps_it_stays_as_it_is(schedule):
    assert schedule.scaled(schedule.steps) == schedule


@deterministic
@given(schedules(), st.integers(1, 10_000))
def test_scaled_it_has_the_same_shape_to_half_a_step(schedule, steps):
    scaled, ratio = schedule.scaled(steps), steps / schedule.steps
    assert (scaled.steps, scaled.fall) == (steps, schedule.fall)
    assert abs(scaled.warmup - ratio * schedule.warmup) <= 0.5 + 1e-9
    assert abs(scaled.warmdown - ratio * schedule.warmdown) <= 0.5 + 1e-9


@deterministic
@given(st.integers(-3, 9), st.integers(-3, 9), st.integers(-3, 9), FALLS)
def test_a_schedule_is_refused_where_it_contradicts_itself_and_only_there(steps, warmup, warmdown, fall):
    fits = steps >= 1 and warmup >= 0 and warmdown >= 0 and warmup + warmdown <= steps
    if fits:
        ScheduleConfig(steps, warmup, warmdown, fall)
    else:
        with pytest.raises(BadInput):
            ScheduleConfig(steps, warmup, warmdown, fall)


@deterministic
@given(schedules(), st.integers(-5, 0))
def test_scaling_to_no_steps_is_refused(schedule, steps):
    with pytest.raises(BadInput, match=f"--steps {steps}"):
        schedule.scaled(steps)
