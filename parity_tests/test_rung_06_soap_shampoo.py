"""Rung 6: SOAP and Shampoo in both frameworks and in NumPy, weights and states compared after every update.

All get the same weights and the same changing gradients, past two recomputations. Eigenvectors have arbitrary signs,
and the null space of the first statistics an arbitrary basis, so torch's first bases of SOAP are carried over into JAX
and into the oracle. From then on everything is determined. What the first bases must be is tested apart.
"""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import jaxgpt.mesh
import jaxgpt.shampoo
import jaxgpt.soap
import torch_ref.shampoo
import torch_ref.soap
from jaxgpt.matrices import by_shape, total_weight
from jaxgpt.muon import newton_schulz
from parity_tests import oracle
from parity_tests.pair import DTYPES, Weights, assert_alike, relative
from parity_tests.tolerances import (
    FAST,
    FIRST_BASIS,
    NULL_SPACE,
    NULL_SPACE_UPDATES,
    ROOTS,
    SECOND_ORDER_CHANGE,
    SECOND_ORDER_MATRICES,
    SECOND_ORDER_MOMENTS,
    SECOND_ORDER_WEIGHTS,
)

SHAPES = {"square": (8, 8), "wide": (8, 24), "tall": (24, 8), "layer 0": (24, 8), "layer 1": (24, 8)}
"""(fan_out, fan_in). In JAX the layers are one leaf, (2, fan_in, fan_out), and go through one batch with "tall"."""

SMALL = {"small": (5, 7)}
"""Enough where a fact is about one matrix: most of the time here is compiling."""

CALLS, LR, EVERY = 26, 0.01, 10
"""SOAP makes 25 updates in as many calls, Shampoo 26: each recomputes at updates 10 and 20."""

JAX = {"soap": jaxgpt.soap.soap, "shampoo": jaxgpt.shampoo.shampoo}
TORCH = {"soap": torch_ref.soap.SOAP, "shampoo": torch_ref.shampoo.Shampoo}
ORACLE = {"soap": oracle.soap, "shampoo": oracle.shampoo}
MATRICES = {"soap": "Q", "shampoo": "roots"}

Trace = list[dict[str, Weights]]
"""call -> slot ("w", "exp_avg", "GG 0", ...) -> matrix -> array in torch's layout."""

by_optimizer = pytest.mark.parametrize("optimizer", JAX)
by_dtype = pytest.mark.parametrize("dtype", DTYPES)
by_two = pytest.mark.parametrize("two", [("jax", "torch"), ("jax", "oracle"), ("torch", "oracle")], ids="-".join)
by_framework = pytest.mark.parametrize("framework", ["jax", "torch"])


