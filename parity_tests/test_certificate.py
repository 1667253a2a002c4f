"""`pytest parity_tests/ --certificate DIR`: what is written, and what is refused."""

import json
import math
import subprocess
import sys

import pytest

from parity_tests.measured import Curve, Measurement, assert_within, curve, curves_taken, taken
from parity_tests.programs import ROOT
from parity_tests.small_ladder import GRADIENTS, LOGITS, MATRIX, STOPPED, Session, climb


@pytest.fixture(scope="module")
def red(tmp_path_factory, environment) -> Session:
    files = {"test_rung_03_logits.py": LOGITS, "test_rung_05_gradients.py": GRADIENTS}
    return climb(tmp_path_factory.mktemp("ladder"), environment, files)


def rung(session: Session, number: str) -> dict:
    return next(rung for rung in session.document["rungs"] if rung["rung"] == number)


def test_a_failing_rung_is_named_with_its_tensor(red):
    assert red.code == 1
    told = red.document["verdict"]
    assert told["verdict"] == "part"
    assert told["says"].startswith("They part at rung 5: ")


def test_the_tensor_of_a_failure_is_named(tmp_path, environment):
    gradients = GRADIENTS.replace('float("nan")', "0.0")
    said = climb(tmp_path, environment, {"test_rung_05_gradients.py": gradients}).document["verdict"]["says"]
    assert said == f"They part at rung 5: gradients: {MATRIX} is 2.5e-01 apart, allowed 1e-05"


def test_failures_are_listed_with_the_first_line_of_their_message(red):
    lines = {f["test"]: f["line"] for f in red.document["failures"]}
    assert lines["test_rung_05_gradients.py::test_raw_gradients_are_the_same"] == (
        f"rung 5, gradients: {MATRIX} is 2.50e-01 apart, allowed 1e-05"
    )


def test_tests_of_a_rung_are_counted(red):
    counted = {name: rung(red, "3")[name] for name in ("passed", "failed", "skipped", "left_out", "not_reached")}
    assert counted == {"passed": 2, "failed": 0, "skipped": 1, "left_out": 1, "not_reached": 0}


def test_a_measurement_is_kept_by_dtype_with_its_share_and_oracle(red):
    worst = rung(red, "3")["worst_by_dtype"]
    assert worst.keys() == {"float64", "float32"}
    kept = worst["float32"]
    assert (kept["what"], kept["apart"], kept["allowed"], kept["oracle"]) == ("rung 3, logits", 2e-7, 1e-6, 1e-7)
    assert kept["share"] == pytest.approx(0.2)


def test_a_nan_is_kept_as_a_word_and_is_the_worst(red):
    worst = rung(red, "5")["worst"]
    assert (worst["apart"], worst["share"], worst["dtype"]) == ("NaN", "Infinity", "float32")


def test_curves_travel_with_their_test(red):
    curves = red.document["curves"]
    assert [c["values"] for c in curves] == [{"jaxgpt": [5.0, 4.0], "torch_ref": [5.0, 4.5]}] * 2


def test_a_skipped_test_says_why(red):
    assert red.document["skipped"] == [
        {"test": "test_rung_03_logits.py::test_needs_a_copy", "rung": "3", "why": "no <copy> of it"}
    ]


def test_tests_left_out_are_said_beside_the_verdict(red):
    assert "1 left out (--full runs the slow ones)" in red.document["verdict"]["notes"]


def test_the_command_and_the_time_are_kept(red):
    assert red.document["command"] == ["pytest", ".", "--certificate", "c"]
    assert red.document["seconds"] > 0
    assert red.document["written"].endswith("+00:00")


def test_where_the_page_lies_is_said_at_the_end(red):
    assert "certificate: c/certificate.html" in red.said


