"""GPT in Flax NNX, read from top to bottom for every recipe.

Letters: B batch, T sequence, D width, H heads, K head width, F MLP width, V vocabulary rows, L layers.
The blocks are one `Block` whose weights carry a leading L axis, so that Muon finds its matrices stacked. Weights have
the names of torch_ref's; kernels are (in, out) as Flax has them, embedding and head (V, D) as torch does.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from jaxgpt.attention import Implementation, attend
from jaxgpt.init import initializer
from jaxgpt.kernels.mlp import relu_squared_mlp
from jaxgpt.kernels.norm import ROWS, add_norm
from jaxgpt.loss import cap, logits
from jaxgpt.recipes import DType, ModelConfig

Kernels = Literal["plain", "fused"]
Make = Callable[[int, int, str], "Linear"]
"""linear(fan_in, fan_out, name): a layer with the initial weights of that name."""


def rms_norm(x: Float[Array, "*batch D"], eps: float) -> Float[Array, "*batch D"]:
    """x / sqrt(mean(x^2) + eps) over the last axis, without weight, in at least float32; the result has x's dtype."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)).astype(x.dtype)


class Norm(nnx.Module):
    """A recipe's norm over the last axis: RMSNorm with or without gain, or LayerNorm (arXiv 1607.06450).

    Statistics, gain and bias are taken in at least float32, the gain rounded to x's dtype first; so is the result.
    """

    def __init__(self, config: ModelConfig, parameter: Callable[[str], nnx.Param], kernels: Kernels = "plain"):
        self.config, self.kernels = config, kernels
        if config.norm != "rms":
            self.weight = parameter("weight")
        if config.norm == "layer":
            self.bias = parameter("bias")

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., D) -> (..., D)."""
        if self.config.norm == "rms":
            return rms_norm(x, self.config.norm_eps)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.config.norm == "layer":
            wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        wide = wide * lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.config.norm_eps)
        wide = wide * self.weight[...].astype(x.dtype)
        return (wide + self.bias[...] if self.config.norm == "layer" else wide).astype(x.dtype)

    def after(
        self, x_BTD: jax.Array, y_BTD: jax.Array | None, copies: int, scale: float | None = None
    ) -> tuple[jax.Array, ...]:
        """x + scale y, or x without y, and its norm, `copies` times; see `jaxgpt.kernels.norm.add_norm`."""
        if y_BTD is None:
            return x_BTD, *[self(x_BTD)] * copies
        rows = x_BTD.reshape(-1, x_BTD.shape[-1]), y_BTD.reshape(-1, y_BTD.shape[-1])
        if self.kernels == "fused" and self.config.norm == "rms" and len(rows[0]) % ROWS == 0:
            return tuple(a.reshape(x_BTD.shape) for a in add_norm(*rows, self.config.norm_eps, copies, scale))
        if scale is not None:
            # A bfloat16 times a Python number is rounded once, as torch does; JAX alone would round the number first.
            y_BTD = (y_BTD.astype(x_BTD.dtype) * scale).astype(y_BTD.dtype)
        x_BTD = x_BTD + y_BTD
        return x_BTD, *[self(x_BTD)] * copies


def rotary_tables(config: ModelConfig, length: int, dtype: DType) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines (T, 1, 2, K/2) of t * frequency (arXiv 2104.09864), signed for `rotate` to need no halves.

    "rotary": 10000^(-2i/K). "half_rotary": 1024^(-4i/(K-4)) for the first K/4 pairs, 0 for the others. Angles are
    float64, then rounded once to the recipe's table dtype: what the two frameworks make of them can't differ, as it
    does when each takes its own float32 power. `dtype` is the computation's; float64 keeps them exact where the recipe
    has float32 tables.
    """
    pairs = config.head_width // 2
    if config.positions == "half_rotary":
        frequencies = np.append(1024.0 ** -np.linspace(0, 1, pairs // 2), np.zeros(pairs // 2))
    else:
        frequencies = 10000.0 ** (-np.arange(pairs) / pairs)
    angles_TK = np.arange(length)[:, None] * frequencies
    cos = np.stack([np.cos(angles_TK), np.cos(angles_TK)], axis=1)[:, None]
    sin = np.stack([np.sin(angles_TK), -np.sin(angles_TK)], axis=1)[:, None]
    table = dtype if dtype == "float64" and config.rotary_dtype == "float32" else config.rotary_dtype
    return jnp.asarray(cos, table), jnp.asarray(sin, table)


def rotate(x_BTHK: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """(x1 cos + x2 sin, x2 cos - x1 sin) for the halves x1, x2 of the last axis, in the wider dtype of x and tables.

    Seen as (2, K/2), the other half is the axis reversed: one fused pass, where a concatenation would be a copy.
    """
    cos, sin = tables
    halves = x_BTHK.reshape(*x_BTHK.shape[:-1], 2, -1)
    return (halves * cos + jnp.flip(halves, axis=-2) * sin).reshape(x_BTHK.shape)


class Linear(nnx.Linear):
    """x kernel + bias in the compute dtype."""

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:  # type: ignore[override]
        """Flax rounds the bias first, and its gradient is then a sum over all tokens in bfloat16; this one is rounded
        after it is repeated, and the sum is taken in the bias's own dtype, as PyTorch takes it."""
        y = x.astype(self.dtype) @ self.kernel[...].astype(self.dtype)
        return y if self.bias is None else y + jnp.broadcast_to(self.bias[...], y.shape).astype(y.dtype)


class Attention(nnx.Module):
    """Causal self-attention. Queries, keys and values are three products, also where a recipe's file has them fused."""

    def __init__(self, config: ModelConfig, linear: Make):
        self.config = config
        self.c_q = linear(config.width, config.width, "attn.c_q.weight")
        self.c_k = linear(config.width, config.width, "attn.c_k.weight")
        self.c_v = linear(config.width, config.width, "attn.c_v.weight")
        self.c_proj = linear(config.width, config.width, "attn.c_proj.weight")

    def __call__(
        self,
        x_BTD: jax.Array | tuple[jax.Array, ...],
        tables: tuple[jax.Array, jax.Array],
        implementation: Implementation,
    ) -> jax.Array:
        """(B, T, D) -> (B, T, D). The input may be three copies, for queries, keys and values."""
        config = self.config
        copies = x_BTD if isinstance(x_BTD, tuple) else (x_BTD,) * 3
        heads = (*copies[0].shape[:2], config.heads, config.head_width)
        linears = self.c_q, self.c_k, self.c_v
        q, k, v = (c(x).reshape(heads) for c, x in zip(linears, copies, strict=True))
        dtype = v.dtype
        if config.qk_norm == "before_rotary":
            q, k = rms_norm(q, config.qk_norm_eps), rms_norm(k, config.qk_norm_eps)
        if config.positions != "learned":
            q, k = rotate(q, tables), rotate(k, tables)
        if config.qk_norm == "after_rotary":
            q, k = rms_norm(q, config.qk_norm_eps), rms_norm(k, config.qk_norm_eps)
        y_BTHK = attend(q.astype(dtype), k.astype(dtype), v, implementation, config.attention_scale)
        return self.c_proj(y_BTHK.reshape(*heads[:2], -1))


class MLP(nnx.Module):
    """Two products with the activation between them."""

    def __init__(self, config: ModelConfig, linear: Make, kernels: Kernels = "plain"):
        self.config, self.kernels = config, kernels
        self.c_fc = linear(config.width, config.mlp_width, "mlp.c_fc.weight")
        self.c_proj = linear(config.mlp_width, config.width, "mlp.c_proj.weight")

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """(B, T, D) -> (B, T, D)."""
        if self.kernels == "fused" and self.config.activation == "relu_squared" and not self.config.biases:
            weights = (c.kernel[...].astype(c.dtype) for c in (self.c_fc, self.c_proj))
            x_ND = x_BTD.reshape(-1, x_BTD.shape[-1]).astype(self.c_fc.dtype)
            return relu_squared_mlp(x_ND, *weights).reshape(x_BTD.shape)
        return self.c_proj(ACTIVATIONS[self.config.activation](self.c_fc(x_BTD)))


@jax.checkpoint
def gelu(x: jax.Array) -> jax.Array:
    """x * Phi(x), through erf, in at least float32. Only x is kept for the backward pass."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jax.nn.gelu(wide, approximate=False).astype(x.dtype)


@jax.checkpoint
def gelu_tanh(x: jax.Array) -> jax.Array:
    """GPT-2's approximation of `gelu` (arXiv 1606.08415), in at least float32. Only x is kept for the backward pass."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jax.nn.gelu(wide, approximate=True).astype(x.dtype)


def relu_squared(x: jax.Array) -> jax.Array:
    """max(x, 0)^2 (arXiv 2109.08668)."""
    return jnp.square(jax.nn.relu(x))


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "relu_squared": relu_squared}


class Block(nnx.Module):
    """Pre-norm residual block. The residual stream keeps the embedding's dtype; what is added has the compute dtype."""

    def __init__(self, config: ModelConfig, linear: Make, norm: Callable[[str], Norm], kernels: Kernels = "plain"):
        self.config = config
        self.ln_1 = norm("ln_1")
        self.attn = Attention(config, linear)
        self.ln_2 = norm("ln_2")
        self.mlp = MLP(config, linear, kernels)

    def __call__(
        self, x_BTD: jax.Array, tables: tuple[jax.Array, jax.Array], implementation: Implementation
    ) -> jax.Array:
        """(B, T, D) -> (B, T, D)."""
        x_BTD, y_BTD = self.open(x_BTD, None, tables, implementation)
        return x_BTD + y_BTD

    def open(
        self,
        x_BTD: jax.Array,
        y_BTD: jax.Array | None,
        tables: tuple[jax.Array, jax.Array],
        implementation: Implementation,
    ) -> tuple[jax.Array, jax.Array]:
        """The stream in two parts, to be added: each addition is left to the norm that comes next."""
        x_BTD, *copies = self.ln_1.after(x_BTD, y_BTD, copies=3)
        y_BTD = self.attn(tuple(copies), tables, implementation)
        scale = (2 * self.config.layers) ** -0.5 if self.config.attention_output_scale == "inverse_sqrt_2L" else None
        x_BTD, normed_BTD = self.ln_2.after(x_BTD, y_BTD, copies=1, scale=scale)
        return x_BTD, self.mlp(normed_BTD)


class Head(nnx.Module):
    """An untied head: a weight (V, D), a bias (V,) where the recipe has biases."""

    def __init__(self, config: ModelConfig, parameter: Callable[[str, tuple[int, ...]], nnx.Param]):
        self.weight = parameter("lm_head.weight", (config.vocab, config.width))
        if config.biases:
            self.bias = parameter("lm_head.bias", (config.vocab,))


class GPT(nnx.Module):
    """The model of a recipe.

    Args:
      config: the recipe's model.
      rngs: where the initial weights are drawn from.
      compute: dtype of matrix products; the recipe's where absent.
      parameters: dtype of weights.
      embedding: dtype of the embedding and of the residual stream; that of `parameters` where absent.
      attention: see `jaxgpt.attention.attend`.
      kernels: "fused" takes those of `jaxgpt.kernels` where they can run.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        rngs: nnx.Rngs,
        compute: DType | None = None,
        parameters: DType = "float32",
        embedding: DType | None = None,
        attention: Literal["exact", "fast"] = "exact",
        kernels: Kernels = "plain",
    ):
        self.config = config
        self.compute = compute or config.compute_dtype
        self.attention, self.kernels = attention, kernels

        def parameter(name: str, shape: tuple[int, ...], rngs: nnx.Rngs = rngs) -> nnx.Param:
            return nnx.Param(initializer(config, name)(rngs.params(), shape, jnp.dtype(parameters)))

        def norm(name: str, rngs: nnx.Rngs = rngs) -> Norm:
            return Norm(config, lambda part: parameter(f"{name}.{part}", (config.width,), rngs), kernels)

        def block(key: jax.Array) -> Block:
            rngs = nnx.Rngs(key)

            def linear(fan_in: int, fan_out: int, name: str) -> Linear:
                return Linear(
                    fan_in,
                    fan_out,
                    use_bias=config.biases,
                    dtype=jnp.dtype(self.compute),
                    param_dtype=jnp.dtype(parameters),
                    kernel_init=initializer(config, name),
                    rngs=rngs,
                )

            return Block(config, linear, lambda name: norm(name, rngs), kernels)

        wte_VD = parameter("wte.weight", (config.vocab, config.width))[...]
        self.wte = nnx.Param(wte_VD.astype(embedding or parameters))
        layer, _ = nnx.split(nnx.eval_shape(lambda: block(jax.random.key(0))))
        stacked = jax.vmap(lambda key: nnx.split(block(key))[1])(jax.random.split(rngs.params(), config.layers))
        self.h = nnx.merge(layer, stacked)
        if config.positions == "learned":
            self.wpe = parameter("wpe.weight", (config.context, config.width))
        if config.embedding_norm:
            self.ln_e = norm("ln_e")
        self.ln_f = norm("ln_f")
        if config.head == "untied":
            self.lm_head = Head(config, parameter)

    def head(self) -> tuple[Float[Array, "V D"], Float[Array, " V"] | None]:
        """What makes logits of `hidden`: a matrix, and a bias where the recipe has one."""
        if self.config.head == "tied":
            return self.wte[...], None
        return self.lm_head.weight[...], self.lm_head.bias[...] if self.config.biases else None

    def embed(self, tokens_BT: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The residual stream before the first block."""
        # Widened first: its gradient, a sum over all places where a token stands, would else be taken in bfloat16.
        wte_VD = self.wte[...]
        x_BTD = wte_VD.astype(jnp.promote_types(wte_VD.dtype, jnp.float32))[tokens_BT].astype(wte_VD.dtype)
        if self.config.positions == "learned":
            x_BTD = x_BTD + self.wpe[: tokens_BT.shape[1]]
        return self.ln_e(x_BTD) if self.config.embedding_norm else x_BTD

    def hidden(self, tokens_BT: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The residual stream after the last block and its norm: what the head multiplies."""
        return self.residuals(tokens_BT)[-1]

    def residuals(self, tokens_BT: Int[Array, "B T"]) -> list[Float[Array, "B T D"]]:
        """The residual stream after the embedding and after each block, then the final norm's output: L + 2 arrays."""
        tables = rotary_tables(self.config, tokens_BT.shape[1], self.compute)
        x_BTD, y_BTD = self.embed(tokens_BT), None
        stream = [x_BTD]
        layer, stacked = nnx.split(self.h)
        # Kernels are cast here, once for all layers; gains are as wide as the stream they scale.
        cast = jax.tree.map(lambda w: w.astype(self.compute) if w.ndim == 3 else w, stacked)
        for weights in unstack(cast):
            x_BTD, y_BTD = nnx.merge(layer, weights).open(x_BTD, y_BTD, tables, self.attention)
            stream.append(x_BTD + y_BTD)
        return [*stream, self.ln_f.after(x_BTD, y_BTD, copies=1)[1]]

    def __call__(self, tokens_BT: Int[Array, "B T"]) -> Float[Array, "B T V"]:
        """Logits of all V rows in at least float32. Training takes `hidden` and `jaxgpt.loss`, which never hold all."""
        weight_VD, bias_V = self.head()
        return cap(logits(self.hidden(tokens_BT), weight_VD, bias_V, self.compute), self.config.logit_cap)


@jax.custom_vjp
def unstack(tree):
    """The L trees without the leading axis. Its gradient is one stack, where slicing would add up L padded arrays.

    The barrier makes each slice an array of its own. Fused into the products that use them, L slices of one stack are L
    different programs, each compiled and tuned for itself; as arrays, all layers run the same ones.
    """
    length = jax.tree.leaves(tree)[0].shape[0]
    return lax.optimization_barrier([jax.tree.map(lambda w, i=i: w[i], tree) for i in range(length)])


unstack.defvjp(lambda tree: (unstack(tree), None), lambda _, layers: (jax.tree.map(lambda *g: jnp.stack(g), *layers),))
