"""Rung 3 as a tool: every module of both frameworks alone, fed the same input, forward and backward.

    python -m parity_tests.modules --recipe muon-2024-10-12 --dtype bfloat16

An error shows in the module that makes it, not in all that follow. Parts come before what is made of them; the first
module beyond tolerance is named, with what the difference looks like where that is simple, and the program ends with 1
if there is one. In bfloat16 no two frameworks round alike: both are held against torch_ref in float64, and JAX's error
may be half as large again as torch's.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import copy
import dataclasses
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import jaxgpt.attention
import jaxgpt.loss
import jaxgpt.model
import torch_ref.attention
import torch_ref.loss
import torch_ref.model
from jaxgpt import bridge
from jaxgpt.commands import parse
from jaxgpt.errors import BadInput, exit_codes
from jaxgpt.recipes import DType, Precision, Recipe, named, precision, reduced
from parity_tests.pair import Weights, relative
from parity_tests.resemblance import resemblance
from parity_tests.tolerances import HIDDEN, MODULE_ERRORS

PROG = "python -m parity_tests.modules"
APART = 1
"""How the program ends where a module differs."""
LAYERS = 2
"""Blocks that are made; the last one's modules are compared, and the first one's weights must get no gradient."""

Answer = dict[str, Any]
""""output", "gradient" of the input, and "gradient of NAME" of each weight -> array, in its framework's dtype."""


class Module(NamedTuple):
    """One module in both frameworks."""

    name: str
    weights: tuple[str, ...]
    """The first words of the names of its weights."""
    jax: Callable[[jaxgpt.model.GPT, jax.Array], jax.Array]
    torch: Callable[[torch_ref.model.GPT, torch.Tensor], torch.Tensor]
    x: np.ndarray
    """What it is fed: token ids, or float64 to be rounded to `dtype`."""
    dtype: str
    """That of its input in training."""


def models(recipe: Recipe, exactly: Precision, start: Weights) -> tuple[jaxgpt.model.GPT, torch_ref.model.GPT]:
    """The recipe's model in both frameworks with these weights, in torch's names and layout."""
    graph = _graph(recipe, exactly)
    params = jax.tree.map(jnp.asarray, _params(recipe, exactly, start))
    return nnx.merge(graph, nnx.State(params)), _in_torch(recipe, exactly, start)


def _graph(recipe: Recipe, exactly: Precision) -> nnx.GraphDef:
    """JAX's model without weights."""
    settings = {"parameters": exactly.parameters, "embedding": exactly.embedding, "compute": exactly.compute}
    return nnx.split(nnx.eval_shape(lambda: jaxgpt.model.GPT(recipe.model, rngs=nnx.Rngs(0), **settings)))[0]


def _params(recipe: Recipe, exactly: Precision, start: Weights) -> dict:
    params = bridge.from_torch({n: w.astype(exactly.parameters) for n, w in start.items()}, recipe.model)
    return params | {"wte": params["wte"].astype(jnp.dtype(exactly.embedding))}


def _in_torch(recipe: Recipe, exactly: Precision, start: Weights) -> torch_ref.model.GPT:
    gpt = torch_ref.model.GPT(recipe.model, parameters=exactly.parameters, embedding=exactly.embedding)
    gpt.load_state_dict({n: torch.tensor(w) for n, w in start.items()})
    return gpt


def start_weights(recipe: Recipe) -> Weights:
    """Weights off any initial value, float64: behind a projection of zeros no gradient says anything."""
    rng = np.random.default_rng(1)
    is_gain = lambda name: ".weight" in name and name.split(".")[-2].startswith("ln_")  # noqa: E731
    return {n: 0.05 * rng.standard_normal(shape) + is_gain(n) for n, shape in recipe.model.shapes.items()}


