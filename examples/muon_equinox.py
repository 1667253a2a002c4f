"""Muon in an Equinox model of your own: `python examples/muon_equinox.py`.

Muon is for the hidden matrices; the embedding, the head and the biases have AdamW, as `others`. `layout` says which
weights are Muon's, and which of their axes is fan-in: a weight of `eqx.nn.Linear`, as of torch's, is (fan-out, fan-in),
the other way round than Flax's. In 200 steps the loss goes from 3.62 to 1.28; no model can be better than 1.16.
"""

import equinox as eqx
import jax
import optax
from text import BEST_LOSS, VOCAB, batches

from jaxgpt.muon import Matrix, muon

STEPS = 200


class Net(eqx.Module):
    """The logits of what follows two tokens: an embedding, a residual block of two hidden matrices, a head."""

    embed: eqx.nn.Embedding
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array):
        embed, up, down, head = jax.random.split(key, 4)
        self.embed = eqx.nn.Embedding(VOCAB, 32, key=embed)
        self.up = eqx.nn.Linear(64, 256, key=up)
        self.down = eqx.nn.Linear(256, 64, key=down)
        self.head = eqx.nn.Linear(64, VOCAB, key=head)

    def __call__(self, pair: jax.Array) -> jax.Array:
        """(2,) -> (V,)."""
        x = jax.vmap(self.embed)(pair).reshape(-1)
        return self.head(x + self.down(jax.nn.relu(self.up(x))))


def layout(name: str, weight: jax.Array) -> Matrix | None:
    """Muon's are up.weight (256, 64) and down.weight (64, 256); all other weights are not."""
    return Matrix(fan_in=-1, fan_out=-2) if name in ("up.weight", "down.weight") else None


def optimizer() -> optax.GradientTransformation:
    """Muon on the hidden matrices, AdamW on the rest; both learning rates fall to zero."""
    fall = lambda peak: optax.linear_schedule(peak, 0.0, STEPS)  # noqa: E731
    return muon(fall(0.1), layout, others=optax.adamw(fall(0.01)), scale="sqrt_ratio")


def train(net: Net, optimizer: optax.GradientTransformation) -> tuple[Net, list[float]]:
    """The trained net, and the loss of each step, in nats."""

    @eqx.filter_jit
    def step(net: Net, state: optax.OptState, pairs: jax.Array, follows: jax.Array):
        def loss(net: Net) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(net)(pairs), follows).mean()

        value, grads = eqx.filter_value_and_grad(loss)(net)
        updates, state = optimizer.update(grads, state, eqx.filter(net, eqx.is_inexact_array))
        return eqx.apply_updates(net, updates), state, value

    state, losses = optimizer.init(eqx.filter(net, eqx.is_inexact_array)), []
    for batch in batches(STEPS):
        net, state, loss = step(net, state, *batch)
        losses.append(float(loss))
    return net, losses


if __name__ == "__main__":
    _, losses = train(Net(jax.random.key(0)), optimizer())
    print(
        f"loss {losses[0]:.2f}, mean of the last 20 steps {sum(losses[-20:]) / 20:.2f}; best possible {BEST_LOSS:.2f}"
    )
