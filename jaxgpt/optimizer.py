"""A recipe's optimiser: its schedule, and which weight gets which transformation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from jaxgpt.muon import scale_by_muon
from jaxgpt.recipes import OptimizerConfig, Precision, Recipe, ScheduleConfig
from jaxgpt.shampoo import shampoo
from jaxgpt.soap import soap

Schedule = Callable[[jax.Array], jax.Array]
"""Step s, from 0 -> learning rate."""


def multiplier(schedule: ScheduleConfig) -> Schedule:
    """Step s, from 0 -> what each learning rate is multiplied by: (s+1)/warmup, 1, then the fall.

    The last update of a linear fall, (steps-s)/warmdown, uses 1/warmdown; 0 is never applied.
    """

    def at(step: jax.Array) -> jax.Array:
        step = step.astype(float)  # float64 where that is enabled: a quotient of int32 would stay float32
        up = (step + 1) / max(schedule.warmup, 1)
        down = (schedule.steps - step) / max(schedule.warmdown, 1)
        if schedule.fall == "cosine":
            down = (1 - jnp.cos(jnp.pi * down)) / 2
        falling = step >= schedule.steps - schedule.warmdown
        return jnp.where(step < schedule.warmup, up, jnp.where(falling, down, jnp.ones_like(down)))

    return at


def group(path: str) -> str:
    """Which of a recipe's groups the weight at that path, such as "h.attn.c_q.kernel", belongs to."""
    if path.endswith("kernel"):
        return "hidden"
    if path in ("wte", "wpe"):
        return "embedding"
    return "head" if path == "lm_head.weight" else "vector"


def make_optimizer(
    recipe: Recipe, precision: Precision, deal: NamedSharding | None = None
) -> optax.GradientTransformation:
    """The recipe's optimiser on the kernels of the blocks, AdamW on all other weights.

    Args:
      recipe: learning rates, momenta, schedule.
      precision: dtypes and rounding of Newton-Schulz.
      deal: spread the hidden matrices over the devices of this sharding; see `jaxgpt.matrices.by_shape`.
    """
    config = recipe.optimizer
    shape = multiplier(recipe.schedule)

    def scheduled(peak: float) -> Schedule:
        return lambda step: peak * shape(step)

    def adamw(lr: float, weight_decay: float = config.weight_decay) -> optax.GradientTransformation:
        return optax.adamw(scheduled(lr), *config.betas, config.eps, weight_decay=weight_decay)

    transforms = {"hidden": _hidden(config, scheduled(config.lr), precision, deal)}
    transforms["embedding"] = adamw(config.embedding_lr)
    if config.head_lr is not None:
        transforms["head"] = adamw(config.head_lr)
    if config.vector_lr is not None:
        transforms["vector"] = adamw(config.vector_lr, config.weight_decay if config.decays_vectors else 0.0)

    def groups(params):
        name = lambda path, _: group(jax.tree_util.keystr(path, simple=True, separator="."))  # noqa: E731
        return jax.tree_util.tree_map_with_path(name, params)

    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    return optax.chain(clip, optax.partition(transforms, groups))


def _hidden(
    config: OptimizerConfig, lr: Schedule, precision: Precision, deal: NamedSharding | None
) -> optax.GradientTransformation:
    """The optimiser of the hidden matrices."""
    if config.kind == "adamw":
        return optax.adamw(lr, *config.hidden_betas, config.hidden_eps, weight_decay=config.hidden_weight_decay)
    if config.kind in ("soap", "shampoo"):
        return {"soap": soap, "shampoo": shampoo}[config.kind](
            lr,
            weight_decay=config.hidden_weight_decay,
            betas=config.hidden_betas,
            eps=config.hidden_eps,
            precondition_every=config.precondition_every,
            deal=deal,
        )
    direction = scale_by_muon(
        momentum=config.momentum,
        momentum_form=config.momentum_form,
        orthogonalise=config.orthogonalise,
        steps=config.newton_schulz_steps,
        coefficients=config.newton_schulz_coefficients,
        dtype=precision.newton_schulz,
        norm_dtype=precision.newton_schulz_norm,
        rounding=precision.rounding,
        form=config.newton_schulz_form,
        scale=config.muon_scale,
        round_scaled=config.distributed,
        deal=deal,
    )
    decay = optax.add_decayed_weights(config.hidden_weight_decay) if config.hidden_weight_decay else optax.identity()
    return optax.chain(direction, decay, optax.scale_by_learning_rate(lr))


def state_bytes(opt_state: optax.OptState) -> dict[str, int]:
    """Bytes that the optimiser keeps between steps, on each device: of the `hidden` matrices, and of `all` weights."""
    count = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))  # noqa: E731
    hidden = optax.tree.get(opt_state, "inner_states")["hidden"]
    return {"hidden": count(hidden), "all": count(opt_state)}
