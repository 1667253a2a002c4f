"""A user's own copy of a published script with nothing changed but what a short run needs; none is part of this.

Changed are step counts, validation tokens and data paths; and Inductor's coordinate-descent tuning is off, which alone
compiles for over four minutes. Each change must fit one place of the text, or the script is refused.
"""

import re
from pathlib import Path

from jaxgpt.errors import BadInput
from jaxgpt.published.scripts import identify
from jaxgpt.recipes import RECIPES, ScheduleConfig

_STEP = re.compile(r"^step:(\d+)/\d+ train_loss:(\S+) train_time:(\d+)ms", re.MULTILINE)
_PEAK = re.compile(r"^peak memory consumption: (\d+) MiB", re.MULTILINE)
UNTIMED = 10
"""Steps after which the script starts its clock anew."""


def known_recipe(file: Path) -> str:
    """Which recipe the published script in `file` trained; `BadInput` where it isn't a known one, unchanged."""
    return identify(file).recipe


def changed_copy(file: Path, steps: int, data: str, val_data: str, devices: int) -> str:
    """The text of a script that trains `steps` steps.

    Raises:
      BadInput: not a known script, or a change that doesn't fit it in one place.
    """
    recipe = RECIPES[known_recipe(file)]
    schedule: ScheduleConfig = recipe.schedule.scaled(steps)
    val_tokens = recipe.data.micro_batch * recipe.model.context * devices
    return replaced(file.read_text(encoding="utf-8"), changes(schedule, data, val_data, val_tokens), str(file))


def changes(schedule: ScheduleConfig, data: str, val_data: str, val_tokens: int) -> list[tuple[str, str]]:
    """Patterns, whose first group is kept, and what takes the place of the rest."""
    return [
        (r"(\n    num_iterations : int = )\d+", str(schedule.steps)),
        (r"(\n    warmup_iters : int = )\d+", str(schedule.warmup)),
        (r"(\n    warmdown_iters : int = )\d+", str(schedule.warmdown)),
        (r"(\n    val_tokens : int = )\d+", str(val_tokens)),
        (r"(\n    input_bin : str = )'[^'\n]*'", repr(data)),
        (r"(\n    input_val_bin : str = )'[^'\n]*'", repr(val_data)),
        (r"(\n    config\.coordinate_descent_tuning = )True", "False"),
    ]


def replaced(text: str, changes: list[tuple[str, str]], name: str) -> str:
    """`text` with each of the changes made in its one place."""
    for pattern, value in changes:
        places = list(re.finditer(pattern, text))
        if len(places) != 1:
            many = f"{pattern!r} fits {len(places)} places, not one"
            raise BadInput(f"{name}: {many}: give the published script as it was")
        text = text[: places[0].end(1)] + value + text[places[0].end() :]
    return text


def read_log(said: str) -> dict:
    """Times of steps (whole milliseconds, as it prints them), losses and memory, from what a script printed.

    Its clock starts anew after ten steps: those before have times of their own.
    """
    rows = [(int(step), float(loss), int(ms)) for step, loss, ms in _STEP.findall(said)]
    if not rows or not (peak := _PEAK.search(said)):
        raise BadInput("the published script ended without its log of steps and memory: see what it printed")
    step_ms = []
    for i, (step, _, at) in enumerate(rows):
        before = rows[i - 1][2] if i and step != UNTIMED + 1 else 0
        step_ms.append(float(at - before))
    return {
        "step_ms": step_ms,
        "train_loss": [loss for _, loss, _ in rows],
        "peak_bytes": int(peak[1]) * 2**20,
        "compile_s": None,
    }
