"""The yardstick beside AdamW's runs at 124M: weights moved by an ulp, and the program that trains from them."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from benchmarks import claim_ulp, claim_weights
from jaxgpt.bridge import main as bridge
from jaxgpt.shards import write_shard
from parity_tests.made_up_runs import empty, made
from parity_tests.programs import ROOT

WEIGHTS = {"w": np.linspace(-2, 2, 401, dtype=np.float32).reshape(1, 401), "zero": np.zeros(3, np.float32)}
YARDSTICK = ROOT / "results" / claim_ulp.FOLDER / claim_ulp.NAME


def test_a_number_is_moved_by_one_ulp_up_or_down_and_zero_stays():
    moved = claim_ulp.moved(WEIGHTS)
    one, other = WEIGHTS["w"][WEIGHTS["w"] != 0], moved["w"][WEIGHTS["w"] != 0]
    assert set(other.view(np.int32) - one.view(np.int32)) == {-1, 1}
    assert (moved["w"][WEIGHTS["w"] == 0] == 0).all()
    assert (moved["zero"] == 0).all()
    assert moved["w"].dtype == np.float32


def test_moved_weights_are_the_same_every_time():
    assert claim_ulp.moved(WEIGHTS)["w"].tobytes() == claim_ulp.moved(WEIGHTS)["w"].tobytes()


def small(name: str, file: Path) -> None:
    """What stands for the bridge of 124M."""
    bridge(["--recipe", "tiny", "--model.layers", "1", "--out", str(file)])


def shapes(file: Path) -> tuple[dict, dict]:
    """Shape by name, and the metadata."""
    with safe_open(file, framework="numpy") as opened:
        return {name: opened.get_tensor(name).shape for name in opened.keys()}, opened.metadata()  # noqa: SIM118


def test_a_file_of_moved_weights_has_the_bridges_names_shapes_and_metadata(tmp_path, monkeypatch):
    monkeypatch.setattr(claim_ulp, "bridge", small)
    small("", tmp_path / "there")
    claim_ulp.make(tmp_path / "here")
    assert shapes(tmp_path / "here") == shapes(tmp_path / "there")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "there"]


def test_the_yardstick_of_results_started_from_the_moved_weights():
    """Made again by benchmarks.claim_weights, bit for bit."""
    known = json.loads((ROOT / "results" / claim_weights.FILE).read_text(encoding="utf-8"))
    start = json.loads((YARDSTICK / "config.json").read_text(encoding="utf-8"))["init_sha256"]
    assert start in known[claim_ulp.START]
    assert start not in known[claim_ulp.of().weights]


def test_weights_are_moved_for_results_that_have_a_yardstick_alone(tmp_path):
    results = empty(tmp_path)
    made(results, "124m-adamw-300-jax", 4.4, versions={"jax": "1", "flax": "2"})
    assert claim_weights.used(results).keys() == {"124m-seed0"}
    (results / claim_ulp.FOLDER / claim_ulp.NAME).mkdir(parents=True)
    assert claim_weights.used(results)[claim_ulp.START] == [{"jax": "1", "flax": "2"}]


# The program

STUB = """
import json, os, sys
from pathlib import Path

words = sys.argv[1:]
Path(os.environ["STUB_CALL"]).write_text(json.dumps(words))
folder = Path(words[words.index("--run") + 1])
folder.mkdir(exist_ok="--resume" in words)
if os.environ.get("STUB_FAILS"):
    sys.exit(143)
for name in ("config.json", "metrics.jsonl", "weights.safetensors"):
    (folder / name).write_text("{}")
"""


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    """Results with AdamW's run in torch at its own learning rate, a trainer that trains nothing, and shards."""
    results = empty(tmp_path)
    made(results, claim_ulp.OF, 4.4, lr=0.00045)
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "train.py").write_text(STUB, encoding="utf-8")
    monkeypatch.setenv("STUB_CALL", str(tmp_path / "call.json"))
    stubbed = dataclasses.replace(claim_ulp.of(), trainer="stub")
    monkeypatch.setattr(claim_ulp, "of", lambda: stubbed)
    monkeypatch.setattr(claim_ulp, "python_path", lambda: str(tmp_path))
    monkeypatch.setattr(claim_ulp, "make", lambda file: save_file({}, file))
    for kind in ("train", "val"):
        write_shard(tmp_path / f"text_{kind}_0.bin", np.arange(200, dtype=np.uint16))
    return results


def run(results: Path, *words: str) -> list[str]:
    """The program, with that text; what it called the trainer with."""
    text = results.parent
    data = ("--data", str(text / "text_train_*.bin"), "--val-data", str(text / "text_val_*.bin"))
    claim_ulp.main([str(results), *data, *words])
    return json.loads((text / "call.json").read_text(encoding="utf-8"))


def test_the_trainer_gets_the_runs_flags_and_learning_rate(results):
    words = run(results, "--stop-at", "150")
    assert words[: len(claim_ulp.of().words)] == list(claim_ulp.of().words)
    last = {name: value for name, value in itertools.pairwise(words) if name.startswith("--")}
    assert (last["--optimizer.lr"], last["--stop-at"], last["--mesh"]) == ("0.00045", "150", "1")
    assert last["--init-from"].endswith(f"{claim_ulp.START}.safetensors")


def test_configuration_and_metrics_stay(results):
    run(results)
    kept = [path.relative_to(results).as_posix() for path in sorted(results.glob("yardsticks*/**/*"))]
    folder = f"yardsticks/{claim_ulp.NAME}"
    assert kept == [folder, f"{folder}/config.json", f"{folder}/metrics.jsonl"]


def test_what_was_stopped_goes_on(results, monkeypatch):
    monkeypatch.setenv("STUB_FAILS", "1")
    with pytest.raises(SystemExit) as end:
        run(results)
    monkeypatch.delenv("STUB_FAILS")
    assert (end.value.code, (results / claim_ulp.FOLDER).exists()) == (143, False)
    assert "--resume" in run(results)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--stop-at", "301"], "--stop-at 301: give 1 to 300 steps"),
        (["--data", "nowhere_*.bin"], "--data nowhere_*.bin: no file matches"),
    ],
)
def test_bad_input_is_one_line(results, capsys, words, said):
    with pytest.raises(SystemExit) as end:
        run(results, *words)
    assert (end.value.code, said in capsys.readouterr().err) == (2, True)


def test_a_yardstick_that_is_there_is_left_as_it_is(results, capsys):
    run(results)
    with pytest.raises(SystemExit) as end:
        run(results)
    assert (end.value.code, f"move it away, or to {claim_ulp.EARLIER}" in capsys.readouterr().err) == (2, True)


def test_without_the_run_beside_it_there_is_no_yardstick(results, capsys):
    shutil.rmtree(results / "runs" / claim_ulp.OF)
    with pytest.raises(SystemExit) as end:
        run(results)
    assert (end.value.code, "benchmarks.claim_runs" in capsys.readouterr().err) == (2, True)