def alone(recipe: Recipe, exactly: Precision, sequences: int = 2) -> list[Module]:
    """The modules that the recipe has, in the model's order, parts before what is made of them."""
    config, rng = recipe.model, np.random.default_rng(2)
    length, stream, compute = config.context, exactly.embedding, exactly.compute
    rows = (sequences, length)
    # Rows of four sizes, the smallest about the root of eps: where all are large nothing depends on it.
    sizes = 10.0 ** -rng.integers(0, 4, (*rows, 1))
    x_BTD = rng.standard_normal((*rows, config.width))
    x_BTHK = rng.standard_normal((*rows, config.heads, config.head_width))
    ids, targets = rng.integers(0, config.token_ids, (2, *rows))
    form = config.logit_cap, config.token_ids if config.pad_rows == "masked" else None, config.loss_reduction

    def block_jax(gpt: jaxgpt.model.GPT) -> jaxgpt.model.Block:
        layer, stacked = nnx.split(gpt.h)
        return nnx.merge(layer, jaxgpt.model.unstack(stacked)[-1])

    def tables_jax() -> tuple[jax.Array, jax.Array]:
        return jaxgpt.model.rotary_tables(config, length, compute)

    def tables_torch(gpt: torch_ref.model.GPT) -> tuple[torch.Tensor, torch.Tensor]:
        return gpt.get_buffer("cos"), gpt.get_buffer("sin")

    def loss_jax(gpt: jaxgpt.model.GPT, x_ND: jax.Array) -> jax.Array:
        weight_VD, bias_V = gpt.head()
        return jaxgpt.loss.cross_entropy(x_ND, weight_VD, jnp.asarray(targets.ravel()), compute, bias_V, *form)

    def loss_torch(gpt: torch_ref.model.GPT, x_ND: torch.Tensor) -> torch.Tensor:
        weight_VD, bias_V = gpt.head()
        return torch_ref.loss.cross_entropy(x_ND, weight_VD, torch.tensor(targets.ravel()), bias_V, *form)

    norm = Module(
        "norm",
        ("h",),
        lambda gpt, x: block_jax(gpt).ln_1(x),
        lambda gpt, x: gpt.h[-1].ln_1(x),
        sizes * x_BTD,
        stream,
    )
    embedding = Module(
        "embedding",
        ("wte", "wpe", "ln_e"),
        lambda gpt, ids: gpt.embed(ids),
        lambda gpt, ids: gpt.embed(ids),
        ids,
        stream,
    )
    qk_norm = Module(
        "qk-norm",
        (),
        lambda _, x: jaxgpt.model.rms_norm(x, config.qk_norm_eps),
        lambda _, x: torch_ref.model.rms_norm(x, config.qk_norm_eps),
        sizes[..., None] * x_BTHK,
        compute if config.qk_norm == "before_rotary" else str(jnp.promote_types(compute, config.rotary_dtype)),
    )
    rotary = Module(
        "rotary",
        (),
        lambda _, x: jaxgpt.model.rotate(x, tables_jax()),
        lambda gpt, x: torch_ref.model.rotate(x, tables_torch(gpt)),
        x_BTHK,
        compute,
    )
    scores = Module(
        "scores and values",
        (),
        lambda _, x: jaxgpt.attention.attend(x, jnp.flip(x, 1), x * x, "exact", config.attention_scale),
        lambda _, x: torch_ref.attention.attend(x, x.flip(1), x * x, "exact", config.attention_scale),
        x_BTHK,
        compute,
    )
    attention = Module(
        "attention",
        ("h",),
        lambda gpt, x: block_jax(gpt).attn(x, tables_jax(), "exact"),
        lambda gpt, x: gpt.h[-1].attn(x, tables_torch(gpt), "exact"),
        x_BTD,
        stream,
    )
    activation = Module(
        "activation",
        (),
        lambda _, x: jaxgpt.model.ACTIVATIONS[config.activation](x),
        lambda _, x: torch_ref.model.ACTIVATIONS[config.activation](x),
        x_BTD,
        compute,
    )
    mlp = Module("mlp", ("h",), lambda gpt, x: block_jax(gpt).mlp(x), lambda gpt, x: gpt.h[-1].mlp(x), x_BTD, stream)
    block = Module(
        "block",
        ("h",),
        lambda gpt, x: block_jax(gpt)(x, tables_jax(), "exact"),
        lambda gpt, x: gpt.h[-1](x, tables_torch(gpt), "exact"),
        x_BTD,
        stream,
    )
    head = ("wte",) if config.head == "tied" else ("lm_head",)
    loss = Module("head and loss", head, loss_jax, loss_torch, x_BTD.reshape(-1, config.width), stream)

    before = [qk_norm] if config.qk_norm == "before_rotary" else []
    turn = [rotary] if config.positions != "learned" else []
    after = [qk_norm] if config.qk_norm == "after_rotary" else []
    return [norm, embedding, *before, *turn, *after, scores, attention, activation, mlp, block, loss]


