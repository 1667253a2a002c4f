"""Rung 8: training on the same tokens from the same weights; losses asserted at every step."""

import jax
import numpy as np
import pytest

from jaxgpt.recipes import reduced
from parity_tests.by_dtype import by_recipe_and_dtype
from parity_tests.measured import assert_within, curve
from parity_tests.pair import (
    DTYPES,
    TRAINERS,
    assert_alike,
    jax_batch,
    jax_state,
    jax_tree,
    learnable_tokens,
    pair,
    torch_batch,
    torch_moments,
    torch_state,
    torch_tree,
    weights,
    with_bases,
)
from parity_tests.tolerances import (
    LONG_TRAINED_WEIGHTS,
    OWN_PRECISION_LOSS,
    SOAP_TRAINING_LOSS,
    TRAINED_WEIGHTS,
    TRAINING_LOSS,
)

STEPS = {"muon-2024-10-12": 100, "tiny": 100}
"""Of the reduced schedule's 100. Every other recipe takes 20, past SOAP's and Shampoo's first recomputation."""
LONG = 300
"""Steps of the same two under a schedule of as many: a slow test."""


def assert_trained_alike(name: str, dtype: str, steps: int, weights_allowed: float, schedule: int = 100) -> None:
    """Losses are the same at every step under a schedule of `schedule` steps, and weights at the end."""
    both = pair(name, dtype, micro_batch=16, schedule=schedule)
    start = weights(name, dtype, perturbed=False)
    in_jax, in_torch = jax_state(both, start), torch_state(both, start)
    soap = both.recipe.optimizer.kind == "soap"
    allowed = (SOAP_TRAINING_LOSS if soap else TRAINING_LOSS)[dtype]
    losses_in_jax, losses = [], []
    curve(f"{name}, {dtype}, {steps} steps", {"jaxgpt": losses_in_jax, "torch_ref": losses})
    for step in range(steps):
        batch = learnable_tokens(both.recipe, step)
        in_jax, got = both.jax.step(in_jax, *jax_batch(both, *batch))
        in_torch, want = both.torch.step(in_torch, *torch_batch(*batch))
        if step == 0:
            in_jax = with_bases(both, in_jax, torch_moments(in_torch))
        losses_in_jax.append(float(got["train_loss"]))
        losses.append(float(want["train_loss"]))
        assert_within(abs(losses_in_jax[-1] - losses[-1]), allowed, f"rung 8, loss of step {step}")
        norms = float(got["grad_norm"]), float(want["grad_norm"])
        assert norms[0] == pytest.approx(norms[1], rel=1e-2 if dtype == "float32" else 1e-9), f"step {step}"
        assert float(got["lr"]) == pytest.approx(want["lr"], rel=1e-6), f"step {step}"
    assert losses[-1] < losses[0] - 0.3, "it has to learn, or agreement says little"
    got, want = jax_tree(both, in_jax.params), torch_tree(dict(in_torch.model.named_parameters()))
    if both.recipe.model.biases and both.recipe.model.qk_norm == "none":
        # A key's bias adds the same to all scores of a query: its gradient is rounding, which Adam takes for a signal.
        for name_ in (n for n in want if n.endswith("c_attn.bias")):
            for each in (got, want):
                np.split(each[name_], 3)[1][:] = 0
    assert_alike(got, want, weights_allowed, "rung 8, weights after training")


@by_recipe_and_dtype(TRAINERS)
def test_losses_are_the_same_at_every_step_and_weights_at_the_end(name, dtype):
    allowed = TRAINED_WEIGHTS[reduced(name).optimizer.kind][dtype]
    assert_trained_alike(name, dtype, STEPS.get(name, 20), allowed)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", STEPS)
def test_losses_are_the_same_at_every_step_of_a_long_run_and_weights_at_its_end(name, dtype):
    assert_trained_alike(name, dtype, LONG, LONG_TRAINED_WEIGHTS[dtype], schedule=LONG)


@pytest.mark.parametrize(
    "name",
    [
        "simple-2026-06-11",
        "llmc-2024-10-13",
        pytest.param("distmuon-2024-10-17", marks=pytest.mark.slow),
        pytest.param("opt-soap-2024-10-29", marks=pytest.mark.slow),
    ],
)
def test_recipes_in_their_own_precision_start_alike(name):
    both, start = pair(name, None, micro_batch=16), weights(name, "float32", perturbed=False)
    assert both.precision.compute == "bfloat16"
    in_jax, in_torch = jax_state(both, start), torch_state(both, start)
    dtypes = {str(p.dtype).removeprefix("torch.") for p in in_torch.model.parameters()}
    assert {str(w.dtype) for w in jax.tree.leaves(in_jax.params)} == dtypes
    assert dtypes == {"float32", both.precision.embedding}
    losses: dict[str, list[float]] = {"jaxgpt": [], "torch_ref": []}
    curve(f"{name}, its own precision", losses)
    for step in range(10):
        batch = learnable_tokens(both.recipe, step)
        in_jax, got = both.jax.step(in_jax, *jax_batch(both, *batch))
        in_torch, want = both.torch.step(in_torch, *torch_batch(*batch))
        losses["jaxgpt"].append(float(got["train_loss"]))
        losses["torch_ref"].append(float(want["train_loss"]))
        apart = abs(losses["jaxgpt"][-1] - losses["torch_ref"][-1])
        assert_within(apart, OWN_PRECISION_LOSS[name], f"rung 8, loss of step {step}")
