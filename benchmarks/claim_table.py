"""The table of verdicts in the README: each claim in a few words, between two marks that `benchmarks.claims` fills."""

import re
from collections.abc import Sequence

BEGIN, END = "<!-- verdicts -->", "<!-- end of verdicts -->"
PAGE = "results/claims.md"
SHORT = {
    "a-muon-seeds": "JAX and PyTorch end within 0.003 nats, on average: Muon, 19M parameters, 8 pairs of runs",
    "a-adamw-seeds": "the same with AdamW",
    "a-muon-124m": "No validation loss of JAX and PyTorch is over 0.003 nats apart: Muon, 124M, 200 steps, one pair",
    "a-adamw-124m": "the same with AdamW, 300 steps",
    "a-adamw-itself": "PyTorch parts from itself by over 0.003 too, from weights an ulp away: AdamW, 124M, one run",
    "b-jax": "Muon after 200 steps is at AdamW's loss after 300: JAX, 124M, one run each",
    "b-torch": "the same in PyTorch",
    "c-hidden": "Muon keeps half of AdamW's state: hidden matrices",
    "c-all": "the same of all weights, embedding included",
    "d-jaxgpt": "Muon's step takes less than 9% more than AdamW's: JAX, one H100",
    "d-torch_ref": "the same in PyTorch",
    "d-plan": "Newton-Schulz takes less than 9% of a step on 8 H100, by plan",
    "d-node": "the same, measured",
    "e-log-muon-2024-10-10": "3.28 in a third of llm.c's tokens: published log of 2024-10-10",
    "e-log-opt-muon-2024-10-29": "the same, published log of 2024-10-29",
    "e-equal-tokens": "Muon is ahead of llm.c's recipe after equal tokens: JAX, 124M",
    "e-fineweb": "3.28 on FineWeb in a third of llm.c's tokens, both frameworks",
    "f-record": "3.28 on FineWeb in 3.15B tokens, both frameworks",
}
"""id -> the claim in words; one that has none is there in full."""


def table(entries: Sequence[dict]) -> str:
    """Claim, verdict and figure of each entry of claims.json, a row each; the verdict leads to its part of claims.md.

    Of a claim that isn't testable the last cell says why.
    """
    rows = ["| claim | verdict | figure, or what is missing |", "|---|---|---|"]
    for each in entries:
        verdict = f"[{each['verdict']}]({PAGE}#{_anchor(each)})"
        rows.append(f"| {SHORT.get(each['id'], each['claim'])} | {verdict} | {_figure(each)} |")
    return "\n".join(rows)


def with_table(text: str, entries: Sequence[dict]) -> str:
    """A README with the table between its marks; one without marks is left as it is."""
    between = f"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})"
    return re.sub(between, lambda _: f"\n{table(entries)}\n\n", text, flags=re.DOTALL)


def _anchor(entry: dict) -> str:
    """Of the entry's heading in claims.md, as GitHub makes it."""
    return f"{entry['id']}-{entry['verdict']}".replace(" ", "-")


def _figure(entry: dict) -> str:
    if entry["figure"] is None:
        return entry["seen"].split(";")[0]
    number = "{:.1%}" if entry["unit"].startswith("of ") else "{:+.4f}" if " minus " in entry["unit"] else "{:.4f}"
    said = number.format(entry["figure"])
    if entry["interval"] is not None:
        said += f" ({' to '.join(map(number.format, entry['interval']))})"
    return f"{said} {', '.join(entry['unit'].split(', ')[:2])}"
