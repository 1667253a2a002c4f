"""Muon: momentum, orthogonalised by Newton-Schulz (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

`newton_schulz` is the quintic iteration, `scale_by_muon` the update without a learning rate, `muon` the optimiser:
ordinary optax transformations for any pytree, whatever library made it. They are told which axes of a weight are fan-in
and fan-out, because Flax and torch store them the other way round and the iteration's result doesn't reveal it.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from jaxgpt.matrices import by_shape

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz(
    G: Float[Array, "*batch rows cols"],
    steps: int = 5,
    coefficients: tuple[float, float, float] = COEFFICIENTS,
    dtype=jnp.bfloat16,
    norm_dtype=jnp.float32,
    eps: float = 1e-7,
    rounding: Literal["free", "pinned"] = "free",
    form: Literal["product_first", "polynomial_first"] = "product_first",
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
      form: B = AX, X <- aX + bB + (cA)B, or B = bA + (cA)A, X <- aX + BX: equal but for rounding.

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
        if form == "product_first":
            B = matmul(A, X)
            X = add(add(times(a, X), times(b, B)), matmul(times(c, A), B))
        else:
            B = add(times(b, A), matmul(times(c, A), A))
            X = add(times(a, X), matmul(B, X))
    return X.mT if transposed else X


def orthogonal_factor(G: Float[Array, "*batch rows cols"]) -> Float[Array, "*batch rows cols"]:
    """U V^T for G = U S V^T, by singular value decomposition in at least float32: exact, slow, in G's dtype."""
    U, _, Vt = jnp.linalg.svd(G.astype(jnp.promote_types(G.dtype, jnp.float32)), full_matrices=False)
    return jnp.matmul(U, Vt, precision=lax.Precision.HIGHEST).astype(G.dtype)


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
    momentum_form: Literal["sum", "average"] = "sum",
    orthogonalise: Literal["newton_schulz", "svd"] = "newton_schulz",
    steps: int = 5,
    coefficients: tuple[float, float, float] = COEFFICIENTS,
    dtype=jnp.bfloat16,
    norm_dtype=jnp.float32,
    rounding: Literal["free", "pinned"] = "free",
    form: Literal["product_first", "polynomial_first"] = "product_first",
    scale: Literal["sqrt_max", "sqrt_ratio"] = "sqrt_max",
    round_scaled: bool = False,
    deal: NamedSharding | None = None,
) -> optax.GradientTransformation:
    """Muon without learning rate: m <- momentum m + g, u = g + momentum m, O = NS(u) scale(fan_out, fan_in).

    The momentum has no bias correction. All matrices of one shape, wide or tall, go through one batched
    `newton_schulz`.

    Args:
      layout: axes of each weight; every weight it is given must be Muon's (`muon` sees to that).
      momentum: the decay above.
      momentum_form: as above, or an "average", with (1 - momentum) g for g in both formulas.
      orthogonalise: the iteration, or `orthogonal_factor`.
      steps, coefficients, dtype, norm_dtype, rounding, form: see `newton_schulz`, which always sees (fan_out, fan_in)
        or, where that is tall, its transpose.
      scale: max(fan_out, fan_in)^(1/2), so that an update's RMS is about one, or max(1, fan_out/fan_in)^(1/2).
      round_scaled: round the scaled update to `dtype`, as the distributed form does before it sums over devices.
      deal: spread the matrices of a batch over the devices of this sharding, each orthogonalising its own.

    Raises:
      ValueError: a weight that `layout` doesn't call a matrix.
    """
    fresh = 1 - momentum if momentum_form == "average" else 1.0

    def orthogonalised(u_nrc: jax.Array) -> jax.Array:
        if orthogonalise == "svd":
            return orthogonal_factor(u_nrc)
        return newton_schulz(u_nrc, steps, coefficients, dtype, norm_dtype, rounding=rounding, form=form)

    def scaled(o: jax.Array, fan_out: int, fan_in: int, like: jax.Array) -> jax.Array:
        by = max(fan_out, fan_in) ** 0.5 if scale == "sqrt_max" else max(1.0, fan_out / fan_in) ** 0.5
        o_scaled = o.astype(like.dtype) * by
        if round_scaled and jnp.dtype(dtype) == jnp.bfloat16:
            o_scaled = lax.reduce_precision(o_scaled, exponent_bits=8, mantissa_bits=7)
        return o_scaled

    def init(params: optax.Params) -> MuonState:
        _matrices(layout, params)
        return MuonState(momentum=jax.tree.map(jnp.zeros_like, params))

    def update(grads: optax.Updates, state: MuonState, params: optax.Params | None = None):
        del params
        buffer = jax.tree.map(lambda m, g: momentum * m + fresh * g, state.momentum, grads)
        nesterov = jax.tree.map(lambda m, g: fresh * g + momentum * m, buffer, grads)
        leaves, structure = jax.tree.flatten(nesterov)
        matrices = _matrices(layout, nesterov)
        fans = [(u.shape[m.fan_out], u.shape[m.fan_in]) for u, m in zip(leaves, matrices, strict=True)]

        # (..., fan_out, fan_in), or the transpose where that is tall: one batch for both
        stacks = []
        for u, matrix, (fan_out, fan_in) in zip(leaves, matrices, fans, strict=True):
            ends = (-2, -1) if fan_out <= fan_in else (-1, -2)
            stacks.append((jnp.moveaxis(u, (matrix.fan_out, matrix.fan_in), ends),))
        for i, o in enumerate(by_shape(orthogonalised, stacks, deal)):
            fan_out, fan_in = fans[i]
            ends = (-2, -1) if fan_out <= fan_in else (-1, -2)
            o = jnp.moveaxis(o, ends, (matrices[i].fan_out, matrices[i].fan_in))
            leaves[i] = scaled(o, fan_out, fan_in, leaves[i])
        return jax.tree.unflatten(structure, leaves), MuonState(momentum=buffer)

    return optax.GradientTransformation(init, update)


