"""Which files hold the initial weights of the claims' runs: `python -m benchmarks.claim_weights results`.

A run records the SHA-256 of the file that it started from. Until 2026-11-27 the same weights could be several files:
safetensors keeps a file's metadata in a hash map (`Metadata` in its Rust source) and writes the names in any order. So
the weights are made here once more, and the file's SHA-256 is computed for each order, with the versions of JAX and
Flax that the runs recorded. Two runs whose files are in one of these lists started from the same weights, bit for bit.
Imports neither JAX nor PyTorch.
"""

import hashlib
import itertools
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks import claim_ulp
from benchmarks.claim_plan import plan
from jaxgpt.commands import parse
from jaxgpt.curves import read_config
from jaxgpt.errors import BadInput, exit_codes

_PROG = "python -m benchmarks.claim_weights"
FILE = "weights.json"
_START = '{"__metadata__":'


@dataclass(frozen=True)
class Flags:
    """Make the initial weights of the runs that are there again, and write which files hold them."""

    results: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RESULTS")]
    """The folder that holds runs/, and gets weights.json."""


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `Flags`."""
    flags = parse(Flags, sys.argv[1:] if argv is None else argv, _PROG)
    found = {name: files(name, versions) for name, versions in used(flags.results).items()}
    if not found:
        raise BadInput(f"{flags.results}/runs: no run of the claims; give the folder that holds runs/, such as results")
    (flags.results / FILE).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, each in found.items():
        print(f"{name}: {len(each)} files of the same weights")


def used(results: Path) -> dict[str, list[dict[str, str]]]:
    """Name of initial weights -> the versions of JAX and Flax that the JAX runs from them recorded."""
    found: dict[str, list[dict[str, str]]] = {}
    for run in plan():
        folder = results / "runs" / run.name
        if folder.is_dir() and run.trainer == "jaxgpt":
            versions = read_config(folder / "config.json")["versions"]
            wanted = {package: versions[package] for package in ("jax", "flax")}
            of_weights = found.setdefault(run.weights, [])
            of_weights += [wanted] if wanted not in of_weights else []
    unmoved = claim_ulp.of().weights
    if (results / claim_ulp.FOLDER / claim_ulp.NAME).is_dir() and unmoved in found:
        found[claim_ulp.START] = found[unmoved]
    return dict(sorted(found.items()))


def files(name: str, versions: list[dict[str, str]]) -> list[str]:
    """SHA-256 of every file of those weights that `jaxgpt.bridge` of these versions can write, sorted.

    The weights of `benchmarks.claim_ulp` are those of a bridge, moved.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.safetensors"
        if name == claim_ulp.START:
            claim_ulp.make(file)
        else:
            claim_ulp.bridge(name, file)
        content = file.read_bytes()
        return sorted(set().union(*(orders(content, each) for each in versions)))


def orders(file: bytes, versions: dict[str, str]) -> set[str]:
    """SHA-256 of a safetensors file with these versions in its metadata, for each order of the metadata's names."""
    length = int.from_bytes(file[:8], "little")
    header, tensors = file[8 : 8 + length].decode().rstrip(" "), memoryview(file)[8 + length :]
    metadata, end = json.JSONDecoder().raw_decode(header, len(_START))
    metadata["versions"] = json.dumps(versions)
    digests = set()
    for names in itertools.permutations(metadata):
        ordered = json.dumps({name: metadata[name] for name in names}, separators=(",", ":"))
        new = (_START + ordered + header[end:]).encode()
        new += b" " * (-len(new) % 8)
        digest = hashlib.sha256(len(new).to_bytes(8, "little") + new)
        digest.update(tensors)
        digests.add(digest.hexdigest())
    return digests


if __name__ == "__main__":
    main()
