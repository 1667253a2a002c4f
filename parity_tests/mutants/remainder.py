"""The second half of a mutant's climb: every test that the first half, `planted.ascent`, has not run."""

import json
from pathlib import Path

import pytest

from parity_tests.planted.ascent import Ascent


class Remainder(Ascent):
    """Selects the tests that `log` doesn't hold yet, but slow ones."""

    def __init__(self, log: Path):
        super().__init__(log, [])

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        events = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        done = {json.loads(event).get("started") for event in events}
        kept = [item for item in items if item.nodeid not in done and not item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept


def main(log: Path, files: list[str]) -> int:
    """Run what is left of the tests in `files`; pytest's exit status, 0 also where nothing is."""
    tests = [f"parity_tests/{file}" for file in files]
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--tb=short", *tests], [Remainder(log)])
    return 0 if code == pytest.ExitCode.NO_TESTS_COLLECTED else int(code)
