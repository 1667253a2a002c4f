"""The page of the claims, made from claims.json and the names of the pictures alone."""

from collections.abc import Mapping, Sequence

from jaxgpt.report import markdown_table

_NONE = "-"
MARK = "<!-- written by benchmarks.claims from claims.json -->"


def page(entries: Sequence[dict], pictures: Mapping[str, str]) -> str:
    """claims.md: a table of all, the pictures, then each with what was seen, its files and its command.

    Args:
      entries: the list in claims.json.
      pictures: file beside the page -> caption.
    """
    table = [["claim", "", "verdict", "figure", "interval"]]
    for each in entries:
        figures = _number(each["figure"]), _interval(each["interval"])
        table.append([each["id"], each["claim"], each["verdict"], *figures])
    parts = [
        MARK,
        "# Claims",
        "Verified: what was said is what was seen, in these runs and no others. Refuted: the opposite was. "
        "Underpowered: these runs can't tell. Not testable: something is missing, which is named. Losses are in nats a "
        "token. An interval is 90% where a margin is tested (two one-sided tests at 5%), 95% elsewhere. "
        "`python -m benchmarks.claims results --check` computes all of it again from the files.",
        markdown_table(table, texts=3),
        *(f"{caption}:\n\n![{caption}]({name})" for name, caption in pictures.items()),
    ]
    for each in entries:
        parts += [f"## {each['id']}: {each['verdict']}", f"{each['claim']}.", f"{_sentence(each['seen'])}"]
        if each["figure"] is not None:
            parts.append(f"Figure: {_number(each['figure'])} ({each['unit']}).")
        if each.get("extrapolation"):
            drawn = each["extrapolation"]
            low, high = drawn["interval"]
            parts.append(
                f"**Extrapolated, not measured:** {drawn['loss']:.2f} ({low:.2f} to {high:.2f}) after "
                f"{drawn['tokens']:,} tokens. {_sentence(drawn['how'])}"
            )
        parts.append(f"```\n{each['command']}\n```")
        if each["runs"]:
            rows = [["file", "SHA-256"], *([path, digest[:16]] for path, digest in each["runs"].items())]
            parts.append(
                f"<details><summary>{len(each['runs'])} files</summary>\n\n{markdown_table(rows, 2)}\n\n</details>"
            )
    return "\n\n".join(parts) + "\n"


def _number(figure: float | None) -> str:
    return _NONE if figure is None else f"{figure:.4f}"


def _interval(interval: Sequence[float] | None) -> str:
    return _NONE if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
