"""What is trained: one frozen dataclass per published run. This file imports neither JAX nor PyTorch.

A recipe says WHAT is trained and holds the published result. A command line says where and how long. `Precision` says
how exactly. Sources: the scripts and logs of github.com/KellerJordan/modded-nanogpt at the day in a recipe's name.
"""

import dataclasses
import math
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from jaxgpt.errors import BadInput

DType = Literal["bfloat16", "float32", "float64"]


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer.

    Letters: V vocabulary rows, L layers, H heads, K head width, D width, F MLP width, T context.
    """

    vocab: int = 50304
    """V, rows of the tied matrix. Rows from `token_ids` on are padding: not masked, they take part in the softmax."""
    token_ids: int = 50257
    """How many token ids the data may hold (GPT-2's byte-pair encoding has 50257)."""
    layers: int = 12
    heads: int = 12
    width: int = 768
    mlp_ratio: int = 4
    """F / D."""
    context: int = 1024
    """T, tokens a sequence."""
    activation: Literal["gelu", "relu_squared"] = "relu_squared"
    """"gelu" is the exact one, x * Phi(x) through erf (torch's default; JAX's default is the tanh approximation)."""
    norm_eps: float = 1e-6
    """Added to the mean square inside RMSNorm's root."""
    qkv: Literal["fused", "separate"] = "fused"
    """One (3D, D) weight in the order q, k, v, or three. It names the weights in files; the function computed is the
    same."""
    qk_norm: Literal["none", "after_rotary"] = "none"
    """RMSNorm over K of queries and keys."""
    qk_norm_eps: float = 2.0**-23
    rotary_dtype: DType = "float32"
    """Dtype of the tables of cosines and sines, and of the rotation."""
    attention_output_scale: Literal["one", "inverse_sqrt_2L"] = "inverse_sqrt_2L"
    """What attention's output is multiplied by before it joins the residual stream."""
    zero_init_projections: bool = False
    """Start both output projections of a block (attention's and the MLP's) at zero instead of uniform."""
    compute_dtype: DType = "bfloat16"
    """Dtype of matrix products in training. Weights, gradients and optimiser state stay float32."""
    validation_dtype: DType = "float32"
    """The scripts validated outside autocast, in float32, until 2024-10-12; under autocast from 2024-10-14."""

    def __post_init__(self):
        for name in ("vocab", "token_ids", "layers", "heads", "width", "mlp_ratio", "context"):
            if getattr(self, name) < 1:
                raise BadInput(f"model.{name} is {getattr(self, name)}: give a whole number of at least 1")
        if self.width % self.heads or self.head_width % 2:
            raise BadInput(
                f"model.width {self.width} over model.heads {self.heads} is no even head width: rotary embeddings turn "
                "pairs, so choose a width that is an even multiple of heads"
            )
        for name in ("norm_eps", "qk_norm_eps"):
            if not 0 <= getattr(self, name) < 1:
                raise BadInput(f"model.{name} is {getattr(self, name)}: give a number from 0 up to, not including, 1")
        if self.token_ids > self.vocab:
            raise BadInput(
                f"model.token_ids {self.token_ids} is more than model.vocab {self.vocab}: every id needs a row"
            )

    @property
    def head_width(self) -> int:
        """K."""
        return self.width // self.heads

    @property
    def mlp_width(self) -> int:
        """F."""
        return self.mlp_ratio * self.width

    @property
    def parameters(self) -> int:
        """How many numbers are trained; the tied matrix counts once."""
        return self.vocab * self.width + self.layers * (4 + 2 * self.mlp_ratio) * self.width**2


@dataclass(frozen=True)
class OptimizerConfig:
    """Muon on the hidden matrices, AdamW on the tied embedding."""

    lr: float = 0.1 * 0.0036
    """Peak learning rate of the hidden matrices."""
    momentum: float = 0.95
    newton_schulz_steps: int = 5
    newton_schulz_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)
    newton_schulz_dtype: DType = "bfloat16"
    newton_schulz_norm_dtype: DType = "float32"
    """Dtype of the matrix whose Frobenius norm scales the iteration's start (and of that norm)."""
    embedding_lr: float = 0.0036
    """Peak learning rate of the tied embedding and head."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    """AdamW's, added outside the root."""
    weight_decay: float = 0.0
    """AdamW's, decoupled, times the learning rate."""

    def __post_init__(self):
        for name in ("lr", "embedding_lr", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise BadInput(f"optimizer.{name} is {getattr(self, name)}: give a finite number above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise BadInput(f"optimizer.weight_decay is {self.weight_decay}: give a finite number of at least 0")
        for name, value in (("momentum", self.momentum), ("betas", self.betas[0]), ("betas", self.betas[1])):
            if not 0 <= value < 1:
                raise BadInput(f"optimizer.{name} holds {value}: give a number from 0 up to, not including, 1")
        if self.newton_schulz_steps < 0:
            raise BadInput(f"optimizer.newton_schulz_steps is {self.newton_schulz_steps}: give 0 or more")


@dataclass(frozen=True)
class ScheduleConfig:
    """A trapezoid of `steps` updates, a multiplier on each learning rate: linear warm-up, one, linear warm-down."""

    steps: int = 6000
    warmup: int = 0
    warmdown: int = 1800

    def __post_init__(self):
        if self.steps < 1:
            raise BadInput(f"schedule.steps is {self.steps}: give a whole number of at least 1")
        if self.warmup < 0 or self.warmdown < 0 or self.warmup + self.warmdown > self.steps:
            raise BadInput(
                f"schedule.warmup {self.warmup} and schedule.warmdown {self.warmdown} don't fit into {self.steps} "
                "steps: their sum can be at most schedule.steps"
            )

    def scaled(self, steps: int) -> "ScheduleConfig":
        """The same shape over `steps` updates, warm-up and warm-down rounded to whole steps."""
        if steps < 1:
            raise BadInput(f"--steps {steps}: give a whole number of at least 1")
        ratio = steps / self.steps
        warmup = round(self.warmup * ratio)
        return ScheduleConfig(steps, warmup, min(round(self.warmdown * ratio), steps - warmup))


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

    def __post_init__(self):
        for name in ("sequences", "micro_batch", "val_tokens", "val_every"):
            if getattr(self, name) < 1:
                raise BadInput(f"data.{name} is {getattr(self, name)}: give a whole number of at least 1")


@dataclass(frozen=True)
class Expected:
    """What the published run reached, and where that is written."""

    val_loss: float | None
    step0_val_loss: float | None
    parameters: int
    source: str


@dataclass(frozen=True)
class Recipe:
    """All that decides what a run computes, but for rounding."""

    name: str
    model: ModelConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    data: DataConfig
    expected: Expected

    @property
    def step_tokens(self) -> int:
        """Tokens an update is computed from."""
        return self.data.sequences * self.model.context

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.step_tokens * self.schedule.steps


@dataclass(frozen=True)
class Precision:
    """How exactly a recipe is computed; nothing else decides it.

    `parameters` is the dtype of weights, gradients, optimiser state and residual stream. `matmul` "highest" forbids
    TF32 and its like. `attention` "exact" is written out and works in every dtype, "fast" is the accelerator's own
    kernel. `rounding` "pinned" keeps each bfloat16 rounding of Newton-Schulz where PyTorch has it; "free" lets XLA drop
    some.
    """

    compute: DType
    validation: DType
    parameters: DType
    newton_schulz: DType
    newton_schulz_norm: DType
    matmul: Literal["default", "highest"]
    attention: Literal["exact", "fast"]
    rounding: Literal["free", "pinned"] = "free"


def precision(recipe: Recipe, dtype: DType | None, attention: Literal["exact", "fast"]) -> Precision:
    """The recipe's own precision, or `dtype` for the model, Newton-Schulz and its norm alike.

    Fast attention kernels exist for bfloat16 alone: any other compute dtype gets "exact".
    """
    compute = dtype or recipe.model.compute_dtype
    return Precision(
        compute=compute,
        validation=dtype or recipe.model.validation_dtype,
        parameters="float64" if compute == "float64" else "float32",
        newton_schulz=dtype or recipe.optimizer.newton_schulz_dtype,
        newton_schulz_norm=dtype or recipe.optimizer.newton_schulz_norm_dtype,
        matmul="default" if compute == "bfloat16" else "highest",
        attention=attention if compute == "bfloat16" else "exact",
    )


_MODDED_NANOGPT = "github.com/KellerJordan/modded-nanogpt"

_MUON_2024_10_12 = Recipe(
    name="muon-2024-10-12",
    model=ModelConfig(),
    optimizer=OptimizerConfig(),
    schedule=ScheduleConfig(),
    data=DataConfig(),
    expected=Expected(
        val_loss=3.275,
        step0_val_loss=10.93,
        parameters=123_568_128,
        source=f"{_MODDED_NANOGPT} at 56dde040, README and train_gpt2.py; no log was published, 3.275 is 'about'",
    ),
)

_MUON_2024_10_10 = dataclasses.replace(
    _MUON_2024_10_12,
    name="muon-2024-10-10",
    model=ModelConfig(vocab=50257, activation="gelu"),
    schedule=ScheduleConfig(steps=6200),
    expected=Expected(
        val_loss=3.2785,
        step0_val_loss=10.93,
        parameters=123_532_032,
        source=f"{_MODDED_NANOGPT}, record of 2024-10-10; jaxgpt/published/muon-2024-10-10.csv",
    ),
)

_MODERN_2024_10_14 = dataclasses.replace(
    _MUON_2024_10_12,
    name="modern-2024-10-14",
    model=ModelConfig(
        heads=6,
        norm_eps=2.0**-23,  # F.rms_norm(eps=None) on the float32 residual stream
        qkv="separate",
        qk_norm="after_rotary",
        qk_norm_eps=2.0**-7,  # F.rms_norm(eps=None) on bfloat16 inputs, as torch 2.4 took it
        rotary_dtype="bfloat16",
        attention_output_scale="one",
        zero_init_projections=True,
        validation_dtype="bfloat16",
    ),
    optimizer=OptimizerConfig(newton_schulz_norm_dtype="bfloat16"),
    schedule=ScheduleConfig(steps=5100, warmdown=1450),
    expected=Expected(
        val_loss=3.2741,
        step0_val_loss=16.0,
        parameters=123_568_128,
        source=f"{_MODDED_NANOGPT}, record of 2024-10-14; jaxgpt/published/modern-2024-10-14.csv",
    ),
)

_TINY = Recipe(
    name="tiny",
    model=ModelConfig(
        vocab=256,
        token_ids=256,
        layers=4,
        heads=4,
        width=128,
        context=64,
        compute_dtype="float32",
    ),
    optimizer=OptimizerConfig(lr=0.0012, newton_schulz_dtype="float32", embedding_lr=0.005),
    schedule=ScheduleConfig(steps=240, warmdown=72),
    data=DataConfig(tokens="bytes", sequences=16, micro_batch=16, val_tokens=65_536, val_every=40),
    expected=Expected(
        val_loss=None,
        step0_val_loss=5.47,
        parameters=256 * 128 + 4 * 12 * 128**2,
        source="muon-2024-10-12 made small enough for a laptop's CPU; float32 throughout",
    ),
)

RECIPES: dict[str, Recipe] = {r.name: r for r in (_MUON_2024_10_12, _MUON_2024_10_10, _MODERN_2024_10_14, _TINY)}


def named(name: str) -> Recipe:
    """The recipe of that name; `BadInput` gives the nearest name where there is none."""
    if name not in RECIPES:
        near = get_close_matches(name, RECIPES, n=1, cutoff=0)
        raise BadInput(f"--recipe {name}: no such recipe; did you mean {near[0]}? There are: {', '.join(RECIPES)}")
    return RECIPES[name]


def reduced(name: str, **model) -> Recipe:
    """The recipe of that name, small enough to check in seconds on a CPU, keeping what matters.

    That is the ratio of head widths (K divisible by 4), the q, k, v partition, padding rows where the recipe has them,
    and its schedule's shape. `model` sets other fields of its model.
    """
    recipe = named(name)
    heads = {12: 4, 6: 2}.get(recipe.model.heads, recipe.model.heads)
    small = {
        "vocab": 256 if recipe.model.vocab > recipe.model.token_ids else 251,
        "token_ids": 251,
        "layers": 2,
        "heads": heads,
        "width": 64,
        "context": 32,
    }
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, **(small | model)),
        schedule=recipe.schedule.scaled(100),
        data=dataclasses.replace(recipe.data, sequences=16, micro_batch=4, val_tokens=16 * 32, val_every=50),
    )
