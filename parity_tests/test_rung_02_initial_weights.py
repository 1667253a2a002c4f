"""Rung 2: initial weights of both frameworks against the distributions that were published, and against each other.

The two draw from different generators, so what is compared are distributions: bounds, moments, and Kolmogorov-Smirnov
tests. Seeds are fixed: a test passes always or never.
"""

import functools
import itertools
import math
from dataclasses import dataclass
from fnmatch import fnmatchcase

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from scipy import stats

import jaxgpt.init
import jaxgpt.model
import torch_ref.init
import torch_ref.model
from jaxgpt import bridge
from jaxgpt.recipes import RECIPES, ModelConfig, reduced
from parity_tests.pair import Weights, distinct

LEAST_P = 1e-6
"""Of a Kolmogorov-Smirnov test. Right code gets there once in a million tests; a normal distribution for a uniform one
of the same variance comes to 1e-9 with 2,048 numbers (the fewest here: learned positions), to 1e-50 with 16,384."""
SIGMAS = 5
"""Of sampling error that a mean or a standard deviation may be off: with 16,384 numbers, 3% of a standard deviation."""


@dataclass(frozen=True)
class Uniform:
    """U(-bound, bound)."""

    bound: float

    @property
    def std(self) -> float:
        return self.bound / math.sqrt(3)

    @property
    def std_error(self) -> float:
        """Standard error of the standard deviation, relative, times the root of how many numbers there are."""
        return math.sqrt(0.8 / 4)  # (kurtosis - 1) / 4, of kurtosis 1.8

    @property
    def cdf(self):
        return stats.uniform(-self.bound, 2 * self.bound).cdf


@dataclass(frozen=True)
class Normal:
    """N(0, std^2)."""

    std: float

    @property
    def std_error(self) -> float:
        return math.sqrt(2 / 4)

    @property
    def cdf(self):
        return stats.norm(0, self.std).cdf


Drawn = Uniform | Normal
ZERO, ONE = 0.0, 1.0


def torch_linear(D: int, F: int, L: int) -> dict[str, Drawn | float]:
    """torch's `nn.Linear` as it comes; the tied matrix is one too, a head of D inputs."""
    del L
    return {
        "wte.weight": Uniform(D**-0.5),
        "*.attn.c_*.weight": Uniform(D**-0.5),
        "*.mlp.c_fc.weight": Uniform(D**-0.5),
        "*.mlp.c_proj.weight": Uniform(F**-0.5),
    }


def zero_projections(D: int, F: int, L: int) -> dict[str, Drawn | float]:
    """The same with output projections of zeros."""
    return {"*.c_proj.weight": ZERO} | torch_linear(D, F, L)


def gpt2(D: int, F: int, L: int) -> dict[str, Drawn | float]:
    """GPT-2's: all N(0, 0.02), residual projections smaller, LayerNorm the identity."""
    del D, F
    return {
        "*.bias": ZERO,
        "*ln_?.weight": ONE,
        "wte.weight": Normal(0.02),
        "wpe.weight": Normal(0.02),
        "*.c_proj.weight": Normal(0.02 / math.sqrt(2 * L)),
        "*.weight": Normal(0.02),
    }


def simple(D: int, F: int, L: int) -> dict[str, Drawn | float]:
    """Of the optimisation track: an embedding N(0, 1), hidden matrices N(0, 0.33/fan_in), zero projections and head."""
    del F, L  # only projections have F inputs
    return {
        "*.bias": ZERO,
        "*ln_?.weight": ONE,
        "lm_head.weight": ZERO,
        "*.c_proj.weight": ZERO,
        "wte.weight": Normal(1.0),
        "*.weight": Normal(math.sqrt(0.33 / D)),
    }


