"""How each claim is judged: what is computed from its evidence, and the verdict. Nowhere more is said than was seen.

A figure without an interval is of what can't vary (bytes, a published log) or was measured once; the claim then speaks
of that measurement alone. Losses are in nats a token, on the text that the runs were trained on.
"""

import contextlib
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from benchmarks import claim_ulp
from benchmarks.claim_evidence import Evidence, NotThere
from benchmarks.claim_extrapolation import power_law
from benchmarks.claim_plan import ADAMW_STEPS, LLMC, LRS, MUON_STEPS, SEEDS, TRAINERS, plan
from benchmarks.claim_runs import best
from benchmarks.scaling import rows
from jaxgpt.curves import RECORD_LOSS, Run, Series, difference, tokens_to
from jaxgpt.equivalence import MARGIN, MOST_PAIRS, POWER, judge, pairs_needed, power

Verdict = Literal["verified", "refuted", "underpowered", "not testable"]

OVERHEAD = 0.09
"""modded-nanogpt's README on Muon: under 9% of a step's time."""
RECORD_TOKENS = 6000 * 524_288
"""3.15B, of muon-2024-10-12."""
_OPTIMIZERS = ("benchmarks", "results", "optimizers-h100", "optimizers.json")
_PLAN = ("benchmarks", "results", "plans", "h100-8.json")
_SCALING = ("results", "scaling.json")
_WEIGHTS = ("results", "weights.json")
_NODE = 8


@dataclass(frozen=True)
class Finding:
    """What came of a claim."""

    verdict: Verdict
    seen: str
    """What the figure is of, and what else belongs to it."""
    figure: float | None = None
    interval: tuple[float, float] | None = None
    extrapolation: dict | None = None
    """Figures that nothing measured, and how they were made."""


def same_end(evidence: Evidence, kind: str) -> Finding:
    """Whether the frameworks' final losses are equivalent over paired seeds (`jaxgpt.equivalence`)."""
    names = [f"20m-{kind}-seed{seed}-{framework}" for framework in TRAINERS for seed in SEEDS]
    runs = evidence.runs(*names)
    pairs = list(zip(runs[: len(SEEDS)], runs[len(SEEDS) :], strict=True))
    for pair in pairs:
        _same_start(evidence, *pair)
    loss = judge(runs, MARGIN).loss
    widest = max(abs(float(torch.val.loss[-1] - jax.val.loss[-1])) for jax, torch in pairs)
    needed = pairs_needed(loss.sd, MARGIN) or f"more than {MOST_PAIRS}"
    verdicts: dict[str, Verdict] = {"equivalent": "verified", "different": "refuted", "underpowered": "underpowered"}
    seen = (
        f"torch minus JAX, final validation loss, {loss.pairs} pairs of equal initial weights: mean {loss.mean:+.5f}, "
        f"standard deviation {loss.sd:.5f}, the largest of one pair {widest:.5f}; 90% interval of the mean "
        f"{_span(loss.interval_90, '+.5f')} against a margin of {MARGIN}, fixed beforehand (two one-sided tests, p "
        f"{loss.p:.2g}). Pairs for {POWER:.0%} power at this scatter: {needed}; these {loss.pairs} have "
        f"{power(loss.sd, loss.pairs, MARGIN):.0%}"
    )
    return Finding(verdicts[loss.verdict], seen, loss.mean, loss.interval_90)


