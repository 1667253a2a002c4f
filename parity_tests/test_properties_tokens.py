"""What both token streams do, whatever the shards' lengths, a step's size, the ranks and the position."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxgpt.tokens
import torch_ref.tokens
from jaxgpt.errors import BadInput
from jaxgpt.shards import write_shard

LOADERS = {"jaxgpt": jaxgpt.tokens, "torch_ref": torch_ref.tokens}
deterministic = settings(derandomize=True, deadline=None, max_examples=25)
in_both = pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)


class Corpus(NamedTuple):
    """Shards of these many tokens, of which a step takes sequences x context; each token is its own place."""

    lengths: tuple[int, ...]
    sequences: int
    context: int

    @contextlib.contextmanager
    def paths(self) -> Iterator[list[Path]]:
        with tempfile.TemporaryDirectory() as folder:
            paths, first = [], 0
            for i, length in enumerate(self.lengths):
                paths.append(Path(folder, f"{i}.bin"))
                write_shard(paths[-1], np.arange(first, first + length))
                first += length
            yield paths


@st.composite
def corpora(draw) -> Corpus:
    sequences, context = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    step = sequences * context
    lengths = draw(st.lists(st.integers(step + 1, 4 * step + 1), min_size=1, max_size=4))
    return Corpus(tuple(lengths), sequences, context)


STEPS = st.integers(0, 20)


def opened(loader, corpus: Corpus, paths: list[Path]):
    return loader.Tokens(paths, corpus.sequences, corpus.context)


def after(loader, tokens, steps: int):
    position = loader.Position()
    for _ in range(steps):
        position = tokens.next(position)
    return position


def read(tokens, position, rows: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
    inputs, targets = tokens.read(position, rows)
    return np.asarray(inputs), np.asarray(targets)


def one_pass(loader, tokens) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every step until the stream is at its start again."""
    position = loader.Position()
    while True:
        yield read(tokens, position)
        position = tokens.next(position)
        if position == loader.Position():
            return


@deterministic
@given(corpora(), STEPS)
def test_both_streams_are_the_same_at_every_step(corpus, steps):
    with corpus.paths() as paths:
        sides = [(loader, opened(loader, corpus, paths)) for loader in LOADERS.values()]
        got, want = ([*read(tokens, after(loader, tokens, steps))] for loader, tokens in sides)
    assert np.array_equal(got, want)


@deterministic
@given(corpora(), STEPS)
def test_both_positions_are_the_same_at_every_step(corpus, steps):
    with corpus.paths() as paths:
        got, want = (astuple(after(each, opened(each, corpus, paths), steps)) for each in LOADERS.values())
    assert got == want


@in_both
@deterministic
@given(corpus=corpora(), steps=STEPS, data=st.data())
def test_rows_of_all_ranks_are_the_whole_step(loader, corpus, steps, data):
    ranks = data.draw(st.sampled_from([n for n in range(1, 7) if corpus.sequences % n == 0]))
    share = corpus.sequences // ranks
    with corpus.paths() as paths:
        tokens = opened(loader, corpus, paths)
        position = after(loader, tokens, steps)
        parts = [read(tokens, position, slice(rank * share, (rank + 1) * share)) for rank in range(ranks)]
        whole = read(tokens, position)
    assert np.array_equal([np.concatenate(each) for each in zip(*parts, strict=True)], whole)


@in_both
@deterministic
@given(corpus=corpora(), steps=STEPS, more=st.integers(1, 8))
def test_a_stream_resumed_from_a_saved_position_goes_on_the_same(loader, corpus, steps, more):
    with corpus.paths() as paths:
        tokens = opened(loader, corpus, paths)
        upcoming = loader.batches(tokens, loader.Position(), np.asarray)
        positions, whole = [loader.Position()], []
        for _ in range(steps + more):
            *batch, position = next(upcoming)
            whole.append(batch)
            positions.append(position)
        saved = loader.Position(*astuple(positions[steps]))
        resumed = loader.batches(opened(loader, corpus, paths), saved, np.asarray)
        again = [next(resumed)[:2] for _ in range(more)]
    assert np.array_equal(again, whole[steps:])


@in_both
@deterministic
@given(corpus=corpora())
def test_no_token_is_an_input_twice_in_a_pass(loader, corpus):
    with corpus.paths() as paths:
        seen = np.concatenate([inputs.ravel() for inputs, _ in one_pass(loader, opened(loader, corpus, paths))])
    assert len(np.unique(seen)) == len(seen)


@in_both
@deterministic
@given(corpus=corpora())
def test_a_pass_leaves_out_less_than_a_step_and_a_target_of_each_shard(loader, corpus):
    step = corpus.sequences * corpus.context
    with corpus.paths() as paths:
        taken = sum(inputs.size for inputs, _ in one_pass(loader, opened(loader, corpus, paths)))
    assert taken == sum((length - 1) // step * step for length in corpus.lengths)


@in_both
@deterministic
@given(corpus=corpora(), steps=STEPS)
def test_targets_are_the_next_tokens(loader, corpus, steps):
    with corpus.paths() as paths:
        tokens = opened(loader, corpus, paths)
        inputs, targets = read(tokens, after(loader, tokens, steps))
    assert inputs.shape == (corpus.sequences, corpus.context)
    assert np.array_equal(targets, inputs + 1)


@in_both
@deterministic
@given(corpus=corpora(), data=st.data())
def test_a_shard_of_no_more_tokens_than_a_step_is_refused(loader, corpus, data):
    short = data.draw(st.integers(1, corpus.sequences * corpus.context))
    at = data.draw(st.integers(0, len(corpus.lengths)))
    corpus = corpus._replace(lengths=(*corpus.lengths[:at], short, *corpus.lengths[at:]))
    with corpus.paths() as paths, pytest.raises(BadInput, match=f"{at}.bin holds {short} tokens"):
        opened(loader, corpus, paths)
