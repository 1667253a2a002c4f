"""SOAP and Shampoo of other people on rung 6's gradients: `python -m parity_tests.third_party_optimizers`.

Their weights beside torch_ref's, which rung 6 holds to JAX's. Run by hand, for none of them is a dependency of this
project; what is missing is named, with how to get it. The two that the runs of October 2024 used are in git alone:
clone them anywhere and put the folders on PYTHONPATH.
"""

import importlib
import logging
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from parity_tests.pair import DTYPES, relative
from parity_tests.second_order import CALLS, EVERY, LR, Trace, gradients, run_torch, start
from torch_ref.shampoo import inverse_root

DECAY = 0.1
PYTORCH_OPTIMIZER = "pip install pytorch-optimizer"
HEAVYBALL = "pip install heavyball"
META = "git clone https://github.com/facebookresearch/optimizers && git checkout 614964a"  # 28 October 2024
VYAS = "git clone https://github.com/nikhilvyas/SOAP && git checkout bbce86e"  # 23 September 2024

Distances = list[dict[str, float]]
"""call -> matrix -> how far apart."""


def weights(theirs: Trace, ours: Trace) -> Distances:
    return [{n: relative(a["w"][n], b["w"][n]) for n in b["w"]} for a, b in zip(theirs, ours, strict=True)]


def directions(theirs: Trace, ours: Trace) -> Distances:
    """What each call but the first adds to the weights, both brought to norm 1."""
    apart = []
    for call in range(1, CALLS):
        a, b = ({n: w - t[call - 1]["w"][n] for n, w in t[call]["w"].items()} for t in (theirs, ours))
        apart.append({n: relative(a[n] / np.linalg.norm(a[n]), b[n] / np.linalg.norm(b[n])) for n in b})
    return apart


def sums(theirs: Trace, ours: Trace) -> Distances:
    """What each call adds, against our root of sums of g g^T and g^T g instead of averages, no momentum, no graft."""
    before, apart = start("float64"), []
    sides = {n: [torch.zeros(k, k, dtype=torch.float64) for k in w.shape] for n, w in before.items()}
    for trace, every in zip(theirs, gradients("float64"), strict=True):
        apart.append({})
        for n, g in ((n, torch.tensor(g)) for n, g in every.items()):
            sides[n] = [sides[n][0] + g @ g.T, sides[n][1] + g.T @ g]
            left, right = (inverse_root(side) for side in sides[n])
            apart[-1][n] = relative(trace["w"][n] - before[n], -LR * left @ g @ right)
        before = trace["w"]
    return apart


def meta_shampoo(module, params, dtype):
    types = importlib.import_module("distributed_shampoo.shampoo_types")
    states = "computation", "factor_matrix", "inv_factor_matrix", "filtered_grad", "momentum", "grafting_state"
    return module.DistributedShampoo(
        params,
        lr=LR,
        betas=(0.95, 0.95),
        epsilon=1e-12,
        weight_decay=DECAY,
        max_preconditioner_dim=8192,
        precondition_frequency=EVERY,
        use_merge_dims=False,
        grafting_config=types.AdamGraftingConfig(beta2=0.95, epsilon=1e-8),
        precision_config=types.PrecisionConfig(**{f"{state}_dtype": dtype for state in states}),
    )


def soap(module, params, dtype):
    return module.SOAP(params, lr=LR, betas=(0.95, 0.95), weight_decay=DECAY, precondition_frequency=EVERY)


def heavyball_soap(module, params, dtype):
    importlib.import_module("heavyball.utils").compile_mode = None
    shapes = {"merge_dims": False, "max_precond_dim": 10_000}
    return module.SOAP(params, lr=LR, betas=(0.95, 0.95), weight_decay=DECAY, precondition_frequency=EVERY, **shapes)


def scalable_shampoo(module, params, dtype):
    often = {"start_preconditioning_step": EVERY, "preconditioning_compute_steps": EVERY}
    shapes = {"block_size": 8192, "shape_interpretation": False}
    eps = {"diagonal_eps": 1e-8, "matrix_eps": 1e-12, "use_svd": True}
    return module.ScalableShampoo(
        params, lr=LR, betas=(0.0, 0.95), graft_type=3, nesterov=False, **often, **shapes, **eps
    )


def first_shampoo(module, params, dtype):
    return module.Shampoo(params, lr=LR, matrix_eps=1e-12)


