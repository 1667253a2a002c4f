"""Rung 6: the same gradients into both optimisers, weights and moments compared after each of three updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import jaxgpt.mesh
import jaxgpt.optimizer
import torch_ref.optimizer
from jaxgpt import bridge
from jaxgpt.recipes import RECIPES, OptimizerConfig, ScheduleConfig
from parity_tests import oracle
from parity_tests.pair import (
    DTYPES,
    Pair,
    Weights,
    assert_alike,
    jax_state,
    jax_tree,
    pair,
    torch_state,
    torch_tree,
    weights,
)
from parity_tests.tolerances import UPDATE

by_recipe_and_dtype = pytest.mark.parametrize(("name", "dtype"), [(n, d) for n in RECIPES for d in DTYPES])
UPDATES = 3


def random_gradients(start: Weights, step: int) -> Weights:
    rng = np.random.default_rng(100 + step)
    return {n: (0.01 * rng.standard_normal(w.shape)).astype(w.dtype) for n, w in start.items()}


def jax_moments(both: Pair, state) -> Weights:
    """Momenta by torch's names: Muon's of the hidden matrices; AdamW's first and second of the tied matrix."""
    muon = optax.tree.get(state.opt_state, "momentum")
    wte = {slot: np.asarray(optax.tree.get(state.opt_state, key)["wte"]) for slot, key in (("m", "mu"), ("v", "nu"))}
    named = bridge.to_torch(jax.device_get({"wte": wte["m"], "h": muon["h"]}), both.recipe.model)
    named.pop("wte.weight")
    return {f"{n} momentum": m for n, m in named.items()} | {f"wte.weight {slot}": m for slot, m in wte.items()}


def torch_moments(state) -> Weights:
    adamw, muon = state.optimizers
    names = {p: n for n, p in state.model.named_parameters()}
    momenta = {f"{names[p]} momentum": s["momentum"].numpy().copy() for p, s in muon.state.items()}
    (wte,) = adamw.state.values()
    return momenta | {"wte.weight m": wte["exp_avg"].numpy().copy(), "wte.weight v": wte["exp_avg_sq"].numpy().copy()}


@by_recipe_and_dtype
def test_updates_and_moments_are_the_same(name, dtype):
    both, start = pair(name, dtype), weights(name, dtype)
    in_jax, in_torch = jax_state(both, start), torch_state(both, start)
    for step in range(UPDATES):
        grads = random_gradients(start, step)
        placed = jax.device_put(bridge.from_torch(grads, both.recipe.model), jaxgpt.mesh.replicated(both.devices))
        in_jax = both.jax.update(in_jax, placed)
        in_torch = both.torch.update(in_torch, {n: torch.tensor(g) for n, g in grads.items()})
        got, want = jax_tree(both, in_jax.params), torch_tree(dict(in_torch.model.named_parameters()))
        change = {n: got[n].astype(np.float64) - start[n] for n in start}
        want_change = {n: want[n].astype(np.float64) - start[n] for n in start}
        assert_alike(jax_moments(both, in_jax), torch_moments(in_torch), UPDATE[dtype], f"rung 6, moments {step}")
        assert_alike(got, want, UPDATE[dtype], f"rung 6, weights after update {step}")
        # The change alone, in float64 only: in float32 a small change of a large weight keeps few digits.
        if dtype == "float64":
            assert_alike(change, want_change, UPDATE[dtype], f"rung 6, change by update {step}")
        assert int(in_jax.step) == in_torch.step == step + 1


@pytest.mark.parametrize("framework", ["jax", "torch"])
@pytest.mark.parametrize("name", RECIPES)
def test_updates_match_the_oracle(name, framework):
    both, start = pair(name, "float64"), weights(name, "float64")
    recipe, config = both.recipe, both.recipe.optimizer
    state = (jax_state if framework == "jax" else torch_state)(both, start)
    every = [random_gradients(start, step) for step in range(UPDATES)]
    for grads in every:
        if framework == "jax":
            state = both.jax.update(state, jax.tree.map(jnp.asarray, bridge.from_torch(grads, recipe.model)))
        else:
            state = both.torch.update(state, {n: torch.tensor(g) for n, g in grads.items()})
    got = jax_tree(both, state.params) if framework == "jax" else torch_tree(dict(state.model.named_parameters()))
    assert recipe.schedule.warmup == 0, "the learning rates below are those of a schedule that starts at its peak"
    lrs, embedding_lrs = [config.lr] * UPDATES, [config.embedding_lr] * UPDATES
    want = {}
    for name_, w in start.items():
        grads = [g[name_] for g in every]
        if name_ == "wte.weight":
            want[name_] = oracle.adamw(w, grads, embedding_lrs, config.betas, config.eps, config.weight_decay)
        else:
            ns = config.newton_schulz_steps, config.newton_schulz_coefficients
            parts = 3 if name_.endswith("c_attn.weight") else 1
            want[name_] = oracle.muon(w, grads, lrs, config.momentum, *ns, parts)
    change = {n: got[n] - start[n] for n in start}
    assert_alike(change, {n: want[n] - start[n] for n in start}, UPDATE["float64"], f"rung 6, {framework} and oracle")


SCHEDULES = [ScheduleConfig(10, 0, 3), ScheduleConfig(10, 4, 3), ScheduleConfig(10, 0, 0), ScheduleConfig(7, 3, 4)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_schedules_are_the_same_at_every_step(schedule):
    in_jax, in_torch = jaxgpt.optimizer.multiplier(schedule), torch_ref.optimizer.multiplier(schedule)
    for step in range(schedule.steps):
        assert float(in_jax(jnp.asarray(step, jnp.int32))) == in_torch(step)


def test_trapezoid_rises_stays_and_falls_to_one_over_warmdown():
    at = torch_ref.optimizer.multiplier(ScheduleConfig(steps=10, warmup=4, warmdown=3))
    assert [at(s) for s in range(10)] == [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1, 2 / 3, 1 / 3]


def test_learning_rates_follow_the_schedule_in_both_frameworks():
    both, start = pair("tiny", "float64"), weights("tiny", "float64")
    grads = random_gradients(start, 0)
    still = both.recipe.schedule.steps - 1  # the last update: 1 / warmdown
    in_jax, in_torch = jax_state(both, start), torch_state(both, start)
    opt_state = optax.tree.set(in_jax.opt_state, count=jnp.asarray(still, jnp.int32))
    in_jax = both.jax.update(in_jax._replace(opt_state=opt_state), bridge.from_torch(grads, both.recipe.model))
    in_torch = both.torch.update(in_torch._replace(step=still), {n: torch.tensor(g) for n, g in grads.items()})
    got, want = jax_tree(both, in_jax.params), torch_tree(dict(in_torch.model.named_parameters()))
    name = "h.0.mlp.c_fc.weight"
    assert np.std(want[name] - start[name]) < 2 * both.recipe.optimizer.lr / both.recipe.schedule.warmdown
    assert np.abs(got[name] - want[name]).max() < 1e-12


def test_defaults_are_the_published_ones():
    config = OptimizerConfig()
    assert (config.lr, config.embedding_lr, config.momentum) == (0.1 * 0.0036, 0.0036, 0.95)
    assert (config.betas, config.eps, config.weight_decay) == ((0.9, 0.95), 1e-8, 0.0)
