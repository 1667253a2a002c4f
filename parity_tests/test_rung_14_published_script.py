"""Rung 14: the published script itself. JAXGPT_PUBLISHED names copies of it, separated as PATH is; none is shipped."""

import ast
import hashlib
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from jaxgpt.errors import BadInput
from jaxgpt.published import scripts
from jaxgpt.published.scripts import VERSIONS, Version, identify
from jaxgpt.recipes import RECIPES
from parity_tests import published
from parity_tests.published_report import DIFFERENT, Row, report
from parity_tests.published_rungs import model_and_gradients, rows, worst
from parity_tests.published_script import Script, load, without
from parity_tests.published_start import drifting_stream, other_steps

COPIES = [Path(name) for name in os.environ.get("JAXGPT_PUBLISHED", "").split(os.pathsep) if name]

# Nobody's script: another style, and a side effect that would show that it was run.
FOREIGN = """
from pathlib import Path
Path(__file__ + ".ran").touch()
class Net: ...
def fit(net): return net
"""

# The order of things in a published script, and nothing else of it.
SKELETON = """
import sys
with open(sys.argv[0]) as own: text = own.read()
@torch.compile
def doubled(x): return 2 * x
class Args: steps = 3
args = Args()
assert torch.cuda.is_available()
raise RuntimeError("it trains")
def after(): return args.steps
"""


@pytest.fixture(params=COPIES or [None], ids=lambda path: path.name if path else "none")
def copy(request) -> Path:
    if request.param is None:
        pytest.skip("JAXGPT_PUBLISHED names no copy of a published train_gpt2.py, and none is shipped")
    return request.param


@pytest.fixture
def skeleton(tmp_path, monkeypatch) -> Path:
    """A file that is taken for the version of 2024-10-12."""
    path = tmp_path / "train_gpt2.py"
    path.write_text("import torch\n" + SKELETON, encoding="utf-8")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(scripts, "VERSIONS", {digest: Version("muon-2024-10-12", "a test")})
    return path


def test_both_trainers_do_what_the_published_script_does(copy, capsys):
    ended = report(rows(load(copy)))
    assert ended == 0, capsys.readouterr().out


def test_a_misreading_that_both_trainers_share_is_found(copy, monkeypatch):
    script = load(copy)
    published_rotation = script.names["apply_rotary_emb"]
    monkeypatch.setitem(script.names, "apply_rotary_emb", lambda x, cos, sin: published_rotation(x, cos, -sin))
    differing = {
        (row.rung, row.what.split(": ")[-1]) for row in model_and_gradients(script) if row.verdict == "DIFFERS"
    }
    assert differing >= {(rung, trainer) for rung in ("3", "5") for trainer in ("torch_ref", "jaxgpt")}


def test_every_known_version_is_a_recipe_under_a_whole_hash():
    assert all(len(digest) == 64 and int(digest, 16) for digest in VERSIONS)
    assert {version.recipe for version in VERSIONS.values()} <= RECIPES.keys()


def test_a_missing_file_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match=r"absent\.py can't be read: No such file"):
        identify(tmp_path / "absent.py")


def test_a_folder_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match="can't be read"):
        identify(tmp_path)


