"""The one sentence that a certificate opens with."""

from collections.abc import Mapping, Sequence

from parity_tests.certificate.claims import Rung
from parity_tests.certificate.outcome import FAILED, PASSED, PROGRAMS, Outcome

AGREE, PART, OPEN = "agree", "part", "open"


def verdict(rungs: Mapping[str, Rung], failures: Sequence[Outcome], interrupted: bool) -> dict:
    """The verdict as one word, as a sentence, and what has to be said beside it.

    Args:
      rungs: in ladder order.
      failures: in ladder order.
      interrupted: somebody stopped the run.
    """
    word, says = _word_and_sentence(rungs, [f for f in failures if f.rung != PROGRAMS])
    if late := _incomplete(rungs, interrupted):
        says += f"; incomplete: {late}"
    return {"verdict": word, "says": says, "notes": _notes(rungs)}


def _word_and_sentence(rungs: Mapping[str, Rung], failures: Sequence[Outcome]) -> tuple[str, str]:
    ladder = {number: rung for number, rung in rungs.items() if number != PROGRAMS}
    passed, failed = _total(ladder, PASSED), len(failures)
    climbed = [number for number, rung in ladder.items() if rung.count(PASSED)]
    if failures:
        first = [f for f in failures if f.rung == failures[0].rung]
        told = next((f for f in first if f.worst and f.worst.share > 1), first[0])
        return PART, _parting(told)
    if not climbed:
        return OPEN, "No rung of the ladder was run"
    tests = f"{passed:,} of {_counted(passed + failed, 'test')}"
    if len(climbed) == len(ladder) and not any(rung.in_part or rung.not_reached for rung in ladder.values()):
        return AGREE, f"The two trainers agree: {tests}, {_counted(len(ladder), 'rung')}"
    return OPEN, f"The two trainers agree on what was run: {tests}, {len(climbed)} of {_counted(len(ladder), 'rung')}"


def _parting(failure: Outcome) -> str:
    """Where and in what the two differ, or what broke."""
    rung = f"rung {failure.rung}"
    if failure.phase != "call":
        return f"{rung.capitalize()} broke before it compared: {failure.line}"
    worst = failure.worst
    if worst is None or worst.share <= 1:
        return f"{rung.capitalize()} is red: {failure.name.removeprefix('test_').replace('_', ' ')}: {failure.line}"
    what = worst.what.removeprefix(f"{rung}, ")
    if what == "it":
        what = failure.name.removeprefix("test_").replace("_", " ")
    return f"They part at {rung}: {what} is {worst.apart:.1e} apart, allowed {worst.allowed:.0e}"


def _incomplete(rungs: Mapping[str, Rung], interrupted: bool) -> str:
    late = sum(rung.not_reached for rung in rungs.values())
    if not interrupted:
        return f"stopped with {_counted(late, 'test')} to go" if late else ""
    return f"interrupted with {_counted(late, 'test')} to go" if late else "interrupted"


def _notes(rungs: Mapping[str, Rung]) -> list[str]:
    """How many tests failed, were skipped, were left out, and how the programs did."""
    failed, skipped = _total(rungs, FAILED), _total(rungs, "skipped")
    left_out = sum(rung.left_out for rung in rungs.values())
    programs = rungs.get(PROGRAMS, Rung())
    said = [f"{failed:,} failed"] * bool(failed) + [f"{skipped:,} skipped"] * bool(skipped)
    if left_out:
        said.append(f"{left_out:,} left out (--full runs the slow ones)")
    if ran := programs.count(PASSED) + programs.count(FAILED):
        said.append(f"of the programs' own tests {programs.count(PASSED):,} of {ran:,} passed")
    return said


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _total(rungs: Mapping[str, Rung], result: str) -> int:
    return sum(rung.count(result) for rung in rungs.values())
