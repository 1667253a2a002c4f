"""Initial weights: a weight's name -> its distribution, per recipe."""

import math
from collections.abc import Callable

import torch

from jaxgpt.recipes import ModelConfig

Initializer = Callable[[torch.Generator, tuple[int, int], torch.dtype], torch.Tensor]


def uniform_fan_in(generator: torch.Generator, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for a weight (fan_out, fan_in): torch's default for `nn.Linear`."""
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape, dtype=dtype).uniform_(-bound, bound, generator=generator)


def uniform_width(generator: torch.Generator, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """U(-1/sqrt(D), 1/sqrt(D)) for the tied matrix (V, D): drawn as the head `nn.Linear(D, V)`, not as an embedding."""
    return uniform_fan_in(generator, shape, dtype)


def zeros(generator: torch.Generator, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Zeros; the generator stays where it is."""
    del generator
    return torch.zeros(shape, dtype=dtype)


def initializer(config: ModelConfig, name: str) -> Initializer:
    """How the weight of that name (without the layer's number) starts. Drawn on the CPU, so alike for every device."""
    if name == "wte.weight":
        return uniform_width
    if name.endswith("c_proj.weight") and config.zero_init_projections:
        return zeros
    return uniform_fan_in
