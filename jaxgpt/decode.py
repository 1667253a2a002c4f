"""One token after another from a trained model: keys and values of what was read are kept, not computed again.

What a layer computes stands in `jaxgpt.model` alone; here is where its attention looks, and how a text that outgrows
the context goes on.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from jaxgpt.attention import attend
from jaxgpt.loss import cap, logits
from jaxgpt.model import GPT, rotary_tables, unstack
from jaxgpt.recipes import DType, ModelConfig

CHUNK_TOKENS = 64
"""Tokens of a prompt that are read at once, at most: two programs are compiled, for so many and for one."""


class Kept(NamedTuple):
    """A layer's keys and values. S, the places there are, is the context, rounded up to whole chunks."""

    keys: Float[Array, "B S H K"]
    values: Float[Array, "B S H K"]


class Weights(NamedTuple):
    """A model's, each layer's by itself, so that no step has to take a stack apart."""

    layers: list[Any]
    ends: Any
    """Embedding, final norm, head."""


class Decoder:
    """Reads tokens and says what may come next. It holds one text of at most a context; `read` goes on with it.

    Args:
      config: the model's.
      params: its weights, as `jaxgpt.bridge.load_state` gives them.
      compute: dtype of products, keys and values.

    When a text is longer than the context, the model has seen its last tokens alone: a context of them, or, from when
    that is full, half a context and what came after. Then that half is read again, and the text has room to go on.
    """

    def __init__(self, config: ModelConfig, params: Any, compute: DType = "float32"):
        self.config, self.compute = config, compute
        graph, _ = nnx.split(nnx.eval_shape(lambda: GPT(config, rngs=nnx.Rngs(0), compute=compute)))
        gpt: GPT = nnx.merge(graph, nnx.State(jax.device_put(params)))
        self._layer, stacked = nnx.split(gpt.h)
        layers = jax.jit(unstack)(stacked)
        del gpt.h
        self._ends, ends = nnx.split(gpt)
        self.weights = Weights(layers, ends)
        self.chunk = min(CHUNK_TOKENS, config.context)
        self.places = -(-config.context // self.chunk) * self.chunk
        self.text: list[int] = []
        """The tokens that the next logits depend on, at most a context."""
        self._kept = self._nothing()
        self._extend = jax.jit(self._extended, donate_argnums=1)

    def read(self, ids: Sequence[int]) -> Float[np.ndarray, " V"]:
        """Take in more of the text, at least a token; the logits of what follows it, of all V rows."""
        room = self.config.context - len(self.text)
        if len(ids) > room:
            whole = [*self.text, *ids]
            # A prompt fills the context; a text that grows by a token makes room for half of one.
            ids = whole[-self.config.context :] if not self.text else whole[-max(self.config.context // 2, 1) :]
            self.text, self._kept = [], self._nothing()
        if len(ids) == 1:
            return self._one_call(ids)
        for start in range(0, len(ids), self.chunk):
            answer = self._one_call(ids[start : start + self.chunk])
        return answer

    def _one_call(self, ids: Sequence[int]) -> np.ndarray:
        """At most a chunk. What fills it up is kept beyond the text's end, where nobody looks before it is replaced."""
        length = 1 if len(ids) == 1 else self.chunk
        tokens_BT = np.zeros((1, length), np.int32)
        tokens_BT[0, : len(ids)] = ids
        found, self._kept = self._extend(self.weights, self._kept, tokens_BT, len(self.text), len(ids) - 1)
        self.text = [*self.text, *ids]
        return np.asarray(found[0])

    def _nothing(self) -> list[Kept]:
        shape = (1, self.places, self.config.heads, self.config.head_width)
        empty = functools.partial(jnp.zeros, shape, jnp.dtype(self.compute))
        return [Kept(empty(), empty()) for _ in range(self.config.layers)]

    def _extended(
        self,
        weights: Weights,
        kept: list[Kept],
        tokens_BT: Int[Array, "B T"],
        start: Int[Array, ""],
        last: Int[Array, ""],
    ) -> tuple[Float[Array, "B V"], list[Kept]]:
        """The logits after token `last` of those at the places from `start` on, and what is kept with theirs."""
        config, length = self.config, tokens_BT.shape[1]
        gpt: GPT = nnx.merge(self._ends, weights.ends)
        if config.positions == "learned":  # `embed` takes the first T rows
            gpt.wpe = nnx.Param(gpt.wpe[...].take(start + jnp.arange(length), axis=0, mode="clip"))
        whole = rotary_tables(config, self.places, self.compute)
        cos, sin = (lax.dynamic_slice_in_dim(each, start, length) for each in whole)
        longer = []

        def attention(kept: Kept, q, k, v, scale):
            both = Kept(*(lax.dynamic_update_slice_in_dim(a, b, start, 1) for a, b in zip(kept, (k, v), strict=True)))
            longer.append(both)
            return attend(q, *both, "exact", scale, start)

        with jax.default_matmul_precision("highest"):
            x_BTD = gpt.embed(tokens_BT)
            for layer, each in zip(weights.layers, kept, strict=True):
                x_BTD = nnx.merge(self._layer, layer)(x_BTD, (cos, sin), functools.partial(attention, each))
            x_BD = gpt.ln_f(lax.dynamic_index_in_dim(x_BTD, last, 1, keepdims=False))
            return cap(logits(x_BD, *gpt.head(), self.compute), config.logit_cap), longer
