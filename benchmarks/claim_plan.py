"""The runs that the claims in `results/` rest on, declared once. Imports neither JAX nor PyTorch.

But for one of llm.c's baseline, every run is the recipe `muon-2024-10-12` with overrides, so that two runs of one size
differ in nothing but what their names say: the optimiser of the hidden matrices, its schedule, the seed of the initial
weights, or the framework. The settings of AdamW, SOAP and Shampoo are those of the published comparison of 2024-10-29;
the embedding has the recipe's own AdamW in all of them.
"""

import dataclasses
import functools
from dataclasses import dataclass

from jaxgpt.flags import recipe_and_flags
from jaxgpt.recipes import RECIPES, Recipe

RECIPE = "muon-2024-10-12"
BASELINE = "llmc-2024-10-13"
SEEDS = range(8)
TRAINERS = {"jax": "jaxgpt", "torch": "torch_ref"}
LRS = {"A": 0.0009, "B": 0.0018, "C": 0.00045}
"""AdamW's learning rates: the published 0.0018, half of it, and since that was better, half of that."""

ADAMW_STEPS = 300
MUON_STEPS = 200
"""ADAMW_STEPS / 1.5: the claim is that Muon gets as far in so many."""

LLMC = f"124m-llmc-{MUON_STEPS}-jax"

SWEEP_STEPS = 100
_PUBLISHED = {"adamw": "opt-adam-2024-10-29", "soap": "opt-soap-2024-10-29", "shampoo": "opt-shampoo-2024-10-29"}

LARGE = ("--val-tokens", "524288", "--val-every", "50", "--save-every", "100", "--keep", "1")
"""At 124M. Validation runs in float32, and 0.5M tokens take about as long as three steps."""

_SMALL_STEPS = 240
# 19.2M parameters, a third of them in the blocks: the vocabulary's 50,304 rows ask for a narrow model, and 256 is the
# narrowest that keeps the head width, 64, and four heads. 65,536 tokens a step; 15.7M tokens, so that none comes twice
# in a shard of 20M. Queries, keys and values are apart because SOAP and Shampoo want them so, and all four optimisers
# start from the same file.
_SMALL_MODEL = "--model.layers 8 --model.width 256 --model.heads 4 --model.context 512 --model.qkv separate"
_SMALL = "--data.sequences 128 --micro-batch 64 --val-tokens 524288 --val-every 60 --save-every 1000 --keep 1"
SMALL_MODEL, SMALL = tuple(_SMALL_MODEL.split()), tuple(_SMALL.split())


@dataclass(frozen=True)
class ClaimRun:
    """One run: its folder's name, the trainer, and the flags that say what is trained."""

    name: str
    trainer: str
    words: tuple[str, ...]
    """Flags, but those of data, initial weights and folder."""
    weights: str
    """Which of `weights` it starts from."""
    seconds: float
    """Roughly how long it takes on an H100; the longest begin first."""
    shares_gpu: bool = False
    """Whether a GPU has room for others beside it."""
    best_of: tuple[str, ...] = ()
    """Runs that have to be finished before; the best one's `--optimizer.lr` is this one's."""
    comes_last: bool = False
    """Whether all others begin before it."""


@functools.cache
def declared(run: ClaimRun) -> tuple[Recipe, int]:
    """The recipe, with overrides, and the seed that the run's flags say."""
    recipe, flags, _ = recipe_and_flags(list(run.words), f"python -m {run.trainer}.train", RECIPE)
    return recipe, flags.seed


def plan() -> list[ClaimRun]:
    """All runs, those first that others wait for."""
    large = ("--recipe", RECIPE, *LARGE, "--seed", "0")
    sweep = [
        ClaimRun(
            f"124m-adamw-lr{letter}-{SWEEP_STEPS}-jax",
            TRAINERS["jax"],
            (*large, *optimizer("adamw", SWEEP_STEPS), "--optimizer.lr", str(lr)),
            "124m-seed0",
            140,
        )
        for letter, lr in LRS.items()
    ]
    tuned = tuple(run.name for run in sweep)
    runs = sweep
    for framework, trainer in TRAINERS.items():
        words = (*large, *optimizer("adamw", ADAMW_STEPS))
        runs.append(ClaimRun(f"124m-adamw-{ADAMW_STEPS}-{framework}", trainer, words, "124m-seed0", 370, best_of=tuned))
    for framework, trainer in TRAINERS.items():
        words = (*large, *optimizer("muon", MUON_STEPS))
        runs.append(ClaimRun(f"124m-muon-{MUON_STEPS}-{framework}", trainer, words, "124m-seed0", 260))
    small = ("--recipe", RECIPE, *SMALL_MODEL, *SMALL)
    for kind in ("soap", "shampoo"):
        words = (*small, *optimizer(kind, _SMALL_STEPS), "--seed", "0")
        runs.append(ClaimRun(f"20m-{kind}-jax", TRAINERS["jax"], words, "20m-seed0", 60, shares_gpu=True))
    for seed in SEEDS:
        for framework, trainer in TRAINERS.items():
            for kind in ("muon", "adamw"):
                words = (*small, *optimizer(kind, _SMALL_STEPS), "--seed", str(seed))
                name = f"20m-{kind}-seed{seed}-{framework}"
                runs.append(ClaimRun(name, trainer, words, f"20m-seed{seed}", 30, shares_gpu=True))
    words = ("--recipe", BASELINE, *LARGE, "--seed", "0", "--steps", str(MUON_STEPS))
    runs.append(ClaimRun(LLMC, TRAINERS["jax"], words, "124m-llmc-seed0", 260, comes_last=True))
    return runs


def weights() -> dict[str, tuple[str, ...]]:
    """Name of initial weights -> the flags of `jaxgpt.bridge` that make them. Both frameworks read the same file."""
    small = {f"20m-seed{seed}": (*SMALL_MODEL, "--seed", str(seed)) for seed in SEEDS}
    ours = {"124m-seed0": ("--seed", "0")} | small
    made = {name: ("--recipe", RECIPE, *words) for name, words in ours.items()}
    return made | {"124m-llmc-seed0": ("--recipe", BASELINE, "--seed", "0")}


def optimizer(kind: str, steps: int) -> tuple[str, ...]:
    """The flags of a published optimiser and of its schedule's shape over `steps` updates.

    Muon is the recipe's own. AdamW's, SOAP's and Shampoo's warm-up and warm-down are 250 and 1450 of 5100 updates, as
    in `opt-adam-2024-10-29`; of the published AdamW schedules it is the one with the longest warm-up, 4.9% of a run.
    """
    if kind == "muon":
        return ("--steps", str(steps))
    published, base = RECIPES[_PUBLISHED[kind]], RECIPES[RECIPE]
    words: list[str] = []
    for field in dataclasses.fields(published.optimizer):
        value = getattr(published.optimizer, field.name)
        if value != getattr(base.optimizer, field.name) and field.name not in _OF_ITS_MODEL:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--optimizer.{field.name.replace('_', '-')}", *map(str, values)]
    schedule = published.schedule.scaled(steps)
    for name in ("steps", "warmup", "warmdown"):
        words += [f"--schedule.{name}", str(getattr(schedule, name))]
    return tuple(words)


_OF_ITS_MODEL = ("newton_schulz_norm_dtype", "distributed")
"""Muon's alone; they come with the model of 2024-10-18."""
