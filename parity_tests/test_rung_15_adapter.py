"""Rung 15: an example pair is green to the top; each difference planted in it is found on its rung; bad input."""

import ast
import re
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from jaxgpt.errors import BadInput
from parity_tests import adapter
from parity_tests.adapter import Ladder, Outcome, Program, climb, load
from parity_tests.measured import assert_within
from parity_tests.name_map import carried
from parity_tests.suspects import SMALL

EXAMPLES = Path(__file__).parent / "examples"
MOST_LINES = 10
FEW = 3
"""Steps, where nothing needs more."""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A copy of the example pair, whose modules are this test's alone."""
    shutil.copytree(EXAMPLES, tmp_path / "port", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two versions of a file in one second look the same
    for name in ("plain_jax", "plain_torch"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path / "port"


def change(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def ladder(folder) -> Ladder:
    return load(folder / "ladder.py")


def with_port(ladder: Ladder, **fields) -> Ladder:
    return ladder._replace(port=ladder.port._replace(**fields))


def found(outcome: Outcome) -> tuple[str, str, str | None]:
    """The rung that is red, its first tensor, and what that looks like."""
    assert not outcome.green, str(outcome)
    return outcome.rungs[-1].number, outcome.rungs[-1].found.tensor, outcome.rungs[-1].found.looks


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
def test_the_example_pair_is_green_to_the_top(ladder, dtype):
    outcome = climb(ladder, dtype=dtype)
    for rung in outcome.rungs:
        tensor = "change" if "change" in rung.found.tensor else rung.what
        assert_within(rung.found.apart, rung.found.allowed, f"{rung.number} {tensor}, {dtype}")
    assert [rung.number for rung in outcome.rungs] == ["3", "4", "5", "5", "6", "7", "8"]


def test_what_the_example_writes_beyond_its_name_map_is_at_most_ten_lines():
    body = ast.parse((EXAMPLES / "ladder.py").read_text(encoding="utf-8")).body[1:]
    of_map = [s for s in body if isinstance(s, ast.For) or "NAMES" in ast.unparse(s).split()[:1]]
    lines = [s.end_lineno - s.lineno + 1 for s in body if s not in of_map]
    assert len(of_map) == 3
    assert sum(lines) <= MOST_LINES


# Planted differences: what is changed in the port, and what the climb stops at

MEAN = "-jnp.mean(jnp.take_along_axis(logp, targets[..., None], -1))"
CORRECTED = "m, v = m / (1 - BETA1**t), v / (1 - BETA2**t)"
COUNTED = 't = state["t"] + 1'
PLANTED = {
    "tanh GELU": ([("approximate=False", "approximate=True")], "3", "layers.0", None),
    "attention without its scale": ([(" / q.shape[-1] ** 0.5", "")], "3", "layers.0", None),
    "mask one off": ([("jnp.tri(length,", "jnp.tri(length, k=1,")], "3", "layers.0", None),
    "eps of the norm": ([("variance + 1e-5", "variance + 1e-6")], "3", "layers.0", SMALL),
    "no norm before the head": ([('normalize(x, params["norm"]) @', "x @")], "3", "logits", None),
    "softmax in float32": (
        [("softmax(scores)", "softmax(scores.astype(jnp.float32))")],
        "3",
        "layers.0",
        SMALL,
    ),
    "inputs for targets": ([(MEAN, MEAN.replace("targets", "ids"))], "4", "loss", None),
    "sum for mean": ([("-jnp.mean(", "-jnp.sum(")], "4", "loss", "a factor 64, the number of targets"),
    "scores without a gradient": (
        [("softmax(scores)", "softmax(jax.lax.stop_gradient(scores))")],
        "5",
        "blocks.1.q.b",
        "zero",
    ),
    "eps inside the root": ([("(jnp.sqrt(v) + EPS)", "jnp.sqrt(v + EPS)")], "6", "change of embed", None),
    "no bias correction": ([(CORRECTED, "m, v = m, v")], "6", "change of embed", None),
    "twice the learning rate": ([("DECAY = 3e-3", "DECAY = 6e-3")], "6", "change of embed", "a factor 2"),
    "no decay": (
        [(" - RATE * DECAY * w", "")],
        "6",
        "change of embed",
        "0.0003 times the weight too much",
    ),
    "decay in the gradient": (
        [
            (" - RATE * DECAY * w", ""),
            (COUNTED, f"{COUNTED}; grads = jax.tree.map(lambda g, w: g + DECAY * w, grads, params)"),
        ],
        "6",
        "m of embed",
        "0.01 times the weight too much",
    ),
    "another beta": (
        [("3e-3, 0.9,", "3e-3, 0.8,")],
        "6",
        "m of embed",
        "a factor 2",
    ),
    "steps not counted": ([('{"t": t,', '{"t": state["t"],')], "7", "step 1, change of embed", None),
}


@pytest.mark.parametrize(("changes", "rung", "tensor", "looks"), PLANTED.values(), ids=PLANTED)
def test_a_planted_difference_is_found_on_its_rung(folder, changes, rung, tensor, looks):
    change(folder / "plain_jax.py", *changes)
    assert found(climb(load(folder / "ladder.py"), FEW)) == (rung, tensor, looks)


def test_a_square_kernel_that_was_not_turned_is_named(ladder):
    wrong = ladder._replace(names=ladder.names | {"blocks.1.o.w": "layers.1.out.weight"})
    looks = "blocks.1.o.w transposed: it agrees once that is turned"
    assert found(climb(wrong, FEW)) == ("3", "layers.1", looks)


def test_keys_taken_for_queries_are_found(ladder):
    names = dict(ladder.names)
    names["blocks.0.q.w"], names["blocks.0.k.w"] = names["blocks.0.k.w"], names["blocks.0.q.w"]
    assert found(climb(ladder._replace(names=names), FEW))[:2] == ("3", "layers.0")


def test_gradients_of_the_sum_over_devices_are_found(ladder):
    scaled = lambda *given: jax.tree.map(lambda g: 8 * g, jax.grad(ladder.port.loss)(*given))  # noqa: E731
    assert found(climb(with_port(ladder, gradients=scaled), FEW)) == ("5", "head", "a factor 8")


def test_gradients_that_change_from_call_to_call_are_found_in_training(ladder):
    calls = []

    def drifting(*given):
        calls.append(1)
        return jax.tree.map(lambda g: g * (2 if len(calls) > 3 else 1), jax.grad(ladder.port.loss)(*given))

    first_wrong = "loss of step 2"  # rung 5 asks twice; an update by gradients twice as large shows a step later
    outcome = climb(with_port(ladder, gradients=drifting), FEW + 1)
    assert found(outcome)[0] == "8"
    assert outcome.rungs[-1].found.tensor >= first_wrong


def test_float32_that_is_meant_is_green_in_float32(folder):
    change(folder / "plain_jax.py", ("softmax(scores)", "softmax(scores.astype(jnp.float32))"))
    assert climb(load(folder / "ladder.py"), FEW, dtype="float32").green


def test_what_a_factor_allows_is_green(folder):
    change(folder / "plain_jax.py", ("variance + 1e-5", "variance + 1.000001e-5"))
    ladder = load(folder / "ladder.py")
    assert not climb(ladder, FEW).green
    assert climb(ladder, FEW, allow_factor=1e6).green


# Other styles


def test_an_optax_transformation_is_an_update(ladder):
    adamw = optax.adamw(3e-3, 0.9, 0.95, weight_decay=0.1)
    right = with_port(ladder, update=adamw)._replace(moments={"mu": "exp_avg", "nu": "exp_avg_sq"})
    outcome = climb(right, FEW)
    assert outcome.green, str(outcome)


def test_decay_that_optax_has_by_default_is_found(ladder):
    wrong = with_port(ladder, update=optax.adamw(3e-3, 0.9, 0.95))._replace(moments={})
    looks = f"{3e-3 * (0.1 - 1e-4):.4g} times the weight too much"
    assert found(climb(wrong, FEW)) == ("6", "change of embed", looks)


def floats(step: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(step)
    return rng.standard_normal((5, 3)), rng.standard_normal((5, 2))


@pytest.fixture
def line() -> Ladder:
    """A line through numbers: a torch script without a module, and a port without an optimiser."""
    reference = Program(
        {"w": torch.ones(3, 2)}, lambda p, x: x @ p["w"], lambda p, x, y: ((x @ p["w"] - y) ** 2).mean()
    )
    return Ladder(reference, reference._replace(weights={"w": np.zeros((3, 2))}), {"w": "w"}, floats)


def test_a_script_of_bare_tensors_climbs_to_the_gradients(line):
    outcome = climb(line)
    assert outcome.green, str(outcome)
    assert [rung.number for rung in outcome.rungs] == ["3", "4", "5", "5"]


def test_the_state_of_a_flax_model_is_a_port(line):
    graph, state = nnx.split(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    apply = lambda state, x: nnx.merge(graph, state)(x)  # noqa: E731
    port = Program(state, apply, lambda state, x, y: ((apply(state, x) - y) ** 2).mean())
    reference = Program(torch.nn.Linear(3, 2), lambda net, x: net(x), lambda net, x, y: ((net(x) - y) ** 2).mean())
    outcome = climb(Ladder(reference, port, {"kernel": ("weight", "T"), "bias": "bias"}, floats))
    assert outcome.green, str(outcome)


def test_layers_stacked_in_the_port_are_a_list_in_the_map():
    reference = {f"{i}.w": np.full((2, 3), i) for i in range(2)}
    stacked = carried({"w": [("0.w", "T"), ("1.w", "T")]}, reference)["w"]
    assert stacked.shape == (2, 3, 2)
    assert stacked[1].tolist() == [[1, 1]] * 3


def test_nan_in_the_port_is_red(line):
    wrong = with_port(line, forward=lambda p, x: x @ p["w"] * float("nan"))
    assert found(climb(wrong)) == ("3", "logits", "NaN or infinity")


# The command


def ends(capsys, *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        adapter.main(list(words))
    return end.value.code, *capsys.readouterr()


def test_a_red_rung_ends_the_program_with_1_and_says_where_like_what_and_why(folder, capsys):
    change(folder / "plain_jax.py", ("-jnp.mean(", "-jnp.sum("))
    code, said, _ = ends(capsys, str(folder / "ladder.py"), "--steps", "3")
    assert code == adapter.APART == 1
    assert re.search(r"^4 +loss +6\.3e\+01 +\S+ +DIFFERS +loss$", said, re.M)
    assert "rung 4 in float64: loss is the first of 1 that differ, of 1 compared" in said
    assert "looks like: a factor 64, the number of targets" in said
    assert "look at: sum for mean" in said


MAP_END = "\n\ndef forward"
BAD: dict[str, tuple[str, str, tuple[str, ...]]] = {
    # name: what stands in place of (or before) which text of ladder.py, what the one line says
    "syntax": (MAP_END, "\nladder = = 3" + MAP_END, ("SyntaxError", "at ladder.py, line")),
    "raises": (MAP_END, "\n1 / 0" + MAP_END, ("ZeroDivisionError", "at ladder.py, line")),
    "missing module": ("import plain_jax\n", "import plain_jaxx\n", ("ModuleNotFoundError", "'plain_jaxx'")),
    "no ladder": ("ladder = Ladder(", "other = Ladder(", ("defines no `ladder`", "ladder = Ladder(")),
    "ladder of another kind": (MAP_END, MAP_END, ("has a int for `ladder`",)),
    "port lacks": (MAP_END, "\nNAMES['blocks.0.o.wt'] = 'x'" + MAP_END, ("'blocks.0.o.wt'", "mean blocks.0.o.w?")),
    "reference lacks": ('"tokens.weight"', '"token.weight"', ("'token.weight'", "did you mean tokens.weight?")),
    "port's unmapped": (MAP_END, "\ndel NAMES['embed']" + MAP_END, ("the port's embed (64, 16)", "say which tensor")),
    "reference's unmapped": (
        MAP_END,
        "\nNAMES['norm.bias'] = 'norm.weight'" + MAP_END,
        ("the reference's norm.bias (16,)", "add one"),
    ),
    "not turned": ('("head.weight", "T")', '"head.weight"', ("head is (16, 64)", "(64, 16)", "turn it with 'T'")),
    "another shape": ('"positions.weight"', '"tokens.weight"', ("position is (16, 16)", "(64, 16) from tokens.weight")),
    "unknown way": ('("head.weight", "T")', '("head.weight", "t")', ("'t'", "give 'T' or a function")),
    "no function": ("forward, plain_torch.loss", "forward, 'loss'", ("the reference's loss is 'loss'", "a function")),
    "one update": (", update=plain_torch.optimizer", "", ("one program has an update", "give both")),
    "other activations": ('"layers.0", "layers.1"', '"layers.0"', ("layers.1", "give the same names")),
    "forward raises": ("plain_jax.forward", "lambda p, x: p['emb']", ("rung 3", "KeyError", "at ladder.py, line")),
    "unknown moments": ('"m": "exp_avg"', '"mu": "exp_avg"', ("the port's optimiser keeps no 'mu'", "mend `moments`")),
}


@pytest.mark.parametrize(("old", "new", "said"), BAD.values(), ids=BAD)
def test_a_bad_ladder_is_one_line_and_ends_with_2(folder, capsys, old, new, said):
    change(folder / "ladder.py", (old, new))
    if "has a int" in said[0]:
        (folder / "ladder.py").write_text("ladder = 3", encoding="utf-8")
    code, _, error = ends(capsys, str(folder / "ladder.py"), "--dtype", "float64", "--steps", "1")
    assert code == 2
    assert re.fullmatch(r"error: [^\n]+\n", error), error
    for each in said:
        assert each in error


FLAGS = {
    "no file": ([], ("no file is named: name a Python file",)),
    "missing file": (["FOLDER/absent.py"], ("absent.py can't be read: No such file", "name a Python file")),
    "folder": (["FOLDER"], ("can't be read: Is a directory",)),
    "no steps": (["FOLDER/ladder.py", "--steps", "0"], ("--steps 0: give at least 1",)),
    "no dtype": (["FOLDER/ladder.py", "--dtype", "bfloat16"], ("--dtype", "float32")),
    "factor 0": (["FOLDER/ladder.py", "--allow-factor", "0"], ("--allow-factor 0", "above 0")),
    "unknown flag": (["FOLDER/ladder.py", "--step", "3"], ("--step", "--steps")),
}


@pytest.mark.parametrize(("words", "said"), FLAGS.values(), ids=FLAGS)
def test_a_bad_flag_is_one_line_and_ends_with_2(folder, capsys, words, said):
    code, _, error = ends(capsys, *(word.replace("FOLDER", str(folder)) for word in words))
    assert code == 2
    assert re.fullmatch(r"error: [^\n]+\n", error), error
    for each in said:
        assert each in error


def test_bad_input_reaches_the_shell(run, tmp_path):
    ended = run(tmp_path, "parity_tests.adapter", "absent.py")
    said = "error: absent.py can't be read: No such file or directory: name a Python file\n"
    assert (ended.code, ended.stdout, ended.stderr) == (2, "", said)


def test_bad_input_of_a_library_call_is_an_exception(line):
    with pytest.raises(BadInput, match=r"the port's w .* is not in the name map"):
        climb(line._replace(names={}))
