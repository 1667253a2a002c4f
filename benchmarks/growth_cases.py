"""What `benchmarks.growth` times, one case a process: `python -m benchmarks.growth_cases CASE TRAINER STEPS`.

CASE is the JSON of a `Case`. Prints one JSON object: milliseconds of each step, tokens a second, operations a second.
"""

import contextlib
import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from unittest import mock

from jaxgpt.errors import exit_codes
from jaxgpt.flops import newton_schulz_flops, token_flops
from jaxgpt.recipes import Recipe, named, precision
from jaxgpt.recorded import Recorded, from_json

Axis = Literal["micro-batch", "sequence", "depth", "width", "devices"]
AXES: tuple[Axis, ...] = ("micro-batch", "sequence", "depth", "width", "devices")
_UNTIMED = 3


@dataclass(frozen=True)
class Case:
    """A recipe with one thing grown."""

    recipe: str
    axis: str
    value: int
    """Of what grows: sequences, tokens of a sequence, layers, width, devices."""
    layers: int
    heads: int
    width: int
    context: int
    sequences: int
    micro_batch: int
    devices: int = 1
    dealt: bool = True
    """Whether each device orthogonalises its own of Muon's matrices, as the trainer does, or all of them."""


def cases(
    recipe: Recipe, axis: Axis, step_tokens: int | None, devices: Sequence[int] = (1,), replicated: bool = False
) -> list[Case]:
    """From the recipe's own size up (micro-batches: from one sequence up to the recipe's).

    Sequences grow eight times, 1k to 8k for GPT-2; depth and width four times, which takes 124M to 380M and to 1.5B
    parameters. A step keeps its tokens, and so does a micro-batch where sequences grow; where a model does, its
    micro-batches are smaller by as much as its layers are larger, so that what they keep for the backward pass fits.
    """
    model, at_once = recipe.model, recipe.data.micro_batch
    tokens = step_tokens or min(2 * at_once * model.context, recipe.step_tokens)

    def case(value: int, micro_batch: int, number: int = 1, dealt: bool = True, **changed: int) -> Case:
        sizes = {name: getattr(model, name) for name in ("layers", "heads", "width", "context")} | changed
        together = max(1, 2 ** int(math.log2(max(micro_batch, 1))))
        rounds = max(1, round(tokens / sizes["context"] / together / number))
        sequences = rounds * together * number
        return Case(
            recipe.name, axis, value, **sizes, sequences=sequences, micro_batch=together, devices=number, dealt=dealt
        )

    if axis == "micro-batch":
        return [case(n, n) for n in (2**i for i in range(int(math.log2(at_once)) + 1))]
    if axis == "sequence":
        lengths = [model.context * by for by in (1, 2, 4, 8)]
        return [case(length, at_once * model.context // length, context=length) for length in lengths]
    if axis == "depth":
        return [case(model.layers * by, at_once // by, layers=model.layers * by) for by in (1, 2, 4)]
    if axis == "width":
        grown = [(model.width * by // 2, model.heads * by // 2, by) for by in (2, 3, 4, 6, 8)]
        return [case(width, 2 * at_once // by, width=width, heads=heads) for width, heads, by in grown]
    forms = (True, False) if replicated else (True,)
    share = lambda n: min(at_once, max(tokens // model.context // n, 1))  # noqa: E731
    return [case(n, share(n), n, dealt) for n in devices for dealt in forms]


def key(case: dict) -> tuple:
    """What tells cases apart: their micro-batch may have been halved, and rounds with it."""
    names = ("recipe", "axis", "value", "devices", "dealt")
    return tuple(case[name] for name in names)


def sizes(case: dict) -> dict:
    """What is computed: the recipe's own size is a case along each axis, and is timed once."""
    return {f.name: case[f.name] for f in dataclasses.fields(Case) if f.name not in ("axis", "value")}


def grown(case: Case) -> Recipe:
    """The recipe of a case."""
    base = named(case.recipe)
    model = dataclasses.replace(
        base.model, layers=case.layers, heads=case.heads, width=case.width, context=case.context
    )
    data = dataclasses.replace(base.data, sequences=case.sequences, micro_batch=case.micro_batch)
    return dataclasses.replace(base, model=model, data=data)


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program."""
    text, trainer, steps = sys.argv[1:] if argv is None else argv
    case = from_json(Case, json.loads(text), "case")
    recipe = grown(case)
    exactly = precision(recipe, None, attention="fast", kernels=kernels(trainer, case.devices))
    was = Recorded(trainer, recipe, exactly, case.micro_batch, case.devices)
    from benchmarks.step_cost import program

    with contextlib.nullcontext() if case.dealt else replicated():
        made = program(was, case.devices)
    for _ in range(_UNTIMED):
        made.step()
    ms, cpu = [], time.process_time()
    for _ in range(int(steps)):
        started = time.perf_counter()
        made.step()
        ms.append((time.perf_counter() - started) * 1e3)
    cpu_ms = (time.process_time() - cpu) * 1e3 / len(ms)
    print(json.dumps(measured(case, ms, cpu_ms, made.devices[0], made.versions)))


def kernels(trainer: str, devices: int) -> Literal["plain", "fused"]:
    """Those that the trainer takes by itself on this machine; PyTorch has no choice of them."""
    if trainer != "jaxgpt":
        return "plain"
    from jaxgpt import mesh

    return mesh.kernels(mesh.make_mesh(devices), "auto")


def replicated() -> contextlib.AbstractContextManager:
    """Steps made in it let every device orthogonalise all matrices: what dealing them out is compared with."""
    from jaxgpt.optimizer import make_optimizer

    return mock.patch("jaxgpt.train.make_optimizer", lambda recipe, precision, deal: make_optimizer(recipe, precision))


def measured(case: Case, ms: list[float], cpu_ms: float, card: str, versions: dict[str, str]) -> dict:
    """What is kept of a case's times. Operations are those of products, attention and Newton-Schulz.

    `cpu_ms` is what the process kept its cores busy for, a step: on a CPU that others use too, it tells more than time.
    """
    recipe, step = grown(case), statistics.median(ms) / 1e3
    operations = recipe.step_tokens * token_flops(recipe.model) + newton_schulz_flops(recipe.model, recipe.optimizer)
    return {
        "micro_batch": case.micro_batch,
        "parameters": recipe.model.parameters,
        "step_tokens": recipe.step_tokens,
        "step_ms": [round(each, 4) for each in ms],
        "cpu_ms": round(cpu_ms, 4),
        "tokens_per_s": recipe.step_tokens / step,
        "flops_per_s": operations / step,
        "card": card,
        "versions": versions,
    }


def bend(rates: Sequence[float], share: float = 0.9) -> int | None:
    """Where a curve over growing work bends: the place of the first rate that is less than `share` of the best.

    Where the first of all isn't near the best yet, the curve rises, and it bends where it first comes that near.
    None where it does neither.

    Args:
      rates: operations a second, in the order in which work grows.
      share: of the best of all rates.
    """
    enough = share * max(rates)
    if rates[0] < enough:
        return next(i for i, rate in enumerate(rates) if rate >= enough)
    return next((i for i, rate in enumerate(rates) if rate < enough), None)


if __name__ == "__main__":
    main()
