"""Rung 8 at scale: training in bfloat16 against the noise floor, in float32 loss by loss; the tool that measures it."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from jaxgpt.errors import NotFinite
from parity_tests import noise_floor
from parity_tests.measured import assert_within
from parity_tests.noise_floor import (
    Curves,
    at,
    distance,
    free,
    jax_beside,
    jax_curves,
    made_batches,
    main,
    moved,
    pair_of,
    torch_curves,
    torch_floor,
)
from parity_tests.scale import as_trained, pair_at_scale, recipe_at_scale, weights_at_scale
from parity_tests.tolerances import FIRST_LOSSES_AT_SCALE, NOISE_AT_SCALE, TRAINING_LOSS_AT_SCALE

at_scale = pytest.mark.at_scale

MUON, ADAM = "muon-2024-10-12", "opt-adam-2024-10-29"
STEPS = {"cpu": {MUON: 20, ADAM: 60}, "gpu": {MUON: 100, ADAM: 100}}
"""Of Muon at its peak learning rate; of AdamW by its schedule, scaled, warm-up too."""
WINDOW = {"cpu": {MUON: 20, ADAM: 20}, "gpu": {MUON: 50, ADAM: 50}}
PAIRS = {"cpu": 3, "gpu": 5}
SEQUENCES = {"cpu": 4, "gpu": 8}
FIRST = 10
"""Steps in which rounding has hardly grown."""
by_recipe_and_rounding = pytest.mark.parametrize(
    ("name", "rounding"),
    [
        (MUON, "pinned"),
        (ADAM, "free"),
        pytest.param(MUON, "free", marks=pytest.mark.slow),
        pytest.param(ADAM, "pinned", marks=pytest.mark.slow),
    ],
)
"""On a GPU all four, for there the slow tests run too."""


def setting(name, device):
    """The recipe, weights, and the batches of all steps."""
    steps = STEPS[device][name]
    recipe = at(recipe_at_scale(name, device), steps, SEQUENCES[device], constant=name == MUON)
    return recipe, weights_at_scale(name, "float32", device, perturbed=False), made_batches(recipe, steps)


@pytest.fixture(scope="module")
def trained(device):
    """trained(recipe, rounding): torch's curves and JAX's."""

    @functools.cache
    def in_torch(name):
        recipe, start, batches = setting(name, device)
        return torch_floor(pair_of(recipe, device), start, batches, PAIRS[device])

    @functools.cache
    def trained(name, rounding):
        recipe, start, batches = setting(name, device)
        in_jax = jax_beside(pair_of(recipe, device, rounding), start, batches, PAIRS[device])
        return Curves(in_torch(name), in_jax)

    return trained


@at_scale
@by_recipe_and_rounding
def test_frameworks_part_by_no_more_than_torch_does_from_itself_an_ulp_away(trained, device, name, rounding):
    factor = NOISE_AT_SCALE[device][rounding]
    for window in trained(name, rounding).windows(WINDOW[device][name]):
        floor, across = np.median(window.floor), np.median(window.across)
        what = f"rung 8, {name}, {rounding} rounding, RMS of loss, steps {window.first} to {window.last}"
        assert_within(across, factor * floor, what, oracle=floor)


@at_scale
def test_a_learning_rate_5_percent_larger_in_jax_is_outside_the_noise_floor(trained, device):
    recipe, start, batches = setting(ADAM, device)
    larger = dataclasses.replace(recipe.optimizer, lr=1.05 * recipe.optimizer.lr)
    both = pair_of(dataclasses.replace(recipe, optimizer=larger), device)
    in_torch = trained(ADAM, "free").torch
    windows = Curves(in_torch[:2], jax_beside(both, start, batches, 1)).windows(WINDOW[device][ADAM])
    assert max(window.ratio for window in windows) > 2 * NOISE_AT_SCALE[device]["free"]


@at_scale
@by_recipe_and_rounding
def test_first_losses_in_bfloat16_are_alike(trained, device, name, rounding):
    curves = trained(name, rounding)
    apart = max(distance(got[:FIRST], want[:FIRST]) for got, want in zip(curves.jax, curves.torch[1:], strict=True))
    allowed = FIRST_LOSSES_AT_SCALE[device][rounding]
    assert_within(apart, allowed, f"rung 8, {name}, {rounding} rounding, RMS of the first {FIRST} losses")


@at_scale
@pytest.mark.parametrize("name", [pytest.param(MUON, marks=pytest.mark.slow), ADAM])
def test_losses_in_float32_are_the_same_at_every_step(device, name):
    both, start = pair_at_scale(name, "float32", device), weights_at_scale(name, "float32", device, perturbed=False)
    batches = made_batches(both.recipe, 20)
    with as_trained("float32"):
        (want,) = torch_curves(both, [start], batches)
    free()
    (got,) = jax_curves(both, [start], batches)
    free()
    apart = np.abs(np.subtract(got, want))
    for step, each in enumerate(apart):
        assert_within(each, TRAINING_LOSS_AT_SCALE[device], f"rung 8, {name} in float32, loss of step {step}")
    assert want[-1] < want[0] - 0.3, "it has to learn, or agreement says little"


def test_windows_are_judged_by_medians_over_pairs():
    first = [0.0, 0.0, 0.0]
    in_torch = [first, [1.0, 1.0, 0.0], [3.0, 3.0, 0.5], [2.0, 2.0, 0.1]]
    in_jax = [[1.0, 1.0, 1.0], [0.0, 0.0, 0.5], [5.0, 5.0, 0.5]]
    one, two = Curves(in_torch, in_jax).windows(2)
    assert (one.first, one.last, two.first, two.last) == (1, 2, 3, 3)
    assert (one.floor, one.across) == ([1.0, 3.0, 2.0], [0.0, 3.0, 3.0])
    assert (one.ratio, one.within) == (1.5, True)
    assert two.across == pytest.approx([1.0, 0.0, 0.4])
    assert (two.ratio, two.within) == (pytest.approx(4.0), False)


def test_moved_weights_are_an_ulp_away_some_up_and_some_down():
    w = np.float32([0.5, -0.5, 3.0, 1e-3] * 100)
    near = moved({"w": w}, seed=1)["w"]
    assert near.dtype == np.float32
    ulps = near.view(np.int32) - w.view(np.int32)
    assert set(ulps) == {-1, 1}
    assert not np.array_equal(near, moved({"w": w}, seed=2)["w"])


def test_loss_that_is_no_number_is_named():
    with pytest.raises(NotFinite, match="train_loss of step 2 is nan in jax, run 4"):
        noise_floor._finite([1.0, float("nan"), 1.0], "jax", 4)


def ends(capsys, *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(list(words))
    return end.value.code, *capsys.readouterr()


def test_tool_prints_a_line_a_window_and_keeps_all_curves(tmp_path, capsys):
    out = tmp_path / "floor.json"
    words = f"--recipe {ADAM} --steps 3 --pairs 2 --sequences 2 --micro-batch 1 --window 2 --out {out}".split()
    code, said, _ = ends(capsys, *words)
    kept = json.loads(out.read_text())
    assert [(w["first"], w["last"]) for w in kept["windows"]] == [(1, 2), (3, 3)]
    assert [np.shape(kept["curves"][framework]) for framework in ("torch", "jax")] == [(3, 3), (2, 3)]
    assert kept["settings"]["micro_batch"] == 1
    assert code == (0 if all(w["within"] for w in kept["windows"]) else 1)
    assert [line.split()[0] for line in said.splitlines()[2:4]] == ["1-2", "3-3"]
    assert said.splitlines()[-1].startswith("outside" if code else "within")


BAD = {
    "no such recipe": (["--recipe", "muon"], "did you mean"),
    "no step": (["--steps", "0"], "--steps 0: give a whole number of at least 1"),
    "no pair": (["--pairs", "0"], "--pairs 0: give a whole number of at least 1"),
    "no micro-batch": (["--micro-batch", "0"], "--micro-batch 0: give a whole number of at least 1"),
    "micro-batch that doesn't divide": (["--micro-batch", "3"], "--micro-batch 3 doesn't divide the 16 sequences"),
    "file that is there": (["--out", "TMP/old"], "exists already and is left as it is: give another name"),
    "no such folder": (["--out", "TMP/no/floor.json"], "has no folder"),
    "recipe in float32": (["--recipe", "tiny"], "--recipe tiny computes in float32: name one in bfloat16"),
    "no such data": (["--data", "TMP/*.bin"], "--data"),
}


@pytest.mark.parametrize(("words", "said"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_ends_with_2(words, said, tmp_path, capsys):
    (tmp_path / "old").write_text("as it was")
    given = ["--recipe", ADAM, "--steps", "2", "--out", f"{tmp_path}/new", *words]
    code, _, error = ends(capsys, *(word.replace("TMP", str(tmp_path)) for word in given))
    assert (code, error.count("\n")) == (2, 1)
    assert said in error
    assert (tmp_path / "old").read_text() == "as it was"
