"""The readers of files and command lines, each as a function of bytes that says whether they were taken.

What is taken has to be right as well: a shard's tokens are those of the file, both frameworks take the same files.
"""

import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import jaxgpt.bridge
import jaxgpt.tokens
import torch_ref.bridge
import torch_ref.tokens
from jaxgpt import compare, corpus, huggingface, published, recipe_table, report, sample
from jaxgpt.commands import parse
from jaxgpt.curves import load_run
from jaxgpt.equivalence import judge
from jaxgpt.errors import BadInput
from jaxgpt.files import check_name
from jaxgpt.flags import check_seed, recipe_and_flags
from jaxgpt.recipes import named
from jaxgpt.recorded import recorded
from jaxgpt.shards import inspect_shards
from parity_tests.fuzz import seeds
from parity_tests.fuzz.verdict import taken

FOLDER = tempfile.TemporaryDirectory(prefix="hostile")


class Target(NamedTuple):
    """A reader."""

    take: Callable[[bytes], bool]
    """Whether it took these bytes; raises where it crashed."""
    seeds: list[bytes]
    """Bytes that it takes."""


def file(content: bytes, name: str = "input") -> Path:
    """That file, in a folder of this process."""
    path = Path(FOLDER.name, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def run_folder(config: bytes, metrics: bytes) -> Path:
    """A run's folder that holds these."""
    file(metrics, "run/metrics.jsonl")
    return file(config, "run/config.json").parent


def shard(content: bytes) -> bool:
    """The check of a shard, then both streams."""
    path = file(content)

    def read() -> None:
        (whole,) = inspect_shards(str(path), "--data", 250)
        assert (whole.tokens, 1024 + 2 * whole.tokens) == ((len(content) - 1024) // 2, len(content))
        batches = []
        for loader in (jaxgpt.tokens, torch_ref.tokens):
            stream = loader.Tokens([path], 2, 3)
            batches.append([np.asarray(each) for each in stream.read(stream.next(loader.Position()))])
            loader.validation_sequences(path, 6, 3)
        assert np.array_equal(batches[0], batches[1])
        assert np.max(batches) <= whole.largest < 250

    return taken(read)


def _in_both(read: Callable[[Any], object]) -> bool:
    """Whether both bridges took it, which they have to be of one mind about."""
    jax, torch = (taken(lambda bridge=bridge: read(bridge)) for bridge in (jaxgpt.bridge, torch_ref.bridge))
    assert jax == torch, "one of the two bridges took it"
    return jax


def weights(content: bytes) -> bool:
    """`--init-from` of both trainers."""
    path = file(content)
    return _in_both(lambda bridge: bridge.load_state(path, seeds.SMALL))


def state(content: bytes) -> bool:
    """A whole training state, in both frameworks."""
    path = file(content)
    return _in_both(lambda bridge: bridge.load_training_state(path, seeds.SMALL))


def config(content: bytes) -> bool:
    """A run's config.json: for a comparison, for a verdict, and as what was computed."""
    folder = run_folder(content, seeds.metrics())

    def compared() -> None:
        run = load_run(folder)
        assert max(map(len, (run.recipe, run.trainer, run.devices))) <= 60
        assert run.label.isprintable()
        judge([run])

    taken(compared)
    return taken(lambda: recorded(load_run(folder).config, str(folder / "config.json")))


def metrics(content: bytes) -> bool:
    """A run's metrics.jsonl, and the report of it."""
    folder = run_folder(json.dumps(seeds.config()).encode(), content)

    def read() -> None:
        run = load_run(folder)
        for series in run.series:
            assert np.isfinite(series.loss).all()
            assert (np.diff(series.step) > 0).all()
            assert (np.diff(series.tokens) >= 0).all()
        report.markdown(compare.compare([run, run]), "command")

    return taken(read)


def published_curve(content: bytes) -> bool:
    """The rows of a published curve."""

    def read() -> None:
        lines = content.decode("utf-8", "replace").splitlines(keepends=True)
        assert all(math.isfinite(point.val_loss) for _, point in published.read(lines, "a.csv"))

    return taken(read)


def text(content: bytes) -> bool:
    """A text file for shards, cut into pieces: they are the text."""
    path = file(content)

    def read() -> None:
        pieces = list(corpus._pieces([path], "", block=16))
        assert "".join(piece for *_, piece in pieces) == content.decode("utf-8-sig")
        apart = [piece for *_, piece in corpus._pieces([path], "\n\n", block=16)]
        assert "".join(apart) == content.decode("utf-8-sig").replace("\n\n", "")

    return taken(read)


def words(content: bytes) -> list[str]:
    """A command line, one word a line, as Python gets it from the shell."""
    return [os.fsdecode(word) for word in content.split(b"\n")] if content else []


def train_flags(content: bytes) -> bool:
    """The command line of both trainers; what is taken can be taken down as JSON."""

    def read() -> None:
        recipe, _, overrides = recipe_and_flags(words(content), "python -m jaxgpt.train", "tiny")
        json.dumps(overrides)
        assert recipe.model.parameters <= 2**40

    return taken(read)


def compare_flags(content: bytes) -> bool:
    """The command line of jaxgpt.compare, up to what it would write."""

    def read() -> None:
        flags = parse(compare.Flags, words(content), "python -m jaxgpt.compare")
        report.check_folder(flags.out)
        compare.load_curves(flags.runs, flags.published, flags.overlay)

    return taken(read)


def corpus_flags(content: bytes) -> bool:
    """The command line of jaxgpt.corpus."""
    return taken(lambda: parse(corpus.Command, words(content), "python -m jaxgpt.corpus"))


def bridge_flags(content: bytes) -> bool:
    """The command line of jaxgpt.bridge, up to what it would write."""

    def read() -> None:
        flags = parse(jaxgpt.bridge.InitialWeights, words(content), "python -m jaxgpt.bridge")
        named(flags.recipe)
        check_seed(flags.seed)
        check_name(flags.out, "--out")
        if flags.out.exists():
            raise BadInput(f"--out {flags.out} exists already")

    return taken(read)


def sample_flags(content: bytes) -> bool:
    """The command line of jaxgpt.sample, up to the weights that it would read."""
    return taken(lambda: sample.read_flags(words(content)))


def huggingface_flags(content: bytes) -> bool:
    """The command line of jaxgpt.huggingface, up to what it would write."""

    def read() -> None:
        check_name(parse(huggingface.Command, words(content), huggingface.PROG).do.out, "--out")

    return taken(read)


def gpt2_config(content: bytes) -> bool:
    """The config.json of a model in transformers' format: what is taken can be exported again."""
    folder = file(content, "gpt2/config.json").parent

    def read() -> None:
        huggingface.gpt2_config(huggingface.recipe_of(folder).model)

    return taken(read)


def recipes_flags(content: bytes) -> bool:
    """The command line of jaxgpt.recipes."""
    return taken(lambda: named(parse(recipe_table.Flags, words(content), "python -m jaxgpt.recipes").name or "tiny"))


_TRAIN = (
    "--recipe\ntiny\n--steps\n9\n--seed\n3\n--data\na_train_*.bin\n--optimizer.lr\n0.1\n--model.layers\n2",
    "--mesh\n2\n--dtype\nfloat64\n--val-every\n5\n--optimizer.betas\n0.9\n0.95\n--model.no-biases\n--run\na b",
    "--schedule.steps=90\n--model.logit-cap\nNone\n--data.val-every-at-end=7\n--optimizer.kind\nadamw",
)
TARGETS = {
    "shard": Target(shard, [seeds.shard()]),
    "weights": Target(weights, [seeds.weights()]),
    "state": Target(state, [seeds.state()]),
    "config": Target(config, [json.dumps(seeds.config()).encode()]),
    "metrics": Target(metrics, [seeds.metrics()]),
    "published": Target(published_curve, [seeds.PUBLISHED]),
    "text": Target(text, [seeds.TEXT]),
    "train_flags": Target(train_flags, [each.encode() for each in _TRAIN]),
    "compare_flags": Target(compare_flags, [b"--out\nnowhere\n--published\nmuon-2024-10-10\n--target\n3.28\n--\nrun"]),
    "corpus_flags": Target(
        corpus_flags, [b"text\na.txt\n--out\nb\n--val-every\n9", b"fineweb\n--shards\n3", b"sample"]
    ),
    "bridge_flags": Target(bridge_flags, [b"--recipe\ntiny\n--out\nw.safetensors\n--seed\n1"]),
    "sample_flags": Target(sample_flags, [b"runs/a\n--prompt\nhello\n--tokens\n9\n--top-k\n3\n--seed\n1"]),
    "huggingface_flags": Target(huggingface_flags, [b"export\nrun\n--out\na", b"import\ngpt2\n--out\nw"]),
    "gpt2_config": Target(gpt2_config, [json.dumps(huggingface.gpt2_config(named(huggingface.RECIPE).model)).encode()]),
    "recipes_flags": Target(recipes_flags, [b"tiny"]),
}