def same_curve(evidence: Evidence, kind: str, steps: int) -> Finding:
    """Whether one pair of runs stays within the margin at every validation."""
    jax, torch = evidence.runs(*(f"124m-{kind}-{steps}-{framework}" for framework in TRAINERS))
    _same_start(evidence, jax, torch)
    val, train = difference(jax.val, torch.val), difference(jax.train, torch.train)
    figure = float(np.abs(val.loss).max())
    at = int(np.abs(train.loss).argmax()) if len(train) else None
    of_training = "" if at is None else f", of a training loss {abs(train.loss[at]):.4f} (step {train.step[at]})"
    widest = val.step[np.abs(val.loss).argmax()]
    seen = (
        f"largest difference of {len(val)} validation losses {figure:.4f} (step {widest}){of_training}; at the end "
        f"torch minus JAX {val.loss[-1]:+.4f}. One pair: it says nothing about other seeds"
    )
    if figure > MARGIN:
        seen += ", and not why they part: runs of one framework part too (docs/optimizers.md, the noise floor"
        seen += "; AdamW's at this size: a-adamw-itself)" if kind == "adamw" else ")"
    return Finding("verified" if figure <= MARGIN else "refuted", seen, figure)


def parts_from_itself(evidence: Evidence) -> Finding:
    """Whether PyTorch parts from itself by more than the margin, from weights an ulp away (`benchmarks.claim_ulp`)."""
    jax, torch = evidence.runs(*(f"124m-adamw-{ADAMW_STEPS}-{framework}" for framework in TRAINERS))
    _same_start(evidence, jax, torch)
    moved = _moved(evidence, torch, claim_ulp.NAME)
    last = int(moved.val.step[-1]) if len(moved.val) else 0
    if not last:
        raise NotThere(f"{moved.name} has no validation after its start")
    itself, across, other = (
        _until(difference(*pair), last) for pair in ((torch.val, moved.val), (jax.val, torch.val), (jax.val, moved.val))
    )
    of_training = difference(torch.train, moved.train), _until(difference(jax.train, torch.train), last)
    figure = float(np.abs(itself.loss).max())
    ended = later = ""
    if last < ADAMW_STEPS:
        ended, later = f" of {ADAMW_STEPS}, where that run was ended", " or later steps"
    steps = ", ".join(str(step) for step in itself.step[1:])
    seen = (
        f"up to step {last}{ended}. Apart, validation losses of steps {steps}: PyTorch from itself {_each(itself)}; "
        f"JAX from PyTorch, from the same weights, {_each(across)}; JAX from PyTorch from the moved weights "
        f"{_each(other)}. Training losses, at most: PyTorch from itself {_widest(of_training[0])}, JAX from PyTorch "
        f"{_widest(of_training[1])}. One run: it shows how far this recipe's losses move though no program was "
        f"changed, not that nothing else parts JAX from PyTorch, and nothing of other seeds{later}. "
        f"{_beside_the_earlier(evidence, torch, moved)}, with the others' margin, {MARGIN}"
    )
    return Finding("verified" if figure > MARGIN else "refuted", seen, figure)


def _beside_the_earlier(evidence: Evidence, torch: Run, moved: Run) -> str:
    """What the run of `claim_ulp.EARLIER` adds, where it is there; up to when the claim was declared."""
    if not (evidence.results / claim_ulp.FOLDER / claim_ulp.EARLIER).is_dir():
        return (
            "Two runs from the same weights part on a GPU too, which it doesn't tell from the move. Declared after "
            "such a run was seen"
        )
    earlier = _moved(evidence, torch, claim_ulp.EARLIER)
    again = [difference(getattr(moved, kind), getattr(earlier, kind)) for kind in ("val", "train")]
    steps = ", ".join(str(step) for step in again[0].step[1:])
    return (
        f"An earlier run from the same moved weights is {_each(again[0])} from it at steps {steps}, in training "
        f"{_widest(again[1])} at most: a GPU parts runs of one program from one start by that much. Declared after the "
        "earlier run was seen and before this one was"
    )


def _moved(evidence: Evidence, torch: Run, name: str) -> Run:
    """A yardstick that is known to have started from the moved weights, and had that run's text.

    Raises:
      NotThere: there is none.
    """
    run = evidence.yardstick(name)
    _same_text(torch, run)
    if run.config.get("init_sha256") not in _known(evidence).get(claim_ulp.START, []):
        raise NotThere(f"{name} isn't known to have started from weights a unit in the last place away")
    return run


