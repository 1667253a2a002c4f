"""GPT in PyTorch, read from top to bottom for every recipe.

Letters: B batch, T sequence, D width, H heads, K head width, F MLP width, V vocabulary rows, L layers.
Products run in the dtype of the surrounding autocast, or in the weights' own without one; see `torch_ref.train`.
Weights are called wte.weight, h.0.attn.c_attn.weight (c_q, c_k, c_v where a recipe keeps them apart),
h.0.attn.c_proj.weight, h.0.mlp.c_fc.weight, h.0.mlp.c_proj.weight, and are (out, in) as `nn.Linear` has them. What some
recipes add is called .bias, wpe, ln_e, h.0.ln_1, h.0.ln_2, ln_f, lm_head; `ModelConfig.shapes` lists all.
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
from torch_ref.loss import cap, logits

Make = Callable[..., nn.Module]
"""linear(fan_in, fan_out, name) and norm(name): layers with the initial weights of that name, without the layer's
number."""


def rms_norm(x: Float[Tensor, "*batch D"], eps: float) -> Float[Tensor, "*batch D"]:
    """x / sqrt(mean(x^2) + eps) over the last axis, without weight, in at least float32; the result has x's dtype."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)).to(x.dtype)


class Norm(nn.Module):
    """A recipe's norm over the last axis: RMSNorm with or without gain, or LayerNorm (arXiv 1607.06450).

    Statistics, gain and bias are taken in at least float32, the gain rounded to x's dtype first; so is the result.
    """

    def __init__(self, config: ModelConfig, parameter: Callable[[str], nn.Parameter]):
        super().__init__()
        self.config = config
        if config.norm != "rms":
            self.weight = parameter("weight")
        if config.norm == "layer":
            self.bias = parameter("bias")

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        if self.config.norm == "rms":
            return rms_norm(x, self.config.norm_eps)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.config.norm == "layer":
            wide = wide - wide.mean(dim=-1, keepdim=True)
        wide = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.config.norm_eps)
        wide = wide * self.weight.to(x.dtype)
        return (wide + self.bias if self.config.norm == "layer" else wide).to(x.dtype)


def rotary_tables(config: ModelConfig, dtype: DType) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, 1, K/2) of t * frequency (arXiv 2104.09864), T the recipe's context.

    "rotary": 10000^(-2i/K). "half_rotary": 1024^(-4i/(K-4)) for the first K/4 pairs, 0 for the others. Angles are
    float64, then rounded once to the recipe's table dtype: what the two frameworks make of them can't differ, as it
    does when each takes its own float32 power. `dtype` is the weights'; float64 keeps them exact where the recipe has
    float32 tables.
    """
    pairs = config.head_width // 2
    if config.positions == "half_rotary":
        turned = 1024.0 ** -torch.linspace(0, 1, pairs // 2, dtype=torch.float64)
        frequencies = torch.cat([turned, torch.zeros(pairs // 2, dtype=torch.float64)])
    else:
        frequencies = 10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
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

    def __init__(self, config: ModelConfig, linear: Make):
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
        config = self.config
        heads = (*x_BTD.shape[:2], config.heads, config.head_width)
        if config.qkv == "fused":
            qkv = self.c_attn(x_BTD).split(config.width, dim=-1)
        else:
            qkv = self.c_q(x_BTD), self.c_k(x_BTD), self.c_v(x_BTD)
        q, k, v = (each.view(heads) for each in qkv)
        dtype = v.dtype
        if config.qk_norm == "before_rotary":
            q, k = rms_norm(q, config.qk_norm_eps), rms_norm(k, config.qk_norm_eps)
        if config.positions != "learned":
            q, k = rotate(q, tables), rotate(k, tables)
        if config.qk_norm == "after_rotary":
            q, k = rms_norm(q, config.qk_norm_eps), rms_norm(k, config.qk_norm_eps)
        y_BTHK = attend(q.to(dtype), k.to(dtype), v, implementation, config.attention_scale)
        return self.c_proj(y_BTHK.reshape(x_BTD.shape))


class MLP(nn.Module):
    """Two products with the activation between them."""

    def __init__(self, config: ModelConfig, linear: Make):
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.c_fc = linear(config.width, config.mlp_width, "mlp.c_fc.weight")
        self.c_proj = linear(config.mlp_width, config.width, "mlp.c_proj.weight")

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.c_proj(self.activation(self.c_fc(x_BTD)))


def gelu(x: Tensor) -> Tensor:
    """x * Phi(x), through erf."""
    return F.gelu(x, approximate="none")


def gelu_tanh(x: Tensor) -> Tensor:
    """GPT-2's approximation of `gelu` (arXiv 1606.08415)."""
    return F.gelu(x, approximate="tanh")


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2 (arXiv 2109.08668)."""
    return F.relu(x).square()


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "relu_squared": relu_squared}


class Block(nn.Module):
    """Pre-norm residual block. The residual stream keeps the embedding's dtype; what is added has the compute dtype."""

    def __init__(self, config: ModelConfig, linear: Make, norm: Make):
        super().__init__()
        self.config = config
        self.ln_1 = norm("ln_1")
        self.attn = Attention(config, linear)
        self.ln_2 = norm("ln_2")
        self.mlp = MLP(config, linear)

    def forward(self, x_BTD: Tensor, tables: tuple[Tensor, Tensor], implementation: Literal["exact", "fast"]) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        y_BTD = self.attn(self.ln_1(x_BTD), tables, implementation)
        if self.config.attention_output_scale == "inverse_sqrt_2L":
            y_BTD = y_BTD * (2 * self.config.layers) ** -0.5
        x_BTD = x_BTD + y_BTD
        return x_BTD + self.mlp(self.ln_2(x_BTD))


