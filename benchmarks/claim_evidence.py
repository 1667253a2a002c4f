"""What a claim rests on: runs, measurements and published curves, each with the SHA-256 of its files."""

import json
from pathlib import Path

import jaxgpt.published
from benchmarks import claim_ulp
from benchmarks.claim_plan import plan
from benchmarks.claim_runs import is_finished
from jaxgpt.curves import Run, Series, load_run, published_run
from jaxgpt.errors import BadInput
from jaxgpt.files import sha256

_ALIKE = ("trainer", "recipe", "seed", "precision", "micro_batch", "devices", "versions")
"""What a yardstick's config.json says as that of its run does."""


class NotThere(Exception):
    """Something that a claim needs isn't there. The text says what, and why."""


class Evidence:
    """What one claim looks at, and by its `files` what it has looked at.

    Args:
      results: the folder that holds `runs`; paths are relative to the folder it lies in.
    """

    def __init__(self, results: Path):
        self.results, self.root = results, results.absolute().parent
        self.files: dict[str, str] = {}
        """Path -> SHA-256 of what has been read."""

    def runs(self, *names: str) -> list[Run]:
        """Runs of these names in `benchmarks.claim_plan`, whole and with the settings that are declared there.

        Raises:
          NotThere: one of them isn't there, isn't whole, or has other settings.
        """
        missing = [name for name in names if not (self.results / "runs" / name).is_dir()]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise NotThere(f"not run yet: {', '.join(missing[:3])}{more}")
        return [self._run(name) for name in names]

    def yardstick(self, name: str = claim_ulp.NAME) -> Run:
        """The run of `benchmarks.claim_ulp`, of any length, but otherwise as the one that it stands beside.

        Raises:
          NotThere: it isn't there, or differs from that one in more than its initial weights and length.
        """
        folder, beside = self.results / claim_ulp.FOLDER / name, self.results / "runs" / claim_ulp.OF
        if not folder.is_dir():
            raise NotThere(f"not run yet: {name}")
        try:
            run, other = load_run(folder), load_run(beside)
        except BadInput as error:
            raise NotThere(str(error)) from None
        apart = [key for key in _ALIKE if run.config.get(key) != other.config.get(key)]
        if apart:
            raise NotThere(f"{run.name} has another {apart[0]} than {other.name}")
        self._note(folder)
        return run

    def measured(self, *path: str) -> dict | list:
        """What a JSON file below the project's root holds."""
        file = self.root.joinpath(*path)
        if not file.is_file():
            raise NotThere(f"not measured yet: {'/'.join(path)}")
        self.files["/".join(path)] = sha256(file)
        return json.loads(file.read_text(encoding="utf-8"))

    def published(self, name: str) -> Series:
        """The validation losses of a published log."""
        self.files[f"jaxgpt/published/{name}.csv"] = sha256(Path(jaxgpt.published.__file__).parent / f"{name}.csv")
        return published_run(name).val

    def _run(self, name: str) -> Run:
        folder = self.results / "runs" / name
        declared = next(run for run in plan() if run.name == name)
        try:
            if not is_finished(folder, declared):
                raise NotThere(f"{name} has not come to its end")
            run = load_run(folder)
        except BadInput as error:
            raise NotThere(str(error)) from None
        self._note(folder)
        return run

    def _note(self, folder: Path) -> None:
        """A run has been read."""
        for file in ("config.json", "metrics.jsonl"):
            self.files[(folder / file).absolute().relative_to(self.root).as_posix()] = sha256(folder / file)
