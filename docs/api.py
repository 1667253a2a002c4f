"""The API reference, from the docstrings: `python docs/api.py --out build/api`, then open build/api/index.html.

A static site by pdoc (pip install -e '.[docs]'), a page for each module of the packages. What pdoc warns of, such as an
annotation that it can't read, is an error.
"""

import importlib.util
import sys
import typing
import warnings
from dataclasses import dataclass
from pathlib import Path

import optax
import pdoc

from jaxgpt.commands import parse
from jaxgpt.errors import BadInput, exit_codes

PACKAGES = ("jaxgpt", "torch_ref", "benchmarks", "launch")
_ALIASES = ("OptState", "Params", "Updates")


@dataclass(frozen=True)
class Flags:
    """Write the API reference."""

    out: Path = Path("build/api")
    """Folder of the site."""
    packages: tuple[str, ...] = PACKAGES
    """Packages and modules to describe, as they are imported."""


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `Flags`. Exits with 1 where pdoc warned of something."""
    flags = parse(Flags, sys.argv[1:] if argv is None else argv, "python docs/api.py")
    for name in flags.packages:
        if importlib.util.find_spec(name) is None:
            raise BadInput(f"--packages {name}: there is no such package; install it, or mend its name")
    found = build(flags.out, flags.packages)
    for warning in found:
        print(f"warning: {warning}", file=sys.stderr)
    if found:
        sys.exit(1)
    print(flags.out / "index.html")


def build(out: Path, packages: tuple[str, ...]) -> list[str]:
    """Write the site and return what pdoc warned of."""
    # optax has one recursive union for all three, which would be spelled out at each use, if it could be read at all
    for name in _ALIASES:
        alias = typing.NewType(name, object)
        alias.__module__ = "optax"
        setattr(optax, name, alias)
    pdoc.render.configure(docformat="google", footer_text="jaxgpt, made from its docstrings")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        pdoc.pdoc(*packages, output_directory=out)
    return [str(each.message) for each in caught if issubclass(each.category, UserWarning)]


if __name__ == "__main__":
    main()
