"""The certificate's page: what it shows, that it loads nothing, and that a browser shows it."""

import re
from html.parser import HTMLParser

import pytest

from parity_tests import chromium
from parity_tests.small_ladder import GRADIENTS, LOGITS, SCRIPT, Session, climb


@pytest.fixture(scope="module")
def red(tmp_path_factory, environment) -> Session:
    files = {"test_rung_03_logits.py": LOGITS, "test_rung_05_gradients.py": GRADIENTS}
    return climb(tmp_path_factory.mktemp("ladder"), environment, files)


class Read(HTMLParser):
    """What a page loads, and whether its tags match."""

    VOID = ("meta", "link", "br")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)


def test_the_page_loads_and_runs_nothing(red):
    read = Read(red.page)
    assert read.links == ["data:,"]
    assert "script" not in read.tags
    assert not re.search(r"url\(|@import|https?://", red.page)


def test_the_tags_of_the_page_match(red):
    assert Read(red.page).open == []


def test_every_string_is_escaped(red):
    assert SCRIPT not in red.page
    assert "&lt;script&gt;" in red.page
    assert "no &lt;copy&gt; of it" in red.page


def test_the_page_says_the_verdict_in_its_title_and_heading(red):
    assert re.search(r"<title>They part at rung 5: .*</title>", red.page)
    assert re.search(r'<h1 class="part">They part at rung 5: ', red.page)


def test_every_drawing_has_a_name(red):
    outer = re.findall(r"<svg [^>]*role=[^>]*>", red.page)
    assert len(outer) > 3
    assert all(re.search(r'aria-label="[^"]+"', svg) for svg in outer)


def test_what_exceeds_its_allowance_is_a_cross_and_not_a_dot(red):
    assert red.page.count('class="over"') == 2


def test_the_published_curves_are_apart_from_those_of_the_run(red):
    assert red.page.index("Training at reduced size") < red.page.index("Published, at 124M")
    assert "muon-2024-10-10 3.2785 at 3.25B" in red.page


@pytest.mark.slow
@pytest.mark.skipif(chromium.found() is None, reason=f"needs one of {', '.join(chromium.NAMES)} on PATH")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page_without_requests_complaints_or_overflow(red, tmp_path, width, scheme):
    file = tmp_path / "certificate.html"
    file.write_text(red.page, encoding="utf-8")
    with chromium.Browser(tmp_path) as browser:
        shown = browser.show(file.as_uri(), width, scheme)
    assert [url for url in shown.requested if not url.startswith("data:")] == [file.as_uri()]
    assert shown.complaints == []
    assert shown.content_width <= width
    assert shown.paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[scheme]
