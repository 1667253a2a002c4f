"""A recipe's optimiser: its schedule, and which weight gets which transformation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from jaxgpt.muon import muon
from jaxgpt.recipes import Precision, Recipe, ScheduleConfig


def multiplier(schedule: ScheduleConfig) -> Callable[[jax.Array], jax.Array]:
    """Step s, from 0 -> what each learning rate is multiplied by: (s+1)/warmup, 1, then (steps-s)/warmdown.

    The last update uses 1/warmdown; 0 is never applied.
    """

    def at(step: jax.Array) -> jax.Array:
        step = step.astype(float)  # float64 where that is enabled: a quotient of int32 would stay float32
        up = (step + 1) / max(schedule.warmup, 1)
        down = (schedule.steps - step) / max(schedule.warmdown, 1)
        falling = step >= schedule.steps - schedule.warmdown
        return jnp.where(step < schedule.warmup, up, jnp.where(falling, down, jnp.ones_like(down)))

    return at


def make_optimizer(
    recipe: Recipe, precision: Precision, deal: NamedSharding | None = None
) -> optax.GradientTransformation:
    """Muon on the kernels of the blocks, AdamW on the tied matrix.

    Args:
      recipe: learning rates, momenta, schedule.
      precision: dtypes and rounding of Newton-Schulz.
      deal: see `jaxgpt.muon.scale_by_muon`.
    """
    config = recipe.optimizer
    shape = multiplier(recipe.schedule)
    adamw = optax.adamw(
        lambda step: config.embedding_lr * shape(step),
        b1=config.betas[0],
        b2=config.betas[1],
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    return muon(
        lambda step: config.lr * shape(step),
        others=adamw,
        momentum=config.momentum,
        steps=config.newton_schulz_steps,
        coefficients=config.newton_schulz_coefficients,
        dtype=precision.newton_schulz,
        norm_dtype=precision.newton_schulz_norm,
        rounding=precision.rounding,
        deal=deal,
    )
