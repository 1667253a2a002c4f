"""Rung 7: one trainer's gradients through the other's optimiser for 50 steps; the tool that does it, and its words."""

import dataclasses

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxgpt.train
from jaxgpt import bridge
from parity_tests.pair import Pair, jax_tree, pair, weights
from parity_tests.replay import APART, main, record, replay

FIRST = 3
"""Steps before a planted difference sets in."""
PLANTED = "muon-2024-10-12"
NAMES = ["muon-2024-10-12", "simple-2026-06-11", "tiny-adamw", "tiny-soap", "tiny-shampoo"]
CASES = [
    *((name, "float64") for name in NAMES if name in (PLANTED, "tiny-soap")),
    *(pytest.param(n, "float64", marks=pytest.mark.slow) for n in NAMES if n not in (PLANTED, "tiny-soap")),
    pytest.param(PLANTED, "float32", marks=pytest.mark.slow),
]
"""In float32 `test_rung_07_at_scale` does it of two recipes."""


@pytest.mark.parametrize("by", ["torch", "jax"])
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_gradients_of_one_do_the_same_in_the_other_for_50_steps(name, dtype, by):
    both, start = pair(name, dtype, micro_batch=16), weights(name, dtype)
    outcome = replay(both, start, record(both, start, 50, by), by)
    assert outcome.equal, str(outcome)
    assert outcome.steps == 50


@pytest.fixture(scope="module")
def both() -> Pair:
    return pair(PLANTED, "float64", micro_batch=16)


@pytest.fixture(scope="module")
def start():
    return weights(PLANTED, "float64")


@pytest.fixture(scope="module")
def recorded(both, start):
    return {by: list(record(both, start, FIRST + 2, by)) for by in ("torch", "jax")}


def planted(both: Pair, update) -> Pair:
    """JAX's update replaced from step `FIRST` on."""
    late = lambda state, grads: (update if int(state.step) >= FIRST else both.jax.update)(state, grads)  # noqa: E731
    return both._replace(jax=both.jax._replace(update=late))


def changing(both: Pair, name: str, change) -> Pair:
    """From step `FIRST` on, what JAX adds to that weight, in torch's layout, goes through `change`."""

    def update(state, grads):
        after = both.jax.update(state, grads)
        old, new = jax_tree(both, state.params), jax_tree(both, after.params)
        new[name] = old[name] + change(new[name] - old[name])
        return after._replace(params=bridge.from_torch(new, both.recipe.model))

    return planted(both, update)


def jax_update(both: Pair, **fields):
    """JAX's update with other settings of the optimiser."""
    recipe = dataclasses.replace(both.recipe, optimizer=dataclasses.replace(both.recipe.optimizer, **fields))
    return jaxgpt.train.make_step(recipe, both.precision, both.devices, 16).update


def found(both: Pair, start, recorded, by: str = "torch"):
    outcome = replay(both, start, recorded[by], by)
    assert not outcome.equal, str(outcome)
    return outcome.found.step, outcome.found.tensor, outcome.found.looks


def test_doubled_learning_rate_is_found(both, start, recorded):
    wrong = planted(both, jax_update(both, lr=2 * both.recipe.optimizer.lr))
    assert found(wrong, start, recorded) == (FIRST, "change.h.0.attn.c_attn.weight", "a factor 2")


def test_other_momentum_is_found(both, start, recorded):
    wrong = planted(both, jax_update(both, momentum=both.recipe.optimizer.momentum - 0.05))
    name = "opt.muon.h.0.attn.c_attn.weight.momentum"
    assert found(wrong, start, recorded) == (FIRST, name, "-0.05 times its value before too much")


def test_other_beta_of_adam_is_found(both, start, recorded):
    wrong = planted(both, jax_update(both, betas=(0.9, 0.99)))
    words = "0.04 times (its value before - the gradient's square) too much"
    assert found(wrong, start, recorded) == (FIRST, "opt.adamw.wte.weight.exp_avg_sq", words)


def test_weight_decay_on_one_side_is_found(both, start, recorded):
    wrong = planted(both, jax_update(both, hidden_weight_decay=0.1))
    words = f"{-0.1 * both.recipe.optimizer.lr:.4g} times the weight too much"
    assert found(wrong, start, recorded) == (FIRST, "change.h.0.attn.c_attn.weight", words)


def test_negated_update_is_found(both, start, recorded):
    name = "h.1.mlp.c_fc.weight"
    assert found(changing(both, name, np.negative), start, recorded) == (FIRST, f"change.{name}", "the sign")


def test_transposed_update_is_found(both, start, recorded):
    name = "h.1.attn.c_proj.weight"
    assert found(changing(both, name, np.transpose), start, recorded) == (FIRST, f"change.{name}", "a transpose")


def test_exchanged_keys_and_values_are_found(both, start, recorded):
    name = "h.0.attn.c_attn.weight"
    wrong = changing(both, name, lambda w: np.concatenate([np.split(w, 3)[i] for i in (0, 2, 1)]))
    assert found(wrong, start, recorded) == (FIRST, f"change.{name}", "thirds permuted, q, v, k")


def test_weight_that_stays_behind_is_found(both, start, recorded):
    name = "h.1.mlp.c_proj.weight"
    assert found(changing(both, name, np.zeros_like), start, recorded) == (FIRST, f"change.{name}", "zero")