def start(dtype="float64", shapes=SHAPES) -> Weights:
    rng = np.random.default_rng(0)
    return {name: (0.1 * rng.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()}


def gradients(dtype="float64", calls=CALLS, shapes=SHAPES) -> list[Weights]:
    """Random, with directions of sizes from 1 to 1/4 on each side, so that a basis matters."""
    rng = np.random.default_rng(1)
    turn = lambda n: np.linalg.qr(rng.standard_normal((n, n)))[0] * np.geomspace(1, 0.25, n)  # noqa: E731
    sides = {name: (turn(rows), turn(cols)) for name, (rows, cols) in shapes.items()}
    draw = lambda left, right: 0.01 * left @ rng.standard_normal((len(left), len(right))) @ right.T  # noqa: E731
    return [{name: draw(*pair).astype(dtype) for name, pair in sides.items()} for _ in range(calls)]


def to_jax(named: Weights, transpose: bool = True):
    """Kernels (fan_in, fan_out), the layers stacked. Bases must not be transposed."""
    named = {name: a.T if transpose else a for name, a in named.items()}
    layers = [named.pop(name) for name in list(named) if name.startswith("layer")]
    return jax.tree.map(jnp.asarray, named | ({"layers": np.stack(layers)} if layers else {}))


def from_jax(tree, transpose: bool = True) -> Weights:
    named = {name: np.array(a) for name, a in tree.items()}
    named |= {f"layer {i}": a for i, a in enumerate(named.pop("layers", ()))}
    return {name: a.T if transpose else a for name, a in named.items()}


def run_jax(optimizer, w: Weights, grads: list[Weights], first=None, mesh=None, learning_rate=LR, **settings) -> Trace:
    """`first`: a trace whose first call's bases are taken over. `mesh`: where everything is replicated."""
    transform = JAX[optimizer](learning_rate, **settings)
    whole = mesh and jaxgpt.mesh.replicated(mesh)
    place = lambda tree: jax.device_put(tree, whole)  # noqa: E731

    @functools.partial(jax.jit, donate_argnums=(0, 1), out_shardings=whole)
    def step(params, state, grads):
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, kind = place(to_jax(w)), MATRICES[optimizer]
    state, trace = place(transform.init(params)), []
    for call, g in enumerate(grads):
        params, state = step(params, state, place(to_jax(g)))
        if call == 0 and first is not None:
            # The left side of a kernel is the right side of torch's weight.
            state = state._replace(Q=place(tuple(to_jax(first[0][f"Q {side}"], transpose=False) for side in (1, 0))))
        seen = {"w": params, "exp_avg": state.exp_avg, "exp_avg_sq": state.exp_avg_sq}
        seen = {slot: from_jax(tree) for slot, tree in seen.items()}
        for slot, trees in (("GG", state.GG), (kind, getattr(state, kind))):
            seen |= {f"{slot} {side}": from_jax(trees[1 - side], transpose=False) for side in (0, 1)}
        trace.append(seen | {"step": {name: np.array(state.count) for name in w}})
    assert step._cache_size() == 1, "recomputations are part of the one program"
    return trace


def run_torch(optimizer, w: Weights, grads: list[Weights], learning_rate=LR, **settings) -> Trace:
    weights, trace = {name: torch.nn.Parameter(torch.tensor(a)) for name, a in w.items()}, []
    torchs = TORCH[optimizer](weights.values(), lr=LR, **settings)
    for call, g in enumerate(grads):
        torchs.param_groups[0]["lr"] = learning_rate(call) if callable(learning_rate) else learning_rate
        for name, p in weights.items():
            p.grad = torch.tensor(g[name])
        torchs.step()
        states = {name: torchs.state[p] | {"w": p.detach()} for name, p in weights.items()}
        trace.append(by_slot(states, MATRICES[optimizer]))
    return trace


def run_oracle(optimizer, w: Weights, grads: list[Weights], first=None, **settings) -> Trace:
    every = {}
    for name in w:
        bases = {} if first is None else {"Q": tuple(first[0][f"Q {side}"][name] for side in (0, 1))}
        every[name] = ORACLE[optimizer](w[name], [g[name] for g in grads], [LR] * len(grads), **settings, **bases)
    return [by_slot({name: every[name][call] for name in w}, MATRICES[optimizer]) for call in range(len(grads))]


def by_slot(states, kind: str) -> dict[str, Weights]:
    slots = {slot: lambda s, slot=slot: s[slot] for slot in ("w", "exp_avg", "exp_avg_sq", "step")}
    for slot in ("GG", kind):
        slots |= {f"{slot} {side}": lambda s, slot=slot, side=side: s[slot][side] for side in (0, 1)}
    return {slot: {name: np.asarray(get(s)).copy() for name, s in states.items()} for slot, get in slots.items()}


RUN = {"jax": run_jax, "torch": run_torch}


@functools.cache
def traces(optimizer, dtype) -> dict[str, Trace]:
    """Of everything, with weight decay and from torch's first bases."""
    w, grads = start(dtype), gradients(dtype)
    in_torch = run_torch(optimizer, w, grads, weight_decay=0.1)
    first = in_torch if optimizer == "soap" else None
    in_jax = run_jax(optimizer, w, grads, first, weight_decay=0.1)
    return {"torch": in_torch, "jax": in_jax, "oracle": run_oracle(optimizer, w, grads, first, weight_decay=0.1)}


def allowed(slot: str, dtype: str) -> float:
    if slot == "w":
        return SECOND_ORDER_WEIGHTS[dtype]
    return SECOND_ORDER_MATRICES[dtype] if slot.startswith(("Q", "roots")) else SECOND_ORDER_MOMENTS[dtype]


def changes(trace: Trace) -> list[Weights]:
    """Of the weights, by every call but the first."""
    return [
        {name: after["w"][name].astype(np.float64) - before["w"][name] for name in before["w"]}
        for before, after in itertools.pairwise(trace)
    ]


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
    assert relative(got[-1]["w"]["square"], want[-1]["w"]["square"]) <= FIRST_BASIS


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
            assert relative(Q.T @ Q, np.eye(len(Q))) <= FIRST_BASIS
            assert relative(Q * values @ Q.T, GG) <= FIRST_BASIS
            assert relative(values, np.sort(np.linalg.eigvalsh(GG))[::-1]) <= FIRST_BASIS


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
        assert relative(Q.T @ Q, np.eye(32)) <= NULL_SPACE
        assert relative(Q[:, :8] @ Q[:, :8].T @ GG, GG) <= NULL_SPACE
        ranges.append(Q[:, :8] @ Q[:, :8].T)
    assert relative(*ranges) <= NULL_SPACE
    values = [np.linalg.eigvalsh(seen["GG 0"]["up"]) for seen in (in_jax, in_torch)]
    assert relative(*values) <= NULL_SPACE


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
        assert relative(seen["GG 0"][name], 0.05 * g @ g.T) <= SECOND_ORDER_MOMENTS["float64"]
        assert relative(seen["GG 1"][name], 0.05 * g.T @ g) <= SECOND_ORDER_MOMENTS["float64"]


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
        assert relative(soap[name], u - decay * (w[name] + u)) <= SECOND_ORDER_CHANGE
        assert relative(shampoo[name], plain["shampoo"][name] - decay * after[name]) <= SECOND_ORDER_CHANGE


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
        assert relative(w - before["w"][name], -LR * u) <= SECOND_ORDER_CHANGE
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
        assert relative(after["exp_avg_sq"][name], v[rows][:, cols]) <= SECOND_ORDER_MOMENTS["float64"]
        assert (rows != np.arange(len(rows))).any(), "a test of the order needs one"
        assert (cols != np.arange(len(cols))).any(), "a test of the order needs one"
        for side, (q, order) in enumerate(((left, rows), (right, cols))):
            Q, GG = after[f"Q {side}"][name], after[f"GG {side}"][name]
            assert relative(Q.T @ Q, np.eye(len(Q))) <= SECOND_ORDER_MATRICES["float64"]
            # Q R = GG q in that order: below the diagonal, R is zero.
            R = Q.T @ GG @ q[:, order]
            assert relative(np.triu(R), R) <= SECOND_ORDER_MATRICES["float64"]


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
            assert relative(np.linalg.norm(change), np.linalg.norm(adam)) <= SECOND_ORDER_CHANGE, "the grafted norm"
            assert relative(change, adam) > 0.1, "the direction is Shampoo's"


@by_framework
def test_each_side_of_shampoo_has_the_inverse_fourth_root_of_its_averages(framework):
    trace = traces("shampoo", "float64")[framework]
    for slot in ("0", "1"):
        for name in SHAPES:
            GG = trace[EVERY - 1][f"GG {slot}"][name] / (1 - 0.95**EVERY)
            root = trace[EVERY - 1][f"roots {slot}"][name]
            fourth = np.linalg.matrix_power(root, 4) @ (GG + 1e-12 * np.eye(len(GG)))
            assert relative(fourth, np.eye(len(GG))) <= ROOTS
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
    assert relative(root, want) <= ROOTS


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


FEW = {name: SHAPES[name] for name in ("square", "layer 0", "layer 1")}


@functools.cache
def undealt(optimizer) -> Trace:
    return run_jax(optimizer, start(shapes=FEW), gradients(shapes=FEW))


@by_optimizer
@pytest.mark.parametrize("devices", [2, 8])
def test_matrices_dealt_out_over_devices_give_the_same_weights_and_states(devices, optimizer):
    mesh = jaxgpt.mesh.make_mesh_of(jax.devices()[:devices])
    settings = {"mesh": mesh, "deal": jaxgpt.mesh.split(mesh)}
    first = undealt(optimizer) if optimizer == "soap" else None
    dealt = run_jax(optimizer, start(shapes=FEW), gradients(shapes=FEW), first, **settings)
    for call, (got, want) in enumerate(zip(dealt, undealt(optimizer), strict=True)):
        for slot in want:
            what = f"rung 3b, {optimizer} over {devices} devices, {slot} after call {call}"
            assert_alike(got[slot], want[slot], allowed(slot, "float64"), what)


DECOMPOSITIONS = {"eigh": ("syevd", jnp.linalg.eigh), "qr": ("geqrf", jnp.linalg.qr)}


@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_dealt_matrices_are_decomposed_once_each(name):
    target, decompose = DECOMPOSITIONS[name]
    mesh = jaxgpt.mesh.make_mesh_of(jax.devices()[:8])
    stacks = [(jnp.ones((13, 6, 6)),), (jnp.ones((6, 6)),)]  # 14 matrices: two for each device
    run = jax.jit(lambda stacks: by_shape(lambda a: tuple(decompose(a)), stacks, jaxgpt.mesh.split(mesh)))
    program = run.lower(jax.device_put(stacks, jaxgpt.mesh.replicated(mesh))).compile().as_text()
    calls = [line for line in program.splitlines() if "custom-call(" in line and target in line]
    assert [re.search(r"= \(f64\[([\d,]+)\]", line).group(1) for line in calls] == ["2,6,6"], (
        "one call a device, of two"
    )


def test_dealt_newton_schulz_orthogonalises_each_matrix_once():
    mesh = jaxgpt.mesh.make_mesh_of(jax.devices()[:8])
    stacks = jax.device_put([(jnp.ones((12, 16, 32)),), (jnp.ones((2, 2, 16, 32)),)], jaxgpt.mesh.replicated(mesh))

    def flops(deal):
        run = jax.jit(lambda stacks: by_shape(lambda G: newton_schulz(G, dtype="float64"), stacks, deal))
        return run.lower(stacks).compile().cost_analysis()["flops"]

    assert flops(jaxgpt.mesh.split(mesh)) < 1.1 * flops(None) / 8  # per device


@pytest.mark.parametrize("devices", [None, 2, 8])
def test_by_shape_gives_every_stack_its_own_results(devices):
    rng = np.random.default_rng(3)
    deal = devices and jaxgpt.mesh.split(jaxgpt.mesh.make_mesh_of(jax.devices()[:devices]))
    leading = [(), (3,), (2, 2), ()]
    stacks = [
        (jnp.asarray(rng.standard_normal((*lead, r, 4))), jnp.asarray(rng.standard_normal((*lead, 4, 5))))
        for lead, r in zip(leading, [3, 3, 3, 2], strict=True)
    ]
    batches = []

    def product(a_nrk, b_nkc):
        batches.append(a_nrk.shape)
        return a_nrk @ b_nkc, jnp.sum(a_nrk, (-2, -1))

    got = jax.jit(lambda stacks: by_shape(product, stacks, deal))(stacks)
    for (a, b), (ab, total) in zip(stacks, got, strict=True):
        assert relative(ab, a @ b) <= FAST["float64"]
        assert relative(total, a.sum((-2, -1))) <= FAST["float64"]
    alike = {None: 8, 2: 4, 8: 1}[devices]
    assert batches == [(alike, 3, 4), (1, 2, 4)], "one call a shape, on a device's share"


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
