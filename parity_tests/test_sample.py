"""Text from a trained model: the cache answers as the whole model does, and the program does what its flags say."""

import dataclasses
import io
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import sample, trained, vocabulary
from jaxgpt.bridge import from_torch, save_state
from jaxgpt.decode import Decoder
from jaxgpt.errors import BadInput
from jaxgpt.recipes import RECIPES, named, precision, reduced
from parity_tests import checkpoints, modules
from parity_tests.by_dtype import by_recipe_and_dtype
from parity_tests.measured import assert_within
from parity_tests.pair import MODELS, relative, weights
from parity_tests.tolerances import DECODED_LOGITS

# The cache


def whole(name: str, dtype: str, ids: list[int]) -> np.ndarray:
    """Logits after each of the tokens, by the model that trains."""
    recipe = reduced(name)
    gpt, _ = modules.models(recipe, precision(recipe, dtype, attention="exact"), weights(name, dtype))
    with jax.default_matmul_precision("highest"):
        return np.asarray(gpt(jnp.asarray([ids])))[0]


def decoder(name: str, dtype: str = "float32") -> Decoder:
    config = reduced(name).model
    return Decoder(config, from_torch(weights(name, dtype), config), dtype)


def some_ids(name: str, length: int) -> list[int]:
    return np.random.default_rng(3).integers(0, reduced(name).model.token_ids, length).tolist()


@by_recipe_and_dtype(MODELS)
def test_logits_by_the_cache_are_those_of_a_full_forward(name, dtype):
    ids, reader = some_ids(name, reduced(name).model.context), decoder(name, dtype)
    got = [reader.read(ids[:5]), *(reader.read([each]) for each in ids[5:])]
    assert_within(relative(got, whole(name, dtype, ids)[4:]), DECODED_LOGITS[dtype])


LEARNED, ROTARY = "llmc-2024-10-13", "muon-2024-10-12"


@pytest.mark.parametrize("context", [33, 100, 129])
@pytest.mark.parametrize("name", [LEARNED, ROTARY])
def test_a_prompt_of_several_chunks_is_read_as_one_that_comes_token_by_token(name, context):
    recipe = reduced(name, context=context)
    start = modules.start_weights(recipe)
    params = from_torch({n: w.astype(np.float32) for n, w in start.items()}, recipe.model)
    ids = some_ids(name, context)
    at_once, one_by_one = Decoder(recipe.model, params), Decoder(recipe.model, params)
    for each in ids:
        last = one_by_one.read([each])
    assert_within(relative(at_once.read(ids), last), DECODED_LOGITS["float32"])


@pytest.mark.parametrize("name", [LEARNED, ROTARY])
def test_two_programs_are_compiled_however_long_the_text_gets(name):
    reader = decoder(name)
    for ids in ([1, 2, 3], [4], *([i] for i in range(50)), [5, 6]):
        reader.read(ids)
    assert reader._extend._cache_size() == 2


@pytest.mark.parametrize("name", [LEARNED, ROTARY])
def test_of_a_prompt_longer_than_the_context_the_last_tokens_are_read(name):
    context = reduced(name).model.context
    ids = some_ids(name, context + 9)
    want = whole(name, "float32", ids[-context:])[-1]
    assert_within(relative(decoder(name).read(ids), want), DECODED_LOGITS["float32"])


@pytest.mark.parametrize("name", [LEARNED, ROTARY])
def test_a_text_that_outgrows_the_context_goes_on_from_its_last_half(name):
    context = reduced(name).model.context
    ids, reader = some_ids(name, 2 * context), decoder(name)
    for i, each in enumerate(ids):
        got = reader.read([each])
        if i >= context:
            seen = context // 2 + (i - context) % (context - context // 2 + 1)
            assert len(reader.text) == seen
            want = (
                whole(name, "float32", ids[: i + 1][-seen:])[-1] if i in (context, context + 5, len(ids) - 1) else got
            )
            assert_within(relative(got, want), DECODED_LOGITS["float32"])


# What is drawn

LOGITS = np.array([0.0, 2.0, 1.0, -1.0], np.float32)


def counted(temperature: float, top_k: int | None = None, draws: int = 4000) -> np.ndarray:
    generator = np.random.default_rng(0)
    return np.bincount([sample.drawn(LOGITS, temperature, top_k, generator) for _ in range(draws)], minlength=4) / draws


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(z) / np.exp(z).sum()


def test_temperature_0_takes_the_likeliest():
    assert counted(0.0, draws=20).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_by_the_softmax_of_logits_over_temperature(temperature):
    assert counted(temperature) == pytest.approx(softmax(LOGITS / temperature), abs=0.03)


def test_top_k_draws_from_the_k_likeliest_alone():
    assert counted(1.0, top_k=2) == pytest.approx([0, *softmax(LOGITS[1:3]), 0], abs=0.03)


