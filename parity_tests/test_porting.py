"""What docs/porting.md says: its commands are run in their order and print what it quotes, rounding apart."""

import re
from collections.abc import Callable, Iterator

import pytest

from parity_tests.pages import blocks
from parity_tests.programs import ROOT
from parity_tests.walks import quoted, walk, without_rounding

PAGE = (ROOT / "docs" / "porting.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def walked(tmp_path_factory) -> Iterator[Callable[[int], str]]:
    with walk(PAGE, tmp_path_factory.mktemp("walk")) as nth_said:
        yield nth_said


NTH = [pytest.param(nth, id=f"{nth} {each.command[:30]}") for nth, each in enumerate(quoted(PAGE))]
NTH[-1] = pytest.param(*NTH[-1].values, id=NTH[-1].id, marks=pytest.mark.slow)
"""The last one climbs to the top, as `test_rung_15_adapter` does."""


@pytest.mark.parametrize("nth", NTH)
def test_a_command_prints_what_the_page_quotes(walked, nth):
    assert without_rounding(walked(nth)) == without_rounding(quoted(PAGE)[nth].said)


def test_every_block_is_run_or_is_a_part_of_the_example():
    example = (ROOT / "parity_tests" / "examples" / "ladder.py").read_text(encoding="utf-8")
    assert all(block.text in example for block in blocks(PAGE) if block.kind == "python")
    assert {block.kind for block in blocks(PAGE)} == {"python", "console"}
    assert len(re.findall("^```", PAGE, re.M)) == 2 * len(blocks(PAGE))
