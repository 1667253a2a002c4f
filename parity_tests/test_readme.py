"""What the README and its pages say: figures are those of the recorded runs, commands are ones the programs take."""

import json
import re
import shlex
import statistics
from pathlib import Path

import pytest
import tyro

from benchmarks import scaling, throughput_table
from benchmarks.throughput_table import Row, read_results
from jaxgpt import huggingface, sample
from jaxgpt.commands import parse
from jaxgpt.errors import BadInput
from jaxgpt.flags import recipe_and_flags
from jaxgpt.recipes import RECIPES
from jaxgpt.resume import check_unchanged
from parity_tests.test_notes import scaled

ROOT = Path(__file__).parent.parent
README, OF_OPTIMIZERS, OF_TEXT, OF_RECIPES, OF_RUNS = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "docs/optimizers.md", "docs/text.md", "docs/recipes.md", "docs/runs.md")
)
RUNS = ROOT / "benchmarks" / "results" / "muon-2024-10-12-h100"
OPTIMIZERS = ROOT / "benchmarks" / "results" / "optimizers-h100"
KERNELS = ROOT / "benchmarks" / "results" / "kernels-h100"
THROUGHPUT = ROOT / "benchmarks" / "results" / "throughput-h100"
KILLED = ROOT / "benchmarks" / "results" / "killed-h100"
TRAINERS = ("jaxgpt", "torch_ref", "published")


def metrics(trainer: str, key: str, runs: Path = RUNS) -> dict[int, float]:
    file = runs / trainer if trainer.endswith(".jsonl") else runs / trainer / "metrics.jsonl"
    lines = (json.loads(line) for line in file.read_text().splitlines())
    return {line["step"]: line[key] for line in lines if key in line}


def row(name: str, page: str = README) -> list[str]:
    """The cells of the row of a page's tables that starts with `name`."""
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {name}")]
    return [cell.strip() for cell in line.strip("|").split("|")[1:]]


def rows(file: str, folder: Path = THROUGHPUT) -> dict[str, Row]:
    """Trainer -> what a file of measurements has of it."""
    return {row.trainer: row for row in throughput_table.rows(read_results(folder / f"{file}.json"))}


def times_as_fast(of: dict[str, Row], reference: str) -> list[str]:
    """Cells of how many times as fast as one of them the trainers are, ours in bold."""
    ratios = {name: "1" if name == reference else f"{each.speed[reference][0]:.3f}" for name, each in of.items()}
    return [f"**{ratios[name]}**" if name == "jaxgpt" else ratios[name] for name in TRAINERS if name in of]


def compiling(each: Row) -> str:
    return "not measured" if each.cold_s is None or each.warm_s is None else f"{each.cold_s:.0f}, {each.warm_s:.0f}"


@pytest.mark.parametrize("recipe", ["muon-2024-10-12", "modern-2024-10-14"])
def test_times_rates_ratios_and_peaks_are_the_measured_ones(recipe):
    of = rows(recipe.partition("-")[0])
    trainers = [of[name] for name in TRAINERS if name in of]
    own = "" if recipe.startswith("muon") else f"`{recipe}`, "
    said = {
        f"`{recipe}`, ms a step": [f"{each.step_ms:,.1f}" for each in trainers],
        f"`{recipe}`, tokens/s": [f"{round(each.tokens_per_s, -2):,.0f}" for each in trainers],
        f"{own}peak memory, GiB": [f"{each.peak_bytes / 2**30:.1f}" for each in trainers],
        f"{own}compile, cold and warm, s": [compiling(each) for each in trainers],
        f"{own}speed to torch_ref": times_as_fast(of, "torch_ref"),
    }
    if "published" in of:
        said["speed to the published script"] = times_as_fast(of, "published")
    assert {name: [cell for cell in row(name) if cell] for name in said} == said


def test_little_memory_is_the_measured_one():
    lean = rows("modes")["jaxgpt --micro-batch 32"]
    says = (
        f"takes {lean.peak_bytes / 2**30:.1f} GiB, {lean.memory['published']:.2f} of the published script's memory, at "
        f"{lean.speed['published'][0]:.3f} times its speed"
    )
    assert says in README.replace("\n", " ")


def test_four_gpus_take_the_measured_steps():
    one, another = (scaled(folder) for folder in ("scaling-h100", "scaling-h100-2"))
    of = [{row.trainer: row for row in scaling.rows(each) if row.devices == 4} for each in (one, another)]
    ours = [each["jaxgpt"] for each in of]
    times = []
    for how in ("", " --optimizer.distributed"):
        times.append(" and ".join(f"{each[f'torch_ref{how}'].step_ms / each['jaxgpt'].step_ms:.3f}" for each in of))
    says = (
        f"On four such GPUs a step takes {ours[0].step_ms:.1f} ms on one machine and {ours[1].step_ms:.1f} on another: "
        f"{ours[0].efficiency:.1%} and {ours[1].efficiency:.1%} of four times one GPU's speed, {times[0]} times as "
        f"fast as torch_ref, {times[1]} times as fast as torch_ref with Muon dealt out"
    )
    assert says in README.replace("\n", " ")


