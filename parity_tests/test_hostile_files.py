"""Files from anybody: each reader takes them or refuses them in one line, whatever they hold."""

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

import jaxgpt.bridge
import jaxgpt.tokens
import torch_ref.bridge
import torch_ref.tokens
from jaxgpt import picture, published
from jaxgpt.curves import compare, load_run
from jaxgpt.errors import BadInput, exit_codes, one_line
from jaxgpt.recorded import recorded
from parity_tests.fuzz import seeds, targets

FILES = ("shard", "weights", "state", "config", "metrics", "published", "text", "gpt2_config")
LOADERS = {"jaxgpt": jaxgpt.tokens, "torch_ref": torch_ref.tokens}
BRIDGES = {"jaxgpt": jaxgpt.bridge, "torch_ref": torch_ref.bridge}
in_both = pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
in_both_bridges = pytest.mark.parametrize("bridge", BRIDGES.values(), ids=BRIDGES)


def deterministic(examples: int) -> settings:
    return settings(derandomize=True, deadline=None, max_examples=examples, database=None)


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """`whole` with a few places cut out, replaced or doubled."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        end = min(len(content), at + draw(st.sampled_from([0, 1, 2, 8, 10**6])))
        content[at:end] = draw(st.one_of(st.binary(max_size=9), st.just(bytes(content[at:end]) * 2)))
    return bytes(content)


HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 10**12, 2**31, 2**63, 10**400, -(10**400), math.nan, math.inf, -math.inf, 1e308, 5e-324]),
    st.floats(),
    st.text(max_size=9),
    st.sampled_from(["", "x" * 10_000, "\0", "\ud800", "a\nb", "\x1b[2J", "$x^", "[/red]", "../../etc"]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@st.composite
def changed(draw, whole: dict) -> dict:
    """A JSON object with a few of its values, however deep, replaced or left out."""
    whole = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 3))):
        at: dict | list = whole
        while at:
            key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
            inside = at[key]
            if isinstance(inside, dict | list) and inside and draw(st.integers(0, 5)):
                at = inside
                continue
            if draw(st.integers(0, 5)):
                at[key] = draw(HOSTILE)
            else:
                del at[key]
            break
    return whole


@pytest.mark.parametrize("name", FILES)
def test_seed_of_a_target_is_taken(name):
    assert all(map(targets.TARGETS[name].take, targets.TARGETS[name].seeds))


@pytest.mark.parametrize("name", FILES)
@deterministic(60)
@given(data=st.data())
def test_damaged_file_is_taken_or_refused_in_one_line(name, data):
    target = targets.TARGETS[name]
    target.take(data.draw(damaged(data.draw(st.sampled_from(target.seeds)))))


@pytest.mark.parametrize("name", FILES)
@deterministic(30)
@given(st.binary(max_size=2000))
def test_any_bytes_are_taken_or_refused_in_one_line(name, content):
    targets.TARGETS[name].take(content)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@settings(deadline=None, max_examples=1000, database=None, derandomize=True)
@given(data=st.data())
def test_damaged_file_is_taken_or_refused_in_one_line_however_long_one_tries(name, data):
    target = targets.TARGETS[name]
    target.take(data.draw(damaged(data.draw(st.sampled_from(target.seeds)))))


@deterministic(150)
@given(changed(seeds.config()))
def test_any_config_of_a_run_is_taken_or_refused_in_one_line(config):
    targets.config(json.dumps(config).encode())


@pytest.mark.slow
@deterministic(1000)
@given(changed(seeds.config()))
def test_any_config_of_a_run_is_taken_or_refused_in_one_line_however_long_one_tries(config):
    targets.config(json.dumps(config).encode())


@deterministic(100)
@given(st.lists(changed(dict.fromkeys(["step", "tokens", "train_loss", "val_loss", "train_time_s"], 1)), max_size=4))
def test_any_lines_of_metrics_are_taken_or_refused_in_one_line(lines):
    targets.metrics(b"".join(json.dumps(line).encode() + b"\n" for line in lines))


@deterministic(6)
@given(changed(seeds.config()), st.floats(-1e30, 1e30), st.floats(0, 1e30), st.integers(0, 2**53))
def test_whatever_is_taken_can_be_drawn(config, loss, time, tokens):
    line = {"step": 3, "tokens": tokens, "val_loss": loss, "train_time_s": time}
    folder = targets.run_folder(json.dumps(config).encode(), json.dumps(line).encode())
    run = load_run(folder)
    assert picture.comparison_png(compare([run, run])).startswith(b"\x89PNG")


def safetensors(header: object, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


@deterministic(100)
@given(changed(json.loads(seeds.state()[8:].split(b"}}")[0] + b"}}")))
def test_any_header_of_weights_is_taken_or_refused_in_one_line_by_both(header):
    content = safetensors(header, bytes(len(seeds.state())))
    targets.weights(content)
    targets.state(content)


# Each of these crashed a reader once.


def of_dtype(dtype: str, bits: int) -> bytes:
    """`SMALL`'s weights as they would be in that dtype, all zero."""
    header, at = {}, 0
    for name, shape in seeds.SMALL.model.shapes.items():
        end = at + math.prod(shape) * bits // 8
        header[f"model.{name}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    return safetensors(header, bytes(at))


FOREIGN = {"F4": 4, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "BOOL": 8, "I64": 64, "C64": 64, "BF16": 16}


@in_both_bridges
@pytest.mark.parametrize("dtype", FOREIGN)
def test_weights_of_a_dtype_that_no_trainer_writes_are_refused(tmp_path, bridge, dtype):
    (tmp_path / "w").write_bytes(of_dtype(dtype, FOREIGN[dtype]))
    with pytest.raises(BadInput, match=f"is {dtype} there, not F32 or F64|can't be read as safetensors"):
        bridge.load_state(tmp_path / "w", seeds.SMALL)


def replaced(keys: str, value: object) -> dict:
    """`seeds.config()` with one value replaced."""
    config = seeds.config()
    *path, last = keys.split(".")
    inside = config
    for key in path:
        inside = inside[key]
    inside[last] = value
    return config


def nested(depth: int) -> list:
    inside: list = []
    for _ in range(depth):
        inside = [inside]
    return inside


CONFIGS: dict[str, tuple[str, object, str]] = {
    "an integer beyond any float": ("recipe.optimizer.lr", 10**400, "recipe.optimizer.lr is 1000"),
    "layers that would fill the memory with names": ("recipe.model.layers", 10**12, "model.layers is 1000000000000"),
    "a width beyond any memory": ("recipe.model.width", 10**12, "model.width is 1000000000000"),
    "more parameters than any model": ("recipe.model.width", 2**18, "parameters"),
    "steps beyond int32": ("recipe.schedule.steps", 2**31, "schedule.steps is 2147483648"),
    "coefficients that are no numbers": (
        "recipe.optimizer.newton_schulz_coefficients",
        [math.nan, 1.0, 1.0],
        "newton_schulz_coefficients",
    ),
    "nested too deep to be shown": ("recipe.model.width", nested(5000), "something nested too deep"),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_config_that_no_run_wrote_is_refused(what):
    keys, value, said = CONFIGS[what]
    if keys.endswith("width") and value == 2**18:
        config = replaced("recipe.model.layers", 4096)
        config["recipe"]["model"]["width"] = value
    else:
        config = replaced(keys, value)
    with pytest.raises(BadInput) as refused:
        recorded(config, "config.json")
    assert said in str(refused.value)


@in_both
def test_shard_cut_short_while_it_is_mapped_is_refused_instead_of_the_process_killed(tmp_path, loader):
    path = tmp_path / "a.bin"
    path.write_bytes(seeds.shard(40_000))
    stream = loader.Tokens([path], 2, 10_000)
    path.write_bytes(seeds.shard(40_000)[:3000])
    with pytest.raises(BadInput, match=r"a\.bin changed after it was checked"):
        stream.read(loader.Position())


@in_both
@pytest.mark.parametrize("left", [0, 100, 1025])
def test_shard_cut_short_before_it_is_mapped_is_refused(tmp_path, loader, left):
    (tmp_path / "a.bin").write_bytes(seeds.shard()[:left])
    with pytest.raises(BadInput, match=r"a\.bin changed after it was checked"):
        loader.Tokens([tmp_path / "a.bin"], 2, 3)


@pytest.mark.parametrize(
    "line", ["0,1,2", "0,1,2,nan", "0,1,x,3", f"0,{'9' * 5000},2,3"], ids=["short", "nan", "text", "long"]
)
def test_row_that_is_no_point_of_a_published_curve_is_refused(line):
    with pytest.raises(BadInput, match=r"a\.csv: no published curve"):
        list(published.read(["seed,step,tokens,val_loss\n", line], "a.csv"))


@in_both_bridges
def test_name_of_a_tensor_does_not_steer_the_terminal(tmp_path, bridge, capsys):
    weights = {f"model.{name}": np.ones(shape, np.float32) for name, shape in seeds.SMALL.model.shapes.items()}
    (tmp_path / "w").write_bytes(save(weights | {"model.a\x1b[2J\nerror: b": np.ones(1, np.float32)}))

    @exit_codes
    def program() -> None:
        bridge.load_state(tmp_path / "w", seeds.SMALL)

    with pytest.raises(SystemExit):
        program()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert r"has no weight a\x1b[2J error: b" in said


def test_error_without_end_is_a_line_of_a_few_thousand_characters_with_its_mend():
    line = one_line(BadInput("--recipe " + "x" * 10**6 + ": give another"))
    assert len(line) < 5000
    assert line.endswith(": give another")


OUT_OF_MEMORY: dict[str, Callable[[], Exception]] = {
    "Python's": MemoryError,
    "XLA's": lambda: RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes"),
    "PyTorch's": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
}


@pytest.mark.parametrize("whose", OUT_OF_MEMORY)
def test_memory_that_cannot_be_had_is_said_in_one_line(whose, capsys):
    @exit_codes
    def program() -> None:
        raise OUT_OF_MEMORY[whose]()

    with pytest.raises(SystemExit, match="2"):
        program()
    assert capsys.readouterr().err.startswith("error: out of memory (")
