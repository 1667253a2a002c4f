"""What became of the mutants: a JSON file that grows with each result, so that a run can be cut short and go on."""

import hashlib
import json
import os
from pathlib import Path

from jaxgpt.errors import BadInput
from parity_tests.mutants.mutate import FILES, Mutant
from parity_tests.mutants.survivors import WHY
from parity_tests.planted.run import Outcome

RESULTS = Path(__file__).with_name("results.json")


def hashes(sources: dict[str, str]) -> dict[str, str]:
    """file -> SHA-256 of its text."""
    return {file: hashlib.sha256(sources[file].encode()).hexdigest() for file in FILES}


def result(mutant: Mutant, climb: Outcome) -> dict[str, object]:
    """One entry of the file."""
    outcome = "survived" if climb.ended == "green" else "killed"
    return {
        "id": mutant.id,
        "framework": mutant.framework,
        "file": mutant.file,
        "line": mutant.line,
        "operator": mutant.operator,
        "before": mutant.before,
        "after": mutant.after,
        "outcome": outcome,
        "rung": climb.rung,
        "test": climb.test,
        "message": climb.message and climb.message[:200],
        "why": _why(mutant.id, outcome),
        "seconds": climb.seconds,
    }


def read(path: Path) -> dict:
    """The file's content.

    Raises:
      BadInput: it isn't one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["sources"].keys() == set(FILES) and all("outcome" in each for each in content["mutants"]):
            return content
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise BadInput(f"--out {path} holds no results of this program: name another file")


def still_true(content: dict, mutants: list[Mutant], sources: dict[str, str]) -> dict[str, dict]:
    """id -> entry of the mutants whose file is what it was when they were run."""
    same = {file for file, hashed in hashes(sources).items() if content["sources"][file] == hashed}
    known = {mutant.id for mutant in mutants}
    kept = [each for each in content["mutants"] if each["file"] in same and each["id"] in known]
    return {each["id"]: each | {"why": _why(each["id"], each["outcome"])} for each in kept}


def _why(mutant_id: str, outcome: str) -> str | None:
    return WHY.get(mutant_id) if outcome == "survived" else None


def write(path: Path, seed: int, mutants: list[Mutant], done: dict[str, dict], sources: dict[str, str]) -> None:
    """Put the results in the place of the file, all at once. `done`: id -> entry, `mutants` all that the seed chose."""
    entries = [done[mutant.id] for mutant in mutants if mutant.id in done]
    killed = sum(entry["outcome"] == "killed" for entry in entries)
    content = {"seed": seed, "generated": len(mutants), "killed": killed, "sources": hashes(sources)}
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content | {"mutants": entries}, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)
