"""Rung 6: the same gradients into both optimisers, weights and moments compared after each of three updates."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import jaxgpt.mesh
import jaxgpt.muon
import jaxgpt.optimizer
import torch_ref.muon
import torch_ref.optimizer
from jaxgpt import bridge
from jaxgpt.recipes import OptimizerConfig, Recipe, ScheduleConfig
from parity_tests import oracle
from parity_tests.by_dtype import by_recipe_and_dtype
from parity_tests.measured import assert_within
from parity_tests.pair import (
    TRAINERS,
    Pair,
    Weights,
    assert_alike,
    jax_moments,
    jax_state,
    jax_tree,
    pair,
    relative,
    torch_moments,
    torch_state,
    torch_tree,
    weights,
    with_bases,
)
from parity_tests.tolerances import SECOND_ORDER_CHANGE, SECOND_ORDER_WEIGHTS, UPDATE
from torch_ref.muon import Muon

UPDATES = 3


@pytest.mark.parametrize(
    ("tree", "name"),
    [
        (nnx.Param(jnp.eye(4)), "value"),
        ({"kernel": nnx.Param(jnp.eye(4))}, "kernel"),
        ({"h": {"kernel": nnx.Param(jnp.eye(4))}}, "h.kernel"),
        ({"value": jnp.eye(4)}, "value"),
    ],
)
def test_a_layout_is_asked_by_the_weight_s_name(tree, name):
    asked = []

    def layout(name: str, weight: jax.Array) -> jaxgpt.muon.Matrix | None:
        asked.append(name)
        return jaxgpt.muon.kernels_in_out("kernel", weight)

    jaxgpt.muon.scale_by_muon(layout).init(tree)
    assert set(asked) == {name}


def random_gradients(start: Weights, step: int) -> Weights:
    rng = np.random.default_rng(100 + step)
    return {n: (0.01 * rng.standard_normal(w.shape)).astype(w.dtype) for n, w in start.items()}


def jax_update(both: Pair, state, grads: Weights):
    placed = jax.device_put(bridge.from_torch(grads, both.recipe.model), jaxgpt.mesh.replicated(both.devices))
    return both.jax.update(state, placed)


def torch_update(both: Pair, state, grads: Weights):
    return both.torch.update(state, {n: torch.tensor(g) for n, g in grads.items()})


@by_recipe_and_dtype(TRAINERS)
def test_updates_and_moments_are_the_same(name, dtype):
    both, start = pair(name, dtype), weights(name, dtype)
    in_jax, in_torch = jax_state(both, start), torch_state(both, start)
    for step in range(UPDATES):
        grads = random_gradients(start, step)
        in_jax, in_torch = jax_update(both, in_jax, grads), torch_update(both, in_torch, grads)
        if step == 0:
            in_jax = with_bases(both, in_jax, torch_moments(in_torch))
        got, want = jax_tree(both, in_jax.params), torch_tree(dict(in_torch.model.named_parameters()))
        assert_alike(jax_moments(both, in_jax), torch_moments(in_torch), UPDATE[dtype], f"rung 6, moments {step}")
        soap = both.recipe.optimizer.kind == "soap"
        allowed = SECOND_ORDER_WEIGHTS[dtype] if soap else UPDATE[dtype]
        assert_alike(got, want, allowed, f"rung 6, weights after update {step}")
        # The change alone, in float64 only: in float32 a small change of a large weight keeps few digits.
        if dtype == "float64":
            change = {n: got[n].astype(np.float64) - start[n] for n in start}
            want_change = {n: want[n].astype(np.float64) - start[n] for n in start}
            allowed = SECOND_ORDER_CHANGE if soap else UPDATE[dtype]
            assert_alike(change, want_change, allowed, f"rung 6, change by update {step}")
        assert int(in_jax.step) == in_torch.step == step + 1


def expected(recipe: Recipe, name: str, w: np.ndarray, grads: list[np.ndarray], at: list[float], bases) -> np.ndarray:
    """The weight of that name after updates with `grads`, by the oracle; `at` are the schedule's multipliers."""
    config = recipe.optimizer
    rates = {"wte.weight": config.embedding_lr, "wpe.weight": config.embedding_lr, "lm_head.weight": config.head_lr}
    decay = config.hidden_weight_decay
    lrs = [config.lr * m for m in at]
    if name in rates or w.ndim < 2:
        lrs = [rates.get(name, config.vector_lr) * m for m in at]
        decay = config.weight_decay if w.ndim > 1 or config.decays_vectors else 0.0
        return oracle.adamw(w, grads, lrs, config.betas, config.eps, decay)
    if config.kind == "muon":
        return oracle.muon(
            w,
            grads,
            lrs,
            config.momentum,
            config.newton_schulz_steps,
            config.newton_schulz_coefficients,
            parts=3 if "c_attn" in name else 1,
            average=config.momentum_form == "average",
            ratio_scale=config.muon_scale == "sqrt_ratio",
            weight_decay=decay,
            svd=config.orthogonalise == "svd",
        )
    settings = {"betas": config.hidden_betas, "eps": config.hidden_eps, "weight_decay": decay}
    if config.kind == "adamw":
        return oracle.adamw(w, grads, lrs, **settings)
    if config.kind == "shampoo":
        return oracle.shampoo(w, grads, lrs, **settings)[-1]["w"]
    Q = [bases[f"opt.soap.{name}.Q.{side}"] for side in (0, 1)]
    return oracle.soap(w, grads, lrs, **settings, Q=Q)[-1]["w"]


