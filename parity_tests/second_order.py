"""SOAP and Shampoo in both frameworks and in NumPy on the same gradients: what their tests run and compare."""

import functools
import itertools

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
from parity_tests import oracle
from parity_tests.pair import DTYPES, Weights
from parity_tests.tolerances import (
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
