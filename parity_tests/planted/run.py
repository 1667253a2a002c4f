"""Copies of the trainers, changed in one place, and the ladder climbed there."""

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

from parity_tests.planted.ascent import CLIMB, rung_of
from parity_tests.planted.bug import Bug
from parity_tests.programs import ROOT

COPIED = ("jaxgpt", "torch_ref", "parity_tests", "pyproject.toml")


class Outcome(NamedTuple):
    """How a climb ended."""

    ended: Literal["green", "red", "timeout", "broken"]
    """All tests passed; one failed; one was still running when time was up; or pytest itself couldn't run."""
    rung: str | None
    """The lowest red one."""
    test: str | None
    message: str | None
    """First line of what the test said."""
    seconds: float


class Record(NamedTuple):
    """A bug, the rung that is to find it, and the climb that looked for it."""

    bug: str
    named: str
    ended: str
    rung: str | None
    test: str | None
    message: str | None
    seconds: float

    @property
    def caught(self) -> bool:
        """Whether the named rung is the lowest red one."""
        return self.ended == "red" and self.rung == self.named


@contextlib.contextmanager
def copied() -> Iterator[Path]:
    """A temporary folder with the packages that the ladder needs, to change at will."""
    with tempfile.TemporaryDirectory(prefix="jaxgpt-planted-") as folder:
        for name in COPIED:
            source, target = ROOT / name, Path(folder) / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        yield Path(folder)


def environment(root: Path, adds: bool = True) -> dict[str, str]:
    """Nothing but the copy at `root` is imported; what XLA compiled for the unchanged trainers is found again.

    A climb that `adds` to what is found must be alone: JAX writes in place, and a half-written program can't be read.
    """
    outside = re.compile("(?i)^(PYTHON|PYTEST|JAX|XLA|TORCH)|^(RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|COLUMNS)$")
    kept = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxgpt" / "ladder"
    return {name: value for name, value in os.environ.items() if not outside.search(name)} | {
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(kept),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0" if adds else "1000000",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def climb(root: Path, rungs: list[str] | None = None, timeout: float = 900, adds: bool = False) -> Outcome:
    """Climb the ladder of the copy at `root` up to its first red rung.

    Args:
      root: of `copied`, changed or not.
      rungs: keys of `CLIMB`, upwards; all of them where absent.
      timeout: seconds.
      adds: see `environment`.
    """
    log = root / "ascent.jsonl"
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "parity_tests.planted.ascent", str(log), *(rungs or CLIMB)]
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=root,
        env=environment(root, adds),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that what a test started ends with it
    )
    try:
        said, code = process.communicate(timeout=timeout)[0], process.returncode
    except subprocess.TimeoutExpired:
        said, code = f"not done after {timeout:.0f} s", None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()
    seconds = round(time.perf_counter() - started, 1)
    said = said.replace(f"{root}{os.sep}", "")
    events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    failed = next((event for event in events if "failed" in event), None)
    if failed:
        message = failed["message"].replace(f"{root}{os.sep}", "")
        return Outcome("red", rung_of(failed["failed"]), failed["failed"], message, seconds)
    last = events[-1]["started"] if events else None
    if code is None:
        return Outcome("timeout", rung_of(last) if last else None, last, said, seconds)
    if code:
        return Outcome("broken", rung_of(last) if last else None, last, said[-2000:].strip(), seconds)
    return Outcome("green", None, None, None, seconds)


def unchanged() -> Outcome:
    """The climb that has to be green, for a red rung to mean anything."""
    with copied() as root:
        return climb(root, timeout=1800, adds=True)


def find(bug: Bug, rungs: list[str] | None = None) -> Record:
    """Plant one bug and climb; `rungs` as in `climb`."""
    with copied() as root:
        bug.plant(root)
        return Record(bug.name, bug.rung, *climb(root, rungs))


def run(bugs: Iterable[Bug], processes: int = 1) -> Iterator[Record]:
    """What became of each bug, in their order, `processes` climbs at a time."""
    with ThreadPoolExecutor(processes) as threads:
        yield from threads.map(find, bugs)


def read(path: Path) -> list[Record]:
    """The records that `write` wrote."""
    return [Record(**each) for each in json.loads(path.read_text(encoding="utf-8"))["bugs"]]


def write(path: Path, records: Iterable[Record]) -> None:
    """Keep records as JSON, with the versions they were made with."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "torch", "numpy")}
    kept = {"python": platform.python_version()} | versions
    content = {"versions": kept, "bugs": [record._asdict() for record in records]}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