class Third(NamedTuple):
    """Someone's optimiser.

    Attributes:
      name: what is printed.
      module: what it is in.
      install: a command.
      make: (module, parameters, dtype) -> their optimiser, set as ours is.
      ours: "soap" or "shampoo".
      settings: of ours.
      dtypes: those it takes.
      measure: (their trace, ours) -> distances.
      note: what they are of.
    """

    name: str
    module: str
    install: str
    make: Callable[..., torch.optim.Optimizer]
    ours: str
    settings: dict[str, Any]
    dtypes: tuple[str, ...]
    measure: Callable[[Trace, Trace], Distances]
    note: str


DECAYED, UNDECAYED = {"weight_decay": DECAY}, {"betas": (0.0, 0.95), "weight_decay": 0.0}

THIRDS = [
    Third("nikhilvyas/SOAP", "soap", VYAS, soap, "soap", DECAYED, DTYPES, weights,
          "rounding; in float64 its decompositions are float32, with another basis of the null space"),
    Third("pytorch_optimizer.SOAP", "pytorch_optimizer", PYTORCH_OPTIMIZER, soap, "soap", DECAYED, DTYPES, weights,
          "rounding; in float64 its QR is float32"),
    Third("heavyball.SOAP", "heavyball", HEAVYBALL, heavyball_soap, "soap", DECAYED, ("float32",), weights,
          "decay before update (1e-4), max(sqrt(v), eps) (8e-6), second new basis a call early (from call 20, 4e-3), "
          "another basis of the null space where not square"),
    Third("DistributedShampoo", "distributed_shampoo.distributed_shampoo", META, meta_shampoo, "shampoo", DECAYED,
          DTYPES, weights, "rounding; in float64 its bias corrections are float32"),
    Third("pytorch_optimizer.ScalableShampoo", "pytorch_optimizer", PYTORCH_OPTIMIZER, scalable_shampoo, "shampoo",
          UNDECAYED, DTYPES, directions, "directions without momentum: it averages updates, not gradients, and "
          "its graft has no bias correction: seen here beside eps until call 9, then 7e-9"),
    Third("pytorch_optimizer.Shampoo", "pytorch_optimizer", PYTORCH_OPTIMIZER, first_shampoo, "shampoo", DECAYED,
          ("float64",), weights, "another algorithm: sums for averages, no graft, no momentum, roots at every call"),
    Third("pytorch_optimizer.Shampoo", "pytorch_optimizer", PYTORCH_OPTIMIZER, first_shampoo, "shampoo", DECAYED,
          ("float64",), sums, "its updates against our root of such sums"),
]  # fmt: skip


def run_third(third: Third, module, dtype: str) -> Trace:
    """Their weights after each call."""
    named = {name: torch.nn.Parameter(torch.tensor(a)) for name, a in start(dtype).items()}
    optimizer, trace = third.make(module, list(named.values()), getattr(torch, dtype)), []
    for every in gradients(dtype):
        for name, p in named.items():
            p.grad = torch.tensor(every[name])
        optimizer.step()
        trace.append({"w": {name: p.detach().numpy().copy() for name, p in named.items()}})
    return trace


def main(words: list[str]) -> int:
    """Prints a line for each; 1 where something is missing."""
    if words in (["--help"], ["-h"]):
        print(f"usage: python -m parity_tests.third_party_optimizers\n\n{__doc__}")
        return 0
    if words:
        print(f"error: {' '.join(words)}: give nothing", file=sys.stderr)
        return 2
    logging.disable(logging.WARNING)
    missing = 0
    print(f"Largest distance over calls: until the first new bases (1..{EVERY + 1}) and over all {CALLS}")
    print(f"{'':36}{'':9}{'square':>18}{'other shapes':>20}")
    for third in THIRDS:
        try:
            module = importlib.import_module(third.module)
        except ImportError as error:
            print(f"{third.name}: not here ({error}): {third.install}")
            missing = 1
            continue
        for dtype in third.dtypes:
            torch.set_default_dtype(getattr(torch, dtype))  # some keep statistics in it, whatever the weights are
            ours = run_torch(third.ours, start(dtype), gradients(dtype), **third.settings)
            apart = third.measure(run_third(third, module, dtype), ours)
            most = [
                max(each[name] for each in apart[:calls] for name in each if (name == "square") == square)
                for square in (True, False)
                for calls in (EVERY + 1, CALLS)
            ]
            print(f"{third.name:36}{dtype:9}" + "".join(f"{one:10.0e}" for one in most) + f"  {third.note}")
    return missing


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
