"""Muon: momentum, orthogonalised by Newton-Schulz (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

`newton_schulz` is the quintic iteration, `scale_by_muon` the update without a learning rate, `muon` the optimiser:
ordinary optax transformations for any pytree, whatever library made it. They are told which axes of a weight are fan-in
and fan-out, because Flax and torch store them the other way round and the iteration's result doesn't reveal it.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz(
    G: Float[Array, "*batch rows cols"],
    steps: int = 5,
    coefficients: tuple[float, float, float] = COEFFICIENTS,
    dtype=jnp.bfloat16,
    norm_dtype=jnp.float32,
    eps: float = 1e-7,
    rounding: Literal["free", "pinned"] = "free",
) -> Float[Array, "*batch rows cols"]:
    """Push the singular values of G towards 1: X <- aX + bAX + cAAX with A = X X^T, from X = G / (||G||_F + eps).

    Args:
      G: any batch of matrices.
      steps: iterations.
      coefficients: a, b, c. The default takes singular values to about 0.7..1.2, not to 1.
      dtype: dtype of the iteration and of the result; callers cast.
      norm_dtype: G is rounded to this before its Frobenius norm is taken, and so is the norm.
      eps: keeps a zero matrix zero.
      rounding: "free" lets XLA keep products wider than `dtype`; "pinned" rounds each one, as PyTorch does.

    Returns:
      About U V^T for G = U S V^T, in `dtype`.
    """
    dtype, wide = jnp.dtype(dtype), jnp.promote_types(dtype, jnp.float32)
    a, b, c = coefficients
    precision = lax.Precision.DEFAULT if dtype == jnp.bfloat16 else lax.Precision.HIGHEST

    def rounded(X: jax.Array) -> jax.Array:
        if rounding == "pinned" and dtype == jnp.bfloat16:
            X = lax.reduce_precision(X, exponent_bits=8, mantissa_bits=7)
        return X.astype(dtype)

    def times(scalar: float, X: jax.Array) -> jax.Array:
        return rounded(scalar * X.astype(wide))

    def matmul(X: jax.Array, Y: jax.Array) -> jax.Array:
        return rounded(jnp.matmul(X, Y, precision=precision))

    def add(X: jax.Array, Y: jax.Array) -> jax.Array:
        return rounded(X.astype(wide) + Y.astype(wide))

    seen = G.astype(norm_dtype)
    norm = jnp.sqrt(
        jnp.sum(jnp.square(seen.astype(jnp.promote_types(norm_dtype, jnp.float32))), (-2, -1), keepdims=True)
    )
    X = rounded(rounded(G).astype(wide) / (norm.astype(norm_dtype) + eps))
    if transposed := G.shape[-2] > G.shape[-1]:
        X = X.mT
    for _ in range(steps):
        A = matmul(X, X.mT)
        B = matmul(A, X)
        X = add(add(times(a, X), times(b, B)), matmul(times(c, A), B))
    return X.mT if transposed else X


class Matrix(NamedTuple):
    """Which axes of a weight are the matrix; every other axis counts matrices."""

    fan_in: int
    fan_out: int


Layout = Callable[[str, jax.Array], Matrix | None]
"""(path such as "h.attn.c_q.kernel", weight) -> its axes, or None where the weight isn't Muon's."""


def kernels_in_out(path: str, weight: jax.Array) -> Matrix | None:
    """The layout of a Flax model: weights called `kernel` are (..., fan_in, fan_out) and Muon's, all others aren't."""
    return Matrix(fan_in=-2, fan_out=-1) if path.split(".")[-1] == "kernel" and weight.ndim >= 2 else None


class MuonState(NamedTuple):
    """Momentum, like the weights."""

    momentum: optax.Updates


def scale_by_muon(
    layout: Layout = kernels_in_out,
    momentum: float = 0.95,
    steps: int = 5,
    coefficients: tuple[float, float, float] = COEFFICIENTS,
    dtype=jnp.bfloat16,
    norm_dtype=jnp.float32,
    rounding: Literal["free", "pinned"] = "free",
    deal: NamedSharding | None = None,
) -> optax.GradientTransformation:
    """Muon without learning rate: m <- momentum m + g, u = g + momentum m, O = NS(u) max(fan_out, fan_in)^(1/2).

    The momentum is no moving average and has no bias correction. All matrices of one shape, wide or tall, go through
    one batched `newton_schulz`.

    Args:
      layout: axes of each weight; every weight it is given must be Muon's (`muon` sees to that).
      momentum: the decay above.
      steps, coefficients, dtype, norm_dtype, rounding: see `newton_schulz`, which always sees (fan_out, fan_in) or,
        where that is tall, its transpose.
      deal: spread the matrices of a batch over the devices of this sharding, each orthogonalising its own.

    Raises:
      ValueError: a weight that `layout` doesn't call a matrix.
    """

    def init(params: optax.Params) -> MuonState:
        _matrices(layout, params)
        return MuonState(momentum=jax.tree.map(jnp.zeros_like, params))

    def update(grads: optax.Updates, state: MuonState, params: optax.Params | None = None):
        del params
        buffer = jax.tree.map(lambda m, g: momentum * m + g, state.momentum, grads)
        nesterov = jax.tree.map(lambda m, g: g + momentum * m, buffer, grads)
        leaves, structure = jax.tree.flatten(nesterov)
        matrices = _matrices(layout, nesterov)

        batches = defaultdict(list)  # (rows, cols), rows <= cols -> [(leaf, its matrices (n, rows, cols))]
        for i, (u, matrix) in enumerate(zip(leaves, matrices, strict=True)):
            u_nrc = jnp.moveaxis(u, (matrix.fan_out, matrix.fan_in), (-2, -1))
            u_nrc = u_nrc.mT if u_nrc.shape[-2] > u_nrc.shape[-1] else u_nrc
            batches[u_nrc.shape[-2:]].append((i, u_nrc.reshape(-1, *u_nrc.shape[-2:])))
        for members in batches.values():
            stack_nrc = jnp.concatenate([u_nrc for _, u_nrc in members])
            done_nrc = _dealt(
                lambda G: newton_schulz(G, steps, coefficients, dtype, norm_dtype, rounding=rounding), deal
            )(stack_nrc)
            start = 0
            for i, u_nrc in members:
                o_nrc, start = done_nrc[start : start + len(u_nrc)], start + len(u_nrc)
                leaves[i] = _put_back(o_nrc, leaves[i], matrices[i])
        return jax.tree.unflatten(structure, leaves), MuonState(momentum=buffer)

    return optax.GradientTransformation(init, update)


def muon(
    learning_rate: optax.ScalarOrSchedule,
    layout: Layout = kernels_in_out,
    others: optax.GradientTransformation | None = None,
    **settings,
) -> optax.GradientTransformation:
    """`scale_by_muon` with a learning rate on the matrices that `layout` names, and `others` on every other weight.

    Args:
      learning_rate: of the matrices. An update's RMS is about one learning rate.
      layout: see `scale_by_muon`.
      others: the optimiser of embeddings, heads, gains, biases: Muon is not for them.
      **settings: of `scale_by_muon`.

    Raises:
      ValueError: a weight that isn't Muon's, and no `others`.
    """

    def labels(params: optax.Params):
        def label(path, weight) -> str:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            if layout(name, weight) is not None:
                return "muon"
            if others is None:
                raise ValueError(f"{name} {weight.shape} is not Muon's by `layout`: give its optimiser as `others`")
            return "others"

        return jax.tree_util.tree_map_with_path(label, params)

    matrices = optax.chain(scale_by_muon(layout, **settings), optax.scale_by_learning_rate(learning_rate))
    return optax.partition({"muon": matrices} | ({} if others is None else {"others": others}), labels)


def _matrices(layout: Layout, tree) -> list[Matrix]:
    matrices = []
    for path, weight in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        matrix = layout(name, weight)
        if matrix is None:
            raise ValueError(f"{name} {weight.shape} is not a matrix by `layout`: scale_by_muon takes matrices alone")
        matrices.append(matrix)
    return matrices


def _put_back(o_nrc: jax.Array, like: jax.Array, matrix: Matrix) -> jax.Array:
    """Orthogonalised matrices in the axes and dtype of the weight they came from, times the scale of its shape."""
    fan_in, fan_out = like.shape[matrix.fan_in], like.shape[matrix.fan_out]
    o_nrc = o_nrc.mT if fan_out > fan_in else o_nrc
    counted = [
        n for axis, n in enumerate(like.shape) if axis not in {matrix.fan_in % like.ndim, matrix.fan_out % like.ndim}
    ]
    o = jnp.moveaxis(o_nrc.reshape(*counted, fan_out, fan_in), (-2, -1), (matrix.fan_out, matrix.fan_in))
    return o.astype(like.dtype) * max(fan_out, fan_in) ** 0.5


def _dealt(orthogonalise: Callable[[jax.Array], jax.Array], deal: NamedSharding | None):
    """`orthogonalise` with the leading axis spread over `deal`'s devices, filled up with zero matrices where needed."""
    if deal is None or deal.mesh.size == 1:
        return orthogonalise

    def spread(stack_nrc: jax.Array) -> jax.Array:
        n = len(stack_nrc)
        filled = jnp.pad(stack_nrc, ((0, -n % deal.mesh.size), (0, 0), (0, 0)))
        done = orthogonalise(lax.with_sharding_constraint(filled, deal))
        return lax.with_sharding_constraint(done, NamedSharding(deal.mesh, PartitionSpec()))[:n]

    return spread