class Compared(NamedTuple):
    """One array of a module, in both frameworks."""

    module: str
    tensor: str
    """"output", "gradient" of the input, or "gradient of NAME"."""
    apart: float
    """Of the two frameworks; where there is an `oracle`, of JAX from float64."""
    allowed: float
    oracle: float | None = None
    """torch's distance from float64."""
    looks: str | None = None

    @property
    def parts(self) -> bool:
        """NaN parts from everything."""
        return not self.apart <= self.allowed

    def __str__(self) -> str:
        apart = "apart" if self.oracle is None else f"from float64 and torch {self.oracle:.2e}"
        looks = f"; looks like {self.looks}" if self.looks else ""
        return f"{self.module}, {self.tensor}: {self.apart:.2e} {apart}, allowed {self.allowed:.0e}{looks}"


def compared(recipe: Recipe, exactly: Precision, sequences: int = 2) -> Iterator[Compared]:
    """Module by module: its output, its input's gradient and its weights' in both frameworks.

    Weights and inputs are random, the same on each side to the bit.
    """
    start = {n: w.astype(exactly.parameters) for n, w in start_weights(recipe).items()}
    graph, params = _graph(recipe, exactly), jax.tree.map(jnp.asarray, _params(recipe, exactly, start))
    in_torch = _in_torch(recipe, exactly, start)
    oracle = copy.deepcopy(in_torch).double() if exactly.compute == "bfloat16" else None
    for module in alone(recipe, exactly, sequences):
        x = torch.tensor(module.x)
        x = x.to(getattr(torch, module.dtype)) if x.is_floating_point() else x
        with torch.autocast("cpu", torch.bfloat16, enabled=exactly.compute == "bfloat16"):
            y = module.torch(in_torch, x.requires_grad_(x.is_floating_point()))
        cotangent = torch.tensor(np.random.default_rng(3).standard_normal(y.shape)).to(y.dtype)
        want = _pulled(module, in_torch, x, y, cotangent)
        with jax.default_matmul_precision(exactly.matmul):
            got = _answer(module, recipe, exactly, graph, params, _numbers(x), _numbers(cotangent))
        exact = None
        if oracle is not None:
            wide = (x.detach().double() if x.is_floating_point() else x).requires_grad_(x.is_floating_point())
            exact = _pulled(module, oracle, wide, module.torch(oracle, wide), cotangent.double())
        for tensor in want:
            yield _judged(module.name, tensor, got[tensor], want[tensor], exactly, exact and exact[tensor])


def _answer(
    module: Module,
    recipe: Recipe,
    exactly: Precision,
    graph: nnx.GraphDef,
    params: dict,
    x: np.ndarray,
    cotangent: np.ndarray,
) -> Answer:
    """JAX's: compiled as in training where rounding depends on it, in bfloat16; else op by op, which is quicker."""
    floating = np.issubdtype(x.dtype, np.floating)

    def answer(used, rest, x: jax.Array, cotangent: jax.Array):
        forward = lambda used, x: module.jax(nnx.merge(graph, nnx.State(rest | used)), x)  # noqa: E731
        if floating:
            y, pull = jax.vjp(forward, used, x)
            return y, *pull(cotangent.astype(y.dtype))
        y, pull = jax.vjp(lambda used: forward(used, x), used)
        return y, *pull(cotangent.astype(y.dtype)), None

    used = {name: params[name] for name in module.weights if name in params}
    rest = {name: params[name] for name in params.keys() - used.keys()}
    run = jax.jit(answer) if exactly.compute == "bfloat16" else answer
    y, of_weights, of_input = run(
        used, rest, jnp.asarray(x, module.dtype if floating else None), jnp.asarray(cotangent)
    )
    named = bridge.to_torch(of_weights, recipe.model)
    answered = {"output": y} | ({"gradient": of_input} if floating else {})
    return answered | {f"gradient of {name}": gradient for name, gradient in named.items()}


