"""What a path has to be before it is opened. Imports neither JAX nor PyTorch."""

import hashlib
import os
import stat
from pathlib import Path

from jaxgpt.errors import BadInput


def check_ordinary(path: str | Path) -> None:
    """Refuse what no reader should open: opening a pipe waits for ever, and a device has no end.

    Raises:
      OSError: there is no such file, or it is neither an ordinary one nor a link to one; the latter has no `errno`.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError:  # a NUL, or half of a surrogate pair
        raise OSError("is no name that a file can have") from None
    if not stat.S_ISREG(mode):
        raise OSError("is a folder" if stat.S_ISDIR(mode) else "is not an ordinary file")


def check_name(path: str | Path, flag: str) -> None:
    """`BadInput` for a name that nothing can be written under, whether or not something is there already.

    Such a name is too long, holds a NUL, lies in a folder that may not be entered, or goes round in links.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "no file can have that name"
        raise BadInput(f"{flag} {path} can't be made: {why}; give another name") from None


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
