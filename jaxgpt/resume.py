"""Going on with a run: what its first start recorded, and whether this start computes the same. No framework."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from jaxgpt.errors import BadInput

LARGEST_CONFIG = 64 << 20
FREE = ("recipe.data.micro_batch", "recipe.expected")
"""What may differ from the first start: how a step is divided, and what was published."""


def recorded_config(folder: Path) -> dict | None:
    """The config.json of the run to go on with; None where the run was killed before it wrote that.

    Raises:
      BadInput: no such folder, another folder than a run's, or a file that can't be read.
    """
    if not folder.is_dir():
        raise BadInput(f"--resume: there is no run folder {folder}: mend --run, or leave --resume out to start there")
    file = folder / "config.json"
    try:
        if not file.exists():
            if {each.name for each in folder.iterdir()} <= {"lock", "config.json.new"}:
                return None
            raise BadInput(f"--resume: {folder} has no config.json, so it is no run's folder: mend --run")
        with file.open("rb") as opened:
            text = opened.read(LARGEST_CONFIG + 1)
        config = json.loads(text) if len(text) <= LARGEST_CONFIG else None
    except OSError as error:
        raise BadInput(f"--resume: {file}: {error.strerror}; mend its path or its mode") from None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise BadInput(f"--resume: {file} isn't one JSON object: put back the file that the run wrote")
    return config


def check_trainer(config: dict, prog: str, folder: Path) -> None:
    """`BadInput` where the run belongs to the trainer that isn't `prog`, such as "python -m jaxgpt.train"."""
    trainer = config.get("trainer")
    if trainer not in ("jaxgpt", "torch_ref") or f"{trainer}.train" in prog:
        return
    states = f"{folder}/checkpoints/STEP/state.safetensors"
    weights = states if trainer == "torch_ref" else f"{folder}/weights.safetensors, once it has finished,"
    raise BadInput(
        f"--resume: {folder} is a run of {trainer}: go on with python -m {trainer}.train, or start a new run from its "
        f"weights: --init-from {weights} is read by both (see jaxgpt.bridge)"
    )


def same_run(folder: Path, now: dict) -> dict | None:
    """What the run in `folder` recorded, after `check_unchanged`; None where it was killed before that."""
    config = recorded_config(folder)
    if config is not None:
        check_unchanged(config, now, f"{folder}/config.json")
    return config


def check_unchanged(config: dict, now: dict, where: str) -> None:
    """Refuse to go on with other settings or other tokens than a run's own.

    Args:
      config: what the run recorded.
      now: the same of this start, by `jaxgpt.runlog.describe`.
      where: the recorded file, for messages.

    Raises:
      BadInput: the first field that differs, with both values, or the first shard.
    """
    now = json.loads(json.dumps(now))  # tuples become lists
    names = {"recipe.name": "the recipe", "trainer": "the trainer", "seed": "--seed"}
    for key in ("trainer", "recipe", "precision", "seed"):
        was, here = dict(_leaves(key, config.get(key))), dict(_leaves(key, now[key]))
        for name in sorted(was.keys() | here.keys(), key=lambda name: (name != "recipe.name", name)):
            if was.get(name) != here.get(name) and not name.startswith(FREE):
                said = names.get(name, name.removeprefix("recipe."))
                raise BadInput(
                    f"--resume: {said} is {here.get(name)} here and {was.get(name)} in {where}: leave the flag out, or "
                    "start another run"
                )
    for kind, flag in (("train", "--data"), ("val", "--val-data")):
        _check_shards((config.get("shards") or {}).get(kind), now["shards"][kind], flag, where)


def _check_shards(was: Any, here: list[dict], flag: str, where: str) -> None:
    if not isinstance(was, list) or not all(isinstance(each, dict) for each in was):
        raise BadInput(f"--resume: {where} doesn't say which shards {flag} named: put back the file that the run wrote")
    for old, new in zip(was, here, strict=False):
        if (old.get("sha256"), old.get("tokens")) != (new["sha256"], new["tokens"]):
            raise BadInput(
                f"--resume: {new['path']} ({flag}) is not the shard that the run was trained on: {new['tokens']} "
                f"tokens, SHA-256 {new['sha256'][:12]} here, {old.get('tokens')} and {str(old.get('sha256'))[:12]} in "
                f"{where}; put the old one back"
            )
    if len(was) != len(here):
        raise BadInput(f"--resume: {flag} names {len(here)} shards and {where} {len(was)}: give the same ones")


def _leaves(name: str, value: Any):
    """(dotted name, value) of all that isn't an object itself."""
    if not isinstance(value, dict):
        yield name, value
        return
    for key, each in value.items():
        yield from _leaves(f"{name}.{key}", each)


def finished_after(folder: Path) -> int:
    """After how many steps a run came to its end and wrote its weights; -1 where it didn't."""
    try:
        with safe_open(folder / "weights.safetensors", framework="numpy") as file:
            return int((file.metadata() or {}).get("step", -1))
    except (OSError, SafetensorError, ValueError):
        return -1


def rows_until(file: Path, step: int, validated: int) -> bytes:
    """The lines of a metrics.jsonl that a checkpoint of `step`, last validated at `validated`, goes on from.

    What was logged later, a last line cut short, and lines that aren't a row are left out.
    """
    kept = []
    for line in file.read_bytes().splitlines(keepends=True) if file.exists() else ():
        try:
            row = json.loads(line)
            at = row["step"] if line.endswith(b"\n") else None
        except (ValueError, RecursionError, TypeError, KeyError):
            continue
        if type(at) is int and at <= (validated if "val_loss" in row else step):
            kept.append(line)
    return b"".join(kept)