def _pulled(
    module: Module, gpt: torch_ref.model.GPT, x: torch.Tensor, y: torch.Tensor, cotangent: torch.Tensor
) -> Answer:
    """The same of torch: its output and what the cotangent is pulled back to."""
    weights = {name: p for name, p in gpt.named_parameters() if name.split(".")[0] in module.weights}
    inputs = {"gradient": x} if x.is_floating_point() else {}
    inputs |= {f"gradient of {name}": p for name, p in weights.items()}
    gradients = torch.autograd.grad(y, list(inputs.values()), cotangent, allow_unused=True)
    pulled = {
        name: torch.zeros_like(of) if g is None else g for (name, of), g in zip(inputs.items(), gradients, strict=True)
    }
    return {"output": y.detach()} | pulled


def _numbers(array: torch.Tensor) -> np.ndarray:
    """float64, which holds every narrower float; token ids as they are."""
    return (array.detach().double() if array.is_floating_point() else array).numpy()


def _judged(
    module: str, tensor: str, got: jax.Array, want: torch.Tensor, exactly: Precision, exact: torch.Tensor | None
) -> Compared:
    """In bfloat16 what a module computes in float32 is held to that one's allowance, errors' luck being no matter."""
    allowed = HIDDEN["float32" if exactly.compute == "bfloat16" else exactly.compute]
    dtypes = str(got.dtype), str(want.dtype).removeprefix("torch.")
    if dtypes[0] != dtypes[1]:
        return Compared(module, tensor, np.inf, allowed, None, f"{dtypes[0]} for {dtypes[1]}")
    got_wide, want_wide = np.asarray(got, np.float64), _numbers(want)
    if got_wide.shape != want_wide.shape:
        return Compared(module, tensor, np.inf, allowed, None, resemblance(got_wide, want_wide))
    judged = Compared(module, tensor, relative(got_wide, want_wide), allowed)
    if exact is not None:
        error, oracle = relative(got_wide, _numbers(exact)), relative(want_wide, _numbers(exact))
        judged = Compared(module, tensor, error, max(allowed, MODULE_ERRORS * oracle), oracle)
    return judged._replace(looks=resemblance(got_wide, want_wide)) if judged.parts else judged


def table(rows: list[Compared]) -> str:
    """A line for each module: its output and the worst of its gradients, and what is allowed."""
    lines = [f"{'module':<20}{'output':<28}{'worst gradient':<28}allowed"]
    for module in dict.fromkeys(row.module for row in rows):
        of = [row for row in rows if row.module == module]
        gradients = [row for row in of if row.tensor != "output"]
        cells = [_cell(of[0]), _cell(max(gradients, key=_share))]
        allowed = f"{of[0].allowed:.0e}" if of[0].oracle is None else f"{MODULE_ERRORS} x torch"
        lines.append(f"{module:<20}{cells[0]:<28}{cells[1]:<28}{allowed}")
    return "\n".join(lines)


def _share(row: Compared) -> float:
    return np.inf if np.isnan(row.apart) else row.apart / row.allowed


def _cell(row: Compared) -> str:
    if row.oracle is None:
        return f"{row.apart:.1e}"
    ratio = f"{row.apart / row.oracle:.2f}" if row.oracle else "-"
    return f"{row.apart:.1e} / {row.oracle:.1e} = {ratio}"


@dataclass
class Flags:
    """Feed every module of both frameworks the same input, and say which differs first."""

    recipe: str | None = None
    """whose modules; at reduced size"""
    dtype: DType = "float64"
    """of computation; in bfloat16 weights stay float32"""
    full_size: bool = False
    """at the recipe's own width, context and vocabulary, one sequence and two layers; minutes"""


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `Flags`."""
    flags = parse(Flags, sys.argv[1:] if argv is None else argv, PROG)
    if flags.recipe is None:
        raise BadInput("--recipe is missing: name one, as in --recipe tiny")
    recipe = named(flags.recipe) if flags.full_size else reduced(flags.recipe)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, layers=LAYERS))
    jax.config.update("jax_enable_x64", True)
    torch.set_num_threads(1)
    exactly = precision(recipe, flags.dtype, attention="exact")
    rows = list(compared(recipe, exactly, sequences=1 if flags.full_size else 2))
    print(table(rows))
    first = next((row for row in rows if row.parts), None)
    modules = len({row.module for row in rows})
    print(f"first that differs: {first}" if first else f"{modules} modules equal, worst {max(rows, key=_share)}")
    sys.exit(APART if first else 0)


if __name__ == "__main__":
    main()
