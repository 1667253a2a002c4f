"""The parts of a recipe as frozen dataclasses. This file imports neither JAX nor PyTorch.

A field that names a variant names a published one, and is looked up once, when a model or an optimiser is made. Fields
that contradict each other are refused here, where they are set.
"""

import math
from dataclasses import dataclass
from typing import Literal

from jaxgpt.errors import BadInput

_LARGEST_COUNT = 2**31 - 1
"""Of steps and sequences: they are counted in int32."""
_LARGEST_MODEL = {"vocab": 2**24, "token_ids": 2**24, "layers": 2**12, "heads": 2**12, "width": 2**18}
_LARGEST_MODEL |= {"mlp_ratio": 2**8, "context": _LARGEST_COUNT}
"""Far beyond any model of this kind, and small enough to name every weight."""
_MOST_PARAMETERS = 2**40

DType = Literal["bfloat16", "float32", "float64"]


def _check_counts(part: str, config: object, largest: dict[str, int]) -> None:
    """`BadInput` where a field of `largest` is set to less than 1 or to more than that."""
    for name, most in largest.items():
        value = getattr(config, name)
        if value is not None and not 1 <= value <= most:
            raise BadInput(f"{part}.{name} is {value}: give a whole number of at least 1 and at most {most}")


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer of pre-norm blocks with a final norm.

    Letters: V vocabulary rows, L layers, H heads, K head width, D width, F MLP width, T context.
    """

    vocab: int = 50304
    """V, rows of the embedding and of the head. Rows from `token_ids` on are padding; see `pad_rows`."""
    token_ids: int = 50257
    """How many token ids the data may hold (GPT-2's byte-pair encoding has 50257)."""
    layers: int = 12
    heads: int = 12
    width: int = 768
    mlp_ratio: int = 4
    """F / D."""
    context: int = 1024
    """T, tokens a sequence."""
    activation: Literal["gelu", "gelu_tanh", "relu_squared"] = "relu_squared"
    """"gelu" is the exact one, x * Phi(x) through erf (torch's default); "gelu_tanh" GPT-2's approximation (JAX's)."""
    norm: Literal["rms", "rms_gain", "layer"] = "rms"
    """RMSNorm without weight, or with a gain; or LayerNorm with gain and bias."""
    norm_eps: float = 1e-6
    """Added to the mean square (LayerNorm: the variance) inside the root."""
    embedding_norm: bool = False
    """Also a norm between the embedding and the first block."""
    biases: bool = False
    """Whether products have biases: those of the blocks, and an untied head."""
    qkv: Literal["fused", "separate"] = "fused"
    """One (3D, D) weight in the order q, k, v, or three. It names the weights in files; the function computed is the
    same."""
    qk_norm: Literal["none", "before_rotary", "after_rotary"] = "none"
    """RMSNorm without weight over K of queries and keys."""
    qk_norm_eps: float = 2.0**-23
    positions: Literal["rotary", "half_rotary", "learned"] = "rotary"
    """Rotary embeddings of base 10000 over the whole head; of base 1024 over its half, the other half left unturned; or
    GPT-2's learned table, added to the embedding."""
    rotary_dtype: DType = "float32"
    """Dtype of the tables of cosines and sines. The rotation runs in the wider one of it and of the queries'."""
    attention_scale: float | None = None
    """What scores are multiplied by; None is 1/sqrt(K)."""
    attention_output_scale: Literal["one", "inverse_sqrt_2L"] = "inverse_sqrt_2L"
    """What attention's output is multiplied by before it joins the residual stream."""
    head: Literal["tied", "untied"] = "tied"
    """Whether the embedding is the head as well, or the head a matrix of its own."""
    pad_rows: Literal["trained", "masked"] = "trained"
    """Padding rows take part in the softmax and get gradients; or are outside it, start at zero and stay there."""
    logit_cap: float | None = None
    """c: logits z become c z / sqrt(z^2 + c^2)."""
    loss_reduction: Literal["mean", "sum"] = "mean"
    """Gradients are those of the mean over a step's tokens, or of the sum. Losses are reported as means either way."""
    initial: Literal["uniform", "uniform_zero_projections", "gpt2", "normal_zero_projections"] = "uniform"
    """Initial weights, by name; see `jaxgpt.init`."""
    embedding_dtype: DType = "float32"
    """Dtype of the embedding, its gradient and optimiser state, and of the residual stream that starts there."""
    compute_dtype: DType = "bfloat16"
    """Dtype of matrix products in training. Other weights, gradients and optimiser state are float32."""
    validation_dtype: DType = "float32"
    """The scripts validated outside autocast, in float32, until 2024-10-12; under autocast from 2024-10-14."""

    def __post_init__(self):
        _check_counts("model", self, _LARGEST_MODEL)
        if self.positions == "rotary" and (self.width % self.heads or self.head_width % 2):
            raise BadInput(
                f"model.width {self.width} over model.heads {self.heads} is no even head width: rotary embeddings turn "
                "pairs, so choose a width that is an even multiple of heads"
            )
        if self.width % self.heads:
            raise BadInput(f"model.width {self.width} doesn't divide over model.heads {self.heads}: give a multiple")
        if self.positions == "half_rotary" and self.head_width % 4:
            raise BadInput(
                f"model.positions half_rotary turns half of a head's pairs, and the head width {self.head_width} "
                "(model.width / model.heads) is no multiple of 4: choose one that is"
            )
        if self.positions == "learned" and self.qk_norm != "none":
            raise BadInput(
                f"model.qk_norm {self.qk_norm} with model.positions learned: there is no rotary embedding to come "
                "before or after; give model.qk_norm none, or other positions"
            )
        for name in ("norm_eps", "qk_norm_eps"):
            if not 0 <= getattr(self, name) < 1:
                raise BadInput(f"model.{name} is {getattr(self, name)}: give a number from 0 up to, not including, 1")
        for name in ("attention_scale", "logit_cap"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise BadInput(f"model.{name} is {getattr(self, name)}: give a finite number above 0, or None")
        if self.token_ids > self.vocab:
            raise BadInput(
                f"model.token_ids {self.token_ids} is more than model.vocab {self.vocab}: every id needs a row"
            )
        if self.initial == "normal_zero_projections" and self.head == "tied":
            raise BadInput(
                "model.initial normal_zero_projections starts the head at zero, and a tied one is the embedding: give "
                "model.head untied, or other initial weights"
            )
        if self.parameters > _MOST_PARAMETERS:
            raise BadInput(f"model.width {self.width} makes {self.parameters} parameters: give at most 2**40 of them")

    @property
    def head_width(self) -> int:
        """K."""
        return self.width // self.heads

    @property
    def mlp_width(self) -> int:
        """F."""
        return self.mlp_ratio * self.width

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight, in torch's names and layout: (out, in)."""
        d, f = self.width, self.mlp_width
        matrices = {"attn.c_attn": (3 * d, d)} if self.qkv == "fused" else {f"attn.c_{n}": (d, d) for n in "qkv"}
        matrices |= {"attn.c_proj": (d, d), "mlp.c_fc": (f, d), "mlp.c_proj": (d, f)}
        norm: dict[str, tuple[int, ...]] = {}
        if self.norm != "rms":
            norm = {"weight": (d,), "bias": (d,)} if self.norm == "layer" else {"weight": (d,)}

        block: dict[str, tuple[int, ...]] = {}
        for name, shape in matrices.items():
            block[f"{name}.weight"] = shape
            if self.biases:
                block[f"{name}.bias"] = shape[:1]
        block |= {f"{name}.{part}": shape for name in ("ln_1", "ln_2") for part, shape in norm.items()}

        shapes: dict[str, tuple[int, ...]] = {"wte.weight": (self.vocab, d)}
        if self.positions == "learned":
            shapes["wpe.weight"] = (self.context, d)
        if self.embedding_norm:
            shapes |= {f"ln_e.{part}": shape for part, shape in norm.items()}
        shapes |= {f"h.{i}.{name}": shape for i in range(self.layers) for name, shape in block.items()}
        shapes |= {f"ln_f.{part}": shape for part, shape in norm.items()}
        if self.head == "untied":
            shapes |= {"lm_head.weight": (self.vocab, d)} | ({"lm_head.bias": (self.vocab,)} if self.biases else {})
        return shapes

    @property
    def parameters(self) -> int:
        """How many numbers are stored as weights; a tied matrix counts once, padding rows count."""
        return sum(math.prod(shape) for shape in self.shapes.values())


@dataclass(frozen=True)
class OptimizerConfig:
    """One optimiser on the hidden matrices (the blocks' products), AdamW on all other weights."""

    kind: Literal["muon", "adamw", "soap", "shampoo"] = "muon"
    """Of the hidden matrices."""
    lr: float = 0.1 * 0.0036
    """Peak learning rate of the hidden matrices."""
    hidden_weight_decay: float = 0.0
    """Of the hidden matrices: decoupled, times the learning rate."""
    hidden_betas: tuple[float, float] = (0.95, 0.95)
    """AdamW's, SOAP's and Shampoo's decays on the hidden matrices."""
    hidden_eps: float = 1e-8
    """AdamW's and SOAP's, outside the root; Shampoo's, added to the eigenvalues."""
    precondition_every: int = 10
    """SOAP, Shampoo: updates between recomputations of the eigenbases, or roots."""
    momentum: float = 0.95
    """Muon's."""
    momentum_form: Literal["sum", "average"] = "sum"
    """Muon's m <- momentum m + g and u = g + momentum m, or both with (1 - momentum) g."""
    orthogonalise: Literal["newton_schulz", "svd"] = "newton_schulz"
    """Muon's iteration, or the slow, exact U V^T."""
    newton_schulz_steps: int = 5
    newton_schulz_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)
    newton_schulz_form: Literal["product_first", "polynomial_first"] = "product_first"
    """B = AX, X <- aX + bB + (cA)B, or B = bA + (cA)A, X <- aX + BX: equal but for rounding."""
    newton_schulz_dtype: DType = "bfloat16"
    newton_schulz_norm_dtype: DType = "float32"
    """Dtype of the matrix whose Frobenius norm scales the iteration's start (and of that norm)."""
    muon_scale: Literal["sqrt_max", "sqrt_ratio"] = "sqrt_max"
    """What an orthogonalised update is multiplied by: max(fan_out, fan_in)^(1/2), or max(1, fan_out/fan_in)^(1/2)."""
    distributed: bool = False
    """Each matrix is one device's, which alone holds its momentum; scaled updates are rounded to Newton-Schulz's dtype
    and summed over the devices."""
    embedding_lr: float = 0.0036
    """Peak learning rate of the embedding (the head too, where it is tied) and of learned positions."""
    head_lr: float | None = None
    """Of an untied head's matrix."""
    vector_lr: float | None = None
    """Of gains and biases."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's on all weights but the hidden matrices."""
    eps: float = 1e-8
    """The same AdamW's, added outside the root."""
    weight_decay: float = 0.0
    """The same AdamW's, decoupled, times the learning rate."""
    decays_vectors: bool = True
    """Whether that decay reaches gains and biases."""
    clip_norm: float | None = None
    """Gradients are scaled down to this global norm where theirs is larger."""

    def __post_init__(self):
        for name in ("lr", "embedding_lr", "head_lr", "vector_lr", "eps", "hidden_eps", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise BadInput(f"optimizer.{name} is {value}: give a finite number above 0")
        for name in ("weight_decay", "hidden_weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise BadInput(f"optimizer.{name} is {getattr(self, name)}: give a finite number of at least 0")
        decays = {"momentum": (self.momentum,), "betas": self.betas, "hidden_betas": self.hidden_betas}
        for name, value in ((name, value) for name, values in decays.items() for value in values):
            if not 0 <= value < 1:
                raise BadInput(f"optimizer.{name} holds {value}: give a number from 0 up to, not including, 1")
        if not all(map(math.isfinite, self.newton_schulz_coefficients)):
            raise BadInput(f"optimizer.newton_schulz_coefficients is {self.newton_schulz_coefficients}: give numbers")
        if not 0 <= self.newton_schulz_steps <= 1000:
            raise BadInput(f"optimizer.newton_schulz_steps is {self.newton_schulz_steps}: give 0 or more, up to 1000")
        _check_counts("optimizer", self, {"precondition_every": _LARGEST_COUNT})
        if self.kind != "muon" and (self.distributed or self.orthogonalise == "svd"):
            field = "distributed" if self.distributed else "orthogonalise svd"
            raise BadInput(f"optimizer.{field} is Muon's, and optimizer.kind is {self.kind}: give one of the two")


@dataclass(frozen=True)
class ScheduleConfig:
    """`steps` updates, a multiplier on each learning rate: linear warm-up, one, then a fall over `warmdown` steps."""

    steps: int = 6000
    warmup: int = 0
    warmdown: int = 1800
    fall: Literal["linear", "cosine"] = "linear"
    """(steps - s)/warmdown, or half a cosine from 1 at the fall's first step towards 0."""

    def __post_init__(self):
        _check_counts("schedule", self, {"steps": _LARGEST_COUNT})
        if self.warmup < 0 or self.warmdown < 0 or self.warmup + self.warmdown > self.steps:
            raise BadInput(
                f"schedule.warmup {self.warmup} and schedule.warmdown {self.warmdown} don't fit into {self.steps} "
                "steps: their sum can be at most schedule.steps"
            )

    def scaled(self, steps: int) -> "ScheduleConfig":
        """The same shape over `steps` updates, warm-up and warm-down rounded to whole steps."""
        if not 1 <= steps <= _LARGEST_COUNT:
            raise BadInput(f"--steps {steps}: give a whole number of at least 1 and at most {_LARGEST_COUNT}")
        ratio = steps / self.steps
        warmup = round(self.warmup * ratio)
        if self.warmup + self.warmdown == self.steps:
            return ScheduleConfig(steps, warmup, steps - warmup, self.fall)
        return ScheduleConfig(steps, warmup, min(round(self.warmdown * ratio), steps - warmup), self.fall)


@dataclass(frozen=True)
class DataConfig:
    """Which tokens a step sees, and how the run is validated."""

    tokens: Literal["gpt2", "bytes"] = "gpt2"
    sequences: int = 512
    """Sequences a step, over all devices and micro-batches."""
    micro_batch: int = 64
    """Sequences a device takes at once at most; the command line can say otherwise."""
    val_tokens: int = 10_485_760
    """How many tokens at the start of the validation shards are evaluated."""
    val_every: int = 125
    """Updates between validations; step 0 and the last are always validated."""
    val_every_at_end: int | None = None
    """The same in the last tenth of the run, where it differs."""

    def __post_init__(self):
        counts = ("sequences", "micro_batch", "val_tokens", "val_every", "val_every_at_end")
        _check_counts("data", self, dict.fromkeys(counts, _LARGEST_COUNT))


@dataclass(frozen=True)
class Expected:
    """What the published run reached, and where that is written."""

    val_loss: float | None
    step0_val_loss: float | None
    parameters: int
    """Numbers stored as weights, padding rows among them."""
    source: str
    step_ms: float | None = None
    """Milliseconds a step on 8 H100, as the run's own log has it."""


@dataclass(frozen=True)
class Recipe:
    """All that decides what a run computes, but for rounding."""

    name: str
    model: ModelConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    data: DataConfig
    expected: Expected

    def __post_init__(self):
        model, optimizer = self.model, self.optimizer
        if optimizer.kind in ("soap", "shampoo") and model.qkv == "fused":
            raise BadInput(
                f"optimizer.kind {optimizer.kind} preconditions each weight whole, and model.qkv is fused: jaxgpt "
                "keeps queries, keys and values apart, so give model.qkv separate"
            )
        vectors = sorted(name for name, shape in model.shapes.items() if len(shape) < 2)
        for needed, field, what in (
            (model.head == "untied", "head_lr", "model.head untied"),
            (bool(vectors), "vector_lr", f"{vectors[0] if vectors else ''} (gains, biases)"),
        ):
            given = getattr(optimizer, field)
            if needed and given is None:
                takes = " (Shampoo takes matrices alone)" if optimizer.kind == "shampoo" else ""
                raise BadInput(f"{what} has no learning rate{takes}: give optimizer.{field}, AdamW's for it")
            if given is not None and not needed:
                lacks = "model.head is tied" if field == "head_lr" else "the model has neither gains nor biases"
                raise BadInput(f"optimizer.{field} is {given} and {lacks}: leave it out, or change the model")

    @property
    def step_tokens(self) -> int:
        """Tokens an update is computed from."""
        return self.data.sequences * self.model.context

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.step_tokens * self.schedule.steps

    def validates_after(self, step: int, last: int) -> bool:
        """Whether a run that ends after `last` updates is validated after `step` of them."""
        late = self.data.val_every_at_end is not None and step >= self.schedule.steps - self.schedule.steps // 10
        every = self.data.val_every_at_end if late else self.data.val_every
        return step == last or step % (every or 1) == 0