def test_not_a_number_is_found(both, start, recorded):
    name = "h.1.mlp.c_proj.weight"
    wrong = changing(both, name, lambda w: w * np.nan)
    assert found(wrong, start, recorded) == (FIRST, f"change.{name}", "NaN or infinity")


def test_gradients_that_one_side_scales_are_found_where_they_enter(both, start, recorded):
    wrong = planted(both, lambda state, grads: both.jax.update(state, jax.tree.map(lambda g: g / 8, grads)))
    words = f"{(1 - 0.9) * (1 / 8 - 1):.4g} times the gradient too much"
    assert found(wrong, start, recorded) == (FIRST, "opt.adamw.wte.weight.exp_avg", words)


def test_difference_in_torch_is_found_with_gradients_of_jax(both, start, recorded):
    name = "h.1.mlp.c_fc.weight"

    def update(state, grads):
        weight = dict(state.model.named_parameters())[name].data
        before = weight.clone()
        after = both.torch.update(state, grads)
        if state.step >= FIRST:
            weight.copy_(before + (weight - before) / 8)
        return after

    wrong = both._replace(torch=both.torch._replace(update=update))
    assert found(wrong, start, recorded, by="jax") == (FIRST, f"change.{name}", "a factor 1/8")


def test_report_names_step_tensor_difference_allowance_and_likeness(both, start, recorded):
    wrong = changing(both, "h.1.attn.c_proj.weight", lambda w: 2 * w)
    said = str(replay(wrong, start, recorded["torch"], "torch"))
    assert said.startswith(f"step {FIRST}, tensor change.h.1.attn.c_proj.weight: 1.00e+00 apart, allowed ")
    assert said.endswith("; looks like a factor 2")


def ends(capsys, *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(list(words))
    return end.value.code, *capsys.readouterr()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay") / "recording"
    with pytest.raises(SystemExit) as end:
        main(["--recipe", "tiny-adamw", "--steps", "3", "--out", str(folder)])
    assert end.value.code == 0
    return folder


def test_recording_of_a_folder_replays(folder, capsys):
    code, said, _ = ends(capsys, "--from", str(folder))
    assert (code, said[:25]) == (0, "equal for 3 steps, worst ")


def test_recording_of_jax_replays_in_torch(tmp_path, capsys):
    ends(capsys, "--recipe", "tiny-adamw", "--steps", "2", "--by", "jax", "--out", str(tmp_path / "new"))
    code, said, _ = ends(capsys, "--from", str(tmp_path / "new"))
    assert (code, said[:18]) == (0, "equal for 2 steps,")


def copied(folder, to, step: int, change):
    """The recording with the tensors of one of its files changed in place by `change`."""
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    tensors = load_file(to / f"{step:06d}.safetensors")
    change(tensors)
    save_file(tensors, to / f"{step:06d}.safetensors")
    return to


def test_program_ends_with_1_and_the_first_tensor_where_a_replay_parts(folder, tmp_path, capsys):
    def double(tensors):
        tensors["change.h.1.mlp.c_fc.weight"] *= 2

    code, said, _ = ends(capsys, "--from", str(copied(folder, tmp_path / "changed", 2, double)))
    assert code == APART
    assert said.startswith("step 2, tensor change.h.1.mlp.c_fc.weight: 5.00e-01 apart, allowed ")
    assert said.endswith("; looks like a factor 1/2\n")


def without_gradients(tensors):
    for name in [name for name in tensors if name.startswith("gradient.")]:
        del tensors[name]


BAD = {
    "no such recipe": (["--recipe", "tinny"], "no such recipe"),
    "no recipe": ([], "--recipe is missing"),
    "no steps": (["--recipe", "tiny", "--steps", "0"], "--steps 0: give 1 to 100"),
    "more steps than the schedule": (["--recipe", "tiny", "--steps", "101"], "--steps 101: give 1 to 100"),
    "more steps than recorded": (["--from", "FOLDER", "--steps", "4"], "--steps 4: give 1 to 3"),
    "soap in float32": (["--recipe", "tiny-soap", "--dtype", "float32"], "give --dtype float64"),
    "another dtype": (["--recipe", "tiny", "--dtype", "bfloat16"], "--dtype"),
    "out exists": (["--recipe", "tiny", "--out", "FOLDER"], "exists: name a new folder"),
    "recipe of a recording": (["--from", "FOLDER", "--recipe", "tiny"], "leave --recipe out"),
    "no such folder": (["--from", "TMP/nowhere"], "no such folder"),
    "folder of something else": (["--from", "TMP"], "holds no recorded gradients"),
    "recording without gradients": (["--from", "TMP/bare"], "000000.safetensors holds no recorded gradients"),
    "recording cut short": (["--from", "TMP/cut"], "000001.safetensors can't be read"),
}


@pytest.mark.parametrize(("words", "said"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_ends_with_2(words, said, folder, tmp_path, capsys):
    copied(folder, tmp_path / "bare", 0, without_gradients)
    cut = copied(folder, tmp_path / "cut", 0, lambda tensors: None) / "000001.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    words = [word.replace("FOLDER", str(folder)).replace("TMP", str(tmp_path)) for word in words]
    code, _, error = ends(capsys, *words)
    assert code == 2
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert said in error
