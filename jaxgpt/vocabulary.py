"""Text to the token ids that a recipe's data holds, and back. Imports neither JAX nor PyTorch."""

import codecs
from collections.abc import Callable
from typing import NamedTuple

from jaxgpt.corpus import END_OF_TEXT, gpt2_encoding
from jaxgpt.errors import BadInput
from jaxgpt.recipes import Recipe


class Vocabulary(NamedTuple):
    """What a recipe's token ids mean."""

    encode: Callable[[str], list[int]]
    token_bytes: Callable[[int], bytes]
    """Of an id below `size`. A character may take several tokens."""
    size: int
    """Ids that mean something and that the model was trained on; rows from here on are padding."""
    start: tuple[int, ...]
    """What stands before each text in the shards, and ends one."""


def vocabulary(recipe: Recipe) -> Vocabulary:
    """Bytes, or GPT-2's tokens, which tiktoken downloads on first use.

    Raises:
      BadInput: GPT-2's vocabulary can't be had.
    """
    if recipe.data.tokens == "bytes":
        # Byte 0 begins a passage in the embedded sample's shards.
        return Vocabulary(
            lambda text: list(text.encode()), lambda i: bytes([i]), min(recipe.model.token_ids, 256), (0,)
        )
    encoding = gpt2_encoding()
    size = min(recipe.model.token_ids, encoding.n_vocab)
    return Vocabulary(encoding.encode_ordinary, encoding.decode_single_token_bytes, size, (END_OF_TEXT,))


def prompt_ids(prompt: str, vocabulary: Vocabulary) -> list[int]:
    """The ids of a text that begins with `prompt`, after the token that begins a text in the shards.

    Raises:
      BadInput: `prompt` isn't text, or holds a token that the model doesn't know.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise BadInput("--prompt isn't UTF-8: give text") from None
    ids = [*vocabulary.start, *vocabulary.encode(prompt)]
    if (largest := max(ids)) >= vocabulary.size:
        raise BadInput(f"--prompt: its token {largest} is none of the model's {vocabulary.size}: give other text")
    return ids


class Text:
    """Bytes that arrive a token at a time, as text: what isn't UTF-8 becomes U+FFFD, half a character waits."""

    def __init__(self):
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: bytes) -> str:
        """The characters that this token completes."""
        return self._decoder.decode(token)

    def end(self) -> str:
        """What is left: U+FFFD for half a character, mostly nothing."""
        return self._decoder.decode(b"", final=True)
