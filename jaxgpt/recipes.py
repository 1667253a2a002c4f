"""What is trained: one frozen dataclass per published run. This file imports neither JAX nor PyTorch.

A recipe says WHAT is trained and holds the published result; a command line says where and how long, and
`jaxgpt.precision.Precision` how exactly. Sources: the scripts and logs of github.com/KellerJordan/modded-nanogpt at the
day in a recipe's name, and github.com/karpathy/llm.c.

`python -m jaxgpt.recipes` prints them all, `python -m jaxgpt.recipes NAME` one in full.
"""

import dataclasses
from difflib import get_close_matches

from jaxgpt.config import (
    DataConfig,
    DType,
    Expected,
    ModelConfig,
    OptimizerConfig,
    Recipe,
    ScheduleConfig,
)
from jaxgpt.errors import BadInput
from jaxgpt.precision import Precision, precision

__all__ = [
    "RECIPES",
    "DType",
    "DataConfig",
    "Expected",
    "ModelConfig",
    "OptimizerConfig",
    "Precision",
    "Recipe",
    "ScheduleConfig",
    "named",
    "precision",
    "reduced",
]

_LOG = "github.com/KellerJordan/modded-nanogpt, records/track_1_short/{}: log; jaxgpt/published/{}.csv"


def _expected(name: str, record: str, val_loss: float, step0: float, parameters: int, step_ms: float) -> Expected:
    """A result that a log of modded-nanogpt holds."""
    return Expected(val_loss, step0, parameters, _LOG.format(record, name), step_ms)


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
        source="github.com/KellerJordan/modded-nanogpt at 56dde040: train_gpt2.py and README ('about' 3.275, under 45 "
        "minutes); no log was published",
    ),
)

_MUON_2024_10_10 = dataclasses.replace(
    _MUON_2024_10_12,
    name="muon-2024-10-10",
    model=ModelConfig(vocab=50257, activation="gelu"),
    schedule=ScheduleConfig(steps=6200),
    expected=_expected("muon-2024-10-10", "2024-10-10_Muon", 3.2785, 10.93, 123_532_032, 216.33),
)

_SOAP = OptimizerConfig(kind="soap", lr=0.0018, hidden_betas=(0.95, 0.95), hidden_eps=1e-8)

_SOAP_2024_10_09 = dataclasses.replace(
    _MUON_2024_10_10,
    name="soap-2024-10-09",
    model=dataclasses.replace(_MUON_2024_10_10.model, qkv="separate"),
    optimizer=_SOAP,
    schedule=ScheduleConfig(steps=6000, warmup=250, warmdown=1800),
    expected=_expected("soap-2024-10-09", "2024-10-09_SOAP", 3.2763, 11.01, 123_532_032, 363.34),
)

# Its log holds no script. The script of that day also normalised each parameter's gradient, ran 12,288 steps and
# validated on an eighth of the tokens; the schedule is what its author recalls. No exact match is to be expected.
_ADAMW_2024_06_06 = dataclasses.replace(
    _MUON_2024_10_10,
    name="adamw-2024-06-06",
    optimizer=OptimizerConfig(
        kind="adamw",
        lr=0.0018,
        hidden_betas=(0.9, 0.95),
        hidden_weight_decay=0.1,
        embedding_lr=0.0018,
        weight_decay=0.1,
    ),
    schedule=ScheduleConfig(steps=9536, warmup=250, warmdown=2000),
    data=DataConfig(val_every=128),
    expected=Expected(
        val_loss=3.2760,
        step0_val_loss=10.97,
        parameters=123_532_032,
        source=_LOG.format("2024-06-06_AdamW", "adamw-2024-06-06") + " (uncertain: no script was logged)",
    ),
)

