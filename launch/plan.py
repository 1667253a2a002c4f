"""What a recipe would do on machines one doesn't have: `python -m launch.plan --topology h100:8`.

    python -m launch.plan --topology v5e:8 --recipe muon-2024-10-12 --micro-batch 8 --out plan.json

Compiles the step that trains for that topology and says whether it fits, what the devices say to each other, how long a
step would take by measured rates and stated link speeds, and the largest micro-batch that fits. Exits with 1 where the
micro-batch that was asked for doesn't. GPUs are planned on a machine with one of their kind, TPUs on any with libtpu.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxgpt.commands import parse
from jaxgpt.errors import BadInput, exit_codes
from jaxgpt.flags import last_value
from jaxgpt.flops import peak_flops, token_flops
from jaxgpt.rates import why_unknown
from jaxgpt.recipes import DataConfig, DType, ModelConfig, OptimizerConfig, Recipe, ScheduleConfig, named, precision
from launch.chips import GIB, rates_of
from launch.collectives import gradient_overlap
from launch.estimate import Estimate, estimate, expected_collectives
from launch.plan_text import text
from launch.program import Compiled, compiled, divisors, largest
from launch.topology import Topology, described, topology

_PROG = "python -m launch.plan"
_DEFAULT = "muon-2024-10-12"


@dataclass(frozen=True)
class Flags:
    """Whether a recipe fits a topology, and how fast it would be there."""

    topology: str = ""
    """CHIP:N, such as h100:8, h100:64, h200:8, a100:8, v4:4, v5e:8, v5p:4, v6e:8; cpu:8 is virtual devices."""
    recipe: str = _DEFAULT
    micro_batch: int | None = None
    """Sequences a device takes at once. Absent: the recipe's, or the most below it that divide a device's share."""
    dtype: DType | None = None
    """Dtype of the model, Newton-Schulz and its norm. Absent: the recipe decides."""
    memory: float | None = None
    """GiB that a device has. Absent: what its maker or compiler says, or the GPU that is here."""
    compile: bool = True
    """Otherwise only the time is predicted, on any machine, with the exchanges that the step can't do without."""
    largest: bool = True
    """Also look for the largest micro-batch that fits, which compiles a few times more."""
    out: Path | None = None
    """A JSON file to write, which must not exist."""
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    data: DataConfig = field(default_factory=DataConfig)


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `Flags`."""
    argv = sys.argv[1:] if argv is None else argv
    base = named(last_value(argv, "--recipe") or _DEFAULT)
    parts: dict[str, Any] = {
        "model": base.model,
        "optimizer": base.optimizer,
        "schedule": base.schedule,
        "data": base.data,
    }
    flags = parse(Flags, argv, _PROG, Flags(recipe=base.name, **parts))
    recipe = dataclasses.replace(base, **{name: getattr(flags, name) for name in parts})
    if not flags.topology:
        raise BadInput("--topology is missing: give CHIP:N, such as h100:8 or v5e:8")
    if flags.out is not None and flags.out.exists():
        raise BadInput(f"--out {flags.out} exists and is left as it is: give another name")
    if flags.memory is not None and not 0 < flags.memory < 2**20:
        raise BadInput(f"--memory {flags.memory}: give GiB above 0")
    said = plan(recipe, topology(flags.topology), flags)
    print(text(said))
    if flags.out is not None:
        flags.out.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    if not said["fits"]:
        sys.exit(1)


def plan(recipe: Recipe, wanted: Topology, flags: Flags) -> dict:
    """All that is said of a recipe on a topology, as the JSON file has it.

    Raises:
      BadInput: this machine can't compile for it, or sequences don't divide.
    """
    share, rest = divmod(recipe.data.sequences, wanted.devices)
    if rest:
        raise BadInput(
            f"--topology {wanted.name}: a step's {recipe.data.sequences} sequences don't divide over {wanted.devices} "
            "devices; give other --data.sequences"
        )
    choices = divisors(share)
    asked = flags.micro_batch or max(n for n in choices if n <= recipe.data.micro_batch)
    if asked not in choices:
        raise BadInput(f"--micro-batch {asked}: a device's {share} sequences a step don't divide by it; give a divisor")
    if not flags.compile:
        guessed = Compiled(asked, True, None, None, collectives=expected_collectives(recipe, wanted.devices))
        return summary(recipe, wanted, guessed, [], None) | {"searched": False}
    devices, here = described(wanted)
    limit = int(flags.memory * GIB) if flags.memory else here or wanted.chip.memory
    exactly = precision(
        recipe,
        flags.dtype,
        attention="exact" if wanted.chip.platform == "cpu" else "fast",
        kernels="fused" if wanted.chip.platform == "cuda" else "plain",
    )
    seen: dict[int, Compiled] = {}

    def fits(micro_batch: int) -> bool:
        if micro_batch not in seen:
            print(f"compiling for {wanted.name}, micro-batch {micro_batch} ...", file=sys.stderr, flush=True)
            seen[micro_batch] = compiled(recipe, exactly, devices, micro_batch, limit)
        return seen[micro_batch].fits

    fits(asked)
    most = largest(choices, fits, asked) if flags.largest else None
    return summary(recipe, wanted, seen[asked], list(seen.values()), most) | {
        "searched": flags.largest,
        "precision": dataclasses.asdict(exactly),
    }


def summary(recipe: Recipe, wanted: Topology, of: Compiled, tried: list[Compiled], most: int | None) -> dict:
    """The plan of one micro-batch, with what else was tried."""
    chip, rates = wanted.chip, rates_of(wanted.chip)
    unknown = why_unknown(recipe) or (None if rates else f"no rates were measured on {chip.kind}")
    time: dict = {"unknown": unknown or "it doesn't fit"}
    if rates and not unknown and of.fits:
        predicted = estimate(recipe, wanted.devices, chip, rates, of.collectives)
        time = times(recipe, wanted.devices, chip.kind, predicted) | {"rates": rates.source, "links": chip.source}
    return {
        "topology": wanted.name,
        "chip": chip.kind,
        "devices": wanted.devices,
        "recipe": dataclasses.asdict(recipe),
        "micro_batch": of.micro_batch,
        "rounds": recipe.data.sequences // wanted.devices // of.micro_batch,
        "fits": of.fits,
        "needs": of.needs,
        "limit": of.limit,
        "memory": of.memory,
        "refusal": of.refusal,
        "collectives": [dataclasses.asdict(each) for each in of.collectives],
        "gradient_overlap": gradient_overlap(of.collectives) if of.memory else "",
        "time": time,
        "largest_micro_batch": most,
        "tried": [
            {"micro_batch": c.micro_batch, "fits": c.fits, "needs": c.needs, "seconds": c.seconds} for c in tried
        ],
    }


def times(recipe: Recipe, devices: int, kind: str, predicted: Estimate) -> dict:
    """A prediction as what a person asks: seconds of a step, tokens a second, minutes of the recipe's tokens."""
    steps, peak = recipe.schedule.steps, peak_flops([kind] * devices)
    rate = recipe.step_tokens / predicted.step
    return {
        "work_ms": {name: seconds * 1e3 for name, seconds in predicted.work.items()},
        "exposed_ms": predicted.exposed * 1e3,
        "hidden_ms": predicted.hidden * 1e3,
        "step_ms": predicted.step * 1e3,
        "least_ms": predicted.least * 1e3,
        "most_ms": predicted.most * 1e3,
        "tokens_per_s": rate,
        "mfu": rate * token_flops(recipe.model) / peak if peak else None,
        "tokens": recipe.tokens,
        "minutes": steps * predicted.step / 60,
        "published_step_ms": recipe.expected.step_ms,
    }


if __name__ == "__main__":
    main()
