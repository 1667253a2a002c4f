"""The command line of both trainers, made by tyro from the recipes' own dataclasses. Imports no JAX and no PyTorch."""

import dataclasses
import glob
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxgpt.commands import parse
from jaxgpt.dashboards import check_dashboards
from jaxgpt.embedded import sample
from jaxgpt.errors import BadInput
from jaxgpt.files import check_name
from jaxgpt.recipes import DataConfig, DType, ModelConfig, OptimizerConfig, Recipe, ScheduleConfig, named
from jaxgpt.recorded import from_json
from jaxgpt.resume import check_trainer, recorded_config


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
    resume: bool = False
    """Go on with the run in --run from its latest whole checkpoint. Flags left out are the run's own."""
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
    kernels: Literal["auto", "plain", "fused"] = "auto"
    """JAX's: fused takes kernels of our own where they can run; auto does so on GPUs unless
    rounding is pinned, plain leaves all to XLA."""
    val_every: int | None = None
    """Updates between validations."""
    val_tokens: int | None = None
    """Tokens of a validation, from the start of the validation shards."""
    micro_batch: int | None = None
    """Sequences a device takes at once; the rest of its share of a step is accumulated."""
    save_every: int = 125
    """Updates between checkpoints, each of 4 bytes a number: weights and moments, 1.1 GB at 124M with Muon. The end of
    the run and a signal save one too."""
    keep: int = 3
    """How many of the last checkpoints stay, beside the one of the lowest validation loss."""
    tensorboard: bool = False
    """Write the metrics as an event file in RUN/tensorboard too. Needs the package: pip install tensorboard."""
    wandb: str | None = None
    """Send the metrics to this project of Weights & Biases too. Needs the package: pip install wandb."""
    profile: int | None = None
    """Trace so many steps, from the fourth on, into RUN/trace: for Perfetto (ui.perfetto.dev) or XProf."""
    dry_run: bool = False
    """Say what the run would compute, need and take, and end: nothing is trained or written."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """When a loss or gradient is NaN or infinite: stop with exit 3, or skip the update and count."""
    coordinator: str | None = None
    """Of several processes (JAX; torchrun has its own way): HOST:PORT of the first one, where all of them meet."""
    processes: str | None = None
    """How many there are, this one included, sharing --mesh evenly; auto: ask SLURM, Open MPI or a Cloud TPU pod."""
    process: int | None = None
    """Which of them this one is, from 0."""


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

    With `--resume`, what the command line leaves out is what the run recorded.

    Raises:
      BadInput: an unknown recipe, flag or field (with the nearest name), or a value that isn't of its type.
    """
    before, was = _run_before(argv, prog)
    base = named(last_value(argv, "--recipe") or (before.name if before else default_recipe))
    whole = before if before and before.name == base.name else base
    fields: dict[str, Any] = {"model": whole.model, "optimizer": whole.optimizer}
    fields |= {"schedule": whole.schedule, "data_fields": whole.data}
    read = parse(_FlagsAndFields, argv, prog, _FlagsAndFields(**vars(was), **fields))
    flags = Flags(**{f.name: getattr(read, f.name) for f in dataclasses.fields(Flags)})
    schedule = read.schedule
    if flags.steps is not None and (whole is base or flags.steps != was.steps):
        if schedule != whole.schedule:
            raise BadInput("--steps scales the recipe's schedule and --schedule.* sets it: give one of the two")
        schedule = base.schedule.scaled(flags.steps)
    data = read.data_fields
    for name in ("val_every", "val_tokens", "micro_batch"):
        if getattr(flags, name) is not None:
            data = dataclasses.replace(data, **{name: getattr(flags, name)})
    if flags.stop_at is not None and flags.stop_at < 1:
        raise BadInput(f"--stop-at {flags.stop_at}: give a whole number of at least 1")
    for name in ("save_every", "keep"):
        if getattr(flags, name) < 1:
            raise BadInput(f"--{name.replace('_', '-')} {getattr(flags, name)}: give a whole number of at least 1")
    if flags.resume and flags.run is None:
        raise BadInput("--resume goes on with a run: name its folder with --run")
    check_seed(flags.seed)
    _check_where(flags)
    _check_processes(flags)
    recipe = dataclasses.replace(base, model=read.model, optimizer=read.optimizer, schedule=schedule, data=data)
    return recipe, flags, overrides(base, recipe)


