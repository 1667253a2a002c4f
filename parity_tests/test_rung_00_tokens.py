"""Rung 0: both loaders give the same tokens, whatever the ranks, across shard ends and wraps."""

import itertools

import numpy as np
import pytest

import jaxgpt.tokens
import torch_ref.tokens
from jaxgpt.errors import BadInput

LOADERS = {"jaxgpt": jaxgpt.tokens, "torch_ref": torch_ref.tokens}
SEQUENCES, CONTEXT = 8, 4
STEP = SEQUENCES * CONTEXT


@pytest.fixture
def shards(tmp_path):
    """Shards of several steps and a rest, of just one step, of two steps less the last target, and of just two."""
    lengths = [5 * STEP + 7, STEP + 1, 2 * STEP, 2 * STEP + 1]
    paths, contents, first = [], [], 0
    for i, length in enumerate(lengths):
        header = np.zeros(256, "<i4")
        header[:3] = 20240520, 1, length
        content = np.arange(first, first + length, dtype="<u2")
        first += length
        paths.append(tmp_path / f"x_train_{i:06}.bin")
        paths[-1].write_bytes(header.tobytes() + content.tobytes())
        contents.append(content)
    return paths, contents


def expected_steps(contents, steps):
    """The order of tokens, said in the plainest way: cut each shard into steps, over and over."""
    windows = [c[i : i + STEP + 1] for c in contents for i in range(0, len(c) - STEP, STEP)]
    return [windows[s % len(windows)] for s in range(steps)]


def read(loader, tokens, position, ranks):
    share = SEQUENCES // ranks
    parts = [tokens.read(position, slice(r * share, (r + 1) * share)) for r in range(ranks)]
    return tuple(np.concatenate([np.asarray(p[i]) for p in parts]) for i in (0, 1))


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("name", LOADERS)
def test_stream_is_the_shards_cut_into_steps(shards, name, ranks):
    paths, contents = shards
    loader = LOADERS[name]
    tokens, position = loader.Tokens(paths, SEQUENCES, CONTEXT), loader.Position()
    for step, window in enumerate(expected_steps(contents, 20)):
        inputs, targets = read(loader, tokens, position, ranks)
        assert (inputs == window[:-1].reshape(SEQUENCES, CONTEXT)).all(), f"step {step}"
        assert (targets == window[1:].reshape(SEQUENCES, CONTEXT)).all(), f"step {step}"
        position = tokens.next(position)


@pytest.mark.parametrize("name", LOADERS)
def test_prefetched_stream_is_the_same_and_its_positions_resume_it(shards, name):
    loader = LOADERS[name]
    tokens = loader.Tokens(shards[0], SEQUENCES, CONTEXT)
    whole = loader.ahead(loader.batches(tokens, loader.Position(), np.asarray))
    seen = [next(whole) for _ in range(12)]
    whole.close()
    for inputs, window in zip((s[0] for s in seen), expected_steps(shards[1], 12), strict=True):
        assert (inputs.reshape(-1) == window[:-1]).all()
    resumed = loader.ahead(loader.batches(tokens, seen[6][2], np.asarray))
    for _, (inputs, targets, position) in zip(range(5), resumed, strict=False):
        want = seen[7 + _]
        assert (inputs == want[0]).all()
        assert (targets == want[1]).all()
        assert position == want[2]
    resumed.close()


@pytest.mark.parametrize("name", LOADERS)
def test_a_failure_while_reading_ahead_reaches_the_reader(name):
    def failing():
        yield 1
        raise OSError("gone")

    upcoming = LOADERS[name].ahead(failing())
    assert next(upcoming) == 1
    with pytest.raises(OSError, match="gone"):
        next(upcoming)


def test_jax_reads_the_first_step_alone():
    read = []
    upcoming = LOADERS["jaxgpt"].ahead(step for step in itertools.count() if not read.append(step))
    assert next(upcoming) == 0
    upcoming.close()
    assert read == [0]


@pytest.mark.parametrize(("name", "taken"), [("jaxgpt", 2), ("torch_ref", 1)])
def test_two_steps_are_read_ahead_and_no_more(name, taken):
    read = []

    def steps():
        for step in itertools.count():
            read.append(step)
            yield step

    upcoming = LOADERS[name].ahead(steps())
    assert [next(upcoming) for _ in range(taken)] == list(range(taken))
    upcoming.close()  # waits for what is under way
    assert read == list(range(taken + 2))


@pytest.mark.parametrize(("name", "dtype"), [("jaxgpt", "int32"), ("torch_ref", "torch.int64")])
def test_tokens_have_the_dtype_that_their_framework_takes(shards, name, dtype):
    loader = LOADERS[name]
    tokens = loader.Tokens(shards[0], SEQUENCES, CONTEXT)
    both = *tokens.read(loader.Position()), *loader.validation_sequences(shards[0][0], 12, CONTEXT)
    assert [str(each.dtype) for each in both] == [dtype] * 4


@pytest.mark.parametrize("name", LOADERS)
def test_validation_is_the_start_of_the_shard(shards, name):
    inputs, targets = LOADERS[name].validation_sequences(shards[0][0], 12, CONTEXT)
    assert np.asarray(inputs).reshape(-1).tolist() == list(range(12))
    assert np.asarray(targets).reshape(-1).tolist() == list(range(1, 13))


@pytest.mark.parametrize("name", LOADERS)
def test_validation_takes_all_of_a_shard_but_the_last_target(shards, name):
    inputs, targets = LOADERS[name].validation_sequences(shards[0][1], STEP, CONTEXT)
    assert np.asarray(inputs).reshape(-1).tolist() == shards[1][1][:-1].tolist()
    assert np.asarray(targets).reshape(-1).tolist() == shards[1][1][1:].tolist()


@pytest.mark.parametrize("name", LOADERS)
def test_a_shard_without_the_last_target_of_its_one_step_is_refused(shards, name):
    with pytest.raises(BadInput, match="holds 64 tokens and a step takes 16 x 4"):
        LOADERS[name].Tokens(shards[0][2:], 2 * SEQUENCES, CONTEXT)


@pytest.mark.parametrize("name", LOADERS)
def test_a_shard_shorter_than_a_step_is_refused(shards, name):
    with pytest.raises(BadInput, match="holds 33 tokens"):
        LOADERS[name].Tokens(shards[0], SEQUENCES + 1, CONTEXT)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize(
    ("shard", "tokens", "says"),
    [(0, 168, "give 164"), (0, 13, "give 12"), (0, 3, "give 4"), (1, 36, "give 32"), (2, 64, "give 60")],
)
def test_validation_that_does_not_fit_is_refused_with_what_would(shards, name, shard, tokens, says):
    with pytest.raises(BadInput, match=says):
        LOADERS[name].validation_sequences(shards[0][shard], tokens, CONTEXT)


@pytest.mark.parametrize("name", LOADERS)
def test_validation_on_a_shard_without_one_sequence_is_refused(shards, name):
    with pytest.raises(BadInput, match="give a longer shard"):
        LOADERS[name].validation_sequences(shards[0][1], 40, 40)