PUBLISHED = {
    "muon-2024-10-12": torch_linear,
    "llmc-2024-10-13": gpt2,
    "adamw-2024-06-06": torch_linear,
    "soap-2024-10-09": torch_linear,
    "muon-2024-10-10": torch_linear,
    "modern-2024-10-14": zero_projections,
    "distmuon-2024-10-17": zero_projections,
    "pytorch25-2024-10-18": zero_projections,
    "opt-adam-2024-10-29": zero_projections,
    "opt-shampoo-2024-10-29": zero_projections,
    "opt-soap-2024-10-29": zero_projections,
    "opt-muon-2024-10-29": zero_projections,
    "simple-2026-06-11": simple,
    "tiny": torch_linear,
    "tiny-adamw": torch_linear,
    "tiny-soap": torch_linear,
    "tiny-shampoo": torch_linear,
}
"""Recipe -> (D, F, L) -> pattern of torch's names -> distribution, of which the first that fits counts. From the
published scripts (their `nn.Linear` calls, `zero_()` and `normal_` lines), not from `jaxgpt.init`."""
ZERO_PADDING = {"llmc-2024-10-13"}
"""Whose vocabulary's padding rows start at zero."""
LAYERS = 4
"""Of the reduced recipes here: enough numbers of each kind, and 1/sqrt(2L) another number than 1/L."""


def config_of(name: str) -> ModelConfig:
    return reduced(name, layers=LAYERS).model


def distinct_starts() -> list[str]:
    """Of the recipes with models of their own, those that are no other one's equal in what is drawn and how."""
    first: dict[object, str] = {}
    for name in distinct("model"):
        config = config_of(name)
        first.setdefault((str(config.shapes), config.initial, config.pad_rows, PUBLISHED[name]), name)
    return list(first.values())


MODELS = distinct_starts()


def published(name: str, tensor: str, config: ModelConfig) -> Drawn | float:
    """How that tensor starts."""
    table = PUBLISHED[name](config.width, config.mlp_width, config.layers)
    return next(start for pattern, start in table.items() if fnmatchcase(tensor, pattern))


def kind(tensor: str) -> str:
    """Its name without the layer's number: all layers' tensors of a kind are drawn from one distribution."""
    return ".".join(part for part in tensor.split(".") if not part.isdecimal())


@functools.cache
def draw(framework: str, name: str, seed: int = 0) -> Weights:
    """Initial weights, float32, by torch's names."""
    config = config_of(name)
    if framework == "jax":
        gpt = jaxgpt.model.GPT(config, rngs=nnx.Rngs(seed))
        return bridge.to_torch(nnx.to_pure_dict(nnx.split(gpt)[1]), config)
    return {n: w.numpy() for n, w in torch_ref.model.GPT(config, seed=seed).state_dict().items()}


def numbers(framework: str, name: str, of: str) -> np.ndarray:
    """All layers' numbers of that kind, in a row, float64; padding rows of zeros left out."""
    config = config_of(name)
    rows = config.token_ids if name in ZERO_PADDING and of == "wte.weight" else None
    found = [w[:rows].ravel() for n, w in draw(framework, name).items() if kind(n) == of]
    return np.concatenate(found).astype(np.float64)


def kinds(name: str, drawn: bool) -> list[str]:
    """The recipe's kinds of tensors that are drawn, or that are constant."""
    config = config_of(name)
    every = dict.fromkeys(kind(n) for n in config.shapes)
    return [each for each in every if isinstance(published(name, of_layer(each), config), Drawn) == drawn]


def of_layer(of: str) -> str:
    """A tensor of that kind."""
    return f"h.0.{of.removeprefix('h.')}" if of.startswith("h.") else of


DRAWN = [(name, of) for name in MODELS for of in kinds(name, drawn=True)]
CONSTANT = [(name, of) for name in MODELS for of in kinds(name, drawn=False)]
FRAMEWORKS = ["jax", "torch"]


def assert_drawn_from(w: np.ndarray, start: Drawn) -> None:
    """Bounds, mean, standard deviation and shape of the distribution of many numbers."""
    if isinstance(start, Uniform):
        assert np.abs(w).max() <= start.bound * (1 + 1e-6), "float32 of the bound"
        assert np.abs(w).max() > start.bound * (1 - 20 / w.size)
    assert abs(w.mean()) < SIGMAS * start.std / math.sqrt(w.size)
    assert abs(w.std() / start.std - 1) < SIGMAS * start.std_error / math.sqrt(w.size)
    assert stats.kstest(w, start.cdf, method="asymp").pvalue > LEAST_P


def test_every_recipe_has_its_published_start_here():
    assert PUBLISHED.keys() == RECIPES.keys()


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("name", "of"), DRAWN)
def test_drawn_weights_have_the_published_distribution(name, of, framework):
    start = published(name, of_layer(of), config_of(name))
    assert isinstance(start, Drawn)
    assert_drawn_from(numbers(framework, name, of), start)