# llm.c trains bfloat16 weights, rounded stochastically from float32 masters, and permutes its shards; here the weights
# are float32 and the shards come in order.
_LLMC_2024_10_13 = Recipe(
    name="llmc-2024-10-13",
    model=ModelConfig(
        activation="gelu_tanh",
        norm="layer",
        norm_eps=1e-5,
        biases=True,
        positions="learned",
        attention_output_scale="one",
        pad_rows="masked",
        initial="gpt2",
        validation_dtype="bfloat16",
    ),
    optimizer=OptimizerConfig(
        kind="adamw",
        lr=6e-4,
        hidden_betas=(0.9, 0.95),
        hidden_weight_decay=0.1,
        embedding_lr=6e-4,
        vector_lr=6e-4,
        weight_decay=0.1,
        decays_vectors=False,
        clip_norm=1.0,
    ),
    schedule=ScheduleConfig(steps=19560, warmup=700, warmdown=18860, fall="cosine"),
    data=DataConfig(val_every=250),
    expected=_expected("llmc-2024-10-13", "2024-10-13_llmc", 3.2722, 11.01, 124_475_904, 140.0),
)

_MODERN_2024_10_14 = dataclasses.replace(
    _MUON_2024_10_12,
    name="modern-2024-10-14",
    model=ModelConfig(
        heads=6,
        norm_eps=2.0**-23,  # F.rms_norm(eps=None) on the float32 residual stream
        qkv="separate",
        qk_norm="after_rotary",
        qk_norm_eps=2.0**-7,  # F.rms_norm(eps=None) on bfloat16 inputs, as torch 2.4 and 2.5 took it
        rotary_dtype="bfloat16",
        attention_output_scale="one",
        initial="uniform_zero_projections",
        validation_dtype="bfloat16",
    ),
    optimizer=OptimizerConfig(newton_schulz_norm_dtype="bfloat16"),
    schedule=ScheduleConfig(steps=5100, warmdown=1450),
    expected=_expected("modern-2024-10-14", "2024-10-14_ModernArch", 3.2741, 16.0, 123_568_128, 178.89),
)

_DISTMUON_2024_10_17 = dataclasses.replace(
    _MODERN_2024_10_14,
    name="distmuon-2024-10-17",
    model=dataclasses.replace(_MODERN_2024_10_14.model, qk_norm="before_rotary"),
    optimizer=dataclasses.replace(_MODERN_2024_10_14.optimizer, distributed=True),
    expected=_expected("distmuon-2024-10-17", "2024-10-17_DistributedMuon", 3.2747, 16.0, 123_568_128, 153.84),
)

# The run of the day before on torch 2.5.
_PYTORCH25_2024_10_18 = dataclasses.replace(
    _DISTMUON_2024_10_17,
    name="pytorch25-2024-10-18",
    expected=_expected("pytorch25-2024-10-18", "2024-10-18_PyTorch25", 3.2755, 16.0, 123_568_128, 141.82),
)


def _compared(name: str, optimizer: OptimizerConfig, warmup: int, val_loss: float, step_ms: float) -> Recipe:
    """A run of the optimiser comparison of 2024-10-29, on the model of 2024-10-18."""
    return dataclasses.replace(
        _PYTORCH25_2024_10_18,
        name=name,
        optimizer=optimizer,
        schedule=ScheduleConfig(steps=5100, warmup=warmup, warmdown=1450),
        expected=_expected(name, "2024-10-29_Optimizers", val_loss, 16.0, 123_568_128, step_ms),
    )


_SHAMPOO = OptimizerConfig(kind="shampoo", lr=0.0018, hidden_betas=(0.95, 0.95), hidden_eps=1e-12)

_OPT_2024_10_29 = [
    _compared(
        "opt-adam-2024-10-29",
        OptimizerConfig(kind="adamw", lr=0.0018, hidden_betas=(0.9, 0.95)),
        warmup=250,
        val_loss=3.3406,
        step_ms=138.61,
    ),
    _compared("opt-shampoo-2024-10-29", _SHAMPOO, warmup=250, val_loss=3.2858, step_ms=179.31),
    _compared(
        "opt-soap-2024-10-29",
        # The call leaves weight decay at the package's default, 0.01; its README says 0. The code is what ran.
        dataclasses.replace(_SOAP, hidden_weight_decay=0.01),
        warmup=250,
        val_loss=3.2752,
        step_ms=301.02,
    ),
    _compared(
        "opt-muon-2024-10-29",
        dataclasses.replace(_PYTORCH25_2024_10_18.optimizer, lr=0.02, muon_scale="sqrt_ratio"),
        warmup=0,
        val_loss=3.2760,
        step_ms=142.01,
    ),
]