def test_a_temperature_near_0_is_no_division_by_it():
    assert counted(1e-320, draws=20).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(wrong):
    with pytest.raises(BadInput, match="aren't finite"):
        sample.drawn(np.array([0, wrong]), 1.0, None, np.random.default_rng(0))


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_a_padding_row_is_never_drawn_however_likely(temperature, monkeypatch):
    reader = decoder(ROTARY)
    config = reader.config
    likely = np.where(np.arange(config.vocab) >= config.token_ids, 100.0, 0.0)
    monkeypatch.setattr(reader, "read", lambda ids: likely)
    flags = sample.Flags(run=None, temperature=float(temperature), tokens=300)
    assert max(sample.continued(reader, [1], flags, config.token_ids, ())) < config.token_ids


def test_a_text_ends_before_the_token_that_ends_one(monkeypatch):
    reader = decoder(ROTARY)
    monkeypatch.setattr(reader, "read", lambda ids: np.eye(9)[(ids[-1] + 1) % 9])
    flags = sample.Flags(run=None, temperature=0.0)
    assert list(sample.continued(reader, [3], flags, 9, (7,))) == [4, 5, 6]


# Text


def test_a_character_that_takes_several_tokens_waits_for_the_last():
    text = vocabulary.Text()
    assert [text.add(bytes([byte])) for byte in "é€a".encode()] == ["", "é", "", "", "€", "a"]
    assert text.end() == ""


def test_bytes_that_are_no_text_are_shown_as_such():
    text = vocabulary.Text()
    assert text.add(b"\xff") + text.add(b"a\xe2") + text.end() == "\ufffda\ufffd"


def test_control_characters_do_not_reach_a_terminal():
    assert sample.shown("a\x1b[2J\n\tb", terminal=True) == "a\\x1b[2J\n\tb"
    assert sample.shown("a\x1b", terminal=False) == "a\x1b"


def test_a_prompt_follows_the_token_that_begins_a_text_in_the_shards():
    assert vocabulary.prompt_ids("hé", vocabulary.vocabulary(named("tiny"))) == [0, 104, 195, 169]


def test_gpt2s_tokens_that_the_model_was_not_trained_on_are_none_of_its_vocabulary(monkeypatch):
    encoding = type("Encoding", (), {"n_vocab": 50257, "encode_ordinary": None, "decode_single_token_bytes": None})
    monkeypatch.setattr(vocabulary, "gpt2_encoding", lambda: encoding)
    assert RECIPES[ROTARY].model.vocab > 50257
    assert vocabulary.vocabulary(RECIPES[ROTARY]).size == 50257


