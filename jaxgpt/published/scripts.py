"""The published training scripts that are known, by hash: files are their users' own, none is shipped. No framework."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from jaxgpt.errors import BadInput


class Version(NamedTuple):
    """A published script that is known."""

    recipe: str
    where: str
    """In github.com/KellerJordan/modded-nanogpt."""


VERSIONS = {
    "28f8acbc5e3cc762b9e229167d7e99a2c625ac50d51f39e268e7f52861ba04c8": Version(
        "muon-2024-10-12", "train_gpt2.py at 56dde040"
    ),
    "ef625338082b783a1d8fdb716bd5c2d1d21167781c5d497a2bc6aa94e2aa53df": Version(
        "muon-2024-10-10", "records/track_1_short/2024-10-10_Muon/train_gpt2.py"
    ),
    "7199ba9f956c20aceffc7112a0e430db68964fa19d4fa427f743fc3d5f33bd4b": Version(
        "modern-2024-10-14", "records/track_1_short/2024-10-14_ModernArch/train_gpt2.py"
    ),
    "4caf52168a9a89835b8a2493896c1fafeaa818bc200fd90e0e1e2d7339331ee9": Version(
        "soap-2024-10-09", "records/track_1_short/2024-10-09_SOAP/train_gpt2.py"
    ),
}
"""By SHA-256."""


def identify(path: Path) -> Version:
    """Which published script a file is, by its SHA-256. `BadInput` where it can't be read or isn't a known one."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BadInput(f"{path} can't be read: {error.strerror}; name a copy of a published script") from None
    if digest not in VERSIONS:
        known = "; ".join(f"{each.where} (SHA-256 {sha[:8]}..., {each.recipe})" for sha, each in VERSIONS.items())
        raise BadInput(
            f"{path} has SHA-256 {digest}, which is no known version and isn't run; give, from "
            f"github.com/KellerJordan/modded-nanogpt, unchanged: {known}"
        )
    return VERSIONS[digest]