def test_compiling_since_kernels_are_lowered_once_takes_what_was_measured():
    now = rows("readme")["jaxgpt"]
    assert f"since then it takes {now.cold_s:.1f} s and {now.warm_s:.1f} s (`readme.json`" in README.replace("\n", " ")


def test_reading_tokens_costs_what_was_measured():
    found = json.loads((KERNELS.parent / "loader-h100" / "loader.json").read_text(encoding="utf-8"))
    streamed, repeated = (statistics.median(found[f"{kind}_s"]) * 1e3 for kind in ("streamed", "repeated"))
    says = (
        f"took {streamed:.2f} ms on the stream and {repeated:.2f} on the repeated batch, {1 - repeated / streamed:.2%} "
        f"less (2026-11-27, medians of five measurements of {found['steps']} steps each"
    )
    assert len(found["streamed_s"]) == len(found["repeated_s"]) == 5
    assert says in README.replace("\n", " ")


def test_a_save_costs_what_was_measured():
    times = metrics("saves.jsonl", "train_time_s", KERNELS)
    took = {step: times[step] - times[step - 1] for step in times if step - 1 in times}
    usual = statistics.median(took.values())
    held_up = [took[step] + took[step + 1] - 2 * usual for step in (12, 24, 36)]
    saves, steps = 6000 // 125, 6000
    assert (held_up[0] + max(held_up[1:]) * (saves - 1)) / (steps * usual) < 0.0015
    assert "Saving checkpoints costs about 0.1%" in README.replace("\n", " ")


def test_what_the_plot_at_the_top_shows_is_said_as_it_was_recorded():
    runs = RUNS.with_name("muon-2024-10-12-kernels-h100")
    config = json.loads((runs / "jaxgpt" / "config.json").read_text(encoding="utf-8"))
    text = sum(shard["tokens"] for shard in config["shards"]["train"])
    ours, theirs = (metrics(trainer, "val_loss", runs) for trainer in ("jaxgpt", "torch_ref"))
    apart = {}
    for key in ("train_loss", "val_loss"):
        one, other = (metrics(trainer, key, runs) for trainer in ("jaxgpt", "torch_ref"))
        apart[key] = max(abs(one[step] - other[step]) for step in one)
    says = (
        f"on {text / 1e6:.0f}M of those tokens, {200 * 524_288 / text:.2f} passes: {ours[200]:.4f} in JAX and "
        f"{theirs[200]:.4f} in PyTorch at step 200; a training loss at most {apart['train_loss']:.4f} apart, a "
        f"validation loss {apart['val_loss']:.4f}"
    )
    assert says in README.replace("\n", " ")


def test_validation_losses_are_the_recorded_ones():
    ours, theirs = (metrics(trainer, "val_loss") for trainer in ("jaxgpt", "torch_ref"))
    says = f"{ours[0]:.4f} in both at step 0; {ours[200]:.4f} in JAX and {theirs[200]:.4f} in PyTorch at step 200"
    assert f"{ours[0]:.4f}" == f"{theirs[0]:.4f}"
    assert says in README.replace("\n", " ")


@pytest.mark.parametrize(
    ("key", "says"), [("train_loss", "a training loss over the 200 steps is "), ("val_loss", "a validation loss ")]
)
def test_largest_differences_are_the_recorded_ones(key, says):
    ours, theirs = metrics("jaxgpt", key), metrics("torch_ref", key)
    apart = max(abs(ours[step] - theirs[step]) for step in ours)
    assert re.search(rf"{says}{apart:.4f}", README.replace("\n", " "))


@pytest.mark.parametrize("optimizer", ["muon", "adam", "soap", "shampoo"])
def test_costs_of_optimisers_are_the_measured_ones(optimizer):
    measured = {each["run"]: each for each in json.loads((OPTIMIZERS / "optimizers.json").read_text())}
    both = [measured[f"{trainer}-{optimizer}"] for trainer in ("jaxgpt", "torch_ref")]
    cells = [
        ", ".join(f"{each['step_ms']:,.0f}" for each in both),
        ", ".join(f"{100 * each['share']:.1f}%" for each in both),
    ]
    recomputed = [each["recompute_ms"] for each in both]
    cells.append("" if recomputed[0] is None else ", ".join(f"{ms:,.0f}" for ms in recomputed) + ", every 10 steps")
    state = [[round(each["bytes"][part] / 2**20) for part in ("hidden", "all")] for each in both]
    assert state[0] == state[1]
    assert row(f"{optimizer} |", OF_OPTIMIZERS) == [*cells, ", ".join(f"{mib:,}" for mib in state[0])]


@pytest.mark.parametrize(
    ("optimizer", "name"), [("muon", "Muon"), ("adam", "AdamW"), ("soap", "SOAP"), ("shampoo", "Shampoo")]
)
def test_largest_differences_of_optimisers_are_the_recorded_ones(optimizer, name):
    ours, theirs = (metrics(f"{trainer}-{optimizer}", "train_loss", OPTIMIZERS) for trainer in ("jaxgpt", "torch_ref"))
    apart = {step: abs(ours[step] - theirs[step]) for step in ours}
    step = max(apart, key=lambda step: apart[step])
    assert f"{apart[step]:.3f} for {name} (step {step}" in OF_OPTIMIZERS.replace("\n", " ")


