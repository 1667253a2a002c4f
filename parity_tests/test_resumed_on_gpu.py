"""What docs/runs.md says of determinism on a GPU: the recorded losses of an H100 are equal to the bit."""

import json
from pathlib import Path

import pytest

RESUMED = Path(__file__).parent.parent / "benchmarks" / "results" / "resumed-h100"


def losses(kind: str, run: str) -> list[tuple[int, float, float]]:
    """Step, loss and norm of the gradient of each step that a run recorded."""
    rows = map(json.loads, (RESUMED / kind / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [(row["step"], row["train_loss"], row["grad_norm"]) for row in rows if "train_loss" in row]


@pytest.mark.parametrize("run", ["again", "cut"])
@pytest.mark.parametrize("kind", ["bf16", "float32", "plain"])
def test_with_deterministic_operations_a_second_run_and_a_resumed_one_are_the_first(kind, run):
    whole = losses(kind, "whole")
    assert [step for step, *_ in whole] == list(range(1, 13))
    assert losses(kind, run) == whole


@pytest.mark.parametrize("run", ["again", "cut"])
def test_without_them_they_part(run):
    assert losses("none", run) != losses("none", "whole")