def test_an_unknown_script_is_refused_by_its_hash_with_the_known_ones_and_not_run(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(FOREIGN, encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        published.main([str(path)])
    said = capsys.readouterr()
    assert end.value.code == 2
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert hashlib.sha256(path.read_bytes()).hexdigest() in said.err
    assert all(version.recipe in said.err for version in VERSIONS.values())
    assert not Path(f"{path}.ran").exists()


def test_a_copy_changed_by_a_byte_is_refused(skeleton):
    skeleton.write_bytes(skeleton.read_bytes() + b"\n")
    with pytest.raises(BadInput, match="no known version"):
        load(skeleton)


def test_no_file_named_is_said_in_a_line(capsys):
    with pytest.raises(SystemExit) as end:
        published.main([])
    assert end.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_definitions_are_loaded_without_training_or_compiling(skeleton):
    script = load(skeleton)
    assert script.recipe.name == "muon-2024-10-12"
    assert script.names["doubled"](4) == 8
    assert script.names["after"]() == 3
    assert "text" not in script.names


def test_statements_run_in_the_order_of_the_script_beside_its_definitions():
    body = ast.parse("b = a + 1\na, = (7,)\nx, y = a, b\nb = 100").body
    script = Script({"a": 1}, body, RECIPES["tiny"])
    made = script.run(script.assignments("x, y", "b"), a=5)
    assert (made["x"], made["y"]) == (5, 6)
    assert script.names == {"a": 1}


def test_the_training_section_is_one_step_of_the_loop_without_validation():
    loop = "for step in range(3):\n    validate()\n    model.train()\n    go()\n    model.zero_grad(x=1)\n    log()"
    section = Script({}, ast.parse(loop).body, RECIPES["tiny"]).training_section()
    assert [ast.unparse(s) for s in section] == ["model.train()", "go()", "model.zero_grad(x=1)"]


def test_a_cast_taken_out_copies_and_comes_back():
    x = torch.ones(2)
    with without("bfloat16"):
        y = x.bfloat16()
        y /= 2
    assert (x.tolist(), y.dtype) == ([1, 1], torch.float32)
    assert x.bfloat16().dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (Row("4", "loss", 1e-6, 1e-6), "equal"),
        (Row("4", "loss", 1.1e-6, 1e-6), "DIFFERS"),
        (Row("4", "loss", 1e-6, 1e-6, "rounding", 1e-3), "equal"),
        (Row("4", "loss", 1e-4, 1e-6, "rounding", 1e-3), "expected difference: rounding"),
        (Row("4", "loss", 1e-2, 1e-6, "rounding", 1e-3), "DIFFERS"),
        (Row("4", "loss", math.nan, 1e-6, "rounding", 1e-3), "DIFFERS"),
        (Row("4", "loss", math.inf, 1e-6), "DIFFERS"),
    ],
    ids=["at", "above", "stated, below", "stated", "beyond what is stated", "nan", "infinite"],
)
def test_the_verdict_follows_the_figure(row, verdict):
    assert row.verdict == verdict


def test_a_planted_difference_is_printed_and_ends_the_program_with_one(skeleton, monkeypatch, capsys):
    planted = [Row("4", "loss", 0.0, 1e-6), Row("5", "gradients", 0.5, 1e-6)]
    monkeypatch.setattr(published, "rows", lambda script: iter(planted))
    with pytest.raises(SystemExit) as end:
        published.main([str(skeleton)])
    out = capsys.readouterr().out.splitlines()
    assert end.value.code == DIFFERENT == 1
    assert out[-3].endswith("equal")
    assert out[-2].endswith("DIFFERS")
    assert out[-1] == "1 unexpected difference"


def test_no_difference_but_expected_ones_ends_with_zero(skeleton, monkeypatch, capsys):
    monkeypatch.setattr(published, "rows", lambda script: iter([Row("0", "tokens", 3, 0, "drift", 5)]))
    with pytest.raises(SystemExit) as end:
        published.main([str(skeleton)])
    assert end.value.code == 0
    assert capsys.readouterr().out.endswith("\nno unexpected difference\n")


def test_a_tensor_on_one_side_only_is_an_infinite_difference():
    assert worst({"a": np.ones(2)}, {"a": np.ones(2), "b": np.ones(2)}) == np.inf


def test_nan_in_any_tensor_is_the_worst():
    assert math.isnan(worst({"a": np.array([np.nan]), "b": np.ones(1)}, {"a": np.ones(1), "b": np.zeros(1)}))


def test_ranks_that_leave_a_shard_by_themselves_drift_apart():
    # 32 tokens a step: the second rank, 16 on, finds no room for a third step in 101 tokens, the first one does.
    shards = [np.arange(101), np.arange(1000, 1101)]
    third = drifting_stream(shards, 2)[2][0]
    assert third[:2].ravel().tolist() == list(range(64, 80))
    assert third[2:].ravel().tolist() == list(range(1016, 1032))
    assert other_steps(drifting_stream(shards, 1)[:3], drifting_stream(shards, 2)[:3]) == 1
