"""The claims, declared: what is said, how it is judged (`benchmarks.claim_verdicts`), and what to type to repeat it."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import claim_verdicts as verdicts
from benchmarks.claim_evidence import Evidence
from benchmarks.claim_plan import ADAMW_STEPS, LLMC, LRS, MUON_STEPS, SEEDS, SWEEP_STEPS
from benchmarks.claim_verdicts import OVERHEAD, Finding
from jaxgpt.equivalence import MARGIN

_DATA = "--data 'GLOB_train_*.bin' --val-data 'GLOB_val_*.bin'"
_NODE = "launch/gpu8.sh"


@dataclass(frozen=True)
class Claim:
    """One of them. `unit` is the figure's."""

    id: str
    text: str
    unit: str
    command: str
    judged: Callable[[Evidence], Finding]


def _train(*names: str) -> str:
    """The command that trains these runs."""
    return f"python -m benchmarks.claim_runs {_DATA} --out results/runs --only {' '.join(map(repr, names))}"


def _same_end(kind: str, called: str) -> Claim:
    return Claim(
        f"a-{kind}-seeds",
        f"JAX and PyTorch end at the same validation loss, on average within {MARGIN} nats: {called}, 19M parameters, "
        f"{len(SEEDS)} pairs of runs, each pair from its own initial weights",
        "nats, torch minus JAX, mean of the pairs' final validation losses",
        f"{_train(f'20m-{kind}-seed*')} && python -m jaxgpt.compare results/runs/20m-{kind}-seed* "
        f"--require-equivalent {MARGIN} --out report",
        lambda evidence: verdicts.same_end(evidence, kind),
    )


def _same_curve(kind: str, called: str, steps: int) -> Claim:
    runs = [f"124m-{kind}-{steps}-{framework}" for framework in ("jax", "torch")]
    return Claim(
        f"a-{kind}-124m",
        f"A run in JAX and one in PyTorch, at 124M from the same weights, {called}, {steps} steps: no validation loss "
        f"is more than {MARGIN} nats apart",
        "nats, largest difference",
        f"{_train(*runs)} && python -m jaxgpt.compare {' '.join(f'results/runs/{run}' for run in runs)} --out report",
        lambda evidence: verdicts.same_curve(evidence, kind, steps),
    )


def _fewer_steps(framework: str, called: str) -> Claim:
    return Claim(
        f"b-{framework}",
        f"Muon after {MUON_STEPS} steps is at AdamW's loss after {ADAMW_STEPS}, at 124M in {called}, each with its own "
        f"schedule, AdamW at the best of {len(LRS)} learning rates in {SWEEP_STEPS} steps",
        "nats, Muon minus AdamW, final validation loss",
        _train(f"124m-muon-{MUON_STEPS}-{framework}", f"124m-adamw-{ADAMW_STEPS}-{framework}", f"20m-*-{framework}"),
        lambda evidence: verdicts.fewer_steps(evidence, framework),
    )


def _overhead(trainer: str) -> Claim:
    return Claim(
        f"d-{trainer}",
        f"A step with Muon takes less than {OVERHEAD:.0%} longer than one with AdamW: 124M on one H100, {trainer}",
        "of AdamW's step",
        f"python -m benchmarks.optimizer benchmarks/results/optimizers-h100/{trainer}-muon "
        f"benchmarks/results/optimizers-h100/{trainer}-adam --out report",
        lambda evidence: verdicts.overhead(evidence, trainer),
    )


def _logs(name: str) -> Claim:
    return Claim(
        f"e-log-{name}",
        f"In the published logs, {name} came to 3.28 on at most a third of the tokens that llm.c's baseline took",
        "of llm.c's tokens",
        "python -m benchmarks.claims results",
        lambda evidence: verdicts.tokens_in_the_logs(evidence, name),
    )


CLAIMS = [
    _same_end("muon", "Muon"),
    _same_end("adamw", "AdamW"),
    _same_curve("muon", "Muon", MUON_STEPS),
    _same_curve("adamw", "AdamW", ADAMW_STEPS),
    Claim(
        "a-adamw-itself",
        f"PyTorch parts from itself by more than {MARGIN} nats too: a validation loss of the same run, AdamW at 124M, "
        "from weights a unit in the last place away",
        "nats, largest difference",
        f"python -m benchmarks.claim_ulp results {_DATA} && python -m benchmarks.claim_weights results",
        verdicts.parts_from_itself,
    ),
    _fewer_steps("jax", "JAX"),
    _fewer_steps("torch", "PyTorch"),
    Claim(
        "c-hidden",
        "Muon's state takes half of AdamW's: hidden matrices, 124M",
        "of AdamW's bytes",
        "python -m benchmarks.claims results",
        lambda evidence: verdicts.state_ratio(evidence, "hidden"),
    ),
    Claim(
        "c-all",
        "Muon's state takes half of AdamW's: all weights, 124M (the embedding has AdamW in both)",
        "of AdamW's bytes",
        "python -m benchmarks.claims results",
        lambda evidence: verdicts.state_ratio(evidence, "all"),
    ),
    _overhead("jaxgpt"),
    _overhead("torch_ref"),
    Claim(
        "d-plan",
        "By plan, nothing measured: on 8 H100, its matrices dealt out over them, Newton-Schulz takes less than "
        f"{OVERHEAD:.0%} of a step in JAX",
        "of the planned step",
        "python -m launch.plan --topology h100:8 --no-compile --out benchmarks/results/plans/h100-8.json",
        verdicts.overhead_by_plan,
    ),
    Claim(
        "d-node",
        f"On 8 GPUs, its matrices dealt out over them, Newton-Schulz takes less than {OVERHEAD:.0%} of a step in JAX",
        "of a step",
        "python -m benchmarks.scaling --devices 1 8 --newton-schulz --out results/scaling.json",
        verdicts.overhead_of_a_node,
    ),
    _logs("muon-2024-10-10"),
    _logs("opt-muon-2024-10-29"),
    Claim(
        "e-equal-tokens",
        f"After {MUON_STEPS} steps of equal tokens Muon is below llm.c's recipe, 124M in JAX",
        "nats, Muon minus llm.c's recipe, final validation loss",
        _train(f"124m-muon-{MUON_STEPS}-jax", LLMC, "20m-*-jax"),
        verdicts.ahead_of_llmc,
    ),
    Claim(
        "e-fineweb",
        "Muon takes a third of the tokens of llm.c's baseline to 3.28 on FineWeb, in both frameworks",
        "of llm.c's tokens",
        f"{_NODE} && RECIPE=llmc-2024-10-13 SHARDS=103 {_NODE}",
        lambda evidence: verdicts.on_fineweb(evidence, "FineWeb, and 8 GPUs for both recipes in both frameworks"),
    ),
    Claim(
        "f-record",
        "3.28 on FineWeb after 3.15B tokens, in both frameworks",
        "nats",
        _NODE,
        verdicts.record,
    ),
]
