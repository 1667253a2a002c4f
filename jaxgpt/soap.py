"""SOAP: Adam in the eigenbasis of Shampoo's statistics (Vyas et al. 2024, arXiv 2409.11321).

`eigenbasis` and `next_basis` find the basis, `scale_by_soap` is the update without a learning rate, `soap` the
optimiser: ordinary optax transformations of any tree of matrices. Both sides of a matrix are treated alike, so nothing
need be known of fan-in and fan-out. Details are those of the runs of October 2024 (recipes soap-2024-10-09 and
opt-soap-2024-10-29): the first call only gathers statistics, decay comes last, a basis is used before it is renewed.
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
    qr,
    refuse_vectors,
    side_averages,
    side_zeros,
    total_weight,
    zeros,
)


def eigenbasis(GG: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
    """Eigenvectors of GG + 1e-30 I in columns, largest eigenvalue first. Their signs are arbitrary.

    Args:
      GG: symmetric, not negative. Where eigenvalues coincide, as those of the null space do, the basis of their space
        is arbitrary too.
    """
    return eigh(GG + 1e-30 * jnp.eye(GG.shape[-1], dtype=GG.dtype))[1][..., ::-1]


def next_basis(
    GG: Float[Array, "*batch n n"], Q: Float[Array, "*batch n n"]
) -> tuple[Float[Array, "*batch n n"], Int[Array, "*batch n"]]:
    """One power iteration from Q towards the eigenbasis of GG, and a QR decomposition (arXiv 2409.11321, algorithm 4).

    Returns:
      The basis, orthonormal columns; and the order by diag(Q^T GG Q), largest first, in which Q's columns were taken:
      what is kept in the old basis must be put in this order too.
    """
    moved = matmul(GG, Q)
    order = jnp.argsort(jnp.sum(Q * moved, axis=-2), axis=-1, descending=True)
    return qr(jnp.take_along_axis(moved, order[..., None, :], axis=-1)), order


class SoapState(NamedTuple):
    """Everything in the dtypes of the weights, at least float32.

    Attributes:
      count: updates so far, int32; -1 before the first call, which makes none and takes it to 0.
      exp_avg: average of the gradients, in the basis of the weights.
      exp_avg_sq: average of their squares in the basis Q.
      GG: averages of g g^T and of g^T g.
      Q: a basis for each of GG's matrices, in columns; zero before the first call.
    """

    count: Int[Array, ""]  # type: ignore[assignment]  # tuples have a method of this name
    exp_avg: optax.Updates
    exp_avg_sq: optax.Updates
    GG: Sides
    Q: Sides


def scale_by_soap(
    betas: tuple[float, float] = (0.95, 0.95),
    eps: float = 1e-8,
    precondition_every: int = 10,
    statistics_beta: float = 0.95,
    deal: NamedSharding | None = None,
) -> optax.GradientTransformation:
    """SOAP without learning rate: Q_L [(Q_L^T m Q_R) / (sqrt(v) + eps)] Q_R^T times Adam's bias corrections.

    m averages g, v the squares of Q_L^T g Q_R. The first call decomposes the statistics of its gradient and returns
    zeros. Later ones use Q, then add to the statistics, and every `precondition_every` updates then renew Q.

    Args:
      betas: decays of m and v.
      eps: added outside the root.
      precondition_every: updates between two bases.
      statistics_beta: decay of the statistics.
      deal: spread the matrices over the devices of this sharding, each decomposing and projecting its own.

    Raises:
      ValueError: a weight that is no matrix.
    """

    def init(params: optax.Params) -> SoapState:
        refuse_vectors("SOAP", params)
        count = jnp.asarray(-1, jnp.int32)
        return SoapState(count, zeros(params), zeros(params), side_zeros(params), side_zeros(params))

    def update(grads: optax.Updates, state: SoapState, params: optax.Params | None = None):
        del params
        grads = jax.tree.map(lambda g, m: g.astype(m.dtype), grads, state.exp_avg)
        return lax.cond(state.count < 0, first, later, grads, state)

    def first(grads: optax.Updates, state: SoapState):
        GG = side_averages(state.GG, grads, statistics_beta)
        sides, structure = jax.tree.flatten(GG)
        Q = jax.tree.unflatten(structure, by_shape(eigenbasis, [(side,) for side in sides], deal))
        return zeros(grads), state._replace(count=jnp.zeros_like(state.count), GG=GG, Q=Q)

    def later(grads: optax.Updates, state: SoapState):
        t = state.count + 1
        exp_avg = average(state.exp_avg, grads, betas[0])
        trees = grads, exp_avg, state.exp_avg_sq, *state.Q
        done = by_shape(in_basis, list(zip(*map(jax.tree.leaves, trees), strict=True)), deal)
        updates, exp_avg_sq = (jax.tree.unflatten(jax.tree.structure(grads), each) for each in zip(*done, strict=True))
        updates = jax.tree.map(
            lambda u: u * (jnp.sqrt(total_weight(betas[1], t, u.dtype)) / total_weight(betas[0], t, u.dtype)), updates
        )
        GG = side_averages(state.GG, grads, statistics_beta)
        keep = lambda GG, Q, exp_avg_sq: (Q, exp_avg_sq)  # noqa: E731
        Q, exp_avg_sq = lax.cond(t % precondition_every == 0, renew, keep, GG, state.Q, exp_avg_sq)
        return updates, SoapState(t, exp_avg, exp_avg_sq, GG, Q)

    def in_basis(g: jax.Array, m: jax.Array, v: jax.Array, left: jax.Array, right: jax.Array):
        v = betas[1] * v + (1 - betas[1]) * jnp.square(matmul(left.mT, g, right))
        return matmul(left, matmul(left.mT, m, right) / (jnp.sqrt(v) + eps), right.mT), v

    def renew(GG: Sides, Q: Sides, exp_avg_sq: optax.Updates):
        sides, structure = jax.tree.flatten(GG)
        done = by_shape(next_basis, list(zip(sides, jax.tree.leaves(Q), strict=True)), deal)
        Q, orders = (jax.tree.unflatten(structure, each) for each in zip(*done, strict=True))

        def ordered(v: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
            v = jnp.take_along_axis(v, left[..., :, None], axis=-2)
            return jnp.take_along_axis(v, right[..., None, :], axis=-1)

        return Q, jax.tree.map(ordered, exp_avg_sq, *orders)

    return optax.GradientTransformation(init, update)


def soap(
    learning_rate: optax.ScalarOrSchedule, *, weight_decay: float = 0.0, **settings
) -> optax.GradientTransformation:
    """w <- w - lr u, then w <- w - lr weight_decay w, u from `scale_by_soap`; the first call changes nothing.

    Args:
      learning_rate: a number, or an optax schedule of the call's number from 0. The first call uses none.
      weight_decay: decoupled, of the updated weight.
      **settings: of `scale_by_soap`, whose state this has.

    Raises:
      ValueError: a weight that is no matrix; weight decay without weights.
    """
    scaled = scale_by_soap(**settings)

    def update(grads: optax.Updates, state: SoapState, params: optax.Params | None = None):
        updates, state = scaled.update(grads, state)
        lr = learning_rate(state.count) if callable(learning_rate) else learning_rate
        updates = jax.tree.map(lambda u: -jnp.asarray(lr, u.dtype) * u, updates)
        if weight_decay:
            if params is None:
                raise ValueError("SOAP with weight decay needs the weights: update(grads, state, params)")
            decay = jnp.where(state.count > 0, lr * weight_decay, 0.0)
            updates = jax.tree.map(lambda u, w: u - decay.astype(u.dtype) * (w + u), updates, params)
        return updates, state

    return optax.GradientTransformation(scaled.init, update)
