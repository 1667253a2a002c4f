"""What a run would be, said before it starts: `--dry-run` of both trainers. Imports neither JAX nor PyTorch."""

import math
from collections.abc import Sequence

from jaxgpt.errors import BadInput
from jaxgpt.flags import Flags, shard_patterns
from jaxgpt.flops import newton_schulz_flops, token_flops
from jaxgpt.rates import RATES, step_seconds, why_unknown
from jaxgpt.recipes import Precision, Recipe
from jaxgpt.shards import inspect_shards

_BYTES = {"bfloat16": 2, "float32": 4, "float64": 8}


def state_bytes(recipe: Recipe, precision: Precision) -> dict[str, int]:
    """Bytes of the `weights` and of the `moments` that a recipe's optimisers keep of them, without counters.

    AdamW keeps two numbers a weight, Muon one; SOAP and Shampoo two, and for each side of a matrix two square ones.
    """
    optimizer = recipe.optimizer
    weights = moments = 0
    for name, shape in recipe.model.shapes.items():
        numbers, size = math.prod(shape), _BYTES[precision.parameters]
        if name == "wte.weight":
            size = _BYTES[precision.embedding]
        weights += numbers * size
        hidden = name.startswith("h.") and len(shape) == 2
        kept = numbers if hidden and optimizer.kind == "muon" else 2 * numbers
        if hidden and optimizer.kind in ("soap", "shampoo"):
            kept += 2 * (shape[0] ** 2 + shape[1] ** 2)
        moments += kept * size
    return {"weights": weights, "moments": moments}


def report(
    recipe: Recipe,
    flags: Flags,
    precision: Precision,
    micro_batch: int,
    devices: Sequence[str],
    memory: dict[str, int] | None = None,
) -> str:
    """What a run with these flags would compute, need and take, as lines.

    Args:
      recipe, flags, precision: what the command line says.
      micro_batch: sequences a device takes at once.
      devices: their names.
      memory: bytes on each device by what they are for, where a compiler said so.

    Raises:
      BadInput: shards that were named and can't be used.
    """
    state, model = state_bytes(recipe, precision), recipe.model
    steps = min(recipe.schedule.steps, flags.stop_at or recipe.schedule.steps)
    rounds = recipe.data.sequences // len(devices) // micro_batch
    step_flops = recipe.step_tokens * token_flops(model) + newton_schulz_flops(model, recipe.optimizer)
    saved, kept = state["weights"] + state["moments"], flags.keep + 2
    said = [
        ("recipe", f"{recipe.name} on {len(devices)} x {devices[0]}"),
        ("parameters", f"{model.parameters:,}"),
        ("a step", f"{recipe.step_tokens:,} tokens: {rounds} x {micro_batch} sequences of {model.context} a device"),
        ("steps", f"{steps:,}, {steps * recipe.step_tokens / 1e9:.4g}B tokens"),
        (
            "state",
            f"{_size(saved)} on each device: weights {_size(state['weights'])}, moments {_size(state['moments'])}",
        ),
        ("memory", _memory(memory, state["weights"])),
        (
            "checkpoint",
            f"{_size(saved)} before compression; with the best and one being written, {_size(saved * kept)}",
        ),
        ("data", _data(recipe, flags, steps)),
        ("operations", f"{step_flops:.3g} a step, {steps * step_flops:.3g} in all"),
        ("time", _time(recipe, steps, devices)),
    ]
    return "\n".join(["Nothing is trained or written (--dry-run):", *(f"  {name:<12}{what}" for name, what in said)])


def _memory(memory: dict[str, int] | None, gradients: int) -> str:
    if memory is None:
        return f"beside the state, gradients {_size(gradients)}, and activations, known once it runs"
    parts = ", ".join(f"{name} {_size(size)}" for name, size in memory.items() if size)
    return f"{_size(sum(memory.values()))} on each device, as compiled: {parts}"


def _data(recipe: Recipe, flags: Flags, steps: int) -> str:
    """What there is to read; `BadInput` only where the command line named it."""
    if flags.data is None and flags.val_data is None and recipe.data.tokens == "bytes":
        return "text of Python's standard library, made when the run starts"
    try:
        pattern, _ = shard_patterns(recipe, flags)
    except BadInput as error:
        if flags.data is not None or flags.val_data is not None:
            raise
        return f"not there yet: {error}"
    there = sum(shard.tokens for shard in inspect_shards(pattern, "--data", recipe.model.token_ids))
    return f"{there:,} tokens in {pattern}, read {steps * recipe.step_tokens / there:.2f} times"


def _time(recipe: Recipe, steps: int, devices: Sequence[str]) -> str:
    rates, unknown = RATES.get(devices[0]), why_unknown(recipe)
    if rates is None:
        return f"not known: no rates were measured on {devices[0]}; a short run with --stop-at shows tokens/s"
    if unknown:
        return f"not known: {unknown}"
    seconds = sum(step_seconds(recipe, len(devices), rates).values())
    said = f"an estimate: {steps * seconds / 60:.3g} minutes, {seconds * 1e3:.0f} ms a step by rates of such a card"
    return said + (", exchanges between devices not counted" if len(devices) > 1 else "") + "; validation not counted"


def _size(size: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} bytes"