def check_seed(seed: int) -> None:
    """`BadInput` for a seed that one of the frameworks would refuse, or (JAX, from 2**32 on) take for another."""
    if not 0 <= seed < 2**32:
        raise BadInput(f"--seed {seed}: give a whole number from 0 up to, not including, 2**32")


_MOST_DEVICES = 1024
"""More than there are sequences in a step of any published run; 8192 virtual CPU devices end the process."""


def _check_where(flags: Flags) -> None:
    """`BadInput` for devices that no machine has, a folder that can't be, and dashboards that aren't installed."""
    if flags.mesh is not None and flags.mesh > _MOST_DEVICES:
        raise BadInput(f"--mesh {flags.mesh}: give at most {_MOST_DEVICES}")
    if flags.run is not None:
        check_name(flags.run, "--run")
    check_dashboards(flags.tensorboard, flags.wandb)


def _check_processes(flags: Flags) -> None:
    """`BadInput` for flags of several processes that don't go together."""
    given = [value for value in (flags.coordinator, flags.processes, flags.process) if value is not None]
    if given in ([], ["auto"]):
        return
    if len(given) < 3 or flags.processes == "auto":
        raise BadInput(
            "--coordinator, --processes and --process go together: give all three, or --processes auto alone under "
            "SLURM, Open MPI or on a Cloud TPU pod, or none for one process"
        )
    if not re.fullmatch(r"\S+:\d{1,5}", str(flags.coordinator)):
        raise BadInput(f"--coordinator {flags.coordinator}: give HOST:PORT of the first process, such as node0:12345")
    said = str(flags.processes)
    count = int(said) if said.isascii() and said.isdecimal() and len(said) < 6 else 0
    if not count:
        raise BadInput(f"--processes {flags.processes}: give how many there are, this one included, or auto")
    if flags.process not in range(count):
        raise BadInput(f"--process {flags.process} of --processes {count}: give a whole number from 0 to {count - 1}")


def overrides(base: Recipe, recipe: Recipe) -> dict[str, object]:
    """What `recipe` changes in `base`, by dotted field name."""
    changed = {}
    for part in ("model", "optimizer", "schedule", "data"):
        for f in dataclasses.fields(getattr(base, part)):
            value = getattr(getattr(recipe, part), f.name)
            if value != getattr(getattr(base, part), f.name):
                changed[f"{part}.{f.name}"] = value
    return changed


def last_value(argv: list[str], flag: str) -> str | None:
    """The last value of a flag such as `--recipe`, read first where it gives other flags their defaults."""
    value = None
    for i, word in enumerate(argv):
        if word.startswith(f"{flag}="):
            value = word.removeprefix(f"{flag}=")
        elif word == flag and i + 1 < len(argv):
            value = argv[i + 1]
    return value


def _run_before(argv: list[str], prog: str) -> tuple[Recipe | None, Flags]:
    """The recipe, with overrides, and the flags of the run that `--resume` goes on with; else None and the defaults."""
    folder = last_value(argv, "--run")
    config = recorded_config(Path(folder)) if "--resume" in argv and folder is not None else None
    if folder is None or config is None:
        return None, Flags()
    check_trainer(config, prog, Path(folder))
    where, flags = f"{folder}/config.json", config.get("flags")
    if not isinstance(flags, dict):
        raise BadInput(f"--resume: {where} doesn't say which flags the run had: put back the file that the run wrote")
    recipe = from_json(Recipe, config.get("recipe"), f"{where}: recipe")
    was = from_json(Flags, dataclasses.asdict(Flags()) | flags, f"{where}: flags")
    return recipe, dataclasses.replace(was, coordinator=None, processes=None, process=None)


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
