"""The recipes: what they hold against what was published, how they are scaled, what they refuse."""

import dataclasses
import math
import subprocess
import sys

import pytest
from flax import nnx

import jaxgpt.model
import torch_ref.model
from jaxgpt import bridge, published
from jaxgpt.errors import BadInput
from jaxgpt.recipes import RECIPES, ModelConfig, OptimizerConfig, ScheduleConfig, named, precision, reduced
from parity_tests.pair import MODELS


@pytest.mark.parametrize("name", RECIPES)
def test_parameters_are_as_many_as_published(name):
    recipe = RECIPES[name]
    assert recipe.expected.parameters == recipe.model.parameters


def test_published_parameter_counts_follow_from_the_widths():
    # 12 d^2 a block; GPT-2's biases, norms and positions as its own count of 124,439,808 with 50257 rows has them
    blocks, rows = 12 * 12 * 768**2, 50257 * 768
    assert RECIPES["muon-2024-10-10"].expected.parameters == blocks + rows
    assert RECIPES["muon-2024-10-12"].expected.parameters == blocks + rows + 47 * 768
    assert RECIPES["llmc-2024-10-13"].expected.parameters == 124_439_808 + 47 * 768
    vectors = 12 * (9 + 2) * 768 + 2 * 768 + 50304
    assert RECIPES["simple-2026-06-11"].expected.parameters == blocks + 2 * 50304 * 768 + vectors


@pytest.mark.parametrize("name", MODELS)
def test_both_models_have_the_weights_that_the_recipe_lists(name):
    config = reduced(name).model
    in_torch = {n: tuple(w.shape) for n, w in torch_ref.model.GPT(config).state_dict().items()}
    in_jax = bridge.to_torch(nnx.to_pure_dict(nnx.split(jaxgpt.model.GPT(config, rngs=nnx.Rngs(0)))[1]), config)
    assert in_torch == {n: w.shape for n, w in in_jax.items()} == config.shapes


def test_every_published_run_is_a_recipe():
    assert set(published.names()) | {"muon-2024-10-12"} == {name for name in RECIPES if not name.startswith("tiny")}


@pytest.mark.parametrize(("name", "ends"), [("simple-2026-06-11", 3250), ("llmc-2024-10-13", 19560)])
def test_runs_are_validated_where_the_published_ones_were(name, ends):
    steps = [step for step in range(ends + 1) if RECIPES[name].validates_after(step, last=ends)]
    assert steps == [point.step for point in published.curve(name)]


@pytest.mark.parametrize("name", [name for name in RECIPES if name in published.names()])
def test_expected_result_is_the_end_of_the_published_curve(name):
    last = published.curve(name)[-1]
    recipe = RECIPES[name]
    assert recipe.expected.val_loss == round(last.val_loss, 4)
    assert (recipe.schedule.steps, recipe.tokens) == (last.step, last.tokens)
    assert recipe.expected.step0_val_loss == pytest.approx(published.curve(name)[0].val_loss, abs=0.05)


@pytest.mark.parametrize("name", RECIPES)
def test_reduced_recipe_keeps_what_matters(name):
    whole, small = RECIPES[name].model, reduced(name).model
    assert (small.vocab > small.token_ids) == (whole.vocab > whole.token_ids)
    assert small.head_width % 4 == 0
    changed = {"vocab", "token_ids", "layers", "heads", "width", "context"}
    kept = {field.name for field in dataclasses.fields(whole)} - changed
    assert {field: getattr(small, field) for field in kept} == {field: getattr(whole, field) for field in kept}


def test_scaled_schedule_keeps_its_shape():
    assert ScheduleConfig(6000, 250, 1800).scaled(600) == ScheduleConfig(600, 25, 180)
    assert ScheduleConfig(10, 5, 5).scaled(3) == ScheduleConfig(3, 2, 1)
    assert named("llmc-2024-10-13").schedule.scaled(100) == ScheduleConfig(100, 4, 96, "cosine")


