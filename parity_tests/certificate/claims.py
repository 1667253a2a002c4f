"""The claims that the ladder is there to test, and what a run of it says to each."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from parity_tests.certificate.outcome import FAILED, PASSED, SKIPPED, Outcome

VERIFIED, REFUTED, NOT_TESTABLE, NOT_RUN = "verified", "refuted", "not testable here", "not run"
FLOAT64_AND_FLOAT32 = ("float64", "float32")

PUBLISHED_TEST = "test_both_trainers_do_what_the_published_script_does"
"""The one of rung 14 that runs a published script; the others test the means."""


@dataclass(frozen=True)
class Rung:
    """What a run did on one rung."""

    outcomes: Sequence[Outcome] = ()
    not_reached: int = 0
    left_out: int = 0
    in_part: bool = False
    """The command asked for some of its tests, or some of its files."""

    def count(self, result: str) -> int:
        return sum(o.result == result for o in self.outcomes)


@dataclass(frozen=True)
class Claim:
    """A sentence that is true or false, and the rungs that would show it."""

    text: str
    rungs: tuple[str, ...]
    dtypes: Mapping[str, tuple[str, ...]]
    """Rung -> the dtypes in which it has to be green."""
    needs: Callable[[Mapping[str, Rung]], str | None] = lambda rungs: None
    """What is missing for the claim to be testable here, if anything is."""


def _published(rungs: Mapping[str, Rung]) -> str | None:
    ran = any(o.name == PUBLISHED_TEST and o.result != SKIPPED for o in rungs.get("14", Rung()).outcomes)
    if ran:
        return None
    if os.environ.get("JAXGPT_PUBLISHED"):
        return f"{PUBLISHED_TEST} was not run"
    return "name your copy of the published train_gpt2.py in JAXGPT_PUBLISHED; none is shipped"


CLAIMS = (
    Claim(
        "Both frameworks compute the same recipe: logits, loss, gradients and updates.",
        ("3", "3b", "4", "5", "6"),
        dict.fromkeys(("3", "4", "5", "6"), FLOAT64_AND_FLOAT32),
    ),
    Claim("Both train along the same curve.", ("8", "11"), {"8": FLOAT64_AND_FLOAT32}),
    Claim("Newton-Schulz of both matches a float64 oracle.", ("1",), {"1": FLOAT64_AND_FLOAT32}),
    Claim("Data parallelism doesn't change what is computed.", ("9",), {"9": FLOAT64_AND_FLOAT32}),
    Claim("A training state crosses from either framework to the other.", ("10",), {"10": FLOAT64_AND_FLOAT32}),
    Claim("The published script computes the same.", ("14",), {}, _published),
)

_ALL_DTYPES = (*FLOAT64_AND_FLOAT32, "bfloat16")
AT_SCALE = (
    Claim(
        "At 124M on this GPU both frameworks compute the same: layers, loss, gradients and updates; and in bfloat16 "
        "neither is much further from float64 than the other.",
        ("3", "3b", "5", "6"),
        {"3": _ALL_DTYPES, "5": _ALL_DTYPES, "6": ("float32", "bfloat16")},
    ),
    Claim(
        "At 124M each does with the other's gradients what the other does, and both train within the noise floor.",
        ("7", "8"),
        {"8": ("float32",)},
    ),
    Claim("Newton-Schulz of both matches a float64 oracle.", ("1",), {"1": _ALL_DTYPES}),
    Claim("Several GPUs compute what one does.", ("9",), {"9": ("float32", "bfloat16")}),
    Claim("A training state crosses from either framework to the other.", ("10",), {}),
)
"""Those of `--device gpu`: rungs 2, 4 and 11 to 15 have nothing at scale, rung 5 takes rung 4's loss there."""

QUALITY = {
    "claim": "GPT-2 (124M) trained with Muon reaches a validation loss of 3.28 on FineWeb in 3.15B tokens.",
    "verdict": NOT_TESTABLE,
    "why": "it needs 3.15B tokens of FineWeb and 8 GPUs; the published curves are below",
    "rungs": [],
    "commands": [
        "python -m jaxgpt.corpus fineweb --shards 35",
        "python -m jaxgpt.train --recipe muon-2024-10-12 --mesh 8",
        "torchrun --nproc-per-node 8 -m -- torch_ref.train --recipe muon-2024-10-12 --mesh 8",
    ],
}
"""What no run on reduced recipes can show, whatever it measures."""


def judge(claim: Claim, rungs: Mapping[str, Rung]) -> tuple[str, str]:
    """The verdict and why. Refuted by any comparison that failed; verified by all of them, in the dtypes it names."""
    of_claim = {number: rungs.get(number, Rung()) for number in claim.rungs}
    failed = [o for rung in of_claim.values() for o in rung.outcomes if o.result == FAILED]
    compared = [o for o in failed if o.phase == "call"]
    if compared:
        return REFUTED, f"{len(compared)} of its tests failed, first {compared[0].test}"
    if failed:
        return NOT_RUN, f"{failed[0].test} broke before it compared anything"
    if unseen := [number for number, rung in of_claim.items() if not rung.outcomes]:
        return NOT_RUN, f"{listed(unseen)} {_were(unseen)} not run"
    if missing := claim.needs(rungs):
        return NOT_TESTABLE, missing
    if idle := [number for number, rung in of_claim.items() if not rung.count(PASSED)]:
        return NOT_RUN, f"all tests of {listed(idle)} were skipped"
    if late := sum(rung.not_reached for rung in of_claim.values()):
        return NOT_RUN, f"the run ended before {late} of its tests"
    if parts := [number for number, rung in of_claim.items() if rung.in_part]:
        return NOT_RUN, f"{listed(parts)} {_were(parts)} run in part"
    for number, dtypes in claim.dtypes.items():
        seen = {o.dtype for o in of_claim[number].outcomes if o.result == PASSED}
        if lacking := [dtype for dtype in dtypes if dtype not in seen]:
            return NOT_RUN, f"rung {number} was not run in {' and '.join(lacking)}"
    return VERIFIED, _evidence(of_claim)


def listed(rungs: Sequence[str]) -> str:
    """ "rung 3", "rungs 3, 4"."""
    return f"rung{'s' * (len(rungs) > 1)} {', '.join(rungs)}"


def _were(rungs: Sequence[str]) -> str:
    return "was" if len(rungs) == 1 else "were"


def _evidence(rungs: Mapping[str, Rung]) -> str:
    outcomes = [o for rung in rungs.values() for o in rung.outcomes]
    passed = sum(o.result == PASSED for o in outcomes)
    said = f"{passed:,} test{'s' * (passed != 1)} of {listed(list(rungs))}"
    shares = [o.worst.share for o in outcomes if o.worst]
    if shares:
        said += f", at most {max(shares):.0%} of what is allowed"
    if left_out := sum(rung.left_out for rung in rungs.values()):
        said += f"; {left_out} left out"
    return said