def fewer_steps(evidence: Evidence, framework: str) -> Finding:
    """Whether Muon's final loss after N/1.5 steps is at most AdamW's after N."""
    tuned_by = [run.name for run in plan() if run.name.startswith("124m-adamw-lr")]
    evidence.runs(*tuned_by)
    muon, adamw = evidence.runs(f"124m-muon-{MUON_STEPS}-{framework}", f"124m-adamw-{ADAMW_STEPS}-{framework}")
    _same_start(evidence, muon, adamw)
    lr, lowest = adamw.config["recipe"]["optimizer"]["lr"], best(evidence.results / "runs", tuned_by)
    if lr != lowest:
        raise NotThere(f"{adamw.name} had the learning rate {lr}, and {lowest} was the best of those tried")
    tried = sorted(LRS.values())
    edge = ""
    if lr in (tried[0], tried[-1]):
        edge = f", which is the {'lowest' if lr == tried[0] else 'highest'} tried: one beyond might do better"
    seen = (
        f"final validation losses: Muon {muon.val.loss[-1]:.4f} after {muon.steps} steps ({_passes(muon)} passes over "
        "the text) at its recipe's learning rate, not tuned for so short a run, AdamW "
        f"{adamw.val.loss[-1]:.4f} after {adamw.steps} ({_passes(adamw)} passes) at the learning rate {lr:g}{edge}"
    )
    return _one_against_one(evidence, framework, muon, adamw, seen)


def ahead_of_llmc(evidence: Evidence) -> Finding:
    """Whether Muon's final loss is below that of llm.c's recipe at equal tokens."""
    muon, llmc = evidence.runs(f"124m-muon-{MUON_STEPS}-jax", LLMC)
    _same_text(muon, llmc)
    seen = (
        f"final validation losses after {muon.tokens:,} tokens of the same text: Muon {muon.val.loss[-1]:.4f}, llm.c's "
        f"recipe {llmc.val.loss[-1]:.4f}, its learning rate not tuned for so short a run; their models differ too, and "
        "how much of it is the optimiser's isn't said"
    )
    return _one_against_one(evidence, "jax", muon, llmc, seen)


def state_ratio(evidence: Evidence, part: Literal["hidden", "all"]) -> Finding:
    """Muon's optimiser state by AdamW's, in bytes."""
    muon, adamw = (_state_bytes(f"opt-{kind}-2024-10-29")[part] for kind in ("muon", "adam"))
    # two step counters of 4 bytes apart
    verdict: Verdict = "verified" if muon <= adamw / 2 + 8 else "refuted"
    of = "the hidden matrices" if part == "hidden" else "all weights"
    seen = f"JAX's state of {of}: Muon {muon:,} bytes, AdamW {adamw:,} bytes, from the shapes of the state"
    with contextlib.suppress(NotThere):
        found = {e["kind"]: e["bytes"][part] for e in evidence.measured(*_OPTIMIZERS) if e["trainer"] == "torch_ref"}
        seen += f"; PyTorch's, allocated on an H100: {found['muon']:,} and {found['adamw']:,}"
    return Finding(verdict, seen, muon / adamw)


def overhead(evidence: Evidence, trainer: str) -> Finding:
    """How much longer a step is with Muon than with AdamW on the same card."""
    found = evidence.measured(*_OPTIMIZERS)
    steps = {each["kind"]: each for each in found if each["trainer"] == trainer}
    if not {"muon", "adamw"} <= steps.keys():
        raise NotThere(f"{'/'.join(_OPTIMIZERS)} lacks a step of {trainer} with Muon, or with AdamW")
    muon, adamw = steps["muon"], steps["adamw"]
    if muon["devices"] != adamw["devices"] or len(muon["devices"]) != 1:
        raise NotThere(f"the steps of {trainer} weren't measured on one card of one kind")
    figure = muon["step_ms"] / adamw["step_ms"] - 1
    seen = (
        f"a step of 524,288 tokens on one {muon['devices'][0]}: {muon['step_ms']:.1f} ms with Muon, "
        f"{adamw['step_ms']:.1f} ms with AdamW; medians of ten steps, measured once. In eight micro-batches: where a "
        "card takes only one, the same update is a larger part of its step"
    )
    return Finding("verified" if figure < OVERHEAD else "refuted", seen, figure)


