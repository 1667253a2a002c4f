"""Shampoo: both sides of a gradient times an inverse root of their statistics (arXiv 1802.09568, 2002.09018).

`inverse_root` is the root, `scale_by_shampoo` the update without a learning rate, `shampoo` the optimiser: ordinary
optax transformations of any tree of matrices. Both sides of a matrix are treated alike, so nothing need be known of
fan-in and fan-out. Details are those of the run of October 2024 (recipe opt-shampoo-2024-10-29): averages instead of
sums, Adam's update gives each matrix its norm, and is the update until there is a first root.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from jaxgpt.matrices import (
    Sides,
    average,
    by_shape,
    eigh,
    matmul,
    refuse_vectors,
    side_averages,
    side_zeros,
    total_weight,
    zeros,
)


def inverse_root(GG: Float[Array, "*batch n n"], eps: float = 1e-12) -> Float[Array, "*batch n n"]:
    """GG^(-1/4), by eigendecomposition.

    Args:
      GG: symmetric; eigenvalues below zero are rounding, and lift all of them so that the least one is zero.
      eps: added to each eigenvalue then.
    """
    values, U = eigh(GG)
    values = values - jnp.minimum(values[..., :1], 0) + eps
    return matmul(U * (values**-0.25)[..., None, :], U.mT)


class ShampooState(NamedTuple):
    """Everything in the dtypes of the weights, at least float32.

    Attributes:
      count: updates so far, int32.
      exp_avg: average of the gradients.
      exp_avg_sq: average of their squares, for the grafted norm.
      GG: averages of g g^T and of g^T g.
      roots: inverse fourth roots of GG as it was at the last multiple of `precondition_every`; zero before the first.
    """

    count: Int[Array, ""]  # type: ignore[assignment]  # tuples have a method of this name
    exp_avg: optax.Updates
    exp_avg_sq: optax.Updates
    GG: Sides
    roots: Sides


def scale_by_shampoo(
    betas: tuple[float, float] = (0.95, 0.95),
    eps: float = 1e-12,
    graft_beta: float = 0.95,
    graft_eps: float = 1e-8,
    precondition_every: int = 10,
    deal: NamedSharding | None = None,
) -> optax.GradientTransformation:
    """Shampoo without learning rate: S = L^(-1/4) m R^(-1/4), scaled to the Frobenius norm of Adam's update.

    m, L, R and Adam's second moment are averages with bias correction, and include the gradient at hand. Until update
    `precondition_every`, which is the first to have roots, Adam's update is taken itself.

    Args:
      betas: decays of m, and of L and R.
      eps: added to the eigenvalues of L and R.
      graft_beta: decay of the second moment of Adam's update.
      graft_eps: added to its root.
      precondition_every: updates between two computations of the roots.
      deal: spread the matrices over the devices of this sharding, each decomposing and multiplying its own.

    Raises:
      ValueError: a weight that is no matrix.
    """

    def init(params: optax.Params) -> ShampooState:
        refuse_vectors("Shampoo", params)
        count = jnp.zeros((), jnp.int32)
        return ShampooState(count, zeros(params), zeros(params), side_zeros(params), side_zeros(params))

    def update(grads: optax.Updates, state: ShampooState, params: optax.Params | None = None):
        del params
        t = state.count + 1
        grads = jax.tree.map(lambda g, m: g.astype(m.dtype), grads, state.exp_avg)
        exp_avg = average(state.exp_avg, grads, betas[0])
        exp_avg_sq = average(state.exp_avg_sq, jax.tree.map(jnp.square, grads), graft_beta)
        GG = side_averages(state.GG, grads, betas[1])
        keep = lambda t, GG, roots: roots  # noqa: E731
        roots = lax.cond(t % precondition_every == 0, renew, keep, t, GG, state.roots)

        m = jax.tree.map(lambda m: m / total_weight(betas[0], t, m.dtype), exp_avg)
        v = jax.tree.map(lambda v: v / total_weight(graft_beta, t, v.dtype), exp_avg_sq)
        graft = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + graft_eps), m, v)
        stacks = list(zip(*map(jax.tree.leaves, (m, graft, *roots)), strict=True))
        grafted = jax.tree.unflatten(jax.tree.structure(grads), by_shape(graft_norm, stacks, deal))
        updates = jax.tree.map(lambda a, b: jnp.where(t < precondition_every, a, b), graft, grafted)
        return updates, ShampooState(t, exp_avg, exp_avg_sq, GG, roots)

    def renew(t: jax.Array, GG: Sides, roots: Sides) -> Sides:
        del roots
        sides, structure = jax.tree.flatten(GG)
        stacks = [(side / total_weight(betas[1], t, side.dtype),) for side in sides]
        return jax.tree.unflatten(structure, by_shape(lambda side: inverse_root(side, eps), stacks, deal))

    def graft_norm(m: jax.Array, graft: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
        S = matmul(left, m, right)
        norm = lambda a: jnp.linalg.norm(a, axis=(-2, -1), keepdims=True)  # noqa: E731
        return S * (norm(graft) / (norm(S) + 1e-16))

    return optax.GradientTransformation(init, update)


def shampoo(
    learning_rate: optax.ScalarOrSchedule, *, weight_decay: float = 0.0, **settings
) -> optax.GradientTransformation:
    """w <- w - lr weight_decay w, then w <- w - lr u, u from `scale_by_shampoo`.

    Args:
      learning_rate: a number, or an optax schedule of the call's number from 0.
      weight_decay: decoupled, of the weight before the update.
      **settings: of `scale_by_shampoo`, whose state this has.

    Raises:
      ValueError: a weight that is no matrix; weight decay without weights.
    """
    scaled = scale_by_shampoo(**settings)

    def update(grads: optax.Updates, state: ShampooState, params: optax.Params | None = None):
        lr = learning_rate(state.count) if callable(learning_rate) else learning_rate
        updates, state = scaled.update(grads, state)
        if weight_decay:
            if params is None:
                raise ValueError("Shampoo with weight decay needs the weights: update(grads, state, params)")
            updates = jax.tree.map(lambda u, w: u + weight_decay * w, updates, params)
        return jax.tree.map(lambda u: -jnp.asarray(lr, u.dtype) * u, updates), state

    return optax.GradientTransformation(scaled.init, update)
