"""Rung 13: torch's Muon and optax's, set so that they should agree with ours, and what is left where they can't."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
import torch

import jaxgpt.muon
import torch_ref.muon
from parity_tests import oracle
from parity_tests.measured import assert_within
from parity_tests.pair import assert_alike, relative
from parity_tests.tolerances import OPTAX_MUON, TORCH_MUON, TORCH_MUON_BFLOAT16, TORCH_MUON_ERRORS

UPDATES = 3
SHAPES = {"square": (64, 64), "wide": (64, 256), "tall": (256, 64)}
POLYNOMIALS = {"published": ((3.4445, -4.7750, 2.0315), 5), "convergent": ((2.0, -1.5, 0.5), 12)}
SCALES = {"original": ("sqrt_ratio", 1.0), "match_rms_adamw": ("sqrt_max", 0.2)}
"""torch's name -> ours, and what our learning rate is multiplied by."""
MOMENTUM = 0.95
FRAMEWORKS = ("jax", "torch")

by_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
by_scale = pytest.mark.parametrize("adjust", SCALES)
by_framework = pytest.mark.parametrize("framework", FRAMEWORKS)


def random_gradients(shape):
    return [0.01 * np.random.default_rng(7 + t).standard_normal(shape) for t in range(UPDATES)]


def run_torch(optimizer_of, grads):
    """What each gradient adds to a weight, 0 at first, in torch's optimiser of [weight]; its state at the end."""
    weight = torch.nn.Parameter(torch.zeros_like(torch.tensor(grads[0])))
    optimizer, seen = optimizer_of([weight]), [np.zeros(grads[0].shape)]
    for grad in grads:
        weight.grad = torch.tensor(grad)
        optimizer.step()
        seen.append(weight.detach().double().numpy().copy())
    return np.diff(seen, axis=0), optimizer.state[weight]


def run_jax(transformation, grads):
    """The same of an optax transformation."""
    weight = jnp.zeros_like(grads[0])
    state, update, seen = transformation.init(weight), jax.jit(transformation.update), [np.zeros(grads[0].shape)]
    for grad in grads:
        change, state = update(jnp.asarray(grad), state, weight)
        weight = weight + change
        seen.append(np.asarray(weight, np.float64))
    return np.diff(seen, axis=0), state


@functools.cache
def torchs(shape, steps, coefficients, adjust, decay=0.0):
    """torch.optim.Muon's updates and its momentum."""
    settings = {"lr": 1.0, "momentum": MOMENTUM, "nesterov": True, "weight_decay": decay, "eps": 1e-7}
    settings |= {"ns_steps": steps, "ns_coefficients": coefficients, "adjust_lr_fn": adjust}
    changes, state = run_torch(lambda p: torch.optim.Muon(p, **settings), random_gradients(shape))
    return changes, state["momentum_buffer"]


@functools.cache
def ours(framework, shape, steps, coefficients, adjust, decay=0.0):
    """Ours, set as torch's is: an average, the polynomial first, the norm in bfloat16; decay is times our own lr."""
    scale, lr = SCALES[adjust]
    settings = {"momentum": MOMENTUM, "momentum_form": "average", "form": "polynomial_first", "scale": scale}
    settings |= {"steps": steps, "coefficients": coefficients, "weight_decay": decay / lr}
    grads = random_gradients(shape)
    if framework == "torch":
        changes, state = run_torch(
            lambda p: torch_ref.muon.Muon(p, lr=lr, norm_dtype=torch.bfloat16, **settings), grads
        )
        return changes, state["momentum"]
    settings |= {"norm_dtype": jnp.bfloat16, "rounding": "pinned"}
    layout = lambda *_: jaxgpt.muon.Matrix(fan_in=1, fan_out=0)  # noqa: E731
    changes, state = run_jax(jaxgpt.muon.muon(lr, layout, **settings), grads)
    return changes, optax.tree.get(state, "momentum")


@by_framework
@by_scale
@by_shape
def test_all_of_torchs_muon_but_its_iteration_is_ours(shape, adjust, framework):
    # No iteration: momentum, the bfloat16 norm, scale, learning rate and decay are left.
    settings = shape, 0, POLYNOMIALS["published"][0], adjust, 0.1
    (want, want_momentum), (got, momentum) = torchs(*settings), ours(framework, *settings)
    assert_within(relative(momentum, want_momentum), TORCH_MUON)
    for step in range(UPDATES):
        assert_within(relative(got[step], want[step]), TORCH_MUON, f"update {step}")


