"""Write docs/defaults.md; with `--check`, exit with 1 and one line where it isn't what would be written."""

import sys

from parity_tests.defaults.page import COMMAND, PAGE, render


def main(words: list[str]) -> int:
    """Write the page, or check it; the exit status."""
    if words in (["--help"], ["-h"]):
        print(f"usage: {COMMAND} [--check]\n\n{__doc__}")
        return 0
    if words not in ([], ["--check"]):
        print(f"error: {' '.join(words)}: give --check, or nothing", file=sys.stderr)
        return 2
    page = render()
    if not words:
        PAGE.write_text(page, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page:
        return 0
    print(f"{PAGE} isn't what the frameworks and the recipes give now: run {COMMAND}, and look at the difference")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
