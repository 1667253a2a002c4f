"""The recipes: what they hold against what was published, how they are scaled, what they refuse."""

import dataclasses
import math
import subprocess
import sys

import pytest

from jaxgpt import bridge, published
from jaxgpt.errors import BadInput
from jaxgpt.recipes import RECIPES, ModelConfig, OptimizerConfig, ScheduleConfig, named, precision, reduced


@pytest.mark.parametrize("name", RECIPES)
def test_parameters_are_as_many_as_published(name):
    recipe = RECIPES[name]
    counted = sum(math.prod(shape) for shape in bridge.shapes(recipe.model).values())
    assert recipe.expected.parameters == recipe.model.parameters == counted


@pytest.mark.parametrize("name", [name for name in RECIPES if name in published.names()])
def test_expected_result_is_the_end_of_the_published_curve(name):
    last = published.curve(name)[-1]
    recipe = RECIPES[name]
    assert recipe.expected.val_loss == last.val_loss
    assert (recipe.schedule.steps, recipe.tokens) == (last.step, last.tokens)
    assert recipe.expected.step0_val_loss == pytest.approx(published.curve(name)[0].val_loss, abs=0.01)


@pytest.mark.parametrize("name", RECIPES)
def test_reduced_recipe_keeps_what_matters(name):
    whole, small = RECIPES[name].model, reduced(name).model
    assert (small.vocab > small.token_ids) == (whole.vocab > whole.token_ids)
    assert small.head_width % 4 == 0
    kept = ("activation", "norm_eps", "qkv", "qk_norm", "qk_norm_eps", "rotary_dtype", "attention_output_scale")
    assert [getattr(small, field) for field in kept] == [getattr(whole, field) for field in kept]


def test_scaled_schedule_keeps_its_shape():
    assert ScheduleConfig(6000, 250, 1800).scaled(600) == ScheduleConfig(600, 25, 180)
    assert ScheduleConfig(10, 5, 5).scaled(3) == ScheduleConfig(3, 2, 1)


def test_dtype_sets_model_newton_schulz_and_its_norm():
    exactly = precision(named("muon-2024-10-12"), "float64", attention="fast")
    kinds = (exactly.compute, exactly.validation, exactly.parameters, exactly.newton_schulz, exactly.newton_schulz_norm)
    assert kinds == ("float64",) * 5
    assert (exactly.attention, exactly.matmul) == ("exact", "highest")


def test_without_dtype_the_recipe_decides():
    exactly = precision(named("muon-2024-10-12"), None, attention="fast")
    assert dataclasses.astuple(exactly)[:5] == ("bfloat16", "float32", "float32", "bfloat16", "float32")
    assert (exactly.attention, exactly.matmul) == ("fast", "default")
    assert dataclasses.astuple(precision(named("modern-2024-10-14"), None, "fast"))[1:5:3] == ("bfloat16", "bfloat16")
    assert set(dataclasses.astuple(precision(named("tiny"), None, "fast"))[:5]) == {"float32"}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ModelConfig(width=100, heads=3), "no even head width"),
        (lambda: ModelConfig(width=36, heads=12), "no even head width"),
        (lambda: ModelConfig(layers=0), "model.layers is 0"),
        (lambda: ModelConfig(vocab=100), "token_ids 50257 is more than model.vocab 100"),
        (lambda: ModelConfig(norm_eps=-1), "model.norm_eps is -1"),
        (lambda: OptimizerConfig(lr=math.nan), "optimizer.lr is nan"),
        (lambda: OptimizerConfig(momentum=1.0), "optimizer.momentum holds 1.0"),
        (lambda: OptimizerConfig(weight_decay=-1), "optimizer.weight_decay is -1"),
        (lambda: ScheduleConfig(10, 6, 5), "don't fit into 10 steps"),
        (lambda: named("muon-2024-10-21"), "did you mean muon-2024-10-12"),
    ],
)
def test_contradictions_are_refused_at_construction(make, says):
    with pytest.raises(BadInput, match=says):
        make()


def test_recipes_import_no_framework():
    code = "import sys, jaxgpt.recipes; print({'jax', 'torch', 'flax', 'optax'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
