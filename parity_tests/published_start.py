"""Rung 14 before any gradient: the script's tokens, sizes, schedule and initial weights against both of ours."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import torch
from scipy.stats import ks_2samp

import jaxgpt.optimizer
import jaxgpt.tokens
import torch_ref.model
import torch_ref.optimizer
import torch_ref.tokens
from jaxgpt.recipes import reduced
from jaxgpt.shards import write_shard
from parity_tests.pair import torch_tree, weights
from parity_tests.published_report import Row
from parity_tests.published_script import Script, by_our_names, reduced_model, without

REPEATED = "the script uses its first batch at steps 0 and 1, we use it once"
DRIFTING = "its ranks leave a shard each by itself, ours together"
SEQUENCES, CONTEXT, STEPS = 4, 8, 20
STEP = SEQUENCES * CONTEXT


def published_stream(script: Script, folder: Path, ranks: int) -> list[np.ndarray]:
    """Inputs and targets of each step, (2, sequences, T), all ranks' one after another; its lines in its own order."""
    each = []
    for rank in range(ranks):
        args, share = SimpleNamespace(input_bin=f"{folder}/x_*.bin"), SEQUENCES // ranks
        sizes = {"B": share, "T": CONTEXT, "ddp_rank": rank, "ddp_world_size": ranks}
        with without("cuda"):
            made = script.run(script.assignments("train_loader", "x, y"), args=args, **sizes)
            made["train_loader"].reset()
            taken = [(made["x"], made["y"]), *(made["train_loader"].next_batch() for _ in range(STEPS))]
        each.append(taken)
    return [np.concatenate([np.stack(taken[s]) for taken in each], axis=1) for s in range(STEPS + 1)]


def our_stream(module, paths: list[Path]) -> list[np.ndarray]:
    """The same of one of our loaders."""
    ours, position, steps = module.Tokens(paths, SEQUENCES, CONTEXT), module.Position(), []
    for _ in range(STEPS):
        steps.append(np.stack([np.asarray(each) for each in ours.read(position)]))
        position = ours.next(position)
    return steps


def drifting_stream(shards: list[np.ndarray], ranks: int) -> list[np.ndarray]:
    """What `DRIFTING` says, written out: a rank leaves when a step from its own place on wouldn't fit."""
    share, each = STEP // ranks, []
    for rank in range(ranks):
        shard, at, windows = 0, rank * share, []
        for _ in range(STEPS):
            window = shards[shard][at : at + share + 1]
            windows.append(np.stack([window[:-1], window[1:]]).reshape(2, -1, CONTEXT))
            at += STEP
            if at + STEP + 1 > len(shards[shard]):
                shard, at = (shard + 1) % len(shards), rank * share
        each.append(windows)
    return [np.concatenate(parts, axis=1) for parts in zip(*each, strict=True)]


def other_steps(published: list[np.ndarray], ours: list[np.ndarray]) -> int:
    """Steps whose tokens aren't the same."""
    return sum(not np.array_equal(p, o) for p, o in zip(published, ours, strict=True))


def stream(script: Script) -> Iterator[Row]:
    """The script's steps as they stand, then without the repeated one; from shards that end within a step."""
    for ranks, lengths, drifts in (
        (1, [3 * STEP + 5, STEP + 1, 2 * STEP, 4 * STEP + 30], False),
        (2, [3 * STEP + STEP // 2 + 1, 4 * STEP + 30], False),
        (2, [3 * STEP + 5, 2 * STEP + 1], True),
    ):
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"x_{i}.bin" for i in range(len(lengths))]
            shards = [np.arange(length) + 1000 * i for i, length in enumerate(lengths)]
            for path, shard in zip(paths, shards, strict=True):
                write_shard(path, shard)
            published = published_stream(script, Path(folder), ranks)
            what = f"of {STEPS} steps, those with other tokens, {ranks} rank{'s' * (ranks > 1)}"
            first = other_steps(published[:1], published[1:2])
            yield Row("0", f"{what}: its own steps 0 and 1", first, 0)
            for trainer, module in (("torch_ref", torch_ref.tokens), ("jaxgpt", jaxgpt.tokens)):
                ours = our_stream(module, paths)
                if not drifts:
                    yield Row("0", f"{what}: {trainer}", other_steps(published[:-1], ours), 0, REPEATED, STEPS - 1)
                because = DRIFTING if drifts else ""
                other = other_steps(published[1:], ours)
                yield Row("0", f"{what}, from its step 1 on: {trainer}", other, 0, because, STEPS)
            if drifts:
                other = other_steps(published[1:], drifting_stream(shards, ranks))
                yield Row("0", f"{what}, from its step 1 on: ours, each rank by itself", other, 0)


def settings(script: Script) -> Iterator[Row]:
    """Sizes and schedule as the script's source has them against the recipe, at full size."""
    recipe, args = script.recipe, script.names["Hyperparameters"]()
    made = script.run(script.assignments("num_vocab", "model"), GPT=lambda config: config)["model"]
    theirs = {
        "vocabulary": (made.vocab_size, recipe.model.vocab),
        "layers": (made.n_layer, recipe.model.layers),
        "heads": (made.n_head, recipe.model.heads),
        "width": (made.n_embd, recipe.model.width),
        "context": (args.sequence_length, recipe.model.context),
        "sequences a step": (args.batch_size, recipe.data.sequences),
        "steps": (args.num_iterations, recipe.schedule.steps),
        "validation tokens": (args.val_tokens, recipe.data.val_tokens),
        "validation every": (args.val_loss_every, recipe.data.val_every),
    }
    for what, (published, ours) in theirs.items():
        yield Row("-", f"{what}: {published} published, {ours} in the recipe", abs(published - ours), 0)
    steps = range(recipe.schedule.steps)
    published = np.array([script.names["get_lr"](s) for s in steps])
    in_torch, in_jax = (module.multiplier(recipe.schedule) for module in (torch_ref.optimizer, jaxgpt.optimizer))
    what = "learning rate's multiplier at every step, absolute"
    yield Row("6", f"{what}: torch_ref", np.abs([in_torch(s) for s in steps] - published).max(), 1e-15)
    yield Row("6", f"{what}: jaxgpt", np.abs(jax.vmap(in_jax)(jnp.arange(len(steps))) - published).max(), 1e-6)


def initial_weights(script: Script) -> Iterator[Row]:
    """Kolmogorov-Smirnov distance of each tensor's first values, as a multiple of what chance makes of it."""
    config = reduced(script.recipe.name).model
    torch.manual_seed(0)
    theirs = torch_tree(by_our_names(reduced_model(script, config)))
    in_torch = torch_tree(dict(torch_ref.model.GPT(config, seed=1).named_parameters()))
    for what, ours in (("torch_ref", in_torch), ("jaxgpt", weights(script.recipe.name, "float32", perturbed=False))):
        apart = 0.0 if ours.keys() == theirs.keys() else np.inf
        for name in theirs.keys() & ours.keys():
            chance = (2 / theirs[name].size) ** 0.5
            apart = max(apart, ks_2samp(theirs[name].ravel(), ours[name].ravel()).statistic / chance)
        yield Row("2", f"initial weights, distance of distributions in units of chance: {what}", apart, 2.2)
