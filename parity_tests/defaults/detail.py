"""An entry of the page: a detail that ports get wrong, lines of Python that show it, the recipes by what they do."""

import ast
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

import jax
import numpy as np
import torch

from jaxgpt.config import Recipe
from jaxgpt.recipes import RECIPES
from parity_tests.defaults import preamble


@dataclass(frozen=True)
class Line:
    """A line of Python after `preamble`, and what its last expression gives."""

    code: str
    gives: str
    digits: int = 6
    """To which numbers are rounded. Few enough that no version of anything comes to another text."""
    remark: str = ""

    def statements(self) -> list[str]:
        """The line, one statement after the other."""
        return [ast.get_source_segment(self.code, statement) or "" for statement in ast.parse(self.code).body]

    @functools.cache  # noqa: B019 (entries live as long as the process)
    def measured(self) -> str:
        """What it gives here and now."""
        names = dict(vars(preamble))
        *before, last = ast.parse(self.code).body
        assert isinstance(last, ast.Expr), f"{self.code} doesn't end with an expression"
        exec(compile(ast.Module(before, []), self.code, "exec"), names)
        return said(eval(compile(ast.Expression(last.value), self.code, "eval"), names), self.digits)


@dataclass(frozen=True)
class Grouping:
    """The recipes by the value of a field; or by what `of` says, where that has more than one."""

    by: str
    of: Callable[[Recipe], object] | None = None
    among: str = ""
    """Which recipes it is about, such as "with Muon"; all of them where empty."""
    counts: Callable[[Recipe], bool] = lambda recipe: True

    def groups(self) -> dict[str, list[str]]:
        """What is done -> the recipes that do it."""
        groups: dict[str, list[str]] = {}
        for recipe in filter(self.counts, RECIPES.values()):
            groups.setdefault(said((self.of or attrgetter(self.by))(recipe)), []).append(recipe.name)
        return groups


@dataclass(frozen=True)
class Detail:
    """What each framework does by default, what is done here, and the lines that show it."""

    title: str
    why: str
    torch: str
    jax: str
    here: str
    lines: tuple[Line, ...] = ()
    recipes: tuple[Grouping, ...] = ()

    @property
    def slug(self) -> str:
        """Its anchor in the page, as GitHub makes it, and its test's name."""
        return re.sub(r"[^\w -]", "", self.title.lower()).replace(" ", "-")


def said(value: object, digits: int = 6) -> str:
    """A value in the words of the page: small powers of two as such, other numbers rounded, arrays as lists."""
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy() if value.dtype == torch.bool else value.detach().double().numpy()
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        value = np.asarray(value).astype(float if np.asarray(value).dtype != bool else bool)
        value = value.item() if value.size == 1 else value.tolist()
    if isinstance(value, (list, tuple)):
        left, right = "[]" if isinstance(value, list) else "()"
        return left + ", ".join(said(each, digits) for each in value) + right
    if isinstance(value, float):
        exponent = np.frexp(value)[1] - 1
        return f"2^{exponent}" if value == 2.0**exponent and exponent < -6 else f"{value:.{digits}g}"
    return str(value)
