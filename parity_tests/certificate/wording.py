"""How the page says commands, durations and rungs."""

from html import escape

from parity_tests.certificate.outcome import PROGRAMS


def command(words: str) -> str:
    """A command to be pasted, as an element of the page."""
    return f'<code class="command">{escape(words)}</code>'


def place(rung: str) -> str:
    """A rung within a sentence."""
    return rung if rung == PROGRAMS else f"rung {rung}"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"
