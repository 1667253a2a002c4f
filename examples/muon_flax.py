"""Muon in a Flax NNX model of your own: `python examples/muon_flax.py`.

Muon is for the hidden matrices; the embedding, the head and the biases have AdamW, as `others`. `layout` says which
weights are Muon's, and which of their axes is fan-in: a kernel of `nnx.Linear`, as of Linen's `nn.Dense`, is (fan-in,
fan-out). In 200 steps the loss goes from 3.48 to 1.28; no model can be better than 1.16.
"""

import jax
import optax
from flax import nnx
from text import BEST_LOSS, VOCAB, batches

from jaxgpt.muon import Matrix, muon

STEPS = 200


class Net(nnx.Module):
    """The logits of what follows two tokens: an embedding, a residual block of two hidden matrices, a head."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(VOCAB, 32, rngs=rngs)
        self.up = nnx.Linear(64, 256, rngs=rngs)
        self.down = nnx.Linear(256, 64, rngs=rngs)
        self.head = nnx.Linear(64, VOCAB, rngs=rngs)

    def __call__(self, pairs: jax.Array) -> jax.Array:
        """(B, 2) -> (B, V)."""
        x = self.embed(pairs).reshape(len(pairs), -1)
        return self.head(x + self.down(nnx.relu(self.up(x))))


def layout(name: str, weight: jax.Array) -> Matrix | None:
    """Muon's are up.kernel (64, 256) and down.kernel (256, 64); all other weights are not."""
    return Matrix(fan_in=-2, fan_out=-1) if name in ("up.kernel", "down.kernel") else None


def optimizer() -> optax.GradientTransformation:
    """Muon on the hidden matrices, AdamW on the rest; both learning rates fall to zero."""
    fall = lambda peak: optax.linear_schedule(peak, 0.0, STEPS)  # noqa: E731
    return muon(fall(0.1), layout, others=optax.adamw(fall(0.01)), scale="sqrt_ratio")


def train(net: Net, optimizer: optax.GradientTransformation) -> list[float]:
    """Change `net`; the loss of each step, in nats."""

    @nnx.jit
    def step(net: Net, state: nnx.Optimizer, pairs: jax.Array, follows: jax.Array) -> jax.Array:
        def loss(net: Net) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(net(pairs), follows).mean()

        value, grads = nnx.value_and_grad(loss)(net)
        state.update(net, grads)
        return value

    state = nnx.Optimizer(net, optimizer, wrt=nnx.Param)
    return [float(step(net, state, *batch)) for batch in batches(STEPS)]


if __name__ == "__main__":
    losses = train(Net(nnx.Rngs(0)), optimizer())
    print(
        f"loss {losses[0]:.2f}, mean of the last 20 steps {sum(losses[-20:]) / 20:.2f}; best possible {BEST_LOSS:.2f}"
    )
