"""GPT in PyTorch, read from top to bottom for every recipe.

Letters: B batch, T sequence, D width, H heads, K head width, F MLP width, V vocabulary rows, L layers.
Products run in the dtype of the surrounding autocast, or in the weights' own without one; see `torch_ref.train`.
Weights are called wte.weight, h.0.attn.c_attn.weight (c_q, c_k, c_v where a recipe keeps them apart),
h.0.attn.c_proj.weight, h.0.mlp.c_fc.weight, h.0.mlp.c_proj.weight, and are (out, in) as `nn.Linear` has them.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils import skip_init

from jaxgpt.recipes import DType, ModelConfig
from torch_ref.attention import attend
from torch_ref.init import initializer

Linear = Callable[[int, int, str], nn.Linear]
"""(fan_in, fan_out, name without the layer's number) -> layer with its initial weight and no bias."""


def rms_norm(x: Float[Tensor, "*batch D"], eps: float) -> Float[Tensor, "*batch D"]:
    """x / sqrt(mean(x^2) + eps) over the last axis, without weight, in at least float32; the result has x's dtype."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)).to(x.dtype)


def rotary_tables(config: ModelConfig, dtype: DType) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, 1, K/2) of t * 10000^(-2i/K) (arXiv 2104.09864), T the recipe's context.

    The angles are float64, then rounded once to the recipe's table dtype: what the two frameworks make of them can't
    differ, as it does when each takes its own float32 power. `dtype` is the weights'; float64 keeps them exact where
    the recipe has float32 tables.
    """
    frequencies = 10000.0 ** (-torch.arange(0, config.head_width, 2, dtype=torch.float64) / config.head_width)
    angles_TK = torch.outer(torch.arange(config.context, dtype=torch.float64), frequencies)
    table = dtype if dtype == "float64" and config.rotary_dtype == "float32" else config.rotary_dtype
    return angles_TK.cos()[:, None].to(getattr(torch, table)), angles_TK.sin()[:, None].to(getattr(torch, table))


def rotate(x_BTHK: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """(x1 cos + x2 sin, x2 cos - x1 sin) for the halves x1, x2 of the last axis, in the wider dtype of x and tables."""
    cos, sin = tables
    x1, x2 = x_BTHK.chunk(2, dim=-1)
    return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=-1)


class Attention(nn.Module):
    """Causal self-attention. Where a recipe has them fused, queries, keys and values are one product (3D, D)."""

    def __init__(self, config: ModelConfig, linear: Linear):
        super().__init__()
        self.config = config
        if config.qkv == "fused":
            self.c_attn = linear(config.width, 3 * config.width, "attn.c_attn.weight")
        else:
            self.c_q = linear(config.width, config.width, "attn.c_q.weight")
            self.c_k = linear(config.width, config.width, "attn.c_k.weight")
            self.c_v = linear(config.width, config.width, "attn.c_v.weight")
        self.c_proj = linear(config.width, config.width, "attn.c_proj.weight")

    def forward(self, x_BTD: Tensor, tables: tuple[Tensor, Tensor], implementation: Literal["exact", "fast"]) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        heads = (*x_BTD.shape[:2], self.config.heads, self.config.head_width)
        if self.config.qkv == "fused":
            qkv = self.c_attn(x_BTD).split(self.config.width, dim=-1)
        else:
            qkv = self.c_q(x_BTD), self.c_k(x_BTD), self.c_v(x_BTD)
        q, k, v = (each.view(heads) for each in qkv)
        dtype = v.dtype
        q, k = rotate(q, tables), rotate(k, tables)
        if self.config.qk_norm == "after_rotary":
            q, k = rms_norm(q, self.config.qk_norm_eps), rms_norm(k, self.config.qk_norm_eps)
        y_BTHK = attend(q.to(dtype), k.to(dtype), v, implementation)
        return self.c_proj(y_BTHK.reshape(x_BTD.shape))


class MLP(nn.Module):
    """Two products with the activation between them."""

    def __init__(self, config: ModelConfig, linear: Linear):
        super().__init__()
        self.activation = {"gelu": gelu, "relu_squared": relu_squared}[config.activation]
        self.c_fc = linear(config.width, config.mlp_width, "mlp.c_fc.weight")
        self.c_proj = linear(config.mlp_width, config.width, "mlp.c_proj.weight")

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.c_proj(self.activation(self.c_fc(x_BTD)))


def gelu(x: Tensor) -> Tensor:
    """x * Phi(x), through erf."""
    return F.gelu(x, approximate="none")


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2 (arXiv 2109.08668)."""
    return F.relu(x).square()


class Block(nn.Module):
    """Pre-norm residual block. The residual stream keeps the weights' dtype; what is added has the compute dtype."""

    def __init__(self, config: ModelConfig, linear: Linear):
        super().__init__()
        self.config = config
        self.attn = Attention(config, linear)
        self.mlp = MLP(config, linear)

    def forward(self, x_BTD: Tensor, tables: tuple[Tensor, Tensor], implementation: Literal["exact", "fast"]) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        y_BTD = self.attn(rms_norm(x_BTD, self.config.norm_eps), tables, implementation)
        if self.config.attention_output_scale == "inverse_sqrt_2L":
            y_BTD = y_BTD * (2 * self.config.layers) ** -0.5
        x_BTD = x_BTD + y_BTD
        return x_BTD + self.mlp(rms_norm(x_BTD, self.config.norm_eps))


class GPT(nn.Module):
    """The model of a recipe, on the CPU; move it with `.to(device)`.

    Args:
      config: the recipe's model.
      seed: of the initial weights.
      parameters: dtype of weights and residual stream.
      attention: see `torch_ref.attention.attend`.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        seed: int = 0,
        parameters: DType = "float32",
        attention: Literal["exact", "fast"] = "exact",
    ):
        super().__init__()
        self.config = config
        self.attention = attention
        generator, dtype = torch.Generator().manual_seed(seed), getattr(torch, parameters)

        def linear(fan_in: int, fan_out: int, name: str) -> nn.Linear:
            layer = skip_init(nn.Linear, fan_in, fan_out, bias=False)  # torch's own draw would only be thrown away
            layer.weight = nn.Parameter(initializer(config, name)(generator, (fan_out, fan_in), dtype))
            return layer

        start = initializer(config, "wte.weight")(generator, (config.vocab, config.width), dtype)
        self.wte = nn.Embedding.from_pretrained(start, freeze=False)
        self.h = nn.ModuleList([Block(config, linear) for _ in range(config.layers)])
        # Buffers, because inside a compiled step float64 sines would be taken anew for every head.
        cos, sin = rotary_tables(config, parameters)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def hidden(self, tokens_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """The residual stream after the last block and its norm: what the head multiplies."""
        return self.residuals(tokens_BT)[-1]

    def residuals(self, tokens_BT: Int[Tensor, "B T"]) -> list[Float[Tensor, "B T D"]]:
        """The residual stream after the embedding and after each block, then the final norm's output: L + 2 tensors."""
        length = tokens_BT.shape[1]
        tables = self.get_buffer("cos")[:length], self.get_buffer("sin")[:length]
        stream = [self.wte(tokens_BT)]
        for block in self.h:
            stream.append(block(stream[-1], tables, self.attention))
        return [*stream, rms_norm(stream[-1], self.config.norm_eps)]

    def forward(self, tokens_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Logits in at least float32."""
        logits_BTV = F.linear(self.hidden(tokens_BT), self.wte.weight)
        return logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))
