"""What the project claims, judged from its files: `python -m benchmarks.claims results`.

Reads the runs under results/runs and the measurements beside the code, judges each of `benchmarks.claim_list`, and
writes results/claims.json, results/claims.md and the README's table made from it, and pictures of the runs. A claim
whose runs aren't there is not testable, and says what is missing. With `--check` nothing is written: all is computed
again, and the program ends with 1 where anything differs from what is there.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks import claim_ulp
from benchmarks.claim_evidence import Evidence, NotThere
from benchmarks.claim_list import CLAIMS, Claim
from benchmarks.claim_page import page
from benchmarks.claim_table import with_table
from benchmarks.claim_verdicts import Finding
from jaxgpt.commands import parse
from jaxgpt.curves import compare, load_run
from jaxgpt.errors import BadInput, exit_codes
from jaxgpt.picture import comparison_png

_PROG = "python -m benchmarks.claims"
FIGURES, PAGE, README = "claims.json", "claims.md", "README.md"
_PICTURES = {
    "124m.png": ("124m-adamw-300-jax", "124m-adamw-300-torch", "124m-muon-200-jax", "124m-muon-200-torch"),
    "124m-adamw.png": ("124m-adamw-300-torch", "124m-adamw-300-jax", claim_ulp.NAME),
    "124m-muon.png": ("124m-muon-200-jax", "124m-muon-200-torch"),
    "20m.png": ("20m-adamw-seed0-jax", "20m-muon-seed0-jax", "20m-soap-jax", "20m-shampoo-jax"),
}
_CAPTIONS = {
    "124m.png": (
        "124M on one H100, all with the model of muon-2024-10-12, each with the optimiser, steps and framework of its "
        "name (Muon's two lie on each other), and with its own schedule: where Muon's ends, AdamW's goes on"
    ),
    "124m-adamw.png": (
        "AdamW at 124M in both frameworks, and (ulp) in PyTorch again from weights a unit in the last place away"
    ),
    "124m-muon.png": "Muon at 124M in both frameworks",
    "20m.png": "19M parameters in JAX, seed 0: AdamW, Muon, SOAP and Shampoo, each with its published settings",
}
_CLOSE = 1e-6
"""Relative: sums come out otherwise on another machine."""


@dataclass(frozen=True)
class Flags:
    """Judge the claims from the runs, or check what was judged."""

    results: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RESULTS")]
    """The folder that holds runs/, and gets claims.json, claims.md and the pictures. A README.md beside it gets the
    table of verdicts, where it has a place for it."""
    check: bool = False
    """Write nothing; say what claims.json, claims.md and the README's table have otherwise than the files give, and end
    with 1 then."""


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `Flags`."""
    flags = parse(Flags, sys.argv[1:] if argv is None else argv, _PROG)
    if not flags.results.is_dir():
        raise BadInput(f"{flags.results}: no such folder; give the one that holds runs/, such as results")
    if flags.check:
        apart = differences(flags.results)
        print(
            *(apart or [f"{flags.results / FIGURES}: every figure, hash and verdict is what the files give"]), sep="\n"
        )
        sys.exit(1 if apart else 0)
    entries = judged(flags.results)
    written = {
        flags.results / name: content
        for name, content in (files(entries, flags.results) | pictures(flags.results)).items()
    }
    readme = flags.results.resolve().parent / README
    if readme.is_file():
        written[readme] = with_table(readme.read_text(encoding="utf-8"), entries).encode()
    for path, content in written.items():
        try:
            path.write_bytes(content)
        except OSError as error:
            raise BadInput(f"{path} can't be written: {error.strerror}; mend its mode") from None
    for entry in entries:
        print(f"{entry['verdict']:>12}  {entry['id']}: {entry['seen']}")


def judged(results: Path, claims: Sequence[Claim] = CLAIMS) -> list[dict]:
    """The entries of claims.json, from the files there are."""
    return [_entry(results, claim) for claim in claims]


