"""Rung 14: a user's own copy of a published training script against both trainers.

    python -m parity_tests.published train_gpt2.py

A misreading that jaxgpt and torch_ref share is invisible between the two; here the script itself is asked. It is not
shipped: name a copy of yours, unchanged. The point is to run its own code, on the CPU: its definitions, its
optimisers and schedules as its source makes them, its training section, its loader. None of it is written down again
here. `parity_tests.published_script` holds the known versions; another file is refused, not run.

Each difference that is known is measured as it stands, with its reason; then ours is put in the script's place, and
the rest has to agree. The program ends with 1 if anything else differs, and with 2 where the file isn't a known one.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import torch
import tyro

from jaxgpt.commands import parse
from jaxgpt.errors import exit_codes
from jaxgpt.published.scripts import identify
from parity_tests.published_report import report
from parity_tests.published_rungs import rows
from parity_tests.published_script import load

_PROG = "python -m parity_tests.published"


@dataclass
class Flags:
    """Compare a copy of a published script with both trainers. The file's code is run."""

    file: tyro.conf.Positional[Path]
    """a train_gpt2.py of github.com/KellerJordan/modded-nanogpt, unchanged"""


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `Flags`."""
    flags = parse(Flags, sys.argv[1:] if argv is None else argv, _PROG)
    version = identify(flags.file)
    jax.config.update("jax_enable_x64", True)
    torch.set_num_threads(1)
    print(f"{flags.file}: {version.where}, recipe {version.recipe}; torch {torch.__version__}, JAX {jax.__version__}")
    sys.exit(report(rows(load(flags.file))))


if __name__ == "__main__":
    main()
