"""The runs in `results/` started from the initial weights that they are declared with, whichever file held them."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks import claim_weights
from benchmarks.claim_plan import plan
from jaxgpt.files import sha256
from parity_tests.programs import ROOT

RESULTS = ROOT / "results"
VERSIONS = {"jax": "1.2.3", "flax": "4.5.6"}


def written(file: Path, versions: dict[str, str]) -> Path:
    metadata = {"recipe": "tiny", "step": "0", "versions": json.dumps(versions)}
    save_file({"b": np.arange(3.0), "a": np.zeros((2, 2), np.float32)}, file, metadata=metadata)
    return file


def test_every_run_of_results_started_from_its_declared_weights():
    known = json.loads((RESULTS / claim_weights.FILE).read_text(encoding="utf-8"))
    there = [run for run in plan() if (RESULTS / "runs" / run.name).is_dir()]
    starts = {run.name: json.loads((RESULTS / "runs" / run.name / "config.json").read_bytes()) for run in there}
    assert [run.name for run in there if starts[run.name]["init_sha256"] not in known[run.weights]] == []


def test_weights_of_results_made_again_are_those_of_its_runs():
    known = json.loads((RESULTS / claim_weights.FILE).read_text(encoding="utf-8"))
    assert claim_weights.files("20m-seed0", claim_weights.used(RESULTS)["20m-seed0"]) == known["20m-seed0"]


@pytest.mark.parametrize("versions", [VERSIONS, {"jax": "0.10", "flax": "0.12.34567"}], ids=["as_here", "others"])
def test_every_order_of_metadata_is_a_file_that_may_be_written(tmp_path, versions):
    orders = claim_weights.orders(written(tmp_path / "here", VERSIONS).read_bytes(), versions)
    assert {sha256(written(tmp_path / "there", versions)) for _ in range(8)} <= orders
    assert len(orders) == 6


def test_one_changed_weight_is_in_no_list(tmp_path):
    content = bytearray(written(tmp_path / "here", VERSIONS).read_bytes())
    orders = claim_weights.orders(bytes(content), VERSIONS)
    content[-1] ^= 1
    assert not orders & claim_weights.orders(bytes(content), VERSIONS)


def test_a_folder_without_runs_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        claim_weights.main([str(tmp_path)])
    assert (end.value.code, "no run of the claims" in capsys.readouterr().err) == (2, True)