def files(entries: Sequence[dict], results: Path) -> dict[str, bytes]:
    """Name -> content of claims.json and claims.md."""
    figures = json.dumps(entries, indent=1, allow_nan=False) + "\n"
    return {FIGURES: figures.encode(), PAGE: page(entries, captions(results)).encode()}


def pictures(results: Path) -> dict[str, bytes]:
    """Name -> picture of the runs that are there."""
    return {
        name: comparison_png(compare([load_run(folder) for folder in folders(results, name)]))
        for name in captions(results)
    }


def captions(results: Path) -> dict[str, str]:
    """Name -> caption of the pictures that can be drawn; one run alone is no picture."""
    return {name: said for name, said in _CAPTIONS.items() if len(folders(results, name)) > 1}


def folders(results: Path, picture: str) -> list[Path]:
    """Those of the picture's runs that are there."""
    kinds = {claim_ulp.NAME: claim_ulp.FOLDER}
    runs = [results / kinds.get(run, "runs") / run for run in _PICTURES[picture]]
    return [folder for folder in runs if folder.is_dir()]


def differences(results: Path, claims: Sequence[Claim] = CLAIMS) -> list[str]:
    """What claims.json, claims.md and the README beside their folder say otherwise than the files; a line each.

    Raises:
      BadInput: claims.json can't be read.
    """
    try:
        said = json.loads((results / FIGURES).read_bytes())
        text = (results / PAGE).read_text(encoding="utf-8")
        there = {entry["id"]: entry for entry in said}
    except OSError as error:
        raise BadInput(f"{error.filename}: {error.strerror}; write it with {_PROG} {results}") from None
    except (ValueError, TypeError, KeyError):
        raise BadInput(f"{results / FIGURES} is no list of claims: write it with {_PROG} {results}") from None
    found = {entry["id"]: entry for entry in judged(results, claims)}
    apart = [f"{name}: in {FIGURES} and not declared" for name in there if name not in found]
    apart += [f"{name}: declared and not in {FIGURES}" for name in found if name not in there]
    for name in found.keys() & there.keys():
        for key in found[name]:
            if key != "seen" and not _close(there[name].get(key), found[name][key]):
                apart.append(f"{name}: {key} is {there[name].get(key)} in {FIGURES}, the files give {found[name][key]}")
    if not apart and page(said, captions(results)) != text:
        apart.append(f"{PAGE} isn't what {FIGURES} gives: write it again")
    readme = results.resolve().parent / README
    if not apart and readme.is_file():
        text = readme.read_text(encoding="utf-8")
        if with_table(text, said) != text:
            apart.append(f"the table of {README} isn't what {FIGURES} gives: write it again")
    return sorted(apart)


def _entry(results: Path, claim: Claim) -> dict:
    evidence = Evidence(results)
    try:
        found = claim.judged(evidence)
    except (NotThere, BadInput) as missing:
        found = Finding("not testable", str(missing))
    entry = {
        "id": claim.id,
        "claim": claim.text,
        "verdict": found.verdict,
        "figure": found.figure,
        "unit": claim.unit,
        "interval": None if found.interval is None else list(found.interval),
        "seen": found.seen,
        "runs": dict(sorted(evidence.files.items())),
        "command": claim.command,
    }
    return entry | ({"extrapolation": found.extrapolation} if found.extrapolation else {})


def _close(said: object, found: object) -> bool:
    """Equal, numbers but for rounding."""
    if isinstance(found, float) and isinstance(said, float | int):
        return math.isclose(said, found, rel_tol=_CLOSE, abs_tol=1e-12)
    if isinstance(found, list) and isinstance(said, list):
        return len(said) == len(found) and all(map(_close, said, found))
    if isinstance(found, dict) and isinstance(said, dict):
        return said.keys() == found.keys() and all(_close(said[key], found[key]) for key in found)
    return said == found


if __name__ == "__main__":
    main()
