"""What a file claims is no reason to take memory: readers under a limit of the file's size and a constant."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable

import pytest

from parity_tests.fuzz import seeds
from parity_tests.programs import ROOT

ROOM = 192 << 20
"""Bytes that a reader may take beside the file's size: buffers, threads, and the lines of a report."""

PROGRAM = f"""
import json, resource, sys
from pathlib import Path
from parity_tests.fuzz import targets
for target in targets.TARGETS.values():
    target.take(target.seeds[0])  # what is imported or started at first use
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
ends = {{}}
for name, target in json.loads(sys.argv[1]).items():
    content = Path(sys.argv[2], name).read_bytes()
    take = targets.TARGETS[target].take if target != "control" else lambda content: len(bytearray(4 * {ROOM}))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 4 * len(content) + {ROOM}
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        ends[name] = "taken" if take(content) else "refused"
    except BaseException as error:
        ends[name] = type(error).__name__
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
print(json.dumps(ends))
"""


def safetensors(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


def claims(keys: str, value: object) -> bytes:
    """A run's config.json with one value replaced."""
    config = seeds.config()
    *path, last = keys.split(".")
    inside = config
    for key in path:
        inside = inside[key]
    inside[last] = value
    return json.dumps(config).encode()


CONTROL = "what takes more than there is"

TOO_MUCH: dict[str, tuple[str, Callable[[], bytes]]] = {
    # name: (target, the file's content)
    "shard of 2**31 - 1 tokens": (
        "shard",
        lambda: struct.pack("<256i", 20240520, 1, 2**31 - 1, *[0] * 253) + bytes(2000),
    ),
    "safetensors header of 4 GB": ("weights", lambda: (4 << 30).to_bytes(8, "little") + b"{" * 1000),
    "safetensors header just below its limit": ("state", lambda: (99_999_999).to_bytes(8, "little") + b"{}"),
    "tensor of 4 TB": (
        "state",
        lambda: safetensors(
            b'{"model.wte.weight":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
        ),
    ),
    "tensor of 2**64 numbers": (
        "weights",
        lambda: safetensors(
            b'{"model.wte.weight":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'
        ),
    ),
    "metrics nested 100,000 deep": ("metrics", lambda: b'{"step":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"),
    "config nested 100,000 deep": ("config", lambda: b'{"recipe":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}"),
    "step of a million digits": ("metrics", lambda: b'{"tokens":1,"val_loss":1,"step":' + b"9" * 10**6 + b"}\n"),
    "width of a million digits": ("config", lambda: b'{"recipe":{"model":{"width":' + b"9" * 10**6 + b"}}}"),
    "metrics of one line of 8 MB": ("metrics", lambda: b'{"val_loss":"' + b"x" * (8 << 20) + b'"}\n'),
    "config of 8 MB": ("config", lambda: json.dumps(seeds.config() | {"more": "x" * (8 << 20)}).encode()),
    "width of a trillion": ("config", lambda: claims("recipe.model.width", 10**12)),
    "a trillion layers": ("config", lambda: claims("recipe.model.layers", 10**12)),
    CONTROL: ("control", bytes),
    "a trillion rows": ("config", lambda: claims("recipe.model.vocab", 10**12)),
}


@pytest.fixture(scope="module")
def ends(tmp_path_factory, environment) -> dict[str, str]:
    """name -> how the reader ended, all in one process."""
    if sys.platform != "linux":
        pytest.skip("RLIMIT_AS and /proc are Linux's")
    folder = tmp_path_factory.mktemp("much")
    for name, (_, content) in TOO_MUCH.items():
        (folder / name).write_bytes(content())
    readers = json.dumps({name: target for name, (target, _) in TOO_MUCH.items()})
    command = [sys.executable, "-c", PROGRAM, readers, str(folder)]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize("what", [name for name in TOO_MUCH if name != CONTROL])
def test_file_that_claims_much_is_refused_without_memory_for_it(ends, what):
    assert ends[what] == "refused"


def test_limit_is_one_that_a_reader_would_run_into(ends):
    assert ends[CONTROL] == "MemoryError"