class GPT(nn.Module):
    """The model of a recipe, on the CPU; move it with `.to(device)`.

    Args:
      config: the recipe's model.
      seed: of the initial weights.
      parameters: dtype of weights.
      embedding: dtype of the embedding and of the residual stream; that of `parameters` where absent.
      attention: see `torch_ref.attention.attend`.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        seed: int = 0,
        parameters: DType = "float32",
        embedding: DType | None = None,
        attention: Literal["exact", "fast"] = "exact",
    ):
        super().__init__()
        self.config = config
        self.attention = attention
        generator = torch.Generator().manual_seed(seed)

        def parameter(name: str, shape: tuple[int, ...], dtype: str = parameters) -> nn.Parameter:
            drawn = initializer(config, name)(generator, shape, getattr(torch, parameters))
            return nn.Parameter(drawn.to(getattr(torch, dtype)))

        def norm(name: str) -> Norm:
            return Norm(config, lambda part: parameter(f"{name}.{part}", (config.width,)))

        def linear(fan_in: int, fan_out: int, name: str, bias: bool = config.biases) -> nn.Linear:
            layer = skip_init(nn.Linear, fan_in, fan_out, bias=bias)  # torch's own draw would only be thrown away
            layer.weight = parameter(name, (fan_out, fan_in))
            if bias:
                layer.bias = parameter(name.replace("weight", "bias"), (fan_out,))
            return layer

        start = parameter("wte.weight", (config.vocab, config.width), embedding or parameters)
        self.wte = nn.Embedding.from_pretrained(start.data, freeze=False)
        self.h = nn.ModuleList([Block(config, linear, norm) for _ in range(config.layers)])
        if config.positions == "learned":
            wpe = parameter("wpe.weight", (config.context, config.width))
            self.wpe = nn.Embedding.from_pretrained(wpe.data, freeze=False)
        if config.embedding_norm:
            self.ln_e = norm("ln_e")
        self.ln_f = norm("ln_f")
        if config.head == "untied":
            self.lm_head = linear(config.width, config.vocab, "lm_head.weight")
        # Buffers, because inside a compiled step float64 sines would be taken anew for every head.
        cos, sin = rotary_tables(config, parameters)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def head(self) -> tuple[Float[Tensor, "V D"], Float[Tensor, " V"] | None]:
        """What makes logits of `hidden`: a matrix, and a bias where the recipe has one."""
        head = self.wte if self.config.head == "tied" else self.lm_head
        return head.weight, getattr(head, "bias", None)

    def embed(self, tokens_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """The residual stream before the first block."""
        x_BTD = self.wte(tokens_BT)
        if self.config.positions == "learned":
            x_BTD = x_BTD + self.wpe.weight[: tokens_BT.shape[1]]
        return self.ln_e(x_BTD) if self.config.embedding_norm else x_BTD

    def hidden(self, tokens_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """The residual stream after the last block and its norm: what the head multiplies."""
        return self.residuals(tokens_BT)[-1]

    def residuals(self, tokens_BT: Int[Tensor, "B T"]) -> list[Float[Tensor, "B T D"]]:
        """The residual stream after the embedding and after each block, then the final norm's output: L + 2 tensors."""
        length = tokens_BT.shape[1]
        tables = self.get_buffer("cos")[:length], self.get_buffer("sin")[:length]
        stream = [self.embed(tokens_BT)]
        for block in self.h:
            stream.append(block(stream[-1], tables, self.attention))
        return [*stream, self.ln_f(stream[-1])]

    def forward(self, tokens_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Logits of all V rows in at least float32."""
        return cap(logits(self.hidden(tokens_BT), *self.head()), self.config.logit_cap)
