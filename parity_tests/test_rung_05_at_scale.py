"""Rungs 4 and 5 at scale: training loss and raw gradients of every tensor, at initial and at perturbed weights.

float64 and float32 directly; bfloat16 by its error to torch's float64. Both rungs are here because one backward pass
gives both. Tokens are as frequent as in text, for gradients of an embedding are sums over all places of a token.
"""

import functools
from typing import NamedTuple

import numpy as np
import pytest
import torch

from parity_tests.bfloat16 import JUDGED, as_kept, assert_as_exact, root_mean_square
from parity_tests.measured import assert_within
from parity_tests.pair import (
    Weights,
    assert_alike,
    jax_batch,
    jax_params,
    jax_tree,
    relative,
    torch_batch,
    torch_state,
    torch_tree,
)
from parity_tests.scale import as_trained, pair_at_scale, torch_device, weights_at_scale
from parity_tests.tolerances import ERROR_RATIO, GRADIENTS_AT_SCALE, LOSS_AT_SCALE

pytestmark = pytest.mark.at_scale

BATCHES = 4
"""Whose errors are averaged: of one, the ratio of two frameworks' is 0.75 to 1.6 for the bias of a key by chance."""


def pytest_generate_tests(metafunc):
    names = JUDGED[metafunc.config.getoption("--device")]
    cases = {
        f"{name}, {'perturbed' if perturbed else 'initial'}": (name, perturbed)
        for name in names
        for perturbed in (False, True)
    }
    metafunc.parametrize("answers", cases.values(), ids=cases, indirect=True, scope="module")


class Answer(NamedTuple):
    """Of one framework in one dtype, for each batch."""

    losses: np.ndarray
    gradients: list[Weights]


@pytest.fixture(scope="module")
def answers(request, device):
    """answers(framework, dtype) at one recipe's initial or perturbed weights. Gone with its last test."""
    compute = {"jax": in_jax, "torch": in_torch}
    return functools.cache(lambda framework, dtype: compute[framework](*request.param, dtype, device))


def frequent_tokens(recipe, seed):
    """A step's inputs and targets, int32 (sequences, T), the r-th most frequent token as often as 1 / (r + 3)."""
    share = 1 / (np.arange(recipe.model.token_ids) + 3.0)
    shape = recipe.data.sequences, recipe.model.context + 1
    drawn = np.random.default_rng(seed).choice(len(share), shape, p=share / share.sum()).astype(np.int32)
    return drawn[:, :-1], drawn[:, 1:]


def start(name, dtype, device, perturbed):
    config = pair_at_scale(name, dtype, device).recipe.model
    wide = "float64" if dtype == "float64" else "float32"
    return as_kept(weights_at_scale(name, wide, device, perturbed), config.embedding_dtype)


def in_jax(name, perturbed, dtype, device):
    both = pair_at_scale(name, dtype, device)
    params = jax_params(both, start(name, dtype, device, perturbed))
    losses, gradients = [], []
    for seed in range(BATCHES):
        loss, found = both.jax.gradients(params, *jax_batch(both, *frequent_tokens(both.recipe, seed)))
        losses.append(float(loss))
        gradients.append(jax_tree(both, found))
    return Answer(np.array(losses), gradients)


def in_torch(name, perturbed, dtype, device):
    both, state = pair_at_scale(name, dtype, device), torch_program(name, dtype, device)
    state.model.load_state_dict({n: torch.tensor(w) for n, w in start(name, dtype, device, perturbed).items()})
    losses, gradients = [], []
    with as_trained(dtype):
        for seed in range(BATCHES):
            batch = torch_batch(*frequent_tokens(both.recipe, seed), torch_device(device))
            loss, found = both.torch.gradients(state, *batch)
            losses.append(float(loss))
            gradients.append(torch_tree(found))
    del found, loss
    torch.cuda.empty_cache()  # the card is JAX's too
    return Answer(np.array(losses), gradients)


@functools.cache
def torch_program(name, dtype, device):
    """Compiled once for all weights, on a GPU."""
    return torch_state(pair_at_scale(name, dtype, device), start(name, dtype, device, True))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_training_loss_of_a_step_is_the_same(answers, device, dtype):
    got, want = answers("jax", dtype).losses, answers("torch", dtype).losses
    apart = max(relative(*each) for each in zip(got, want, strict=True))
    assert_within(apart, LOSS_AT_SCALE[device][dtype], f"rung 4, {dtype} loss")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_raw_gradients_of_every_tensor_are_the_same(answers, device, dtype):
    got, want = answers("jax", dtype).gradients, answers("torch", dtype).gradients
    assert_alike(got[0], want[0], GRADIENTS_AT_SCALE[device][dtype], f"rung 5, {dtype} gradients")


def test_loss_in_bfloat16_has_no_larger_error_than_torchs(answers, device):
    # One loss's error goes through zero and may be next to nothing by luck, in torch's too: so the root mean square
    # over the batches is held against the largest of torch's, and no less is asked for than of float32.
    exact = answers("torch", "float64").losses
    got, reference = (np.abs(answers(framework, "bfloat16").losses - exact) for framework in ("jax", "torch"))
    float32 = LOSS_AT_SCALE[device]["float32"] * exact.max()
    errors = {f"{BATCHES} batches": (root_mean_square(got), max(reference.max(), float32))}
    assert_as_exact(errors, "rung 4, bfloat16 loss", ERROR_RATIO[device])


def test_no_gradient_in_bfloat16_has_a_larger_error_than_torchs(answers, device):
    exact = answers("torch", "float64").gradients

    def errors(framework):
        got = answers(framework, "bfloat16").gradients
        return {n: root_mean_square([relative(g[n], e[n]) for g, e in zip(got, exact, strict=True)]) for n in exact[0]}

    in_jax, in_torch = errors("jax"), errors("torch")
    assert_as_exact({n: (in_jax[n], in_torch[n]) for n in in_jax}, "rung 5, bfloat16 gradients", ERROR_RATIO[device])
