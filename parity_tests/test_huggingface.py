"""GPT-2's weights to transformers' format and back: bit for bit, and theirs is the same function."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from jaxgpt import huggingface
from jaxgpt.bridge import from_torch, load_state, save_state
from jaxgpt.errors import BadInput
from jaxgpt.recipes import RECIPES, Recipe, named, precision, reduced
from parity_tests import modules
from parity_tests.measured import assert_within
from parity_tests.pair import relative
from parity_tests.tolerances import GPT2_LOGITS

LLMC = "llmc-2024-10-13"


def small(**model) -> Recipe:
    """llmc's recipe at reduced size, with as many padding rows as an import makes."""
    return reduced(LLMC, **({"vocab": 256} | model))


def start(recipe: Recipe) -> dict[str, np.ndarray]:
    """Weights in torch's names, float32; padding rows are zero, as they start and stay."""
    weights = {name: w.astype(np.float32) for name, w in modules.start_weights(recipe).items()}
    weights["wte.weight"][recipe.model.token_ids :] = 0
    return weights


def run_of(folder: Path, recipe: Recipe) -> Path:
    """A finished run's folder."""
    folder.mkdir()
    config = {"trainer": "jaxgpt", "recipe": dataclasses.asdict(recipe)}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_state(folder / "weights.safetensors", from_torch(start(recipe), recipe.model), recipe)
    return folder


@pytest.fixture
def exported(tmp_path) -> Path:
    huggingface.main(["export", str(run_of(tmp_path / "run", small())), "--out", str(tmp_path / "gpt2")])
    return tmp_path / "gpt2"


def test_export_and_import_give_back_every_bit(exported, tmp_path):
    huggingface.main(["import", str(exported), "--out", str(tmp_path / "w.safetensors")])
    before, after = (load_file(tmp_path / name) for name in ("run/weights.safetensors", "w.safetensors"))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert weight.tobytes() == after[name].tobytes(), name


def test_separate_queries_keys_and_values_are_exported_as_the_fused_ones_of_the_same_model():
    fused, apart = small(), small(qkv="separate")
    weights = start(fused)
    split = {}
    for name, weight in weights.items():
        if ".c_attn." in name:
            parts = zip("qkv", np.split(weight, 3), strict=True)
            split |= {name.replace("c_attn", f"c_{each}"): part for each, part in parts}
        else:
            split[name] = weight
    one, other = huggingface.to_gpt2(weights, fused), huggingface.to_gpt2(split, apart)
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)


def test_products_lie_in_out_and_padding_rows_and_the_tied_head_are_not_there(exported):
    config, tensors = small().model, load_file(exported / "model.safetensors")
    assert tensors["transformer.h.0.attn.c_attn.weight"].shape == (config.width, 3 * config.width)
    assert tensors["transformer.h.1.mlp.c_proj.weight"].shape == (config.mlp_width, config.width)
    assert tensors["transformer.wte.weight"].shape == (config.token_ids, config.width)
    assert not any("lm_head" in name for name in tensors)


def test_an_import_knows_the_sizes_again(exported):
    assert huggingface.recipe_of(exported).model == small().model


def test_gpt2_itself_is_llmcs_recipe(tmp_path):
    config = huggingface.gpt2_config(RECIPES[LLMC].model)
    assert (config["vocab_size"], config["eos_token_id"]) == (50257, 50256)
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert huggingface.recipe_of(tmp_path) == RECIPES[LLMC]


def test_the_hubs_gpt2_has_other_names_and_masks_besides(exported, tmp_path):
    tensors = load_file(exported / "model.safetensors")
    bare = {name.removeprefix("transformer."): weight for name, weight in tensors.items()}
    masks = {f"h.{i}.attn.bias": np.ones((1, 1, 32, 32), np.float32) for i in range(2)}
    save_file(bare | masks | {"lm_head.weight": bare["wte.weight"]}, exported / "model.safetensors")
    huggingface.main(["import", str(exported), "--out", str(tmp_path / "w.safetensors")])
    got = load_state(tmp_path / "w.safetensors", huggingface.recipe_of(exported))
    want = from_torch(start(small()), small().model)
    np.testing.assert_array_equal(got["h"]["attn"]["c_k"]["kernel"], want["h"]["attn"]["c_k"]["kernel"])


def test_the_last_line_of_an_import_is_a_command_with_its_sizes(exported, tmp_path, capsys):
    huggingface.main(["import", str(exported), "--out", str(tmp_path / "w.safetensors")])
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("python -m jaxgpt.train --recipe llmc-2024-10-13 --model.vocab 256 ")
    assert last.endswith(f"--init-from {tmp_path}/w.safetensors")


# What is refused


