"""A planted bug: a text in a file, and what is put in its place."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Bug:
    """A text that stands once in a file, and what is put in its place."""

    name: str
    claim: str
    """What is wrong then."""
    file: str
    old: str
    new: str
    rung: str
    why: str
    """Why training goes on, and where the bug is from."""

    @property
    def framework(self) -> Literal["jax", "torch"]:
        """Whose trainer the file is part of."""
        return "jax" if self.file.startswith("jaxgpt/") else "torch"

    def plant(self, root: Path) -> None:
        """Change the file of the copy at `root`.

        Raises:
          ValueError: the text doesn't stand there exactly once.
        """
        path = root / self.file
        text = path.read_text(encoding="utf-8")
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: {self.file} has {count} places that read {self.old!r}, and needs one")
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")
