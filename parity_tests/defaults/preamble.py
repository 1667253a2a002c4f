"""What the lines of docs/defaults.md start from."""

# ruff: noqa: F401 (imported for the lines)

from functools import partial
from inspect import signature

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxgpt.loss
import jaxgpt.muon
import jaxgpt.soap
import torch_ref.soap
from jaxgpt.muon import newton_schulz
from jaxgpt.recipes import RECIPES

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)

bf16, norm, pmean = jnp.bfloat16, jnp.linalg.norm, jax.lax.pmean
rngs = nnx.Rngs(0)
G = np.random.default_rng(1).standard_normal((64, 64))
q = np.random.default_rng(0).standard_normal((2, 8, 4, 16))  # (B, T, H, K)
q_torch = torch.tensor(q).transpose(1, 2)  # (B, H, T, K)
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices("cpu"))


def apart(x, y):
    """||x - y|| / ||y||, in float64."""
    x, y = (np.asarray(each.double() if isinstance(each, torch.Tensor) else each, np.float64) for each in (x, y))
    return np.linalg.norm(x - y) / np.linalg.norm(y)


def rms_norm(x):
    """Of the last axis, in x's own dtype."""
    return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 2.0**-23)


def angles(length, width, dtype):
    """(T, 1, K/2), all in `dtype`."""
    pairs = np.arange(width // 2, dtype=dtype)
    return np.arange(length, dtype=dtype)[:, None, None] * dtype(10000) ** (-pairs / dtype(width // 2))


def rotated(x, angles):
    """x1 cos + x2 sin, x2 cos - x1 sin, for the halves of the last axis, with tables in x's dtype."""
    x1, x2 = jnp.split(x, 2, -1)
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    return jnp.concatenate([x1 * cos + x2 * sin, x2 * cos - x1 * sin], -1)


def torch_attention(x):
    """Of x as queries, keys and values."""
    return F.scaled_dot_product_attention(x, x, x, is_causal=True)


def jax_attention(x):
    """The same."""
    return jax.nn.dot_product_attention(x, x, x, is_causal=True)


def torch_update(make, *grads, w=0.0):
    """What the last of `grads` adds to a weight that was `w` everywhere at first; make([weight]) is an optimiser."""
    weight = torch.nn.Parameter(torch.full_like(torch.as_tensor(grads[0]), w))
    optimizer = make([weight])
    for grad in grads:
        before, weight.grad = weight.detach().clone(), torch.as_tensor(grad)
        optimizer.step()
    return weight.detach() - before


def optax_update(transformation, *grads, w=0.0):
    """The same of an optax transformation."""
    weight = jnp.full_like(grads[0], w)
    state = transformation.init(weight)
    for grad in grads:
        update, state = jax.jit(transformation.update)(jnp.asarray(grad), state, weight)
        before, weight = weight, optax.apply_updates(weight, update)
    return weight - before


def loss(w, x):
    """A mean over x, whose gradient by w is 1 where x is."""
    return (w * x).mean()


def on_each_device(f, **settings):
    """f(w, x) with w on every device, x dealt out, and one result for all."""
    return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), **settings))


def torch_muon(*grads, **settings):
    """`torch_update` of torch's Muon, without decay."""
    return torch_update(partial(torch.optim.Muon, lr=1.0, weight_decay=0.0, **settings), *grads)


def optax_muon(*grads, **settings):
    """`optax_update` of optax's Muon."""
    return optax_update(optax.contrib.muon(1.0, **settings), *grads)


def our_muon(*grads, **settings):
    """`optax_update` of ours, on a matrix (fan_out, fan_in)."""
    return optax_update(jaxgpt.muon.scale_by_muon(lambda *_: jaxgpt.muon.Matrix(1, 0), **settings), *grads)