def ended(capsys, *words: str) -> str:
    with pytest.raises(SystemExit, match="2"):
        huggingface.main(list(words))
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"positions": "rotary"}, "model.positions is rotary, and GPT-2's format knows learned alone"),
        ({"activation": "relu_squared"}, "model.activation is relu_squared, and GPT-2 has gelu_tanh or gelu"),
        ({"logit_cap": 15.0}, "model.logit_cap is 15.0"),
        ({"pad_rows": "trained"}, "model.pad_rows is trained"),
    ],
)
def test_a_model_that_is_not_gpt2s_is_not_exported(model, said):
    with pytest.raises(BadInput) as refused:
        huggingface.gpt2_config(small(**model).model)
    assert said in str(refused.value)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != LLMC])
def test_no_other_recipe_is_taken_for_gpt2s(name):
    with pytest.raises(BadInput):
        huggingface.gpt2_config(named(name).model)


CHANGED = {
    "another model": ({"model_type": "llama"}, "model_type is 'llama', not 'gpt2'"),
    "a size that is none": ({"n_layer": "two"}, "n_layer is 'two', not a whole number"),
    "a size that no model has": ({"n_layer": 10**12}, "model.layers is 1000000000000"),
    "another activation": ({"activation_function": "relu"}, "activation_function is 'relu'"),
    "attention scaled by layer": ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    "an untied head": ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
    "another width of the MLP": ({"n_inner": 100}, "n_inner is 100"),
    "more layers than weights": ({"n_layer": 3}, "h.2.attn.c_attn.weight is missing in model.safetensors"),
    "fewer layers than weights": ({"n_layer": 1}, "h.1.attn.c_attn.bias in model.safetensors is no weight of GPT-2"),
    "other heads": ({"n_head": 7}, "doesn't divide over model.heads 7"),
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_config_that_is_not_our_models_is_refused_in_one_line(exported, tmp_path, capsys, what):
    change, said = CHANGED[what]
    config = json.loads((exported / "config.json").read_text(encoding="utf-8"))
    (exported / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
    assert said in ended(capsys, "import", str(exported), "--out", str(tmp_path / "w.safetensors"))


def test_a_head_that_is_not_the_embedding_is_refused(exported, tmp_path, capsys):
    tensors = load_file(exported / "model.safetensors")
    other = {"lm_head.weight": tensors["transformer.wte.weight"] + 1}
    save_file(tensors | other, exported / "model.safetensors")
    said = ended(capsys, "import", str(exported), "--out", str(tmp_path / "w.safetensors"))
    assert "lm_head.weight isn't the embedding" in said


def test_a_model_that_cannot_be_fetched_is_one_line(tmp_path, capsys, monkeypatch):
    import huggingface_hub

    def offline(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    said = ended(capsys, "import", "gpt2", "--out", str(tmp_path / "w.safetensors"))
    assert said.startswith("error: gpt2 is no folder here and can't be fetched from http")


@pytest.mark.parametrize("command", ["export", "import"])
def test_what_is_there_already_is_left_as_it_is(exported, tmp_path, capsys, command):
    source = {"export": tmp_path / "run", "import": exported}[command]
    said = ended(capsys, command, str(source), "--out", str(exported / "config.json"))
    assert "config.json exists already and is left as it is" in said


# transformers itself


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip(
        "transformers", reason="needs `pip install transformers`, which this project does not depend on"
    )


def our_logits(weights: dict[str, np.ndarray], recipe: Recipe, ids: np.ndarray) -> np.ndarray:
    gpt, _ = modules.models(recipe, precision(recipe, "float32", attention="exact"), weights)
    return np.asarray(gpt(jnp.asarray(ids)))[..., : recipe.model.token_ids]


IDS = np.random.default_rng(5).integers(0, 251, (2, 32), np.int32)


def test_transformers_reads_what_is_exported_and_has_our_logits(transformers, exported):
    model, info = transformers.GPT2LMHeadModel.from_pretrained(exported, output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        theirs = model.eval()(torch.tensor(IDS, dtype=torch.int64)).logits
    assert_within(relative(theirs, our_logits(start(small()), small(), IDS)), GPT2_LOGITS["float32"])


def test_what_transformers_saves_is_imported_and_has_its_logits(transformers, tmp_path):
    torch.manual_seed(0)
    size = {"n_positions": 32, "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 251}
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**size, bos_token_id=None, eos_token_id=None, initializer_range=0.1)
    )
    model.save_pretrained(tmp_path / "theirs")
    huggingface.main(["import", str(tmp_path / "theirs"), "--out", str(tmp_path / "w.safetensors")])
    recipe = huggingface.recipe_of(tmp_path / "theirs")
    tensors = load_file(tmp_path / "w.safetensors")
    weights = {name.removeprefix("model."): weight for name, weight in tensors.items()}
    with torch.no_grad():
        theirs = model.eval()(torch.tensor(IDS, dtype=torch.int64)).logits
    assert_within(relative(our_logits(weights, recipe, IDS), theirs), GPT2_LOGITS["float32"])
