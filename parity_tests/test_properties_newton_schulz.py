"""What Newton-Schulz does for any matrix: properties of U V^T that the iteration keeps, in both frameworks."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt import muon as jax_muon
from parity_tests import oracle
from parity_tests.measured import assert_within
from parity_tests.pair import relative
from parity_tests.tolerances import NEWTON_SCHULZ_PROPERTIES
from torch_ref import muon as torch_muon

EPS = 1e-7
"""`newton_schulz`'s own."""


def in_jax(G: np.ndarray) -> np.ndarray:
    return np.asarray(jax_muon.newton_schulz(jnp.asarray(G), dtype="float64", norm_dtype="float64"))


def in_torch(G: np.ndarray) -> np.ndarray:
    return torch_muon.newton_schulz(torch.tensor(G), dtype=torch.float64, norm_dtype=torch.float64).numpy()


# JAX compiles for each shape, so its shapes are few.
FEW = [(1, 1), (1, 6), (6, 1), (5, 5), (3, 7), (7, 3), (2, 3, 7), (3, 1, 6), (1, 2, 4, 3), (2, 1, 2, 5, 5)]
SHAPES = {
    "jax": st.sampled_from(FEW),
    "torch": st.tuples(
        st.lists(st.integers(1, 3), max_size=3).map(tuple), st.tuples(st.integers(1, 9), st.integers(1, 9))
    ).map(lambda drawn: drawn[0] + drawn[1]),
}
RUN = {"jax": in_jax, "torch": in_torch}

deterministic = settings(derandomize=True, deadline=None, max_examples=25)
in_both = pytest.mark.parametrize("framework", RUN)


def matrices(data: st.DataObject, framework: str) -> np.ndarray:
    """A random float64 batch of any norm from about 1e-2 to 1e3."""
    shape = data.draw(SHAPES[framework])
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    return 10.0 ** data.draw(st.integers(-2, 2)) * rng.standard_normal(shape)


def orthogonal(size: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


@in_both
@deterministic
@given(data=st.data())
def test_any_batch_of_any_matrices_is_the_oracles(framework, data):
    G = matrices(data, framework)
    want = oracle.newton_schulz(G, 5, jax_muon.COEFFICIENTS)
    assert_within(relative(RUN[framework](G), want), NEWTON_SCHULZ_PROPERTIES, framework)


@in_both
@deterministic
@given(data=st.data())
def test_transpose_goes_in_and_comes_out(framework, data):
    G = matrices(data, framework)
    got = RUN[framework](np.ascontiguousarray(np.swapaxes(G, -1, -2)))
    assert_within(relative(np.swapaxes(got, -1, -2), RUN[framework](G)), NEWTON_SCHULZ_PROPERTIES, framework)


@in_both
@deterministic
@given(data=st.data())
def test_sign_goes_in_and_comes_out_to_the_bit(framework, data):
    G = matrices(data, framework)
    assert np.array_equal(RUN[framework](-G), -RUN[framework](G))


@in_both
@deterministic
@given(data=st.data(), times=st.floats(1e-3, 1e3))
def test_scale_is_no_matter_but_for_eps(framework, data, times):
    G = matrices(data, framework)
    smallest = np.sqrt((G**2).sum((-2, -1))).min() * min(times, 1)
    apart = relative(RUN[framework](times * G), RUN[framework](G))
    assert_within(apart, NEWTON_SCHULZ_PROPERTIES + 10 * EPS / smallest, framework)


@in_both
@deterministic
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_rotations_of_either_side_go_in_and_come_out(framework, data, seed):
    G = matrices(data, framework)
    U, V = orthogonal(G.shape[-2], seed), orthogonal(G.shape[-1], seed + 1)
    assert_within(relative(RUN[framework](U @ G @ V), U @ RUN[framework](G) @ V), NEWTON_SCHULZ_PROPERTIES, framework)


@in_both
@deterministic
@given(data=st.data())
def test_a_batch_is_its_matrices_one_by_one(framework, data):
    G = matrices(data, framework)
    one_by_one = [RUN[framework](each) for each in G.reshape(-1, *G.shape[-2:])]
    assert_within(relative(RUN[framework](G), np.reshape(one_by_one, G.shape)), NEWTON_SCHULZ_PROPERTIES, framework)


@in_both
@deterministic
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_singular_values_go_to_0_68_to_1_14_where_none_is_small(framework, data, seed):
    # From a hundredth of the norm on, five steps of the scalar polynomial take all of them there.
    *batch, rows, cols = data.draw(SHAPES[framework])
    few = min(rows, cols)
    S = np.array(data.draw(st.lists(st.floats(0.1, 1), min_size=few, max_size=few)))
    G = np.broadcast_to((orthogonal(rows, seed)[:, :few] * S) @ orthogonal(cols, seed + 1)[:few], (*batch, rows, cols))
    got = np.linalg.svd(RUN[framework](G.copy()), compute_uv=False)
    assert got.min() > 0.68
    assert got.max() < 1.14
