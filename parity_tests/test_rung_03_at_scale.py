"""Rung 3 at scale: each layer's output and the logits; float64 and float32 directly, bfloat16 by its error to float64.

JAX's are compiled, as they train; torch's run operation by operation, with the attention that trains.
"""

import functools

import jax
import pytest
import torch
from flax import nnx

import jaxgpt.loss
import torch_ref.loss
from jaxgpt.train import _graph
from parity_tests.bfloat16 import JUDGED, as_kept, assert_as_exact
from parity_tests.measured import assert_within
from parity_tests.pair import jax_params, relative, tokens, torch_state
from parity_tests.scale import as_trained, pair_at_scale, torch_device, weights_at_scale
from parity_tests.tolerances import ERROR_RATIO, HIDDEN_AT_SCALE, LOGITS_AT_SCALE

pytestmark = pytest.mark.at_scale

SEQUENCES = 2
"""Of a step's: more cost time and add nothing, for each is computed for itself."""


def pytest_generate_tests(metafunc):
    names = JUDGED[metafunc.config.getoption("--device")]
    metafunc.parametrize("answers", names, indirect=True, scope="module")


@pytest.fixture(scope="module")
def answers(request, device):
    """answers(framework, dtype): name -> array of the recipe's residual stream and logits, at perturbed weights."""
    compute = {"jax": in_jax, "torch": in_torch}
    return functools.cache(lambda framework, dtype: compute[framework](request.param, dtype, device))


def start(both, name, dtype, device):
    wide = "float64" if dtype == "float64" else "float32"
    return as_kept(weights_at_scale(name, wide, device), both.recipe.model.embedding_dtype)


def in_jax(name, dtype, device):
    both = pair_at_scale(name, dtype, device)
    exactly, config = both.precision, both.recipe.model
    graph = _graph(both.recipe, exactly, exactly.compute)

    @jax.jit
    def outputs(params, inputs):
        with jax.default_matmul_precision(exactly.matmul):
            gpt = nnx.merge(graph, nnx.State(params))
            stream = gpt.residuals(inputs)
            weight, bias = gpt.head()
            logits = jaxgpt.loss.logits(stream[-1], weight, bias, exactly.compute)
            return *stream, jaxgpt.loss.cap(logits, config.logit_cap)

    inputs, _ = tokens(both.recipe)
    return named(jax.device_get(outputs(jax_params(both, start(both, name, dtype, device)), inputs[:SEQUENCES])))


def in_torch(name, dtype, device):
    both = pair_at_scale(name, dtype, device)
    gpt = torch_state(both, start(both, name, dtype, device)).model
    inputs = torch.tensor(tokens(both.recipe)[0][:SEQUENCES], dtype=torch.int64, device=torch_device(device))
    narrow = torch.autocast(inputs.device.type, torch.bfloat16, enabled=dtype == "bfloat16")
    with torch.no_grad(), narrow, as_trained(dtype):
        stream = gpt.residuals(inputs)
        logits = torch_ref.loss.cap(torch_ref.loss.logits(stream[-1], *gpt.head()), gpt.config.logit_cap)
    return named([each.double().cpu().numpy() for each in (*stream, logits)])


def named(outputs):
    layers = [f"block {i}" for i in range(len(outputs) - 3)]
    return dict(zip(["embedding", *layers, "final norm", "logits"], outputs, strict=True))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_layers_output_is_the_same(answers, device, dtype):
    got, want = answers("jax", dtype), answers("torch", dtype)
    for layer in [layer for layer in want if layer != "logits"]:
        what = f"rung 3, {dtype} residual stream: {layer}"
        assert_within(relative(got[layer], want[layer]), HIDDEN_AT_SCALE[device][dtype], what)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_logits_are_the_same(answers, device, dtype):
    got, want = (answers(framework, dtype)["logits"] for framework in ("jax", "torch"))
    assert_within(relative(got, want), LOGITS_AT_SCALE[device][dtype], f"rung 3, {dtype} logits")


def errors(answers):
    """What -> JAX's error to float64 in bfloat16, torch's."""
    exact, got, reference = answers("torch", "float64"), answers("jax", "bfloat16"), answers("torch", "bfloat16")
    return {each: (relative(got[each], exact[each]), relative(reference[each], exact[each])) for each in exact}


def test_no_layers_error_in_bfloat16_is_larger_than_torchs(answers, device):
    found = errors(answers)
    del found["logits"]
    assert_as_exact(found, "rung 3, bfloat16 residual stream", ERROR_RATIO[device], each=True)


def test_logits_error_in_bfloat16_is_no_larger_than_torchs(answers, device):
    assert_as_exact({"all": errors(answers)["logits"]}, "rung 3, bfloat16 logits", ERROR_RATIO[device])


def test_bfloat16_is_what_was_computed(answers):
    exact, narrow = answers("torch", "float64")["logits"], answers("jax", "bfloat16")["logits"]
    assert relative(narrow, exact) > 2.0**-10  # half a unit in its last place is 2^-9
