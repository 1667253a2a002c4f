"""Text from a trained model: `python -m jaxgpt.sample RUN --prompt TEXT`.

The text begins as one does in the shards: after <|endoftext|>, or byte 0 in `tiny`'s. It ends after `--tokens`, or
where the model says that it does. What is longer than the context goes on from its last tokens; see `jaxgpt.decode`.
"""

import dataclasses
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Float

from jaxgpt import mesh, trained
from jaxgpt.commands import parse
from jaxgpt.decode import Decoder
from jaxgpt.errors import BadInput, exit_codes
from jaxgpt.flags import check_seed, last_value
from jaxgpt.recipes import ModelConfig, named
from jaxgpt.vocabulary import Text, prompt_ids, vocabulary

PROG = "python -m jaxgpt.sample"


@dataclass(frozen=True)
class Flags:
    """Text from a trained model, printed as it is made. Computed in float32; the same seed gives the same text."""

    run: tyro.conf.Positional[Path]
    """A run's folder, finished or not; or a .safetensors file of either trainer, with --recipe."""
    prompt: str = ""
    """How the text begins."""
    tokens: int = 100
    """Tokens to add at most: bytes for `tiny`, GPT-2's for the others."""
    temperature: float = 0.8
    """What logits are divided by before the softmax. 0: always the likeliest token."""
    top_k: int | None = None
    """Draw from so many of the likeliest tokens. Absent: from all."""
    seed: int = 0
    """Seed of what is drawn."""
    recipe: str | None = None
    """What a file's weights are of. A run knows it."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    """What differs from that recipe."""

    def __post_init__(self):
        if not 1 <= self.tokens <= 2**31 - 1:
            raise BadInput(f"--tokens {self.tokens}: give a whole number of at least 1 and at most {2**31 - 1}")
        if not 0 <= self.temperature < math.inf:
            raise BadInput(f"--temperature {self.temperature}: give a finite number of at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise BadInput(f"--top-k {self.top_k}: give a whole number of at least 1, or leave it out")
        check_seed(self.seed)


def read_flags(argv: list[str]) -> tuple[Flags, trained.Trained]:
    """The command line, and the weights that it names.

    Raises:
      BadInput: a flag or a file that can't be used.
    """
    name = last_value(argv, "--recipe")
    base = named(name or "muon-2024-10-12")
    flags = parse(Flags, argv, PROG, Flags(run=tyro.MISSING, model=base.model))
    if not flags.run.is_file():
        if flags.recipe is not None or flags.model != base.model:
            raise BadInput(f"--recipe and --model.* are for a file, and {flags.run} is none: leave them out for a run")
        return flags, trained.of_run(flags.run)
    if name is None:
        raise BadInput(f"{flags.run} is a file: say with --recipe which recipe its weights are of")
    return flags, trained.of_file(flags.run, dataclasses.replace(base, model=flags.model))


def drawn(
    logits_V: Float[np.ndarray, " V"], temperature: float, top_k: int | None, generator: np.random.Generator
) -> int:
    """A token of softmax(logits / temperature) over the `top_k` likeliest; of temperature 0 the likeliest, or first.

    Raises:
      BadInput: logits that aren't finite.
    """
    z = logits_V.astype(np.float64)
    if not np.isfinite(z).all():
        raise BadInput("the model's logits aren't finite: its weights hold NaN or infinity; take others")
    if temperature == 0:
        return int(z.argmax())
    ids = np.arange(len(z)) if top_k is None or top_k >= len(z) else np.sort(np.argpartition(z, -top_k)[-top_k:])
    with np.errstate(over="ignore"):  # exp(-inf) is as right as it gets
        likely = np.exp((z[ids] - z.max()) / temperature)
    up_to = np.cumsum(likely)
    at = np.searchsorted(up_to, generator.random() * up_to[-1], side="right")
    return int(ids[min(at, len(ids) - 1)])  # a product may round up to the sum


def continued(decoder: Decoder, ids: list[int], flags: Flags, size: int, ends: tuple[int, ...]) -> Iterator[int]:
    """The tokens after `ids`, each below `size`: `flags.tokens` of them, or those before the first of `ends`."""
    generator = np.random.default_rng(flags.seed)
    for _ in range(flags.tokens):
        token = drawn(decoder.read(ids)[:size], flags.temperature, flags.top_k, generator)
        if token in ends:
            return
        yield token
        ids = [token]


def shown(text: str, terminal: bool) -> str:
    """On a terminal, what would steer it as Python writes it: a byte model says any byte."""
    if not terminal:
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `Flags`."""
    flags, model = read_flags(sys.argv[1:] if argv is None else argv)
    known = vocabulary(model.recipe)
    ids = prompt_ids(flags.prompt, known)
    if flags.top_k is not None and flags.top_k > known.size:
        raise BadInput(f"--top-k {flags.top_k}: the model knows {known.size} tokens; give at most so many")
    print(f"{model.recipe.name} of {shown(model.source, terminal=True)}", file=sys.stderr, flush=True)
    if len(ids) > (context := model.recipe.model.context):
        said = f"the prompt has {len(ids)} tokens and the context {context}: the model reads the last {context} of them"
        print(said, file=sys.stderr, flush=True)
    mesh.cached_compilation()
    decoder, text, terminal = Decoder(model.recipe.model, model.params), Text(), sys.stdout.isatty()
    try:
        print(shown(flags.prompt, terminal), end="", flush=True)
        for token in continued(decoder, ids, flags, known.size, known.start):
            print(shown(text.add(known.token_bytes(token)), terminal), end="", flush=True)
        print(shown(text.end(), terminal), flush=True)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print(flush=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
