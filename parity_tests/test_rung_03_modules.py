"""Rung 3: each module alone, fed the same input, forward and backward; the tool that does it, and its words."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jaxgpt.model
from jaxgpt.recipes import precision, reduced
from parity_tests.measured import assert_within
from parity_tests.modules import APART, compared, main
from parity_tests.pair import DTYPES, MODELS

PLANTED = "muon-2024-10-12"
IN_BOTH_DTYPES = "simple-2026-06-11"
"""What another dtype takes is mostly compiling; this recipe has the most that the others haven't."""
CASES = [
    pytest.param(name, dtype, marks=[pytest.mark.slow] * (dtype == "float32" and name != IN_BOTH_DTYPES))
    for name in MODELS
    for dtype in DTYPES
]


def rows(name: str, dtype: str):
    recipe = reduced(name)
    return list(compared(recipe, precision(recipe, dtype, attention="exact")))


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_modules_fed_alike_answer_alike_forward_and_backward(name, dtype):
    for row in rows(name, dtype):
        assert_within(row.apart, row.allowed, f"rung 3, {row.module} alone: {row.tensor}")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_modules_in_bfloat16_err_hardly_more_than_torchs(name):
    for row in rows(name, "bfloat16"):
        assert_within(row.apart, row.allowed, f"rung 3, {row.module} alone: {row.tensor}", row.oracle)


def test_every_weight_of_a_block_has_its_gradient_compared_where_it_is_made():
    compared_ones = {(row.module, row.tensor.removeprefix("gradient of ")) for row in rows(PLANTED, "float64")}
    for name in reduced(PLANTED).model.shapes:
        if name.startswith("h.1."):
            module = {"attn": "attention", "mlp": "mlp"}[name.split(".")[2]]
            assert (module, name) in compared_ones


def ends(capsys, *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(list(words))
    return end.value.code, *capsys.readouterr()


@pytest.mark.parametrize(("name", "modules"), [(PLANTED, 9), ("modern-2024-10-14", 10)])
def test_program_ends_with_0_where_all_are_equal(name, modules, capsys):
    code, said, _ = ends(capsys, "--recipe", name)
    assert code == 0
    assert said.splitlines()[-1].startswith(f"{modules} modules equal, worst ")


def turned_back(x, tables):
    cos, sin = tables
    halves = x.reshape(*x.shape[:-1], 2, -1)
    return (halves * cos - jnp.flip(halves, axis=-2) * sin).reshape(x.shape)


def with_larger_eps(x, eps):
    return x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1.1 * eps)


def first_found(capsys, name: str = PLANTED, dtype: str = "float64") -> str:
    code, said, _ = ends(capsys, "--recipe", name, "--dtype", dtype)
    assert code == APART
    return said.splitlines()[-1]


def test_rotation_the_other_way_is_found(monkeypatch, capsys):
    monkeypatch.setattr(jaxgpt.model, "rotate", turned_back)
    assert first_found(capsys).startswith("first that differs: rotary, output: ")


def test_other_activation_is_found(monkeypatch, capsys):
    monkeypatch.setitem(jaxgpt.model.ACTIVATIONS, "relu_squared", lambda x: 2 * jnp.square(jax.nn.relu(x)))
    said = first_found(capsys)
    assert said.startswith("first that differs: activation, output: 1.00e+00 apart, allowed ")
    assert said.endswith("; looks like a factor 2")


def test_eps_a_tenth_larger_is_found(monkeypatch, capsys):
    monkeypatch.setattr(jaxgpt.model, "rms_norm", with_larger_eps)
    assert first_found(capsys).startswith("first that differs: norm, output: ")


def test_eps_a_tenth_larger_of_queries_and_keys_is_found_in_float32_too(monkeypatch, capsys):
    monkeypatch.setattr(jaxgpt.model, "rms_norm", with_larger_eps)
    assert first_found(capsys, IN_BOTH_DTYPES, "float32").startswith("first that differs: qk-norm, output: ")


def test_wrong_gradient_of_a_right_output_is_found_where_it_is_made(monkeypatch, capsys):
    @jax.custom_vjp
    def relu_squared(x):
        return jnp.square(jax.nn.relu(x))

    relu_squared.defvjp(lambda x: (relu_squared(x), x), lambda x, g: (g * jax.nn.relu(x),))
    monkeypatch.setitem(jaxgpt.model.ACTIVATIONS, "relu_squared", relu_squared)
    said = first_found(capsys)
    assert said.startswith("first that differs: activation, gradient: 5.00e-01 apart, allowed ")
    assert said.endswith("; looks like a factor 1/2")


BAD = {
    "no such recipe": (["--recipe", "tinny"], "no such recipe"),
    "no recipe": ([], "--recipe is missing"),
    "another dtype": (["--recipe", "tiny", "--dtype", "float16"], "float16"),
}


@pytest.mark.parametrize(("words", "said"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_ends_with_2(words, said, capsys):
    code, _, error = ends(capsys, *words)
    assert code == 2
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert said in error
