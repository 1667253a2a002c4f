"""Its port: weights in plain dicts, pure functions, AdamW written out."""

import jax
import jax.numpy as jnp
import numpy as np

VOCABULARY, CONTEXT, WIDTH, HEADS, LAYERS = 64, 16, 16, 2, 2
RATE, BETA1, BETA2, EPS, DECAY = 3e-3, 0.9, 0.95, 1e-8, 0.1


def weights() -> dict:
    norm = lambda: {"gain": np.ones(WIDTH), "bias": np.zeros(WIDTH)}  # noqa: E731
    linear = lambda rows, columns: {"w": np.zeros((rows, columns)), "b": np.zeros(columns)}  # noqa: E731
    block = lambda: {  # noqa: E731
        "norm1": norm(),
        **{name: linear(WIDTH, WIDTH) for name in "qkvo"},
        "norm2": norm(),
        "up": linear(WIDTH, 4 * WIDTH),
        "down": linear(4 * WIDTH, WIDTH),
    }
    return {
        "embed": np.zeros((VOCABULARY, WIDTH)),
        "position": np.zeros((CONTEXT, WIDTH)),
        "blocks": [block() for _ in range(LAYERS)],
        "norm": norm(),
        "head": np.zeros((WIDTH, VOCABULARY)),
    }


def normalize(x: jax.Array, p: dict) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.mean(centred**2, -1, keepdims=True)
    return centred / jnp.sqrt(variance + 1e-5) * p["gain"] + p["bias"]


def attention(x: jax.Array, p: dict) -> jax.Array:
    batch, length, _ = x.shape
    q, k, v = ((x @ p[name]["w"] + p[name]["b"]).reshape(batch, length, HEADS, -1) for name in "qkv")
    scores = jnp.einsum("bthk,bshk->bhts", q, k) / q.shape[-1] ** 0.5
    scores = jnp.where(jnp.tri(length, dtype=bool), scores, -jnp.inf)
    y = jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores), v)
    return y.reshape(batch, length, WIDTH) @ p["o"]["w"] + p["o"]["b"]


def mlp(x: jax.Array, p: dict) -> jax.Array:
    hidden = jax.nn.gelu(x @ p["up"]["w"] + p["up"]["b"], approximate=False)
    return hidden @ p["down"]["w"] + p["down"]["b"]


def forward(params: dict, ids: jax.Array) -> dict:
    """The logits, and the residual stream after each layer."""
    x = params["embed"][ids] + params["position"][: ids.shape[1]]
    seen = {}
    for i, p in enumerate(params["blocks"]):
        x = x + attention(normalize(x, p["norm1"]), p)
        x = x + mlp(normalize(x, p["norm2"]), p)
        seen[f"layers.{i}"] = x
    return seen | {"logits": normalize(x, params["norm"]) @ params["head"]}


def loss(params: dict, ids: jax.Array, targets: jax.Array) -> jax.Array:
    logp = jax.nn.log_softmax(forward(params, ids)["logits"])
    return -jnp.mean(jnp.take_along_axis(logp, targets[..., None], -1))


def start(params: dict) -> dict:
    zeros = jax.tree.map(jnp.zeros_like, params)
    return {"t": 0, "m": zeros, "v": zeros}


def step(params: dict, grads: dict, state: dict) -> tuple[dict, dict]:
    t = state["t"] + 1
    m = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, state["m"], grads)
    v = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g**2, state["v"], grads)

    def moved(w: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
        m, v = m / (1 - BETA1**t), v / (1 - BETA2**t)
        return w - RATE * DECAY * w - RATE * m / (jnp.sqrt(v) + EPS)

    return jax.tree.map(moved, params, m, v), {"t": t, "m": m, "v": v}
