"""Rung 6: SOAP and Shampoo in both frameworks and in NumPy, weights and states compared after every update.

All get the same weights and the same changing gradients, past two recomputations. Eigenvectors have arbitrary signs,
and the null space of the first statistics an arbitrary basis, so torch's first bases of SOAP are carried over into JAX
and into the oracle. From then on everything is determined. What the first bases must be is tested apart.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxgpt.mesh
import jaxgpt.shampoo
import jaxgpt.soap
import torch_ref.shampoo
import torch_ref.soap
from jaxgpt.matrices import by_shape, total_weight
from parity_tests import oracle
from parity_tests.measured import assert_within
from parity_tests.pair import Weights, assert_alike, relative
from parity_tests.second_order import (
    CALLS,
    EVERY,
    JAX,
    LR,
    RUN,
    SHAPES,
    SMALL,
    TORCH,
    Trace,
    allowed,
    by_dtype,
    by_framework,
    by_optimizer,
    by_two,
    changes,
    gradients,
    run_jax,
    run_oracle,
    run_torch,
    start,
    traces,
)
from parity_tests.tolerances import (
    FIRST_BASIS,
    NULL_SPACE,
    NULL_SPACE_UPDATES,
    ROOTS,
    SECOND_ORDER_CHANGE,
    SECOND_ORDER_MATRICES,
    SECOND_ORDER_MOMENTS,
    SECOND_ORDER_WEIGHTS,
)


@by_two
@by_dtype
@by_optimizer
def test_weights_and_states_are_the_same_after_every_call(optimizer, dtype, two):
    for call, (got, want) in enumerate(zip(*(traces(optimizer, dtype)[each] for each in two), strict=True)):
        assert got.keys() == want.keys()
        for slot in want:
            what = f"rung 6, {optimizer}, {' and '.join(two)}, {slot} after call {call}"
            assert_alike(got[slot], want[slot], allowed(slot, dtype), what)


@by_two
@by_optimizer
def test_changes_of_the_weights_are_the_same_in_float64(optimizer, two):
    got, want = (changes(traces(optimizer, "float64")[each]) for each in two)
    for call in range(1, CALLS):
        what = f"rung 6, {optimizer}, {' and '.join(two)}, change by call {call}"
        assert_alike(got[call - 1], want[call - 1], SECOND_ORDER_CHANGE, what)


@by_framework
def test_soap_needs_no_common_signs(framework):
    """From its own first bases each framework arrives where the oracle does from its own."""
    w, grads = start(), gradients()
    w, grads = {"square": w["square"]}, [{"square": g["square"]} for g in grads]  # statistics of full rank at once
    got, want = RUN[framework]("soap", w, grads), run_oracle("soap", w, grads)
    assert_within(relative(got[-1]["w"]["square"], want[-1]["w"]["square"]), FIRST_BASIS)


@functools.cache
def first_call(framework):
    return RUN[framework]("soap", start(), gradients(calls=1), learning_rate=1.0, weight_decay=0.5)[0]


@by_framework
def test_first_bases_of_soap_diagonalise_the_statistics_largest_first(framework):
    seen = first_call(framework)
    for side in (0, 1):
        for name in SHAPES:
            GG, Q = seen[f"GG {side}"][name], seen[f"Q {side}"][name]
            values = np.diag(Q.T @ GG @ Q)
            assert_within(relative(Q.T @ Q, np.eye(len(Q))), FIRST_BASIS)
            assert_within(relative(Q * values @ Q.T, GG), FIRST_BASIS)
            assert_within(relative(values, np.sort(np.linalg.eigvalsh(GG))[::-1]), FIRST_BASIS)


LOW_RANK = {"up": (32, 8)}
"""A weight (4D, D)."""


def low_rank_gradients() -> list[Weights]:
    """Of the same 8 directions among 32 at every call, so that the left statistics keep a null space."""
    rng = np.random.default_rng(2)
    left = np.linalg.qr(rng.standard_normal((32, 8)))[0]
    return [{"up": 0.01 * left @ rng.standard_normal((8, 8))} for _ in range(CALLS)]


@functools.cache
def low_rank_traces(optimizer) -> tuple[Trace, Trace]:
    w, grads = start(shapes=LOW_RANK), low_rank_gradients()
    in_torch = run_torch(optimizer, w, grads)
    return run_jax(optimizer, w, grads, in_torch if optimizer == "soap" else None), in_torch


def test_a_null_space_in_the_first_statistics_of_soap_does_no_harm_once_bases_are_carried_over():
    """Its directions hold rounding alone: of 1e-18, so that dividing by eps shows it where all else is 1e-14 apart."""
    in_jax, in_torch = low_rank_traces("soap")
    for call in range(EVERY + 1):  # call 10 still updates with the first bases
        got, want = in_jax[call]["w"], in_torch[call]["w"]
        assert_alike(got, want, NULL_SPACE_UPDATES, f"rung 6, soap, low rank, weights after call {call}")
    for call in range(EVERY):
        for slot in ("exp_avg", "exp_avg_sq", "GG 0", "GG 1"):
            what = f"rung 6, soap, low rank, {slot} after call {call}"
            assert_alike(in_jax[call][slot], in_torch[call][slot], allowed(slot, "float64"), what)


@pytest.mark.parametrize("call", [0, EVERY, 2 * EVERY])
def test_bases_of_a_null_space_agree_in_what_is_determined(call):
    in_jax, in_torch = (trace[call] for trace in low_rank_traces("soap"))
    ranges = []
    for seen in (in_jax, in_torch):
        GG, Q = seen["GG 0"]["up"], seen["Q 0"]["up"]
        assert_within(relative(Q.T @ Q, np.eye(32)), NULL_SPACE)
        assert_within(relative(Q[:, :8] @ Q[:, :8].T @ GG, GG), NULL_SPACE)
        ranges.append(Q[:, :8] @ Q[:, :8].T)
    assert_within(relative(*ranges), NULL_SPACE)
    values = [np.linalg.eigvalsh(seen["GG 0"]["up"]) for seen in (in_jax, in_torch)]
    assert_within(relative(*values), NULL_SPACE)


def test_shampoo_agrees_in_spite_of_a_null_space():
    """The root is 1000 there, and what it multiplies is zero."""
    in_jax, in_torch = low_rank_traces("shampoo")
    for call, (got, want) in enumerate(zip(in_jax, in_torch, strict=True)):
        assert_alike(got["w"], want["w"], NULL_SPACE_UPDATES, f"rung 6, shampoo, low rank, weights after call {call}")
    assert np.linalg.norm(in_torch[-1]["roots 0"]["up"], 2) == pytest.approx(1000, rel=0.01)


@by_framework
@by_optimizer
def test_zero_gradients_change_nothing_and_leave_no_trace(optimizer, framework):
    """Behind a projection that starts at zero, gradients are exactly zero at first: past a recomputation here."""
    w, grads = start(shapes=SMALL), gradients(shapes=SMALL)
    zero = [{name: np.zeros_like(g) for name, g in each.items()} for each in grads[: EVERY + 1]]
    got = RUN[framework](optimizer, w, zero + grads[: EVERY + 1])
    assert_alike(got[EVERY]["w"], w, 0.0, "weights after zero gradients")
    want = run_oracle(optimizer, w, zero + grads[: EVERY + 1])
    for call in range(len(got)):
        assert_alike(got[call]["w"], want[call]["w"], SECOND_ORDER_WEIGHTS["float64"], f"weights after call {call}")


SETTINGS = {
    "soap": {"betas": (0.9, 0.8), "eps": 1e-3, "precondition_every": 3, "statistics_beta": 0.7, "weight_decay": 0.3},
    "shampoo": {
        "betas": (0.9, 0.8),
        "eps": 1e-5,
        "graft_beta": 0.7,
        "graft_eps": 1e-3,
        "precondition_every": 3,
        "weight_decay": 0.3,
    },
}


@by_framework
@by_optimizer
def test_every_setting_is_the_oracles(optimizer, framework):
    w, grads, settings = start(shapes=SMALL), gradients(calls=8, shapes=SMALL), SETTINGS[optimizer]
    settings = {"every" if name == "precondition_every" else name: value for name, value in settings.items()}
    own = run_torch(optimizer, w, grads, **SETTINGS[optimizer])
    first = own if optimizer == "soap" else None
    got = own if framework == "torch" else run_jax(optimizer, w, grads, first, **SETTINGS[optimizer])
    want = run_oracle(optimizer, w, grads, first, **settings)
    for call, (a, b) in enumerate(zip(changes(got), changes(want), strict=True)):
        assert_alike(a, b, SECOND_ORDER_CHANGE, f"rung 6, {optimizer} in {framework}, change by call {call + 1}")


@by_framework
@by_optimizer
def test_learning_rates_count_calls_from_zero(optimizer, framework):
    """SOAP's first call takes a rate and makes no use of it."""
    w, grads = start(shapes=SMALL), gradients(calls=4, shapes=SMALL)
    rates = [100.0, 0.03, 0.02, 0.01] if optimizer == "soap" else [0.04, 0.03, 0.02, 0.01]
    schedule = lambda n: jnp.asarray(rates)[n] if framework == "jax" else rates[n]  # noqa: E731
    got = changes(RUN[framework](optimizer, w, grads, learning_rate=schedule))
    want = changes(RUN[framework](optimizer, w, grads, learning_rate=1.0))
    for rate, a, b in zip(rates[1:], got, want, strict=True):
        assert_alike(a, {name: rate * change for name, change in b.items()}, SECOND_ORDER_CHANGE, f"rate {rate}")