def muon(
    learning_rate: optax.ScalarOrSchedule,
    layout: Layout = kernels_in_out,
    others: optax.GradientTransformation | None = None,
    weight_decay: float = 0.0,
    **settings,
) -> optax.GradientTransformation:
    """`scale_by_muon` with a learning rate on the matrices that `layout` names, and `others` on every other weight.

    Args:
      learning_rate: of the matrices. An update's RMS is about one learning rate.
      layout: see `scale_by_muon`.
      others: the optimiser of embeddings, heads, gains, biases: Muon is not for them.
      weight_decay: of the matrices: decoupled, times the learning rate.
      **settings: of `scale_by_muon`.

    Raises:
      ValueError: a weight that isn't Muon's, and no `others`; no weight that is Muon's, so that `others` would train
        all of them and nobody would know.
    """

    def labels(params: optax.Params):
        def label(path, weight) -> str:
            name = _name(path)
            if layout(name, weight) is not None:
                return "muon"
            if others is None:
                raise ValueError(f"{name} {weight.shape} is not Muon's by `layout`: give its optimiser as `others`")
            return "others"

        labelled = jax.tree_util.tree_map_with_path(label, params)
        if (named := jax.tree_util.tree_leaves_with_path(labelled)) and all(each == "others" for _, each in named):
            names = ", ".join(_name(path) for path, _ in named)
            raise ValueError(f"`layout` calls no weight Muon's: give one that knows the matrices among {names}")
        return labelled

    matrices = optax.chain(
        scale_by_muon(layout, **settings),
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.scale_by_learning_rate(learning_rate),
    )
    return optax.partition({"muon": matrices} | ({} if others is None else {"others": others}), labels)


def _matrices(layout: Layout, tree) -> list[Matrix]:
    matrices = []
    for path, weight in jax.tree_util.tree_leaves_with_path(tree):
        name = _name(path)
        matrix = layout(name, weight)
        if matrix is None:
            raise ValueError(f"{name} {weight.shape} is not a matrix by `layout`: scale_by_muon takes matrices alone")
        matrices.append(matrix)
    return matrices


def _name(path: tuple) -> str:
    """Such as "h.attn.c_q.kernel". Of a variable of Flax's NNX the array is the attribute `value`: not in the name."""
    of_variable = len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value")
    return jax.tree_util.keystr(path[:-1] if of_variable else path, simple=True, separator=".")
