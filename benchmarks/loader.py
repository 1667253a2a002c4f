"""Does reading tokens cost throughput? `python -m benchmarks.loader --recipe muon-2024-10-12 --data GLOB`

Trains on the real stream and on one repeated batch that already lies on the devices, alternating in one process, and
prints the ratio of the two rates as JSON. The stream reads, converts and copies the next batch while the devices work.
"""

import contextlib
import dataclasses
import itertools
import json
import statistics
import sys
import time
from dataclasses import dataclass

import jax

from jaxgpt import mesh, tokens
from jaxgpt.commands import parse
from jaxgpt.errors import BadInput, exit_codes
from jaxgpt.flags import Flags, shard_patterns
from jaxgpt.recipes import named, precision
from jaxgpt.shards import inspect_shards
from jaxgpt.train import make_step


@dataclass(frozen=True)
class LoaderBenchmark:
    """Steps on the stream of tokens against steps on one repeated batch."""

    recipe: str = "tiny"
    mesh: int | None = None
    data: str | None = None
    """Glob of training shards; the recipe's own where absent."""
    steps: int = 20
    """Steps of one measurement."""
    alternations: int = 5
    """Measurements of each kind."""


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `LoaderBenchmark`."""
    flags = parse(LoaderBenchmark, sys.argv[1:] if argv is None else argv, "python -m benchmarks.loader")
    if flags.steps < 1 or flags.alternations < 1:
        raise BadInput(f"--steps {flags.steps} and --alternations {flags.alternations}: give at least 1 of each")
    devices = mesh.make_mesh(flags.mesh)
    recipe = named(flags.recipe)
    exactly = precision(recipe, None, mesh.attention(devices), kernels=mesh.kernels(devices, "auto"))
    pattern, _ = shard_patterns(recipe, Flags(data=flags.data))
    shards = inspect_shards(pattern, "--data", recipe.model.token_ids)
    stream = tokens.Tokens([s.path for s in shards], recipe.data.sequences, recipe.model.context)
    micro_batch = mesh.micro_batch(recipe.data.sequences, devices.size, recipe.data.micro_batch, None)
    program = make_step(recipe, exactly, devices, micro_batch)
    state = program.init(0)

    def seconds_a_step(batches) -> float:
        """Runs `flags.steps` steps; as in training, one step's metrics are awaited while the next one runs."""
        nonlocal state
        before: dict[str, jax.Array] = {}
        started = time.perf_counter()
        for inputs, targets, _ in itertools.islice(batches, flags.steps):
            state, metrics = program.step(state, inputs, targets)
            if before:
                float(before["train_loss"])
            before = metrics
        float(before["train_loss"])
        return (time.perf_counter() - started) / flags.steps

    place = lambda rows: mesh.place(devices, rows)  # noqa: E731
    with contextlib.closing(tokens.ahead(tokens.batches(stream, tokens.Position(), place))) as upcoming:
        repeated = itertools.repeat(next(upcoming))
        seconds_a_step(repeated)  # compiles
        times = [(seconds_a_step(upcoming), seconds_a_step(repeated)) for _ in range(flags.alternations)]
    streamed, same = zip(*times, strict=True)
    result = {
        **dataclasses.asdict(flags),
        "device": devices.devices.flat[0].device_kind,
        "jax": jax.__version__,
        "streamed_s": streamed,
        "repeated_s": same,
        "throughput_ratio": statistics.median(same) / statistics.median(streamed),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
