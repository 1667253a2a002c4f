"""A recipe's step compiled before there are weights or tokens, and the memory that it says it needs."""

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxgpt import mesh
from jaxgpt.recipes import Precision, Recipe

if TYPE_CHECKING:
    from jaxgpt.train import Step


class Memory(NamedTuple):
    """Bytes on each device while a program runs."""

    arguments: int
    """Weights, moments and the tokens of a step."""
    outputs: int
    """But for what takes an argument's place."""
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        """All at once."""
        return sum(self)


def compile_step(program: "Step", recipe: Recipe, precision: Precision, devices: Mesh) -> jax.stages.Compiled:
    """The step that trains, with the options that it is compiled with there; the devices may be a mere description.

    Args:
      program: of `jaxgpt.train.make_step`.
      recipe, precision, devices: what it was made of.

    Raises:
      jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED, where the compiler sees that a device's memory won't do.
    """
    shape = (recipe.data.sequences, recipe.model.context)
    batch = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=mesh.split(devices))
    lowered = program.step.lower(program.like(), batch, batch)
    return lowered.compile(mesh.compiler_options(devices, precision.rounding))


def memory(compiled: jax.stages.Compiled) -> Memory:
    """What a program needs, as its compiler has it. On a CPU the code isn't counted."""
    said = compiled.memory_analysis()
    assert said is not None, "every backend that trains has one"
    return Memory(
        arguments=said.argument_size_in_bytes,
        outputs=said.output_size_in_bytes - said.alias_size_in_bytes,
        temporaries=said.temp_size_in_bytes,
        code=said.generated_code_size_in_bytes,
    )
