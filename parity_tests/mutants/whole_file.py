"""The second half of a mutant's climb: a whole file of tests, where the first half, `planted.ascent`, chose some."""

from pathlib import Path

import pytest

from parity_tests.planted.ascent import Ascent


class Whole(Ascent):
    """Selects all tests but slow ones."""

    def __init__(self, log: Path):
        super().__init__(log, [])

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


def main(log: Path, file: str) -> int:
    """pytest's exit status; 0 also where no test is left."""
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "--tb=short", f"parity_tests/{file}"]
    code = pytest.main(arguments, [Whole(log)])
    return 0 if code == pytest.ExitCode.NO_TESTS_COLLECTED else int(code)
