"""Initial weights: a weight's name -> its distribution, per recipe."""

import math
from collections.abc import Callable
from fnmatch import fnmatchcase

import torch

from jaxgpt.recipes import ModelConfig

Initializer = Callable[[torch.Generator, tuple[int, ...], torch.dtype], torch.Tensor]
"""(generator, shape, dtype) -> weight, drawn on the CPU and so alike for every device."""


def uniform_fan_in(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for a weight (fan_out, fan_in): torch's default for `nn.Linear`."""
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape, dtype=dtype).uniform_(-bound, bound, generator=generator)


def uniform_width(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """U(-1/sqrt(D), 1/sqrt(D)) for the tied matrix (V, D): drawn as the head `nn.Linear(D, V)`, not as an embedding."""
    return uniform_fan_in(generator, shape, dtype)


def normal_fan_in(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """N(0, 0.33/fan_in) for a weight (fan_out, fan_in)."""
    return normal(math.sqrt(0.33 / shape[1]))(generator, shape, dtype)


def normal(std: float) -> Initializer:
    """N(0, std^2)."""
    return lambda generator, shape, dtype: torch.empty(shape, dtype=dtype).normal_(0, std, generator=generator)


def zeros(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros; the generator stays where it is."""
    del generator
    return torch.zeros(shape, dtype=dtype)


def ones(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Ones; the generator stays where it is."""
    del generator
    return torch.ones(shape, dtype=dtype)


def rows_below(end: int, draw: Initializer) -> Initializer:
    """`draw`, with zeros from row `end` on."""

    def cut(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        weight = draw(generator, shape, dtype)
        weight[end:] = 0
        return weight

    return cut


def rules(config: ModelConfig) -> list[tuple[str, Initializer]]:
    """(pattern of names, distribution), of which the first that fits counts."""
    vectors = [("*.bias", zeros), ("ln_*.weight", ones)]
    if config.initial == "gpt2":
        residual = normal(0.02 / math.sqrt(2 * config.layers))
        return [*vectors, ("*.c_proj.weight", residual), ("*", normal(0.02))]
    if config.initial == "normal_zero_projections":
        zeroed = [("lm_head.weight", zeros), ("*.c_proj.weight", zeros)]
        return [*vectors, *zeroed, ("wte.weight", normal(1.0)), ("*", normal_fan_in)]
    tables = [(name, uniform_width) for name in ("wte.weight", "wpe.weight", "lm_head.weight")]
    zeroed = [("*.c_proj.weight", zeros)] if config.initial == "uniform_zero_projections" else []
    return [*vectors, *tables, *zeroed, ("*", uniform_fan_in)]


def initializer(config: ModelConfig, name: str) -> Initializer:
    """How the weight of that name (torch's names, without the layer's number) starts."""
    draw = next(draw for pattern, draw in rules(config) if fnmatchcase(name, pattern))
    has_padding = config.pad_rows == "masked" and name in ("wte.weight", "lm_head.weight", "lm_head.bias")
    return rows_below(config.token_ids, draw) if has_padding else draw
