"""What the certificate says of a run: the verdict, and each of the claims."""

import pytest

from parity_tests.certificate.claims import AT_SCALE, CLAIMS, NOT_RUN, NOT_TESTABLE, REFUTED, VERIFIED, Rung, judge
from parity_tests.certificate.document import Run, document
from parity_tests.certificate.outcome import FAILED, SKIPPED, Outcome, in_ladder_order, rung_of
from parity_tests.measured import Measurement
from parity_tests.programs import ROOT


@pytest.mark.parametrize(
    ("file", "number"),
    [
        ("parity_tests/test_rung_03b_fast_paths.py", "3b"),
        ("test_rung_00_tokens.py", "0"),
        ("test_rung_10_bridge.py", "10"),
        ("parity_tests/test_commands.py", "programs"),
    ],
)
def test_rung_of_a_file(file, number):
    assert rung_of(file) == number


def test_rungs_are_in_ladder_order():
    rungs = ["3", "3b", "4", "10", "programs"]
    assert sorted({*rungs}, key=in_ladder_order) == rungs


# Claims and verdict


def outcomes(*numbers: str, **changes) -> list[Outcome]:
    """A test in float64 and one in float32 on each rung."""
    name = changes.pop("name", "test_it")
    measured = (Measurement("it", 1e-7, 1e-6),)
    return [
        Outcome(
            f"test_rung_{int(n.rstrip('b')):02}{'b' * n.endswith('b')}_it.py::{name}[{d}]", measured=measured, **changes
        )
        for n in numbers
        for d in ("float64", "float32")
    ]


def judged(about: str, *numbers: str, **changes) -> tuple[str, str]:
    claim = next(claim for claim in CLAIMS if about in claim.text)
    return judge(claim, {n: Rung(outcomes(n, **changes)) for n in numbers})


def test_a_claim_is_verified_by_all_its_rungs_green_in_both_dtypes():
    said, why = judged("same recipe", "3", "3b", "4", "5", "6")
    assert said == VERIFIED
    assert why == "10 tests of rungs 3, 3b, 4, 5, 6, at most 10% of what is allowed"


def test_a_claim_is_refuted_by_a_failed_comparison():
    said, why = judged("same recipe", "3", "3b", "4", "5", "6", result=FAILED)
    assert said == REFUTED
    assert "test_rung_03_it.py::test_it[float64]" in why


def test_a_claim_is_not_refuted_by_a_test_that_broke_before_comparing():
    assert judged("Newton-Schulz", "1", result=FAILED, phase="setup")[0] == NOT_RUN


def test_a_claim_with_a_rung_that_was_not_run_is_not_run():
    assert judged("same recipe", "3", "4", "5", "6") == (NOT_RUN, "rung 3b was not run")


def test_a_claim_in_one_dtype_alone_is_not_run():
    claim = next(claim for claim in CLAIMS if "Newton-Schulz" in claim.text)
    assert judge(claim, {"1": Rung(outcomes("1")[:1])}) == (NOT_RUN, "rung 1 was not run in float32")


@pytest.mark.parametrize("climbed", [Rung(outcomes("1"), in_part=True), Rung(outcomes("1"), not_reached=3)])
def test_a_claim_of_a_rung_run_in_part_is_not_run(climbed):
    claim = next(claim for claim in CLAIMS if "Newton-Schulz" in claim.text)
    assert judge(claim, {"1": climbed})[0] == NOT_RUN


def test_the_published_script_is_not_testable_without_a_copy(monkeypatch):
    monkeypatch.delenv("JAXGPT_PUBLISHED", raising=False)
    said, why = judged("published script", "14")
    assert said == NOT_TESTABLE
    assert "JAXGPT_PUBLISHED" in why


def test_the_published_script_is_verified_by_the_test_that_runs_it():
    name = "test_both_trainers_do_what_the_published_script_does"
    assert judged("published script", "14", name=name)[0] == VERIFIED
    assert judged("published script", "14", name=name, result=SKIPPED)[0] == NOT_TESTABLE


