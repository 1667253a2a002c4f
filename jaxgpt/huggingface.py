"""GPT-2's weights to and from the format of Hugging Face's transformers.

    python -m jaxgpt.huggingface export RUN --out DIR
    python -m jaxgpt.huggingface import gpt2 --out w.safetensors

A folder of that format is config.json and model.safetensors, and `GPT2LMHeadModel.from_pretrained` reads it. Weights
have nearly our names there; products are `Conv1D`, (in, out); queries, keys and values are one product; the head is the
embedding and not in the file; there are no padding rows. transformers itself isn't needed.
"""

import dataclasses
import json
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxgpt import bridge, trained
from jaxgpt.commands import parse
from jaxgpt.curves import read_config
from jaxgpt.errors import BadInput, exit_codes
from jaxgpt.files import check_name, check_ordinary
from jaxgpt.recipes import ModelConfig, Recipe, named

RECIPE = "llmc-2024-10-13"
PROG = "python -m jaxgpt.huggingface"
END_OF_TEXT = 50256
ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu"}
"""Ours -> theirs."""
_SIZES = {"vocab", "token_ids", "layers", "heads", "width", "mlp_ratio", "context"}
_FREE = _SIZES | {"activation", "norm_eps", "qkv", "initial", "loss_reduction"}
_FREE |= {"embedding_dtype", "compute_dtype", "validation_dtype"}
"""Fields that may differ from GPT-2's: its format has a place for them, or they don't change the function."""
_THEIRS = {
    "n_inner": lambda c: (None, 4 * c["n_embd"]),
    "scale_attn_weights": lambda _: (None, True),
    "scale_attn_by_inverse_layer_idx": lambda _: (None, False),
    "add_cross_attention": lambda _: (None, False),
    "tie_word_embeddings": lambda _: (None, True),
}
"""A field of their config -> what it may be for our model to be theirs; None: absent."""

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Export:
    """The weights of a run of llmc-2024-10-13, or of another of GPT-2's own architecture, in transformers' format."""

    run: tyro.conf.Positional[Path]
    """A run's folder, finished or not; or a file of weights of llmc-2024-10-13."""
    out: Path
    """The folder to write; it must not exist."""


@dataclass(frozen=True)
class Import:
    """GPT-2's weights in transformers' format as a file for --init-from."""

    model: tyro.conf.Positional[str]
    """A folder with config.json and model.safetensors, or a model of the hub, such as gpt2."""
    out: Path
    """The safetensors file to write; it must not exist."""


@tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
@dataclass(frozen=True)
class Command:
    """GPT-2's weights to and from the format of Hugging Face's transformers."""

    do: Export | Import


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `Export` and `Import`. Its last line is what to type next."""
    do = parse(Command, sys.argv[1:] if argv is None else argv, PROG).do
    check_name(do.out, "--out")
    if do.out.exists() or do.out.is_symlink():
        raise BadInput(f"--out {do.out} exists already and is left as it is: give another name")
    if isinstance(do, Export):
        model = trained.of_file(do.run, named(RECIPE)) if do.run.is_file() else trained.of_run(do.run)
        weights = to_gpt2(bridge.to_torch(model.params, model.recipe.model), model.recipe)
        write(do.out, weights, gpt2_config(model.recipe.model))
        print(f"{model.recipe.name} of {model.source}: {do.out}")
        print(f"transformers.GPT2LMHeadModel.from_pretrained({str(do.out)!r})")
        return
    folder = Path(do.model) if Path(do.model).is_dir() else fetched(do.model)
    recipe = recipe_of(folder)
    params = bridge.from_torch(from_gpt2(read(folder / "model.safetensors"), recipe), recipe.model)
    try:
        bridge.save_state(do.out, params, recipe)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"--out {do.out} can't be written ({error}): give a file in a folder that can") from None
    print(f"{recipe.model.parameters:,} weights of {do.model}: {do.out}")
    print(f"python -m jaxgpt.train {_flags(recipe)} --init-from {shlex.quote(str(do.out))}")


def gpt2_config(config: ModelConfig) -> dict:
    """Their config.json of a model of ours.

    Raises:
      BadInput: a model that isn't GPT-2's.
    """
    theirs = named(RECIPE).model
    for field in dataclasses.fields(ModelConfig):
        ours, wanted = getattr(config, field.name), getattr(theirs, field.name)
        if field.name == "pad_rows" and config.vocab == config.token_ids:
            continue
        if ours != wanted and field.name not in _FREE:
            raise BadInput(
                f"model.{field.name} is {ours}, and GPT-2's format knows {wanted} alone: export a run of {RECIPE}, or "
                "of another model like it"
            )
    if config.activation not in ACTIVATIONS:
        known = " or ".join(ACTIVATIONS)
        raise BadInput(f"model.activation is {config.activation}, and GPT-2 has {known}: export a run of {RECIPE}")
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.token_ids,
        "n_positions": config.context,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.mlp_width,
        "activation_function": ACTIVATIONS[config.activation],
        "layer_norm_epsilon": config.norm_eps,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
        "bos_token_id": END_OF_TEXT if config.token_ids > END_OF_TEXT else None,
        "eos_token_id": END_OF_TEXT if config.token_ids > END_OF_TEXT else None,
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def to_gpt2(weights: Weights, recipe: Recipe) -> Weights:
    """torch_ref's names and layout -> transformers', bit for bit."""
    config = recipe.model
    if config.qkv == "separate":
        weights = _fused(weights, config)
    theirs = {}
    for name, weight in weights.items():
        if name == "wte.weight":
            weight = weight[: config.token_ids]
        elif _is_product(name):
            weight = weight.T
        theirs[f"transformer.{name}"] = np.ascontiguousarray(weight)
    return theirs


def from_gpt2(theirs: Weights, recipe: Recipe) -> Weights:
    """The reverse of `to_gpt2`, for a recipe that fuses; padding rows are zero.

    Raises:
      BadInput: a weight that is missing, unknown, or of another shape.
    """
    config = recipe.model
    found = {name.removeprefix("transformer."): weight for name, weight in theirs.items()}
    found = {name: weight for name, weight in found.items() if not name.endswith((".attn.bias", ".attn.masked_bias"))}
    head = found.pop("lm_head.weight", None)
    if head is not None and not np.array_equal(head, found.get("wte.weight", head[:0])):
        raise BadInput("lm_head.weight isn't the embedding: our GPT-2 has one matrix for both; give a model that ties")
    ours = {}
    for name, shape in config.shapes.items():
        weight = found.pop(name, None)
        wanted = shape[::-1] if _is_product(name) else shape
        if name == "wte.weight":
            wanted = (config.token_ids, config.width)
        if weight is None or weight.shape != wanted:
            has = "missing" if weight is None else weight.shape
            raise BadInput(f"{name} is {has} in model.safetensors and {wanted} by config.json: fetch both again")
        if name == "wte.weight":
            weight = np.concatenate([weight, np.zeros((config.vocab - config.token_ids, config.width), weight.dtype)])
        ours[name] = np.ascontiguousarray(weight.T if _is_product(name) else weight)
    if found:
        raise BadInput(f"{min(found)} in model.safetensors is no weight of GPT-2: give a GPT2LMHeadModel")
    return ours


def recipe_of(folder: Path) -> Recipe:
    """llmc-2024-10-13 with the sizes in their config.json, and padding rows up to a multiple of 128.

    Raises:
      BadInput: no such file, or a model that isn't ours whatever its sizes are.
    """
    file = folder / "config.json"
    config, base = read_config(file), named(RECIPE)
    if config.get("model_type") != "gpt2":
        raise BadInput(f"{file}: model_type is {config.get('model_type')!r}, not 'gpt2': give a GPT-2")
    sizes: dict[str, Any] = {}
    for ours, theirs in (
        ("token_ids", "vocab_size"),
        ("context", "n_positions"),
        ("width", "n_embd"),
        ("layers", "n_layer"),
        ("heads", "n_head"),
    ):
        sizes[ours] = config.get(theirs)
        if type(sizes[ours]) is not int or sizes[ours] < 1:
            raise BadInput(f"{file}: {theirs} is {sizes[ours]!r}, not a whole number of at least 1: fetch it again")
    for name, allowed in _THEIRS.items():
        if config.get(name) not in allowed(config):
            raise BadInput(f"{file}: {name} is {config[name]!r}: our GPT-2 has {allowed(config)[1]} alone")
    activations = {theirs: ours for ours, theirs in ACTIVATIONS.items()}
    activation = config.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in activations:
        raise BadInput(f"{file}: activation_function is {activation!r}: our GPT-2 has {' or '.join(activations)}")
    eps = config.get("layer_norm_epsilon", 1e-5)
    if type(eps) is not float:
        raise BadInput(f"{file}: layer_norm_epsilon is {eps!r}, not a number: fetch it again")
    sizes |= {"vocab": -(-sizes["token_ids"] // 128) * 128, "activation": activations[activation], "norm_eps": eps}
    try:
        model = dataclasses.replace(base.model, **sizes)
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from None
    return dataclasses.replace(base, model=model)


def read(file: Path) -> Weights:
    """The tensors of their file, in float32.

    Raises:
      BadInput: no such file, or not a safetensors file of floats that NumPy knows.
    """
    try:
        check_ordinary(file)
        with safe_open(file, framework="numpy") as opened:
            names = list(opened.keys())
            for name in names:
                dtype = opened.get_slice(name).get_dtype()
                if dtype not in ("F16", "F32", "F64") and not name.endswith(".attn.bias"):  # a mask in old files
                    raise BadInput(f"{file}: {name} is {dtype}: save the model in float32 and import that")
            wanted = [name for name in names if not name.endswith(".attn.bias")]
            return {name: opened.get_tensor(name).astype(np.float32) for name in wanted}
    except (OSError, SafetensorError) as error:
        raise BadInput(
            f"{file} can't be read as safetensors ({error}): give the folder that save_pretrained wrote"
        ) from None


def write(out: Path, weights: Weights, config: dict) -> None:
    """The folder of a model, whole or not at all. Raises `BadInput` where it can't be written."""
    new = out.with_name(f"{out.name}.new")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        (new / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(weights, new / "model.safetensors", metadata={"format": "pt"})
        new.rename(out)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        raise BadInput(f"--out {out} can't be written ({error}): give a folder in one that can") from None


def fetched(model: str) -> Path:
    """The folder of a model of the hub, downloaded. Raises `BadInput` where that fails."""
    import huggingface_hub as hub  # slow, and only this command wants it

    hub.logging.set_verbosity_error()
    try:
        return Path(hub.snapshot_download(model, allow_patterns=["config.json", "model.safetensors"]))
    except Exception as error:  # the hub's own, httpx's, requests' and its Rust downloader's: all mean this
        while error.__cause__ is not None and isinstance(error.__cause__, Exception):
            error = error.__cause__
        raise BadInput(
            f"{model} is no folder here and can't be fetched from {hub.constants.ENDPOINT} ({type(error).__name__}: "
            f"{str(error)[:300]}): give the folder of a model, or see to the network or HF_ENDPOINT"
        ) from None


def _is_product(name: str) -> bool:
    return name.startswith("h.") and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


def _fused(weights: Weights, config: ModelConfig) -> Weights:
    """With one product for queries, keys and values, in that order."""
    fused = dict(weights)
    for layer in range(config.layers):
        for part in ("weight", "bias"):
            names = [f"h.{layer}.attn.c_{each}.{part}" for each in "qkv"]
            fused[f"h.{layer}.attn.c_attn.{part}"] = np.concatenate([fused.pop(name) for name in names])
    return fused


def _flags(recipe: Recipe) -> str:
    """The command line that names this recipe."""
    base = named(recipe.name)
    differ = [
        f for f in dataclasses.fields(ModelConfig) if getattr(recipe.model, f.name) != getattr(base.model, f.name)
    ]
    words = [f"--model.{f.name.replace('_', '-')} {getattr(recipe.model, f.name)}" for f in differ]
    return " ".join([f"--recipe {recipe.name}", *words])


if __name__ == "__main__":
    main()