# The program


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a finished run, its weights as a file, and what the program refuses."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = dataclasses.replace(named("tiny"), model=dataclasses.replace(named("tiny").model, layers=2, width=64))
    start = {name: w.astype(np.float32) for name, w in modules.start_weights(recipe).items()}
    for name in ("done", "empty"):
        (folder / name).mkdir()
        config = {"trainer": "jaxgpt", "recipe": dataclasses.asdict(recipe)}
        (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_state(folder / "done" / "weights.safetensors", from_torch(start, recipe.model), recipe)
    save_state(folder / "w.safetensors", from_torch(start, recipe.model), recipe)
    broken = {name: w * np.nan for name, w in start.items()}
    save_state(folder / "nan.safetensors", from_torch(broken, recipe.model), recipe)
    (folder / "other").mkdir()
    return folder


SMALL = ("--recipe", "tiny", "--model.layers", "2", "--model.width", "64")


@pytest.fixture
def said(runs, monkeypatch, capsysbinary):
    """said(words...): how the program ends, and what is on stdout and stderr."""
    monkeypatch.chdir(runs)

    def said(*words: str) -> tuple[int, str, str]:
        code = 0
        try:
            sample.main(list(words))
        except SystemExit as end:
            code = end.code
        out, err = capsysbinary.readouterr()
        return code, out.decode(), err.decode()

    return said


def test_the_text_begins_with_the_prompt_and_has_so_many_tokens_more(said):
    code, out, err = said("done", "--prompt", "hello", "--tokens", "7", "--temperature", "0")
    added = out.removesuffix("\n").removeprefix("hello")
    assert (code, err) == (0, "tiny of done/weights.safetensors\n")
    assert out.startswith("hello")
    assert 1 <= len(added) <= 7


def test_the_same_seed_gives_the_same_text_and_another_another(said):
    one, again, other = (said("done", "--prompt", "a", "--seed", seed)[1] for seed in "112")
    assert one == again != other


def test_a_text_longer_than_the_context_goes_on(said):
    code, out, _ = said("done", "--prompt", "x", "--tokens", "150", "--temperature", "0")
    assert (code, len(out) > 64) == (0, True)


def test_a_prompt_longer_than_the_context_is_said_to_be_cut(said):
    code, _, err = said("done", "--prompt", "x" * 99, "--tokens", "1")
    assert code == 0
    assert "the prompt has 100 tokens and the context 64: the model reads the last 64 of them" in err


def test_a_file_with_its_recipe_says_what_its_run_does(said):
    words = ("--prompt", "a", "--tokens", "20")
    assert said("w.safetensors", *words, *SMALL)[1] == said("done", *words)[1]


REFUSED = {
    "no run": (("none",), "none: no such run folder"),
    "a folder that is none": (("other",), "other/config.json: no such file"),
    "a run without weights yet": (("empty",), "empty has no weights.safetensors and no checkpoint yet"),
    "a file without a recipe": (("w.safetensors",), "w.safetensors is a file: say with --recipe"),
    "a file of another recipe": (("w.safetensors", "--recipe", "tiny"), "(256, 64) there and (256, 128) in tiny"),
    "a recipe for a run": (("done", "--recipe", "tiny"), "leave them out for a run"),
    "unknown recipe": (("w.safetensors", "--recipe", "tinny"), "did you mean tiny?"),
    "no tokens": (("done", "--tokens", "0"), "--tokens 0: give a whole number of at least 1"),
    "temperature below 0": (("done", "--temperature", "-1"), "--temperature -1.0: give a finite number"),
    "temperature that is no number": (("done", "--temperature", "nan"), "--temperature nan: give"),
    "top-k 0": (("done", "--top-k", "0"), "--top-k 0: give a whole number of at least 1"),
    "top-k beyond the vocabulary": (("done", "--top-k", "257"), "--top-k 257: the model knows 256 tokens"),
    "seed below 0": (("done", "--seed", "-1"), "--seed -1: give"),
    "a prompt that is no text": (("done", "--prompt", "\udcff"), "--prompt isn't UTF-8"),
    "weights that are NaN": (("nan.safetensors", *SMALL), "its weights hold NaN or infinity"),
    "no run named": ((), "see python -m jaxgpt.sample --help"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input_is_one_line_and_exit_2(said, what):
    words, why = REFUSED[what]
    code, _, err = said(*words)
    *_, last = err.splitlines()
    assert code == 2
    assert last.startswith("error: ")
    assert why in last


def test_a_reader_that_has_seen_enough_ends_it_quietly(runs, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

        def fileno(self):
            return self.taken.fileno()

    monkeypatch.chdir(runs)
    out = Closed()
    with open("taken", "w") as out.taken:
        monkeypatch.setattr(sys, "stdout", out)
        sample.main(["done", "--prompt", "a"])


def test_without_gpt2s_vocabulary_it_says_how_to_get_it(said, runs, monkeypatch):
    def offline(name):
        raise ConnectionError("no network")

    monkeypatch.setattr("tiktoken.get_encoding", offline)
    recipe = reduced("llmc-2024-10-13")
    (runs / "gpt2").mkdir()
    config = {"trainer": "jaxgpt", "recipe": dataclasses.asdict(recipe)}
    (runs / "gpt2" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    params = from_torch(weights("llmc-2024-10-13", "float32"), recipe.model)
    save_state(runs / "gpt2" / "weights.safetensors", params, recipe)
    code, _, err = said("gpt2", "--prompt", "a")
    assert (code, err.count("\n")) == (2, 1)
    assert "tiktoken can't load the GPT-2 vocabulary" in err


# A run that has not finished


def unfinished(folder, framework: str, kept, name: str = "tiny-adamw", dtype: str = "float32") -> dict[str, np.ndarray]:
    """Make `folder` that of a run with checkpoints of the steps K and 2K; the weights of the latter."""
    made, one = kept(framework, name, dtype), checkpoints.trainer(framework, name, dtype)
    config = {"trainer": {"jax": "jaxgpt", "torch": "torch_ref"}[framework], "recipe": dataclasses.asdict(one.recipe)}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    made.folder.rename(folder / "checkpoints")
    return made.tensors[2 * checkpoints.K]


@pytest.mark.parametrize(("name", "dtype"), [("tiny-adamw", "float32"), ("simple-2026-06-11", "bfloat16")])
@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_a_run_that_has_not_finished_speaks_from_its_newest_checkpoint(tmp_path, kept, framework, name, dtype):
    want = unfinished(tmp_path, framework, kept, name, dtype)
    model = trained.of_run(tmp_path)
    assert f"checkpoints/{2 * checkpoints.K}" in model.source
    got = model.params["wte"]
    name = "params.wte" if framework == "jax" else "wte.weight"
    np.testing.assert_array_equal(got, want[name].astype(np.float32))
    assert got.dtype == np.float32


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(tmp_path, kept, framework, capsys):
    unfinished(tmp_path, framework, kept)
    newest = tmp_path / "checkpoints" / str(2 * checkpoints.K)
    for path in [each for each in newest.rglob("*") if each.is_file()]:
        path.write_bytes(path.read_bytes()[:-9])
    assert f"checkpoints/{checkpoints.K}" in trained.of_run(tmp_path).source
    assert f"{newest} can't be used" in capsys.readouterr().err


def test_the_fingerprint_on_the_host_is_that_of_the_device():
    import jaxgpt.checkpoint

    for dtype in ("float32", "float64", "bfloat16"):
        array = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5)), dtype)
        assert jaxgpt.checkpoint.fingerprint_on_host(np.asarray(array)) == int(jaxgpt.checkpoint.fingerprint(array))