def test_dtype_sets_model_newton_schulz_and_its_norm():
    exactly = precision(named("muon-2024-10-12"), "float64", attention="fast")
    kinds = (exactly.compute, exactly.validation, exactly.parameters, exactly.newton_schulz, exactly.newton_schulz_norm)
    assert kinds == ("float64",) * 5
    assert precision(named("simple-2026-06-11"), "float64", attention="fast").embedding == "float64"
    assert (exactly.attention, exactly.matmul) == ("exact", "highest")


def test_without_dtype_the_recipe_decides():
    exactly = precision(named("muon-2024-10-12"), None, attention="fast")
    assert (exactly.compute, exactly.validation, exactly.parameters, exactly.embedding) == (
        "bfloat16",
        "float32",
        "float32",
        "float32",
    )
    assert (exactly.newton_schulz, exactly.newton_schulz_norm) == ("bfloat16", "float32")
    assert (exactly.attention, exactly.matmul) == ("fast", "default")
    modern = precision(named("modern-2024-10-14"), None, "fast")
    assert (modern.validation, modern.newton_schulz_norm) == ("bfloat16", "bfloat16")
    assert precision(named("simple-2026-06-11"), None, "fast").embedding == "bfloat16"
    assert set(dataclasses.astuple(precision(named("tiny"), None, "fast"))[:6]) == {"float32"}


def changed(name, model, optimizer=None):
    recipe = RECIPES[name]
    optimizer = dataclasses.replace(recipe.optimizer, **optimizer or {})
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, **model), optimizer=optimizer)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ModelConfig(width=100, heads=3), "no even head width"),
        (lambda: ModelConfig(width=36, heads=12), "no even head width"),
        (lambda: ModelConfig(positions="learned", width=100, heads=6), "doesn't divide over model.heads 6"),
        (lambda: ModelConfig(positions="half_rotary", width=72, heads=12), "head width 6 .* is no multiple of 4"),
        (lambda: ModelConfig(positions="learned", qk_norm="before_rotary"), "there is no rotary embedding"),
        (lambda: ModelConfig(logit_cap=0.0), "model.logit_cap is 0.0"),
        (lambda: ModelConfig(attention_scale=math.inf), "model.attention_scale is inf"),
        (lambda: ModelConfig(initial="normal_zero_projections"), "a tied one is the embedding"),
        (lambda: ModelConfig(layers=0), "model.layers is 0"),
        (lambda: ModelConfig(vocab=100), "token_ids 50257 is more than model.vocab 100"),
        (lambda: ModelConfig(norm_eps=-1), "model.norm_eps is -1"),
        (lambda: OptimizerConfig(lr=math.nan), "optimizer.lr is nan"),
        (lambda: OptimizerConfig(momentum=1.0), "optimizer.momentum holds 1.0"),
        (lambda: OptimizerConfig(weight_decay=-1), "optimizer.weight_decay is -1"),
        (lambda: OptimizerConfig(head_lr=0.0), "optimizer.head_lr is 0.0"),
        (lambda: OptimizerConfig(clip_norm=-1.0), "optimizer.clip_norm is -1.0"),
        (lambda: OptimizerConfig(precondition_every=0), "optimizer.precondition_every is 0"),
        (lambda: OptimizerConfig(kind="soap", orthogonalise="svd"), "optimizer.orthogonalise svd is Muon's"),
        (lambda: OptimizerConfig(kind="adamw", distributed=True), "optimizer.distributed is Muon's"),
        (lambda: changed("tiny-soap", {"qkv": "fused"}), "model.qkv is fused: .* give model.qkv separate"),
        (lambda: changed("tiny-shampoo", {"biases": True}), "Shampoo takes matrices alone.*optimizer.vector_lr"),
        (lambda: changed("tiny", {"head": "untied"}), "model.head untied has no learning rate.*optimizer.head_lr"),
        (lambda: changed("tiny", {}, {"head_lr": 0.1}), "optimizer.head_lr is 0.1 and model.head is tied"),
        (lambda: changed("tiny", {}, {"vector_lr": 0.1}), "neither gains nor biases"),
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