# One step at a time: what is easily got wrong.


@by_framework
def test_first_call_of_soap_gathers_statistics_and_changes_nothing_else(framework):
    seen, w, grads = first_call(framework), start(), gradients(calls=1)
    assert_alike(seen["w"], w, 0.0, "weights")
    for name, g in grads[0].items():
        assert not seen["exp_avg"][name].any()
        assert not seen["exp_avg_sq"][name].any()
        assert seen["step"][name] == 0
        assert_within(relative(seen["GG 0"][name], 0.05 * g @ g.T), SECOND_ORDER_MOMENTS["float64"])
        assert_within(relative(seen["GG 1"][name], 0.05 * g.T @ g), SECOND_ORDER_MOMENTS["float64"])


@by_framework
def test_soap_decays_the_updated_weight_and_shampoo_the_weight_before(framework):
    w, grads = start(shapes=SMALL), gradients(calls=2, shapes=SMALL)
    decay, plain = 0.5, {}
    for optimizer in JAX:
        (plain[optimizer],) = changes(RUN[framework](optimizer, w, grads, learning_rate=1.0))
    after = run_torch("shampoo", w, grads[:1], learning_rate=1.0, weight_decay=decay)[0]["w"]
    (soap,) = changes(RUN[framework]("soap", w, grads, learning_rate=1.0, weight_decay=decay))
    (shampoo,) = changes(RUN[framework]("shampoo", w, grads, learning_rate=1.0, weight_decay=decay))
    for name in SMALL:
        u = plain["soap"][name]
        assert_within(relative(soap[name], u - decay * (w[name] + u)), SECOND_ORDER_CHANGE)
        assert_within(relative(shampoo[name], plain["shampoo"][name] - decay * after[name]), SECOND_ORDER_CHANGE)


