"""What `python -m jaxgpt.recipes` prints: all recipes in a table, or one in full. Imports neither JAX nor PyTorch."""

import dataclasses
import math
import os
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from jaxgpt import published
from jaxgpt.commands import parse
from jaxgpt.corpus import HUB_TRAIN_SHARDS
from jaxgpt.errors import BadInput, exit_codes
from jaxgpt.recipes import RECIPES, Recipe, named

_PROG = "python -m jaxgpt.recipes"
_DEFAULT = "muon-2024-10-12"
_NONE = "-"
_PIPED_WIDTH = 100
_SHARD_TOKENS = 10**8
_PARTS = ("model", "optimizer", "schedule", "data")

_ACTIVATIONS = {"gelu": "GELU (erf)", "gelu_tanh": "GELU (tanh)", "relu_squared": "ReLU^2"}
_NORMS = {"rms": "", "rms_gain": "RMSNorm with gains", "layer": "LayerNorm"}
_QK_NORMS = {"none": "", "before_rotary": "QK-norm before rotary", "after_rotary": "QK-norm after rotary"}
_POSITIONS = {"rotary": "", "half_rotary": "half rotary", "learned": "learned positions"}
_OPTIMIZERS = {"muon": "Muon", "adamw": "AdamW", "soap": "SOAP", "shampoo": "Shampoo"}


@dataclass(frozen=True)
class Flags:
    """The recipes: all of them, or one in full."""

    name: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="NAME")] = None
    """The recipe to print in full; absent, a table of all."""


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `Flags`. Plain text where standard output is no terminal."""
    name = parse(Flags, sys.argv[1:] if argv is None else argv, _PROG).name
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPED_WIDTH
    if name is None:
        console.print(_all())
        return
    try:
        recipe = named(name)
    except BadInput as error:
        raise BadInput(str(error).removeprefix("--recipe ")) from None
    console.print(_one(recipe))
    console.print("\nTo train it:", *(f"    {command}" for command in commands(recipe)), sep="\n", soft_wrap=True)


def summary(recipe: Recipe) -> str:
    """What tells `recipe` from its neighbours, in a line made from its fields."""
    model, optimizer = recipe.model, recipe.optimizer
    words = [
        f"{_count(model.parameters)}, {model.heads} heads",
        _ACTIVATIONS[model.activation],
        _NORMS[model.norm],
        _QK_NORMS[model.qk_norm],
        _POSITIONS[model.positions],
        "untied head" if model.head == "untied" else "",
        _OPTIMIZERS[optimizer.kind] + (" dealt over the devices" if optimizer.distributed else ""),
    ]
    return ", ".join(filter(None, words))


def published_loss(recipe: Recipe) -> str:
    """The published run's last validation loss in nats a token; "about" it where no log was published."""
    if recipe.expected.val_loss is None:
        return _NONE
    logged = recipe.name in published.names()
    return f"{recipe.expected.val_loss:.4f}" if logged else f"~{recipe.expected.val_loss:g}"


def expected_time(recipe: Recipe) -> str:
    """The published run's training on 8 H100 in minutes, where its log has the milliseconds of a step."""
    if recipe.expected.step_ms is None:
        return _NONE
    return f"{recipe.expected.step_ms * recipe.schedule.steps / 60_000:.1f} min"


def commands(recipe: Recipe) -> list[str]:
    """What to type to train `recipe` in both frameworks, after what fetches its data."""
    if recipe.data.tokens == "bytes":
        return [f"python -m {trainer}.train --recipe {recipe.name} --mesh 1" for trainer in ("jaxgpt", "torch_ref")]
    # A shard is left when less than a step's tokens and one more remain of it.
    shards = math.ceil(recipe.schedule.steps / ((_SHARD_TOKENS - 1) // recipe.step_tokens))
    return [
        f"python -m jaxgpt.corpus fineweb --shards {min(shards, HUB_TRAIN_SHARDS)}",
        f"python -m jaxgpt.train --recipe {recipe.name} --mesh 8",
        f"torchrun --nproc-per-node 8 -m -- torch_ref.train --recipe {recipe.name} --mesh 8",
    ]


def _all() -> Group:
    """A row a recipe, and below each its source, which is too long for a column."""
    lines: list = [_row("recipe", "what", "tokens", "val loss", "8 x H100", style="bold underline")]
    for recipe in RECIPES.values():
        figures = _count(recipe.tokens), published_loss(recipe), expected_time(recipe)
        lines.append(_row(recipe.name, summary(recipe), *figures))
        lines.append(Padding(Text(recipe.expected.source, style="dim", overflow="fold"), (0, 0, 0, 4)))
    explained = (
        "val loss: the published run's last validation loss on FineWeb (~: no log of it); 8 x H100: its training "
        f"time there, without validation. One recipe in full: {_PROG} NAME"
    )
    return Group(*lines, Text(), Text(explained))


def _row(name: str, what: str, *figures: str, style: str = "") -> Table:
    """One row of the table of all recipes; the columns of each row are equally wide."""
    row = Table.grid(padding=(0, 2, 0, 0), expand=True)
    row.add_column(width=max(map(len, RECIPES)), style=style or "bold", no_wrap=True)
    row.add_column(ratio=1, style=style)
    for width in (6, 8, 8):
        row.add_column(width=width, justify="right", style=style, no_wrap=True)
    row.add_row(*map(Text, (name, what, *figures)))
    return row


def _one(recipe: Recipe) -> Group:
    """Everything that `recipe` holds, beside what the default one has where they differ."""
    expected, default = recipe.expected, RECIPES[_DEFAULT]
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    step_ms = "" if expected.step_ms is None else f" ({expected.step_ms:g} ms a step)"
    for what, value in (
        ("what", summary(recipe)),
        ("parameters", f"{recipe.model.parameters:,}"),
        ("tokens", f"{recipe.tokens:,} in {recipe.schedule.steps:,} steps of {recipe.step_tokens:,}"),
        ("published val loss", published_loss(recipe)),
        ("val loss at step 0", _NONE if expected.step0_val_loss is None else f"{expected.step0_val_loss:g}"),
        ("time on 8 x H100", expected_time(recipe) + step_ms),
        ("source", expected.source),
    ):
        facts.add_row(Text(what), Text(value))

    fields = Table.grid(padding=(0, 2, 0, 0))
    for no_wrap in (True, True, False, False):
        fields.add_column(no_wrap=no_wrap, overflow="fold")
    differ = 0
    for part in _PARTS:
        for f in dataclasses.fields(getattr(recipe, part)):
            value, usual = (getattr(getattr(each, part), f.name) for each in (recipe, default))
            marked = value != usual
            differ += marked
            cells = ("*" if marked else "", f"{part}.{f.name}", str(value), f"({usual})" if marked else "")
            fields.add_row(*(Text(cell, style="bold" if marked else "") for cell in cells))

    title = Text(recipe.name, style="bold")
    about = f"* differs from {_DEFAULT}, the default, whose value stands behind it ({differ} fields)"
    return Group(title, Text(), facts, Text(), fields, *([Text(about)] if differ else []))


def _count(number: int) -> str:
    """Tokens or parameters in three or four digits: 3.15B, 124M, 246K."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            scaled = number / size
            return f"{scaled:.2f}{unit}" if unit == "B" else f"{scaled:.3g}{unit}"
    return str(number)
