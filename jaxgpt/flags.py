"""The command line of both trainers, made by tyro from the recipes' own dataclasses. Imports no JAX and no PyTorch."""

import dataclasses
import glob
import re
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from jaxgpt.commands import parse
from jaxgpt.embedded import sample
from jaxgpt.errors import BadInput
from jaxgpt.files import check_name
from jaxgpt.recipes import DataConfig, DType, ModelConfig, OptimizerConfig, Recipe, ScheduleConfig, named


@dataclass(frozen=True)
class Flags:
    """Where a recipe is trained and for how long."""

    recipe: str | None = None
    """What to train: a name from jaxgpt.recipes. Absent: `tiny` on the embedded sample, or muon-2024-10-12 where its
    shards lie in data/fineweb10B and an accelerator is there."""
    mesh: int | None = None
    """Devices. Without an accelerator, that many virtual CPU devices. Absent: every accelerator, or one CPU device."""
    steps: int | None = None
    """Updates; warm-up and warm-down are scaled with it."""
    stop_at: int | None = None
    """Stop after this many updates, on the unchanged schedule."""
    run: str | None = None
    """The run's folder, which must not exist. Absent: runs/RECIPE-DATE-TIME."""
    data: str | None = None
    """Glob of training shards."""
    val_data: str | None = None
    """Glob of validation shards; the start of the first one is evaluated."""
    init_from: str | None = None
    """A safetensors file of weights to start from."""
    seed: int = 0
    """Seed of the initial weights. Data order has no randomness."""
    dtype: DType | None = None
    """Dtype of the model, Newton-Schulz and its norm. Absent: the recipe decides."""
    rounding: Literal["free", "pinned"] = "free"
    """pinned, the parity mode: JAX leaves out no rounding to bfloat16 that PyTorch makes. free: XLA may."""
    val_every: int | None = None
    """Updates between validations."""
    val_tokens: int | None = None
    """Tokens of a validation, from the start of the validation shards."""
    micro_batch: int | None = None
    """Sequences a device takes at once; the rest of its share of a step is accumulated."""


@dataclass(frozen=True)
class _FlagsAndFields(Flags):
    """`Flags`, and every field of the recipe."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    data_fields: Annotated[DataConfig, tyro.conf.arg(name="data")] = dataclasses.field(default_factory=DataConfig)


def recipe_and_flags(argv: list[str], prog: str, default_recipe: str) -> tuple[Recipe, Flags, dict[str, object]]:
    """The recipe with the command line's overrides applied, the flags, and what was overridden, by dotted name.

    Args:
      argv: arguments after the program's name.
      prog: the program's name in help and errors.
      default_recipe: the recipe where `--recipe` is absent.

    Raises:
      BadInput: an unknown recipe, flag or field (with the nearest name), or a value that isn't of its type.
    """
    base = named(_recipe_name(argv) or default_recipe)
    start = _FlagsAndFields(model=base.model, optimizer=base.optimizer, schedule=base.schedule, data_fields=base.data)
    read = parse(_FlagsAndFields, argv, prog, start)
    flags = Flags(**{f.name: getattr(read, f.name) for f in dataclasses.fields(Flags)})
    schedule = read.schedule
    if flags.steps is not None:
        if schedule != base.schedule:
            raise BadInput("--steps scales the recipe's schedule and --schedule.* sets it: give one of the two")
        schedule = base.schedule.scaled(flags.steps)
    data = read.data_fields
    for name in ("val_every", "val_tokens", "micro_batch"):
        if getattr(flags, name) is not None:
            data = dataclasses.replace(data, **{name: getattr(flags, name)})
    if flags.stop_at is not None and flags.stop_at < 1:
        raise BadInput(f"--stop-at {flags.stop_at}: give a whole number of at least 1")
    check_seed(flags.seed)
    _check_where(flags)
    recipe = dataclasses.replace(base, model=read.model, optimizer=read.optimizer, schedule=schedule, data=data)
    return recipe, flags, overrides(base, recipe)


def check_seed(seed: int) -> None:
    """`BadInput` for a seed that one of the frameworks would refuse, or (JAX, from 2**32 on) take for another."""
    if not 0 <= seed < 2**32:
        raise BadInput(f"--seed {seed}: give a whole number from 0 up to, not including, 2**32")


_MOST_DEVICES = 1024
"""More than there are sequences in a step of any published run; 8192 virtual CPU devices end the process."""


def _check_where(flags: Flags) -> None:
    """`BadInput` for devices that no machine has, and for a folder that can't be."""
    if flags.mesh is not None and flags.mesh > _MOST_DEVICES:
        raise BadInput(f"--mesh {flags.mesh}: give at most {_MOST_DEVICES}")
    if flags.run is not None:
        check_name(flags.run, "--run")


def overrides(base: Recipe, recipe: Recipe) -> dict[str, object]:
    """What `recipe` changes in `base`, by dotted field name."""
    changed = {}
    for part in ("model", "optimizer", "schedule", "data"):
        for f in dataclasses.fields(getattr(base, part)):
            value = getattr(getattr(recipe, part), f.name)
            if value != getattr(getattr(base, part), f.name):
                changed[f"{part}.{f.name}"] = value
    return changed


def _recipe_name(argv: list[str]) -> str | None:
    """The last value of `--recipe`, needed before the rest is read: the recipe gives every other flag its default."""
    name = None
    for i, word in enumerate(argv):
        if word.startswith("--recipe="):
            name = word.removeprefix("--recipe=")
        elif word == "--recipe" and i + 1 < len(argv):
            name = argv[i + 1]
    return name


FINEWEB = ("data/fineweb10B/fineweb_train_*.bin", "data/fineweb10B/fineweb_val_*.bin")


def default_recipe(flags: Flags, accelerator: bool) -> str:
    """What is trained where `--recipe` is absent: the real recipe where data and an accelerator are, else `tiny`."""
    has_data = flags.data is not None or glob.glob(FINEWEB[0])
    return "muon-2024-10-12" if accelerator and has_data else "tiny"


def shard_patterns(recipe: Recipe, flags: Flags) -> tuple[str, str]:
    """Globs of the training and validation shards: the flags', else the recipe's own data.

    Raises:
      BadInput: a recipe with GPT-2's vocabulary and no shards, or `--data` without `--val-data` where the name of the
        one doesn't give the other.
    """
    if flags.data is None and flags.val_data is not None:
        raise BadInput(f"--val-data {flags.val_data} is given without --data: give the training shards too")
    if flags.data is not None:
        val = flags.val_data or re.sub(r"_train_[^/]*$", "_val_*.bin", flags.data)
        if val == flags.data:
            raise BadInput(f"--data {flags.data} is given without --val-data: give the validation shards too")
        return flags.data, val
    if recipe.data.tokens == "bytes":
        return sample()
    if not glob.glob(FINEWEB[0]):
        raise BadInput(
            f"--recipe {recipe.name} needs GPT-2 tokens and {FINEWEB[0]} has none: run python -m jaxgpt.corpus fineweb "
            "--shards 35, or python -m jaxgpt.corpus text FILES..., or give --data"
        )
    return FINEWEB


def embedded_notice(recipe: Recipe, flags: Flags) -> str:
    """The first line of a run that nobody named a recipe or data for."""
    return (
        f"No recipe or data named: training `{recipe.name}` on text of Python's standard library. For the real one: "
        f"python -m jaxgpt.corpus fineweb --shards 35, then --recipe muon-2024-10-12 --mesh {flags.mesh or 8}"
    )