def test_an_interrupted_run_is_written_as_incomplete(tmp_path, environment):
    session = climb(tmp_path, environment, {"test_rung_03_logits.py": STOPPED})
    assert session.code == pytest.ExitCode.INTERRUPTED
    assert session.document["verdict"]["says"].endswith(
        "1 of 1 test, 1 of 1 rung; incomplete: interrupted with 2 tests to go"
    )
    assert session.document["verdict"]["verdict"] == "open"


def test_a_file_that_cannot_be_imported_breaks_its_rung(tmp_path, environment):
    session = climb(tmp_path, environment, {"test_rung_03_logits.py": "import nothing_of_that_name"})
    assert session.document["verdict"]["says"].startswith("Rung 3 broke before it compared: ModuleNotFoundError")


@pytest.mark.slow
def test_workers_of_xdist_report_to_one_certificate(tmp_path, environment):
    pytest.importorskip("xdist")
    session = climb(tmp_path, environment, {"test_rung_03_logits.py": LOGITS}, "-p", "xdist", "-n", "2")
    counted = rung(session, "3")
    assert (counted["passed"], counted["skipped"], counted["left_out"], counted["not_reached"]) == (2, 1, 1, 0)
    assert counted["worst"]["what"] == "rung 3, logits"
    assert len(session.document["curves"]) == 2


def test_a_folder_that_exists_is_refused_before_any_test_and_left_alone(tmp_path, environment):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine").write_text("mine", encoding="utf-8")
    tests = "from pathlib import Path\ndef test(): Path('ran').touch()"
    session = climb(tmp_path, environment, {"test_rung_03_logits.py": tests})
    assert session.code == pytest.ExitCode.USAGE_ERROR
    assert session.said.strip() == "ERROR: --certificate c: exists; name another folder"
    assert [file.name for file in (tmp_path / "c").iterdir()] == ["mine"]
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_cannot_be_made_is_refused_in_a_line(environment, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    session = climb(tmp_path, environment, {"test_rung_03_logits.py": LOGITS}, folder="file/certificate")
    assert session.code == pytest.ExitCode.USAGE_ERROR
    assert len(session.said.strip().splitlines()) == 1
    assert f"{tmp_path / 'file'} is no folder that can be written; name another" in session.said


@pytest.mark.slow
def test_the_ladder_itself_writes_one(environment, tmp_path):
    test = "parity_tests/test_rung_04_loss.py::test_cross_entropy_matches_oracle_and_counts_padding_rows"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", test, "--certificate", str(tmp_path / "c")]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=300)
    made = json.loads((tmp_path / "c" / "certificate.json").read_text(encoding="utf-8"))
    four = next(rung for rung in made["rungs"] if rung["rung"] == "4")
    assert four["worst_by_dtype"].keys() == {"float64", "float32"}
    assert made["environment"]["precision_flags"]["jax_enable_x64"] is True
    assert made["environment"]["devices"]["jaxgpt"] == ["cpu: cpu"] * 8


# Measurements and curves


@pytest.mark.parametrize(
    ("apart", "allowed", "share"),
    [(1e-6, 1e-5, 0.1), (2.0, 1.0, 2.0), (0.0, 0.0, 0.0), (1e-9, 0.0, math.inf), (math.nan, 1.0, math.inf)],
)
def test_share_of_an_allowance(apart, allowed, share):
    assert Measurement("it", apart, allowed).share == pytest.approx(share)


def test_the_largest_share_of_a_name_is_kept_and_nan_is_the_largest():
    taken()
    assert_within(1e-3, 1.0)
    with pytest.raises(AssertionError, match="it is nan apart"):
        assert_within(math.nan, 1.0)
    assert_within(0.5, 1.0)
    [kept] = taken()
    assert math.isnan(kept.apart)


def test_a_curve_is_kept_up_to_where_its_test_failed():
    curves_taken()
    losses = {"jaxgpt": [3.0], "torch_ref": [3.0]}
    curve("tiny", losses)
    losses["jaxgpt"].append(2.0)
    assert curves_taken() == [Curve("tiny", {"jaxgpt": [3.0, 2.0], "torch_ref": [3.0]})]
