"""Made-up run folders and curves, and what a report says of them."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxgpt.curves
from jaxgpt import report
from jaxgpt.compare import main
from jaxgpt.curves import Series

# Last line of each published log: step, tokens, validation loss.
LAST_POINTS = {
    "adamw-2024-06-06": (9536, 4_999_610_368, 3.2760),
    "distmuon-2024-10-17": (5100, 2_673_868_800, 3.2747),
    "llmc-2024-10-13": (19560, 10_255_073_280, 3.2722),
    "modern-2024-10-14": (5100, 2_673_868_800, 3.2741),
    "muon-2024-10-10": (6200, 3_250_585_600, 3.2785),
    "opt-adam-2024-10-29": (5100, 2_673_868_800, 3.3406),
    "opt-muon-2024-10-29": (5100, 2_673_868_800, 3.2760),
    "opt-shampoo-2024-10-29": (5100, 2_673_868_800, 3.2858),
    "opt-soap-2024-10-29": (5100, 2_673_868_800, 3.2752),
    "pytorch25-2024-10-18": (5100, 2_673_868_800, 3.2755),
    "soap-2024-10-09": (6000, 3_145_728_000, 3.2763),
}
STEP_TOKENS = 524_288
BLUE, VERMILION, GREEN = (0, 0x72, 0xB2), (0xD5, 0x5E, 0), (0, 0x9E, 0x73)


def curve(losses, step_tokens=100, every=1) -> Series:
    """A series with a point every `every` steps, from step 0."""
    step = np.arange(len(losses)) * every
    return Series(step, step * step_tokens, np.array(losses, np.float64), np.full(len(losses), np.nan))


def lines(train=(), val=(), step_tokens=STEP_TOKENS, every=1, shift=0.0):
    """Lines of metrics.jsonl: training losses from step 1, validation losses from step 0 every `every` steps."""
    read = [
        {
            "step": step,
            "tokens": step * step_tokens,
            "train_loss": loss + shift,
            "lr": 0.1,
            "grad_norm": 1.5,
            "tokens_per_s": 1000.0 * step,
            "train_time_s": 2.0 * step,
            "peak_bytes": 2**28 * step,
        }
        for step, loss in enumerate(train, 1)
    ]
    read += [
        {"step": i * every, "tokens": i * every * step_tokens, "val_loss": loss + shift} for i, loss in enumerate(val)
    ]
    return sorted(read, key=lambda line: line["step"])


def write(folder: Path, metrics, recipe="tiny", trainer="jaxgpt", devices=("NVIDIA H100", "NVIDIA H100")) -> str:
    """A run's folder; `metrics` are objects, or the file's text."""
    folder.mkdir()
    config = {"trainer": trainer, "recipe": {"name": recipe}, "devices": devices}
    (folder / "config.json").write_text(json.dumps(config))
    text = metrics if isinstance(metrics, str) else "".join(json.dumps(line) + "\n" for line in metrics)
    (folder / "metrics.jsonl").write_text(text)
    return str(folder)


def tables(markdown: str) -> list[list[dict[str, str]]]:
    """The Markdown tables, each row by its headings (of two equal headings, the last)."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.M):
        cells = [[c.strip() for c in re.split(r"(?<!\\)\|", row)[1:-1]] for row in block.splitlines()]
        found.append([dict(zip(cells[0], row, strict=True)) for row in cells[2:]])
    return found


def rows_of(number: int, *folders: str, targets=(), **curves) -> list[dict[str, str]]:
    """The rows of a report's table: 0 the runs, 1 the tokens to the targets, 2 the differences."""
    return tables(report.markdown(jaxgpt.curves.compare(jaxgpt.curves.load_curves(folders, **curves), targets), ""))[
        number
    ]


def report_of(tmp_path: Path, *arguments: str) -> str:
    main([*arguments, "--out", str(tmp_path / "report")])
    return (tmp_path / "report" / "report.md").read_text()


def refused(capsys, *arguments: str) -> str:
    """The one line with which the program ends."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    said = capsys.readouterr()
    assert (end.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    return said.err


def colours(png: bytes) -> set[tuple[int, ...]]:
    return {colour[:3] for _, colour in Image.open(io.BytesIO(png)).getcolors(2**24)}
