"""What the optimisers share that treat weights as batches of matrices: one call a shape, second moments of the sides.

A weight's last two axes are the matrix; all leading axes count matrices (a model stacks its layers on one of them).
"""

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

Sides = tuple[Any, Any]
"""Two trees like the weights: of the left sides (..., rows, rows) and of the right sides (..., cols, cols)."""


def by_shape(
    f: Callable[..., Any], stacks: Sequence[tuple[jax.Array, ...]], deal: NamedSharding | None = None
) -> list[Any]:
    """f of each stack of matrices, in one batched call for all stacks of equal matrices.

    Args:
      f: takes as many arrays (n, r, c) as a stack holds and returns an array, or a tuple of arrays, with leading axis
        n. It must treat each matrix for itself.
      stacks: tuples of arrays (..., r, c). The arrays of one tuple share their leading axes, not their r and c.
      deal: spread n over the devices of this sharding, each doing its own matrices alone. The results are everywhere.

    Returns:
      For each stack what f returned for it, n turned back into the leading axes of the stack.

    Raises:
      ValueError: a stack whose arrays have different leading axes.
    """
    alike = defaultdict(list)  # shapes and dtypes of the matrices -> places in `stacks`
    for i, stack in enumerate(stacks):
        if len({a.shape[:-2] for a in stack}) != 1:
            raise ValueError(f"stack {i} has arrays {[a.shape for a in stack]}: their leading axes must be the same")
        alike[tuple((a.shape[-2:], a.dtype) for a in stack)].append(i)
    results: list[Any] = [None] * len(stacks)
    for places in alike.values():
        batches = [
            jnp.concatenate([a_rc.reshape(-1, *a_rc.shape[-2:]) for a_rc in arrays])
            for arrays in zip(*(stacks[i] for i in places), strict=True)
        ]
        done, start = _spread(f, batches, deal), 0
        for i in places:
            leading = stacks[i][0].shape[:-2]
            stop = start + math.prod(leading)
            results[i], start = _cut(done, start, stop, leading), stop
    return results


def refuse_vectors(optimizer: str, params) -> None:
    """Raises ValueError, naming the first weight that has fewer than two axes, where there is one."""
    for path, weight in jax.tree_util.tree_leaves_with_path(params):
        if weight.ndim < 2:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(f"{optimizer} takes matrices alone, not {name} {weight.shape}: give it another optimiser")


def zeros(params):
    """Zeros like the weights, in their dtypes but at least float32."""
    return jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.promote_types(w.dtype, jnp.float32)), params)


def side_zeros(params) -> Sides:
    """Zero matrices of the sides of the weights, in the dtypes of `zeros`."""

    def side(axis: int):
        shape = lambda w: (*w.shape[:-2], w.shape[axis], w.shape[axis])  # noqa: E731
        return jax.tree.map(lambda w: jnp.zeros(shape(w), jnp.promote_types(w.dtype, jnp.float32)), params)

    return side(-2), side(-1)


def side_averages(GG: Sides, grads, beta: float) -> Sides:
    """beta GG + (1 - beta) (g g^T, g^T g) of each matrix."""
    left, right = GG
    return (
        jax.tree.map(lambda a, g: beta * a + (1 - beta) * matmul(g, g.mT), left, grads),
        jax.tree.map(lambda a, g: beta * a + (1 - beta) * matmul(g.mT, g), right, grads),
    )


def average(old, new, beta: float):
    """beta old + (1 - beta) new, of trees."""
    return jax.tree.map(lambda a, b: beta * a + (1 - beta) * b, old, new)


def total_weight(beta: float, t: Int[Array, ""], dtype) -> Float[Array, ""]:
    """1 - beta^t, what the weights of t values in an average add up to that began with zero: the bias correction.

    As written, float32 would lose five bits of it at t = 1.
    """
    return -jnp.expm1(t.astype(dtype) * (math.log(beta) if beta else -math.inf))


def matmul(*matrices: Float[Array, "*batch r c"]) -> Float[Array, "*batch r c"]:
    """Their product from left to right. A GPU would round float32 to TF32 unless told not to."""
    product, *others = matrices
    for matrix in others:
        product = jnp.matmul(product, matrix, precision=lax.Precision.HIGHEST)
    return product


def eigh(A: Float[Array, "*batch n n"]) -> tuple[Float[Array, "*batch n"], Float[Array, "*batch n n"]]:
    """Eigenvalues of symmetric matrices, rising, and eigenvectors in columns.

    On an H100 (float32, JAX 0.11.2) cuSOLVER decomposes 120 matrices of 768 x 768 in 0.12 s at once and in 1.0 s one
    after the other, but 4 of 3072 x 3072 in 0.40 s at once and 0.20 s one after the other.

    On a CPU always one after the other: jaxlib (0.10.2) deals a batch out to the threads that XLA runs operations on
    and waits for it on one of them, so that two batches at a time wait for each other for ever.
    """
    decompose = functools.partial(jnp.linalg.eigh, symmetrize_input=False)
    one_by_one = functools.partial(_one_by_one, decompose)
    return lax.platform_dependent(A, cpu=one_by_one, default=decompose if A.shape[-1] <= 1024 else one_by_one)


def qr(A: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
    """The orthogonal factors of square matrices.

    One after the other: on an H100, 24 of 768 x 768 take 0.08 s so and 1.04 s as a batch, for which cuBLAS has a
    routine that is made for small ones; at 3072 x 3072 the two take the same time.
    """
    return _one_by_one(lambda a: jnp.linalg.qr(a)[0], A)


def _one_by_one(f: Callable[..., Any], A: jax.Array):
    done = lax.map(f, A.reshape(-1, *A.shape[-2:]))
    return jax.tree.map(lambda a: a.reshape(*A.shape[:-2], *a.shape[1:]), done)


def _spread(f: Callable[..., Any], batches: list[jax.Array], deal: NamedSharding | None):
    """f(*batches), its leading axis spread over `deal`'s devices."""
    if deal is None or deal.mesh.size == 1:
        return f(*batches)
    n, devices = len(batches[0]), deal.mesh.size
    shares = devices // deal.shard_shape((devices,))[0]
    full = -(-n // shares) * shares
    everywhere = NamedSharding(deal.mesh, PartitionSpec())
    # Filled up with copies: whatever f can do with a batch, it can do with those. Not with any constant.
    filled = [jnp.concatenate([batch] * -(-full // n))[:full] for batch in batches]
    # Whole on each device until here, or XLA deals out what led to them too (momentum, gradients), by exchanges between
    # the devices, and sums or gathers it again for the state: 12 exchanges instead of 3 in a step of `tiny` on 8.
    filled = [lax.with_sharding_constraint(batch, everywhere) for batch in filled]
    # shard_map, for a sharding constraint leaves it to XLA whether a device decomposes its own matrices or all of them.
    done = jax.shard_map(f, mesh=deal.mesh, in_specs=deal.spec, out_specs=deal.spec, check_vma=False)(*filled)
    return jax.tree.map(lambda a: lax.with_sharding_constraint(a, everywhere)[:n], done)


def _cut(done, start: int, stop: int, leading: tuple[int, ...]):
    return jax.tree.map(lambda a: a[start:stop].reshape(*leading, *a.shape[1:]), done)