@by_framework
@pytest.mark.parametrize("polynomial", POLYNOMIALS)
@by_shape
def test_torchs_muon_gives_our_updates_in_bfloat16(shape, polynomial, framework):
    # It casts to bfloat16 whatever it is given, so no setting makes it exact.
    coefficients, steps = POLYNOMIALS[polynomial]
    settings = shape, steps, coefficients, "original"
    (want, _), (got, _) = torchs(*settings), ours(framework, *settings)
    for step in range(UPDATES):
        assert_within(relative(got[step], want[step]), TORCH_MUON_BFLOAT16[polynomial], f"update {step}")


@by_shape
def test_what_is_left_of_torchs_iteration_is_one_rounding_for_a_sum_and_its_product(shape):
    # addmm adds in float32 and rounds once; `b * A + (c * A) @ A` rounds each product and the sum.
    (a, b, c), steps = POLYNOMIALS["published"]
    rounded = lambda x: x.bfloat16().float()  # noqa: E731
    u = torch.tensor(random_gradients(shape)[0])
    changes, _ = run_torch(lambda p: torch.optim.Muon(p, lr=1.0, momentum=0.0, weight_decay=0.0), [u.numpy()])
    theirs = -changes[0] / max(1.0, shape[0] / shape[1]) ** 0.5
    X = rounded(rounded(u) / rounded(rounded(u).norm()))
    X = X.T if shape[0] > shape[1] else X
    for _ in range(steps):
        A = rounded(X @ X.T)
        X = rounded(a * X + rounded(b * A + c * (A @ A)) @ X)
    once = X.T if shape[0] > shape[1] else X
    thrice = torch_ref.muon.newton_schulz(u, norm_dtype=torch.bfloat16, form="polynomial_first").float()
    assert relative(once, theirs) < relative(thrice, theirs) / 2


@by_framework
@by_shape
def test_our_bfloat16_error_is_of_the_size_of_torchs(shape, framework):
    coefficients, steps = POLYNOMIALS["published"]
    settings = shape, steps, coefficients, "original"
    grads = random_gradients(shape)
    form = {"steps": steps, "coefficients": coefficients, "average": True, "ratio_scale": True}
    exact = [oracle.muon(np.zeros(shape), grads[:n], [1.0] * n, MOMENTUM, **form) for n in range(UPDATES + 1)]
    theirs, mine = torchs(*settings)[0], ours(framework, *settings)[0]
    for step, want in enumerate(np.diff(exact, axis=0)):
        assert_within(relative(mine[step], want), TORCH_MUON_ERRORS * relative(theirs[step], want), f"update {step}")