@by_framework
@pytest.mark.parametrize("call", [1, EVERY, EVERY + 1])
def test_soap_uses_its_bases_before_it_renews_them(call, framework):
    trace = traces("soap", "float64")[framework]
    before, after, change = trace[call - 1], trace[call], changes(trace)[call - 1]
    for name, g in gradients()[call].items():
        w = after["w"][name] / (1 - LR * 0.1)  # without the decay
        left, right = before["Q 0"][name], before["Q 1"][name]
        v = 0.95 * before["exp_avg_sq"][name] + 0.05 * (left.T @ g @ right) ** 2
        correction = np.sqrt(1 - 0.95**call) / (1 - 0.95**call)
        u = left @ (left.T @ after["exp_avg"][name] @ right / (np.sqrt(v) + 1e-8)) @ right.T * correction
        assert_within(relative(w - before["w"][name], -LR * u), SECOND_ORDER_CHANGE)
        assert relative(change[name], -LR * u) > 1e-3, "the decay counts"


@by_framework
def test_soap_puts_its_second_moment_into_the_order_of_the_new_columns(framework):
    trace = traces("soap", "float64")[framework]
    before, after = trace[EVERY - 1], trace[EVERY]
    for name, g in gradients()[EVERY].items():
        left, right = (before[f"Q {side}"][name] for side in (0, 1))
        v = 0.95 * before["exp_avg_sq"][name] + 0.05 * (left.T @ g @ right) ** 2
        sizes = [np.diag(q.T @ after[f"GG {side}"][name] @ q) for side, q in enumerate((left, right))]
        rows, cols = (np.argsort(-size) for size in sizes)
        assert_within(relative(after["exp_avg_sq"][name], v[rows][:, cols]), SECOND_ORDER_MOMENTS["float64"])
        assert (rows != np.arange(len(rows))).any(), "a test of the order needs one"
        assert (cols != np.arange(len(cols))).any(), "a test of the order needs one"
        for side, (q, order) in enumerate(((left, rows), (right, cols))):
            Q, GG = after[f"Q {side}"][name], after[f"GG {side}"][name]
            assert_within(relative(Q.T @ Q, np.eye(len(Q))), SECOND_ORDER_MATRICES["float64"])
            # Q R = GG q in that order: below the diagonal, R is zero.
            R = Q.T @ GG @ q[:, order]
            assert_within(relative(np.triu(R), R), SECOND_ORDER_MATRICES["float64"])