def overhead_by_plan(evidence: Evidence) -> Finding:
    """The same as predicted for eight H100 by `launch.plan`, from kernels measured on one."""
    found = evidence.measured(*_PLAN)
    assert isinstance(found, dict)
    if found["devices"] != _NODE:
        raise NotThere(f"{'/'.join(_PLAN)} is a plan for {found['devices']} devices, not {_NODE}")
    step, work = found["time"]["step_ms"], found["time"]["work_ms"]["newton-schulz"]
    seen = (
        f"{work:.2f} of {step:.1f} ms a step on {_NODE} x {found['chip']}, predicted from kernels measured on one and "
        f"the links' stated speeds; all exchanges between the devices take {found['time']['exposed_ms']:.2f} ms of it"
    )
    return Finding("verified" if work / step < OVERHEAD else "refuted", seen, work / step)


def overhead_of_a_node(evidence: Evidence) -> Finding:
    """What Newton-Schulz takes of a step on eight devices, its matrices dealt out over them."""
    found = evidence.measured(*_SCALING)
    assert isinstance(found, dict)
    here = {row.devices: row for row in rows(found) if row.trainer == "jaxgpt" and row.newton_schulz is not None}
    if _NODE not in here:
        most = max(here, default=0)
        of_most = f"; on {most} devices Newton-Schulz took {here[most].newton_schulz:.1%} of a step" if most else ""
        raise NotThere(f"a step on {_NODE} devices has not been measured{of_most}")
    figure = here[_NODE].newton_schulz
    assert figure is not None
    seen = f"a step on {_NODE} x {found['card']} takes {here[_NODE].step_ms:.1f} ms with the iterations"
    return Finding("verified" if figure < OVERHEAD else "refuted", seen, figure)


def tokens_in_the_logs(evidence: Evidence, name: str) -> Finding:
    """Tokens to 3.28 in a published log by those in llm.c's."""
    muon, llmc = (tokens_to(RECORD_LOSS, evidence.published(each)) for each in (name, "llmc-2024-10-13"))
    assert muon is not None
    assert llmc is not None
    seen = (
        f"first at {RECORD_LOSS} after {muon / 1e9:.2f}B tokens, llm.c's log after {llmc / 1e9:.2f}B, linear between "
        "validations; one run each, by others. (The usual 'a third' divides by the whole of llm.c's run, 10.26B to "
        "3.2722.)"
    )
    return Finding("verified" if muon / llmc <= 1 / 3 else "refuted", seen, muon / llmc)


def on_fineweb(evidence: Evidence, needs: str) -> Finding:
    """Nothing here is FineWeb."""
    return Finding("not testable", f"it takes {needs}; what is here was trained on another text")


def record(evidence: Evidence) -> Finding:
    """3.28 after 3.15B tokens: what it takes, and what the Muon run's power law would give, for what that is worth."""
    found = on_fineweb(evidence, "FineWeb and 8 GPUs for about 45 minutes")
    try:
        (run,) = evidence.runs(f"124m-muon-{MUON_STEPS}-jax")
        extrapolation = power_law(run, RECORD_TOKENS)
    except NotThere as missing:
        return Finding(found.verdict, f"{found.seen}; no extrapolation either: {missing}")
    return Finding(found.verdict, found.seen, extrapolation=extrapolation)


