"""Run folders with the settings that `benchmarks.claim_plan` declares, and losses that are put there."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks import claims
from benchmarks.claim_list import CLAIMS
from benchmarks.claim_plan import SEEDS, declared, plan
from parity_tests.programs import ROOT

LARGE = {"124m-adamw-lrA-100-jax": 5.3, "124m-adamw-lrB-100-jax": 5.1, "124m-adamw-lrC-100-jax": 5.2}
ENDS = {"adamw-300": 4.4, "muon-200": 4.3}
LARGE |= {f"124m-{kind}-{of}": loss for kind, loss in ENDS.items() for of in ("jax", "torch")}
"""Runs at 124M -> a final validation loss with which Muon is ahead."""


def empty(folder: Path) -> Path:
    for file in ("optimizers-h100/optimizers.json", "plans/h100-8.json"):
        there = folder / "benchmarks" / "results" / file
        there.parent.mkdir(parents=True)
        shutil.copy(ROOT / "benchmarks" / "results" / file, there)
    (folder / "results" / "runs").mkdir(parents=True)
    return folder / "results"


def entry(results: Path, name: str) -> dict:
    """What the claim of that name comes to, from the files there are."""
    (found,) = claims.judged(results, [claim for claim in CLAIMS if claim.id == name])
    return found


def verdict(results: Path, name: str) -> str:
    """The same, its verdict alone."""
    return entry(results, name)["verdict"]


def made(
    results: Path,
    name: str,
    end: float,
    start: str | None = None,
    lr: float = 0.0018,
    folder: Path | None = None,
    **config,
) -> Path:
    """A run of that name which ends at that validation loss; `start` stands for its initial weights.

    It is in `folder`, by default that of its name in `results`.
    """
    run = next(run for run in plan() if run.name == name)
    recipe, seed = declared(run)
    if run.best_of:
        recipe = dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, lr=lr))
    folder, steps = folder or results / "runs" / name, recipe.schedule.steps
    folder.mkdir(parents=True)
    digest = hashlib.sha256((start or run.weights).encode()).hexdigest()
    said = {"trainer": run.trainer, "recipe": dataclasses.asdict(recipe), "seed": seed, "init_sha256": digest}
    said |= {"flags": {"seed": seed, "init_from": f"{start or run.weights}.safetensors"}, "devices": ["made up"]}
    said |= {"shards": {kind: [{"path": kind, "tokens": 10**8, "sha256": kind}] for kind in ("train", "val")}}
    (folder / "config.json").write_text(json.dumps(said | config), encoding="utf-8")
    rows = []
    for step in range(steps + 1):
        row = {"step": step, "tokens": step * recipe.step_tokens, "train_time_s": float(step)}
        if step:
            rows.append(row | {"train_loss": 60 * row["tokens"] ** -0.15})
        if step % recipe.data.val_every == 0 or step == steps:
            rows.append(row | {"val_loss": 11 + (end - 11) * step / steps})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def seeds(results: Path, kind: str, torch_minus_jax: Callable[[int], float], scatter: float = 0.01) -> None:
    """Eight pairs of runs of about 5 nats."""
    for seed in SEEDS:
        end = 5 + scatter * (-1) ** seed
        made(results, f"20m-{kind}-seed{seed}-jax", end)
        made(results, f"20m-{kind}-seed{seed}-torch", end + torch_minus_jax(seed))