NOISE = json.loads((ROOT / "benchmarks/results/noise-floor-h100/noise_floor.json").read_text())["runs"]


@pytest.mark.parametrize("run", NOISE, ids=lambda run: f"{run['recipe']}-{run['rounding']}")
def test_noise_floors_are_the_measured_ones(run):
    ours, floor = run["jax_to_torch"], run["torch_to_torch_an_ulp_away"]
    digits = 4 if ours > 0.01 else 5
    cells = [run["rounding"], run["steps"], f"{ours:.{digits}f}", f"{floor:.{digits}f}", f"{ours / floor:.2f}"]
    assert f"| {' | '.join([run['recipe'], *cells])} |" in OF_OPTIMIZERS


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_listed(name):
    assert f"`{name}`" in OF_RECIPES or f"`{name.removesuffix('2024-10-29')}`" in OF_RECIPES


@pytest.mark.parametrize(
    "recipe", [recipe for recipe in RECIPES.values() if recipe.expected.val_loss], ids=lambda recipe: recipe.name
)
def test_a_published_loss_is_the_recipes(recipe):
    short = recipe.name.removesuffix("2024-10-29")
    line = next(line for line in OF_RECIPES.splitlines() if re.match(rf"\| .*`({recipe.name}|{short})`", line))
    assert f"{recipe.expected.val_loss:g}" in line


@pytest.mark.parametrize(
    ("program", "kind", "default", "at_least"),
    [
        (sample.PROG, sample.Flags, sample.Flags(run=tyro.MISSING), 2),
        (huggingface.PROG, huggingface.Command, None, 2),
    ],
)
def test_every_command_for_text_and_weights_is_one_the_programs_take(program, kind, default, at_least):
    commands = re.findall(rf"^{re.escape(program)} (.*)$", OF_TEXT, re.M)
    assert len(commands) >= at_least
    for command in commands:
        parse(kind, shlex.split(command), program, default)


@pytest.mark.parametrize(("page", "at_least"), [(README, 5), (OF_RECIPES, 2), (OF_RUNS, 2), (OF_OPTIMIZERS, 1)])
def test_every_training_command_is_one_the_programs_take(page, at_least):
    text = page.replace("\\\n", " ")
    starts = r"^(?:torchrun .*-m -- |python -m |for .* do python -m )"
    commands = re.findall(rf"{starts}((?:jaxgpt|torch_ref)\.train .*?)(?:;|$)", text, re.M)
    commands = [command for command in commands if "--resume" not in command]  # takes a run: test_resume.py
    assert len(commands) >= at_least
    for command in commands:
        program, *arguments = shlex.split(command.replace("$r", "tiny"))
        recipe, _, _ = recipe_and_flags(arguments, program, "tiny")
        assert recipe.name in arguments


# What is said of going on


def test_a_killed_run_goes_on_with_the_losses_that_are_said():
    killed, went_on = (metrics(file, "train_loss", KILLED) for file in ("killed.jsonl", "metrics.jsonl"))
    (resumed,) = json.loads((KILLED / "config.json").read_text())["resumes"]
    again = range(resumed["step"] + 1, max(killed) + 1)
    apart = max(abs(killed[step] - went_on[step]) for step in again)
    assert apart > 0  # on other devices; a copied file would be 0
    said = OF_RUNS.replace("\n", " ")
    assert f"went on from step {resumed['step']} to {max(went_on)}." in said
    assert (
        f"The largest difference between their losses of steps {again[0]} to {again[-1]} and those of the run that was "
        f"killed is {1e5 * apart:.1f}e-5"
    ) in said


def test_the_others_end_as_is_said_when_one_is_killed():
    ends = (KILLED / "ends.log").read_text().splitlines()
    killed, others = ends[0], ends[1:]
    (said,) = {re.sub(r"process \d: (exit \d+ after \d+ s: .* is gone).*", r"\1", each) for each in others}
    assert (len(others), said) == (3, "exit 6 after 21 s: error: process 2 of 4 is gone")
    assert killed.startswith('killed 2 after: {"step": 48,')
    says = "process 2 was killed with -9 after step 48. The other three named it and had ended with 6 after 21 s."
    assert says in OF_RUNS.replace("\n", " ")


def test_a_run_with_fast_attention_is_not_resumed_with_the_exact_one():
    run = {"trainer": "jaxgpt", "recipe": {}, "seed": 0, "shards": {"train": [], "val": []}}
    was, here = (run | {"precision": {"compute": "bfloat16", "attention": kind}} for kind in ("fast", "exact"))
    with pytest.raises(BadInput, match=r"precision\.attention is exact here and fast in runs/a/config\.json"):
        check_unchanged(was, here, "runs/a/config.json")
