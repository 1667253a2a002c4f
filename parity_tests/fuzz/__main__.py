"""Search for inputs that crash a reader, guided by the lines that they reach (atheris).

    python -m parity_tests.fuzz metrics --runs 100000 --seed 1

prints how many inputs were tried and each crash once, with the input that made it, and exits with 1 if there was one.
`all` searches every target, one after the other. Needs `pip install atheris` (Linux on x86-64).
"""

import argparse
import collections
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

LONGEST = 4096
"""Bytes of an input at most."""
EXTRA = ("9" * 400, "nan", "inf", "-1", "1e400", "\\u0000", "--", "null", "[[[[", "F8_E4M3", "C64", "I64")
"""What a search would take long to come to by itself; libFuzzer puts them in."""


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m parity_tests.fuzz", description=__doc__)
    parser.add_argument("target", help="a reader of parity_tests.fuzz.targets, or all")
    parser.add_argument("--runs", type=int, default=10_000, help="inputs to try")
    parser.add_argument("--seed", type=int, default=1, help="of the search")
    asked = parser.parse_args()
    if asked.target == "all":
        from parity_tests.fuzz.targets import TARGETS

        command = [sys.executable, "-m", "parity_tests.fuzz"]
        more = ["--runs", str(asked.runs), "--seed", str(asked.seed)]
        ends = [subprocess.run([*command, name, *more], check=False).returncode for name in TARGETS]
        sys.exit(max(map(abs, ends)) and 1)
    search(asked.target, asked.runs, asked.seed)


def search(name: str, runs: int, seed: int) -> None:
    """Try `runs` inputs; ends the process."""
    try:
        import atheris
    except ImportError:
        sys.exit("error: atheris is not installed: pip install atheris (Linux on x86-64), or run the tests instead")
    with atheris.instrument_imports(include=["jaxgpt", "torch_ref"], enable_loader_override=False):
        from parity_tests.fuzz.targets import TARGETS
    if name not in TARGETS:
        sys.exit(f"error: {name}: no such target; there are all, {', '.join(TARGETS)}")
    target, folder = TARGETS[name], Path(tempfile.mkdtemp(prefix="fuzz"))
    for i, content in enumerate(target.seeds):
        assert target.take(content) or name == "compare_flags", f"seed {i} of {name} is refused"
        (folder / f"seed{i}").write_bytes(content)
    (folder.with_suffix(".words")).write_text("".join(f'"{word}"\n' for word in EXTRA if "\\" not in word))
    os.chdir(folder.parent)
    crashes: dict[tuple, tuple[bytes, str]] = {}
    counts: collections.Counter[str] = collections.Counter()
    started = time.monotonic()

    def tried(content: bytes) -> None:
        try:
            counts["taken" if target.take(content) else "refused"] += 1
        except Exception as error:
            counts["crashed"] += 1
            frames = traceback.extract_tb(error.__traceback__)
            place = next(
                (f for f in reversed(frames) if "/jaxgpt/" in f.filename or "/torch_ref/" in f.filename), frames[-1]
            )
            where = type(error).__name__, Path(place.filename).name, place.lineno
            crashes.setdefault(where, (content, " ".join(str(error).split())[:200]))
        if counts.total() >= runs:
            took = time.monotonic() - started
            told = ", ".join(f"{counts[each]} {each}" for each in ("taken", "refused", "crashed"))
            print(
                f"{name}: {counts.total()} inputs tried in {took:.0f} s (seed {seed}): {told}; crashes: {len(crashes)}"
            )
            for where, (content, said) in crashes.items():
                print(f"  {where}: {said}\n    {content[:400]!r}")
            sys.stdout.flush()
            os._exit(bool(crashes))

    quiet = ["-print_final_stats=0", "-verbosity=0", "-timeout=60", "-rss_limit_mb=8000"]
    options = [f"-max_len={LONGEST}", "-len_control=0", f"-dict={folder}.words", f"-seed={seed}", f"-runs={10 * runs}"]
    random.seed(seed)
    atheris.Setup([sys.argv[0], *quiet, *options, str(folder)], tried)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