def of(tests: list[Outcome], **changes) -> dict:
    """The document of a run of these tests."""
    files = sorted({o.test.partition("::")[0] for o in tests})
    return document(
        Run(
            tests,
            **{
                "not_reached": [],
                "left_out": [],
                "files": files,
                "root": ROOT,
                "selected": False,
                "interrupted": False,
                "command": ["pytest"],
                "flags": [],
                "seconds": 1.0,
                "written": "2026-01-01T00:00:00+00:00",
                "environment": {},
            }
            | changes,
        )
    )


def test_a_green_ladder_agrees():
    said = of(outcomes("0", "3b", "10"))["verdict"]
    assert (said["verdict"], said["says"]) == ("agree", "The two trainers agree: 6 of 6 tests, 3 rungs")


def test_part_of_a_green_ladder_agrees_on_what_was_run():
    files = ["test_rung_01_it.py", "test_rung_02_it.py"]
    said = of(outcomes("1"), files=files)["verdict"]
    assert said["says"] == "The two trainers agree on what was run: 2 of 2 tests, 1 of 2 rungs"


def test_the_lowest_red_rung_is_named():
    said = of([*outcomes("10", result=FAILED), *outcomes("4", result=FAILED, line="no such key"), *outcomes("3")])
    assert said["verdict"]["says"] == "Rung 4 is red: it: no such key"
    assert [f["rung"] for f in said["failures"]] == ["4", "4", "10", "10"]


def test_of_a_red_rung_a_tensor_that_differs_is_named_before_another_failure():
    beyond = Outcome("test_rung_05_it.py::test_b", FAILED, measured=(Measurement("rung 5, wte.weight", 1.0, 1e-5),))
    said = of([Outcome("test_rung_05_it.py::test_a", FAILED, line="no such key"), beyond])["verdict"]["says"]
    assert said == "They part at rung 5: wte.weight is 1.0e+00 apart, allowed 1e-05"


def test_a_difference_that_a_passing_test_planted_is_not_the_trainers():
    measured = (Measurement("planted", 1.0, 1e-5), Measurement("true", 1e-6, 1e-5))
    [twelve] = of([Outcome("test_rung_12_it.py::test_it", measured=measured)])["rungs"]
    assert twelve["worst"]["what"] == "true"


def test_a_failing_program_is_no_disagreement_but_is_said():
    tests = [*outcomes("1"), Outcome("test_commands.py::test_it", FAILED)]
    said = of(tests)["verdict"]
    assert said["verdict"] == "agree"
    assert said["notes"] == ["1 failed", "of the programs' own tests 0 of 1 passed"]


def test_a_device_is_part_of_a_command_that_runs_a_line_again():
    made = of(outcomes("1"), flags=["--device", "gpu"])
    assert made["claims"][2]["commands"] == ["pytest test_rung_01_it.py --device gpu"]


@pytest.mark.parametrize(
    ("dtypes", "verdict"), [(("float64", "float32", "bfloat16"), VERIFIED), (("float32",), NOT_RUN)]
)
def test_a_run_on_a_gpu_is_judged_by_what_there_is_at_scale(dtypes, verdict):
    tests = [Outcome(f"test_rung_{n}_it.py::test_it[{dtype}]") for n in ("03", "03b", "05", "06") for dtype in dtypes]
    said = {each["claim"]: each for each in of(tests, flags=["--device", "gpu"])["claims"]}
    assert [each["verdict"] for claim, each in said.items() if "both frameworks compute the same" in claim] == [verdict]
    assert not any("published script" in claim for claim in said)


def test_every_rung_that_a_claim_at_scale_names_has_tests_at_scale():
    files = [path for path in (ROOT / "parity_tests").glob("test_rung_*.py") if "at_scale" in path.read_text("utf-8")]
    there = {rung_of(path.name) for path in files}
    assert {number for claim in AT_SCALE for number in claim.rungs} <= there