@by_framework
def test_shampoo_is_adam_until_its_first_roots(framework):
    w, grads = start(shapes=SMALL), gradients(calls=EVERY, shapes=SMALL)
    trace = RUN[framework]("shampoo", w, grads)
    for calls in range(1, EVERY + 1):
        want = {n: oracle.adamw(w[n], [g[n] for g in grads[:calls]], [LR] * calls, (0.95, 0.95), 1e-8, 0.0) for n in w}
        got = trace[calls - 1]["w"]
        if calls < EVERY:
            assert_alike(got, want, SECOND_ORDER_WEIGHTS["float64"], f"weights after {calls} updates")
            continue
        before = trace[calls - 2]["w"]
        for name in w:
            change, adam = got[name] - before[name], want[name] - before[name]
            assert_within(
                relative(np.linalg.norm(change), np.linalg.norm(adam)), SECOND_ORDER_CHANGE, "the grafted norm"
            )
            assert relative(change, adam) > 0.1, "the direction is Shampoo's"


@by_framework
def test_each_side_of_shampoo_has_the_inverse_fourth_root_of_its_averages(framework):
    trace = traces("shampoo", "float64")[framework]
    for slot in ("0", "1"):
        for name in SHAPES:
            GG = trace[EVERY - 1][f"GG {slot}"][name] / (1 - 0.95**EVERY)
            root = trace[EVERY - 1][f"roots {slot}"][name]
            fourth = np.linalg.matrix_power(root, 4) @ (GG + 1e-12 * np.eye(len(GG)))
            assert_within(relative(fourth, np.eye(len(GG))), ROOTS)
            assert (trace[2 * EVERY - 2][f"roots {slot}"][name] == root).all(), "until the next recomputation"