@pytest.mark.parametrize(("name", "of"), DRAWN)
def test_both_frameworks_draw_from_one_distribution(name, of):
    one, other = (numbers(framework, name, of) for framework in FRAMEWORKS)
    assert one.size == other.size
    assert stats.ks_2samp(one, other, method="asymp").pvalue > LEAST_P


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("name", "of"), CONSTANT)
def test_constant_weights_are_exactly_that(name, of, framework):
    want = published(name, of_layer(of), config_of(name))
    assert set(numbers(framework, name, of)) == {want}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", [name for name in MODELS if config_of(name).vocab > config_of(name).token_ids])
def test_padding_rows_start_at_zero_where_published_and_are_drawn_elsewhere(name, framework):
    rows = draw(framework, name)["wte.weight"][config_of(name).token_ids :]
    assert np.any(rows, axis=1).tolist() == [name not in ZERO_PADDING] * len(rows)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", MODELS)
def test_a_weight_has_its_shape_and_is_float32(name, framework):
    weights = draw(framework, name)
    assert {n: w.shape for n, w in weights.items()} == config_of(name).shapes
    assert {w.dtype for w in weights.values()} == {np.dtype("float32")}


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of two tensors' numbers at the same places."""
    return abs(np.corrcoef(a.ravel().astype(np.float64), b.ravel().astype(np.float64))[0, 1])


def apart(framework: str, name: str, seed: int = 0) -> Weights:
    """The drawn weights, queries, keys and values each for itself: JAX draws them so."""
    drawn = {n: w for n, w in draw(framework, name, seed).items() if kind(n) in kinds(name, drawn=True)}
    fused = [n for n in drawn if "c_attn" in n]
    parts = {f"{n} {part}": w for n in fused for part, w in zip("qkv", np.split(drawn[n], 3), strict=True)}
    return {n: w for n, w in drawn.items() if n not in fused} | parts


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", MODELS)
def test_no_two_matrices_of_one_shape_share_their_draw(name, framework):
    drawn = apart(framework, name)
    pairs = [(a, b) for a, b in itertools.combinations(drawn, 2) if drawn[a].shape == drawn[b].shape]
    assert len(pairs) > LAYERS, "layers, and queries, keys, values"
    shared = [(a, b) for a, b in pairs if correlation(drawn[a], drawn[b]) > 6 / math.sqrt(drawn[a].size)]
    assert shared == []


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", MODELS)
def test_another_seed_draws_other_weights(name, framework):
    one, other = apart(framework, name), apart(framework, name, seed=1)
    assert [n for n in one if correlation(one[n], other[n]) > 6 / math.sqrt(one[n].size)] == []


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", MODELS)
def test_a_seed_draws_the_same_weights_again(name, framework):
    one, again = draw(framework, name), draw.__wrapped__(framework, name)
    assert [n for n in one if not np.array_equal(one[n], again[n])] == []


FULL_SIZE = dict.fromkeys(("wte.weight", "attn.c_v.weight", "attn.c_proj.weight", "mlp.c_fc.weight"), (512, 768))
FULL_SIZE |= {"mlp.c_proj.weight": (128, 3072)}
"""Rows of matrices of the published widths."""


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("tensor", FULL_SIZE)
@pytest.mark.parametrize("name", ["muon-2024-10-12", "modern-2024-10-14", "llmc-2024-10-13", "simple-2026-06-11"])
def test_matrices_of_full_size_have_the_published_distribution(name, tensor, framework):
    config = RECIPES[name].model
    start, shape = published(name, f"h.0.{tensor}" if "c_" in tensor else tensor, config), FULL_SIZE[tensor]
    if framework == "jax":
        shape = shape[::-1] if "c_" in tensor else shape  # a kernel is (in, out)
        w = np.asarray(jaxgpt.init.initializer(config, tensor)(jax.random.key(2), shape))
    else:
        generator = torch.Generator().manual_seed(2)
        w = torch_ref.init.initializer(config, tensor)(generator, shape, torch.float32).numpy()
    if isinstance(start, Drawn):
        assert_drawn_from(w.ravel().astype(np.float64), start)
    else:
        assert np.unique(w).tolist() == [start]