def _one_against_one(evidence: Evidence, framework: str, one: Run, other: Run, seen: str) -> Finding:
    """Whether `one` ends at most at `other`'s loss, given how the small runs' final losses scatter over seeds."""
    figure = float(one.val.loss[-1] - other.val.loss[-1])
    kinds = {kind: [f"20m-{kind}-seed{seed}-{framework}" for seed in SEEDS] for kind in ("muon", "adamw")}
    try:
        ends = [[run.val.loss[-1] for run in evidence.runs(*names)] for names in kinds.values()]
    except NotThere as missing:
        return Finding(
            "underpowered", f"{seen}. One run a side, and their scatter over seeds isn't known: {missing}", figure
        )
    error = math.sqrt(sum(float(np.var(each, ddof=1)) for each in ends))
    half = float(stdtrit(len(SEEDS) - 1, 0.975)) * error
    interval = (figure - half, figure + half)
    verdict: Verdict = "verified" if interval[1] < 0 else "refuted" if interval[0] > 0 else "underpowered"
    scatter = (
        f"One run a side; the 95% interval takes the scatter over seeds from the 19M-parameter runs, "
        f"{error:.4f} for a difference of two runs, and is no better than that"
    )
    return Finding(verdict, f"{seen}. {scatter}", figure, interval)


def _same_start(evidence: Evidence, one: Run, other: Run) -> None:
    """`NotThere` unless both recorded the same initial weights and the same shards.

    The same weights are one file, or two that `benchmarks.claim_weights` found to hold the same.
    """
    starts = {run.config.get("init_sha256") for run in (one, other)}
    if None in starts or (len(starts) > 1 and not any(starts <= set(files) for files in _known(evidence).values())):
        raise NotThere(f"{one.name} and {other.name} didn't start from the same weights")
    _same_text(one, other)


def _same_text(one: Run, other: Run) -> None:
    """`NotThere` unless both were trained and validated on the same shards."""
    shards = [
        [[shard["sha256"] for shard in run.config["shards"][kind]] for kind in ("train", "val")] for run in (one, other)
    ]
    if shards[0] != shards[1]:
        raise NotThere(f"{one.name} and {other.name} weren't trained on the same shards")


def _known(evidence: Evidence) -> dict[str, list[str]]:
    """Name of initial weights -> SHA-256 of their files, where they have been made again."""
    try:
        found = evidence.measured(*_WEIGHTS)
    except NotThere:
        return {}
    assert isinstance(found, dict)
    return found


def _until(apart: Series, last: int) -> Series:
    """What it has up to that step."""
    there = apart.step <= last
    return Series(apart.step[there], apart.tokens[there], apart.loss[there], apart.time_s[there])


def _each(apart: Series) -> str:
    """Distances of the losses after the first."""
    return ", ".join(f"{abs(loss):.4f}" for loss in apart.loss[1:])


def _widest(apart: Series) -> str:
    """The largest distance of losses, and where."""
    at = np.abs(apart.loss).argmax()
    return f"{abs(apart.loss[at]):.4f} (step {apart.step[at]})"


def _passes(run: Run) -> str:
    """How often the run saw its training text."""
    return f"{run.tokens / sum(shard['tokens'] for shard in run.config['shards']['train']):.2f}"


def _state_bytes(name: str) -> dict[str, int]:
    """Bytes of a recipe's optimiser state in JAX, by `jaxgpt.optimizer.state_bytes`, from shapes alone."""
    import jax
    from flax import nnx

    from jaxgpt.model import GPT
    from jaxgpt.optimizer import make_optimizer, state_bytes
    from jaxgpt.recipes import named, precision

    recipe = named(name)
    exactly = precision(recipe, None, "fast")

    def weights():
        gpt = GPT(recipe.model, rngs=nnx.Rngs(0), parameters=exactly.parameters, embedding=exactly.embedding)
        return nnx.to_pure_dict(nnx.split(gpt)[1])

    params = jax.eval_shape(weights)
    return state_bytes(jax.eval_shape(make_optimizer(recipe, exactly).init, params))


def _span(interval: tuple[float, float], form: str) -> str:
    return f"{interval[0]:{form}} to {interval[1]:{form}}"