@by_framework
@pytest.mark.parametrize("least", [-0.5, 0.0, 0.5])
def test_an_eigenvalue_below_zero_lifts_all_until_it_is_zero(least, framework):
    values, turn = np.array([least, 1.0, 3.0]), np.linalg.qr(np.random.default_rng(4).standard_normal((3, 3)))[0]
    GG = turn * values @ turn.T
    if framework == "jax":
        root = np.asarray(jaxgpt.shampoo.inverse_root(jnp.asarray(GG), eps=1 / 16))
    else:
        root = torch_ref.shampoo.inverse_root(torch.tensor(GG), eps=1 / 16).numpy()
    want = turn * (values - min(least, 0) + 1 / 16) ** -0.25 @ turn.T
    assert_within(relative(root, want), ROOTS)


@by_framework
@by_optimizer
@pytest.mark.parametrize("size", [1e-8, 1e-6])
def test_eps_is_outside_the_root(size, optimizer, framework):
    w, grads = {"one": np.ones((1, 1))}, [{"one": np.full((1, 1), size)}] * 2
    (change,) = changes(RUN[framework](optimizer, w, grads, learning_rate=1.0))
    part = np.sqrt(1 - 0.95) if optimizer == "soap" else 1.0  # SOAP corrects the bias of the quotient, eps included
    assert change["one"].item() == pytest.approx(-part * size / (part * size + 1e-8), rel=1e-6)


@by_framework
@by_optimizer
def test_states_are_at_least_float32(optimizer, framework):
    w = torch.ones(4, 3, dtype=torch.bfloat16)
    if framework == "torch":
        p = torch.nn.Parameter(w)
        p.grad = torch.ones_like(p)
        (opt := TORCH[optimizer]([p], lr=LR)).step()
        kept = [a for value in opt.state[p].values() for a in (value if isinstance(value, list) else [value])]
        kept = [a.numpy() for a in kept if isinstance(a, torch.Tensor)]
    else:
        transform, params = JAX[optimizer](LR), {"w": jnp.ones((4, 3), jnp.bfloat16)}
        kept = [a for a in jax.tree.leaves(transform.update(params, transform.init(params))[1]) if a.ndim]
    assert len(kept) == 6
    assert {a.dtype for a in kept} == {np.dtype("float32")}


# Many matrices at once, and over devices.


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.95, 0.999])
def test_bias_corrections_keep_their_digits_in_float32(beta):
    t = np.array([1, 2, 10, 1000])
    got = total_weight(beta, jnp.asarray(t, jnp.int32), jnp.float32)
    assert got.dtype == jnp.float32
    assert np.abs(got / (1 - beta**t) - 1).max() < 3e-7


# Refusals.


@by_optimizer
def test_jax_refuses_what_is_no_matrix_by_its_name(optimizer):
    name = {"soap": "SOAP", "shampoo": "Shampoo"}[optimizer]
    with pytest.raises(ValueError, match=rf"{name} takes matrices alone, not h\.bias \(4,\)"):
        JAX[optimizer](LR).init({"h": {"bias": jnp.ones(4), "kernel": jnp.ones((4, 4))}})


@by_optimizer
@pytest.mark.parametrize("shape", [(4,), (2, 4, 4)])
def test_torch_refuses_what_is_no_matrix_by_its_shape(shape, optimizer):
    name = {"soap": "SOAP", "shampoo": "Shampoo"}[optimizer]
    with pytest.raises(ValueError, match=rf"{name} takes matrices alone, not a weight {re.escape(str(shape))}"):
        TORCH[optimizer]([torch.nn.Parameter(torch.ones(shape))], lr=LR)


@by_optimizer
def test_weight_decay_without_weights_is_refused(optimizer):
    transform, grads = JAX[optimizer](LR, weight_decay=0.1), {"w": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match="weight decay needs the weights"):
        transform.update(grads, transform.init(grads))


def test_by_shape_refuses_arrays_that_count_differently():
    with pytest.raises(ValueError, match=r"stack 0 has arrays \[\(3, 2, 2\), \(2, 2, 2\)\]"):
        by_shape(lambda a, b: a, [(jnp.ones((3, 2, 2)), jnp.ones((2, 2, 2)))])