def test_a_matrix_as_small_as_eps_gets_twice_our_update_from_torchs_clamp():
    G = torch.full((8, 8), 1e-7 / 8, dtype=torch.float64)  # of norm 1e-7: clamp(min=1e-7) is 1e-7, + 1e-7 is 2e-7
    plain = {"lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "ns_steps": 0}
    theirs, _ = run_torch(lambda p: torch.optim.Muon(p, **plain), [G.numpy()])
    mine = torch_ref.muon.newton_schulz(G, steps=0, norm_dtype=torch.bfloat16)
    assert_within(relative(-theirs[0], 2 * mine.double()), 2**-8)


KERNELS = {"square": (48, 48), "wide": (48, 96), "tall": (96, 48), "stack": (3, 48, 64)}
"""(..., fan_in, fan_out), as Flax has them."""


def kernel_gradients(size):
    return [
        {n: jnp.asarray(size * np.random.default_rng([t, *s]).standard_normal(s)) for n, s in KERNELS.items()}
        for t in range(UPDATES)
    ]


@functools.cache
def optax_muon(beta, consistent_rms):
    """optax.contrib.muon on all of `KERNELS`, none left to its Adam, with our eps: (initial state, jitted update)."""
    dims = {name: optax.contrib.MuonDimensionNumbers(-2, -1) for name in KERNELS}
    settings = {"ns_coeffs": POLYNOMIALS["published"][0], "ns_steps": 5, "eps": 1e-7, "nesterov": True}
    made = optax.contrib.muon(
        1.0, beta=beta, consistent_rms=consistent_rms, muon_weight_dimension_numbers=dims, **settings
    )
    return made.init({n: jnp.zeros(s) for n, s in KERNELS.items()}), jax.jit(made.update)


@functools.cache
def our_muon(momentum, scale, form="sum"):
    """jaxgpt's, in float64."""
    exact = {"dtype": jnp.float64, "norm_dtype": jnp.float64, "form": "polynomial_first"}
    layout = lambda *_: jaxgpt.muon.Matrix(fan_in=-2, fan_out=-1)  # noqa: E731
    made = jaxgpt.muon.muon(1.0, layout, momentum=momentum, momentum_form=form, scale=scale, **exact)
    return made.init({n: jnp.zeros(s) for n, s in KERNELS.items()}), jax.jit(made.update)


def updates(state, update, grads):
    params, every = jax.tree.map(jnp.zeros_like, grads[0]), []
    for grad in grads:
        change, state = update(grad, state, params)
        every.append(change)
    return every


@pytest.mark.parametrize(("consistent_rms", "scale"), [(None, "sqrt_ratio"), (1.0, "sqrt_max")])
def test_without_momentum_optaxs_muon_is_ours(consistent_rms, scale):
    grads = kernel_gradients(1e-7)  # small: eps is a hundredth of their norm
    got, want = updates(*our_muon(0.0, scale), grads), updates(*optax_muon(0.0, consistent_rms), grads)
    for step in range(UPDATES):
        assert_alike(got[step], want[step], OPTAX_MUON, f"rung 13, update {step}")


def test_with_momentum_optaxs_first_update_is_ours():
    grads = kernel_gradients(1e9)[:1]  # large: it scales the first gradient otherwise, which only eps can see
    got, want = updates(*our_muon(MOMENTUM, "sqrt_ratio"), grads), updates(*optax_muon(MOMENTUM, None), grads)
    assert_alike(got[0], want[0], OPTAX_MUON, "rung 13, first update")


def test_with_momentum_optaxs_second_update_is_another():
    grads = kernel_gradients(1e9)
    got, want = updates(*our_muon(MOMENTUM, "sqrt_ratio"), grads), updates(*optax_muon(MOMENTUM, None), grads)
    assert all(relative(got[1][n], want[1][n]) > 0.05 for n in KERNELS)  # 0.10 to 0.13


def test_the_momentum_of_nadam_is_all_that_optax_has_of_its_own():
    # The update is our iteration of beta m/(1 - beta^(t+1)) + (1 - beta) g/(1 - beta^t), at every step.
    b, grads, got = MOMENTUM, kernel_gradients(1e9), []
    m = jax.tree.map(jnp.zeros_like, grads[0])
    for t, grad in enumerate(grads, start=1):
        m = jax.tree.map(lambda m, g: b * m + (1 - b) * g, m, grad)
        u = jax.tree.map(lambda m, g, t=t: b * m / (1 - b ** (t + 1)) + (1 - b) * g / (1 - b**t), m, grad)
        got += updates(*our_muon(0.0, "sqrt_ratio"), [u])
    want = updates(*optax_muon(b, None), grads)
    for step in range(UPDATES):
        assert_alike(got[step], want[step], OPTAX_MUON, f"rung 13, update {step}")


def test_once_its_bias_correction_is_over_optaxs_muon_is_ours():
    grads, (state, update) = kernel_gradients(0.01), optax_muon(MOMENTUM, None)
    late = optax.tree.set(state, count=jnp.asarray(10_000, jnp.int32))
    got, want = updates(*our_muon(MOMENTUM, "sqrt_ratio", "average"), grads), updates(late, update, grads)
    for step in range(UPDATES):
        assert_alike(got[step], want[step], OPTAX_MUON, f"rung 13, update {step}")


@pytest.mark.parametrize("step", [2, 3, 10, 100])
def test_optax_weighs_the_last_gradient_more_than_the_published_momentum_does(step):
    # 2.67, 2.49, 2.24, 2.16 times the one before, and 2.16 by the published rule: read off E_11, then E_22.
    b, last_two = MOMENTUM, [jnp.diag(jnp.array(row)) for row in ([1.0, 0.0], [0.0, 1.0])]
    theirs = optax.contrib.muon(1.0, beta=b, ns_steps=0)
    state = optax.tree.set(theirs.init(last_two[0]), count=jnp.asarray(step - 2, jnp.int32))
    u = updates(state, theirs.update, last_two)[1]
    assert_within(relative(u[1, 1] / u[0, 0], 1 / b + (1 - b ** (step + 1)) / (b**2 * (1 - b**step))), OPTAX_MUON)
    exact = {"steps": 0, "dtype": jnp.float64, "norm_dtype": jnp.float64}
    mine = jaxgpt.muon.muon(1.0, lambda *_: jaxgpt.muon.Matrix(0, 1), momentum=b, **exact)
    u = updates(mine.init(last_two[0]), mine.update, last_two)[1]
    assert_within(relative(u[1, 1] / u[0, 0], (1 + b) / b**2), OPTAX_MUON)