_SIMPLE_2026_06_11 = Recipe(
    name="simple-2026-06-11",
    model=ModelConfig(
        heads=6,
        norm="rms_gain",
        norm_eps=2.0**-23,
        embedding_norm=True,
        biases=True,
        qkv="separate",
        qk_norm="before_rotary",
        positions="half_rotary",
        attention_scale=0.12,
        attention_output_scale="one",
        head="untied",
        logit_cap=15.0,
        loss_reduction="sum",
        initial="normal_zero_projections",
        embedding_dtype="bfloat16",
        validation_dtype="bfloat16",
    ),
    optimizer=OptimizerConfig(
        lr=0.025,
        hidden_weight_decay=0.05,
        momentum_form="average",
        newton_schulz_steps=12,
        newton_schulz_coefficients=(2.0, -1.5, 0.5),
        newton_schulz_form="polynomial_first",
        newton_schulz_norm_dtype="bfloat16",
        muon_scale="sqrt_ratio",
        distributed=True,
        embedding_lr=0.7,
        head_lr=0.004,
        vector_lr=0.015,
        betas=(0.8, 0.95),
        eps=1e-10,
        weight_decay=0.001,
    ),
    schedule=ScheduleConfig(steps=3250, warmdown=2275),
    data=DataConfig(val_every_at_end=25),
    expected=Expected(
        val_loss=3.2787,
        step0_val_loss=10.826,
        parameters=162_354_816,
        source="github.com/KellerJordan/modded-nanogpt, records/track_3_optimization/results/"
        "20260610_tuned_baseline_3250 (mean of ten seeds, sd 0.00134); jaxgpt/published/simple-2026-06-11-seeds.csv",
        step_ms=155.25,
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


def _tiny(optimizer: OptimizerConfig) -> Recipe:
    """`tiny` with another optimiser of the hidden matrices; the function computed is the same, the same weights too."""
    return dataclasses.replace(
        _TINY,
        name=f"tiny-{optimizer.kind}",
        model=dataclasses.replace(_TINY.model, qkv="separate"),
        optimizer=dataclasses.replace(optimizer, embedding_lr=_TINY.optimizer.embedding_lr),
        expected=dataclasses.replace(_TINY.expected, source=f"tiny with {optimizer.kind} on the hidden matrices"),
    )


_TINY_OTHERS = [
    _tiny(OptimizerConfig(kind="adamw", lr=0.005, hidden_betas=(0.9, 0.95))),
    _tiny(dataclasses.replace(_SOAP, lr=0.005)),
    _tiny(dataclasses.replace(_SHAMPOO, lr=0.005)),
]

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _MUON_2024_10_12,
        _LLMC_2024_10_13,
        _ADAMW_2024_06_06,
        _SOAP_2024_10_09,
        _MUON_2024_10_10,
        _MODERN_2024_10_14,
        _DISTMUON_2024_10_17,
        _PYTORCH25_2024_10_18,
        *_OPT_2024_10_29,
        _SIMPLE_2026_06_11,
        _TINY,
        *_TINY_OTHERS,
    )
}


def named(name: str) -> Recipe:
    """The recipe of that name; `BadInput` gives the nearest name where there is none."""
    if name not in RECIPES:
        near = get_close_matches(name, RECIPES, n=1, cutoff=0)
        raise BadInput(f"--recipe {name}: no such recipe; did you mean {near[0]}? There are: {', '.join(RECIPES)}")
    return RECIPES[name]


def reduced(name: str, **model) -> Recipe:
    """The recipe of that name, small enough to check in seconds on a CPU, keeping what matters.

    That is the ratio of head widths (K divisible by 4), the q, k, v partition, padding rows where the recipe has them,
    and its schedule's shape. A step's 512 tokens are no multiple of the vocabulary: under a head of zeros, gradients of
    a token that is seen just as often as the others would be nothing but rounding. `model` sets other fields.
    """
    recipe = named(name)
    heads = {12: 4, 6: 2}.get(recipe.model.heads, recipe.model.heads)
    small = {
        "vocab": 254 if recipe.model.vocab > recipe.model.token_ids else 251,
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


if __name__ == "__main__":
    from jaxgpt.recipe_table import main

    main()
