"""The same weights, each an ulp away: `python -m benchmarks.claim_ulp WEIGHTS.safetensors MOVED.safetensors`.

A run from them beside one from the weights themselves, in one framework, tells how far rounding alone parts two runs.
results/yardsticks holds such a run; the command is claim a-adamw-124m's with other weights:

    python -m benchmarks.claim_runs --data 'GLOB_train_*.bin' --val-data 'GLOB_val_*.bin' --out results/runs --dry-run
    python -m jaxgpt.bridge --recipe muon-2024-10-12 --seed 0 --out w.safetensors
    python -m benchmarks.claim_ulp w.safetensors moved.safetensors
    python -m torch_ref.train FLAGS OF 124m-adamw-300-torch --init-from moved.safetensors --optimizer.lr 0.00045
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxgpt.commands import parse
from jaxgpt.errors import BadInput, exit_codes

_PROG = "python -m benchmarks.claim_ulp"


@dataclass(frozen=True)
class Flags:
    """Write the weights of a safetensors file, each float32 number that isn't 0 moved by one ulp."""

    weights: tyro.conf.Positional[Path]
    """What jaxgpt.bridge wrote."""
    moved: tyro.conf.Positional[Path]
    """A new file."""
    seed: int = 0
    """Of up or down."""


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `Flags`."""
    flags = parse(Flags, sys.argv[1:] if argv is None else argv, _PROG)
    if flags.moved.exists():
        raise BadInput(f"{flags.moved} is there already: give another name")
    if not flags.moved.absolute().parent.is_dir():
        raise BadInput(f"{flags.moved}: there is no folder {flags.moved.absolute().parent}; make it")
    try:
        with safe_open(flags.weights, "numpy") as file:
            metadata = file.metadata()
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise BadInput(f"{flags.weights}: {error.strerror or 'not there'}; python -m jaxgpt.bridge makes one") from None
    except SafetensorError as error:
        raise BadInput(f"{flags.weights} is no safetensors file ({error}); python -m jaxgpt.bridge makes one") from None
    for name, weight in weights.items():
        if weight.dtype != np.float32:
            raise BadInput(f"{flags.weights}: {name} is {weight.dtype}, and an ulp is meant of float32")
    save_file(moved(weights, flags.seed), flags.moved, metadata)


def moved(weights: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Each number (float32) one ulp up or down at random; 0, which has no neighbour of its own size, stays."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, weight in weights.items():
        up = rng.integers(0, 2, weight.shape).astype(bool)
        there = np.where(up, np.float32(np.inf), np.float32(-np.inf))
        found[name] = np.where(weight == 0, weight, np.nextafter(weight, there))
    return found


if __name__ == "__main__":
    main()