@pytest.mark.parametrize("framework", ["jax", "torch"])
@pytest.mark.parametrize("name", TRAINERS)
def test_updates_match_the_oracle(name, framework):
    both, start = pair(name, "float64"), weights(name, "float64")
    clip = both.recipe.optimizer.clip_norm
    state = (jax_state if framework == "jax" else torch_state)(both, start)
    every, bases = [], {}
    for step in range(UPDATES):
        grads = random_gradients(start, step)
        state = (jax_update if framework == "jax" else torch_update)(both, state, grads)
        if step == 0:
            bases = jax_moments(both, state) if framework == "jax" else torch_moments(state)
        norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
        assert norm > (clip or 0), "clipping has something to do"
        every.append({n: g if clip is None else g * (clip / norm) for n, g in grads.items()})
    got = jax_tree(both, state.params) if framework == "jax" else torch_tree(dict(state.model.named_parameters()))
    at = [torch_ref.optimizer.multiplier(both.recipe.schedule)(step) for step in range(UPDATES)]
    want = {n: expected(both.recipe, n, w, [g[n] for g in every], at, bases) for n, w in start.items()}
    change = {n: got[n] - start[n] for n in start}
    allowed = SECOND_ORDER_CHANGE if both.recipe.optimizer.kind == "soap" else UPDATE["float64"]
    assert_alike(change, {n: want[n] - start[n] for n in start}, allowed, f"rung 6, {framework} and oracle")


SCHEDULES = [
    ScheduleConfig(10, 0, 3),
    ScheduleConfig(10, 4, 3),
    ScheduleConfig(10, 0, 0),
    ScheduleConfig(7, 3, 4),
    ScheduleConfig(12, 3, 9, "cosine"),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_schedules_are_the_same_at_every_step(schedule):
    in_jax, in_torch = jaxgpt.optimizer.multiplier(schedule), torch_ref.optimizer.multiplier(schedule)
    for step in range(schedule.steps):
        assert float(in_jax(jnp.asarray(step, jnp.int32))) == pytest.approx(in_torch(step), rel=1e-15, abs=1e-17)


def test_trapezoid_rises_stays_and_falls_to_one_over_warmdown():
    at = torch_ref.optimizer.multiplier(ScheduleConfig(steps=10, warmup=4, warmdown=3))
    assert [at(s) for s in range(10)] == [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1, 2 / 3, 1 / 3]


def test_cosine_falls_from_one_towards_zero_along_half_a_period():
    at = torch_ref.optimizer.multiplier(ScheduleConfig(steps=10, warmup=2, warmdown=8, fall="cosine"))
    assert [at(0), at(1), at(2)] == [1 / 2, 1, 1]
    assert [at(s) for s in range(2, 10)] == pytest.approx([(1 + math.cos(math.pi * n / 8)) / 2 for n in range(8)])


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


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_parts_of_a_weight_are_updated_as_matrices_of_their_own(parts):
    rng = np.random.default_rng(0)
    grads = [torch.tensor(rng.standard_normal((24, 8))) for _ in range(parts)]

    def moved(params, grads, **group):
        params = [torch.nn.Parameter(torch.zeros_like(p)) for p in params]
        muon = Muon([{"params": params} | group], lr=1.0, scale="sqrt_ratio", dtype=torch.float64)
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        muon.step()
        return torch.cat([p.detach() for p in params])

    whole = torch.cat(grads)
    assert_within(relative(moved([whole], [whole], parts=parts), moved(grads, grads)), UPDATE["float64"])


@pytest.mark.parametrize("name", ["tiny", "tiny-adamw", "tiny-soap", "tiny-shampoo"])
def test_bytes_of_state_are_those_of_the_moments_in_a_file_and_a_few_counters(name):
    both, start = pair(name, "float32"), weights(name, "float32")
    of_jax = jaxgpt.optimizer.state_bytes(jax_state(both, start).opt_state)
    state = torch_update(both, torch_state(both, start), random_gradients(start, 0))
    of_torch = torch_ref.optimizer.state_bytes(state.optimizers)
    kept = {name: each.nbytes for name, each in torch_moments(state).items() if each.ndim}
    want = {"hidden": sum(size for name, size in kept.items() if ".h." in name), "all": sum(kept.values())}
    assert want["hidden"] > want["all"] / 4
    for got in (of_jax, of_torch):
        assert got == pytest.approx(want, abs=64)


SETTINGS = {
    "momentum": "momentum",
    "momentum_form": "momentum_form",
    "orthogonalise": "orthogonalise",
    "steps": "newton_schulz_steps",
    "coefficients": "newton_schulz_coefficients",
    "form": "newton_schulz_form",
    "scale": "muon_scale",
    "weight_decay": "hidden_weight_decay",
    "distributed": "distributed",
    "round_scaled": "distributed",
}
"""What Muon takes -> the recipe's field for it."""
TAKERS = [jaxgpt.muon.newton_schulz, jaxgpt.muon.scale_by_muon, jaxgpt.muon.muon, torch_ref.muon.newton_schulz, Muon]


@pytest.mark.parametrize("taker", TAKERS, ids=lambda taker: f"{taker.__module__}.{taker.__name__}")
def test_muon_without_settings_is_the_published_one(taker):
    given = {name: each.default for name, each in inspect.signature(taker).parameters.items() if name in SETTINGS}
    assert given == {name: getattr(OptimizerConfig(), SETTINGS[name]) for name in given}
    assert given


def test_defaults_are_the_published_ones():
    config = OptimizerConfig()
    assert (config.lr, config.embedding_lr, config.momentum) == (0.1 * 0.0036, 0.0036, 0.95)
    assert (config.betas, config.eps, config.weight_decay) == ((0.9, 0.95), 1e-8, 0.0)
