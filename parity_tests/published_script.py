"""A published training script, loaded from a user's own copy without its training: what rung 14 compares with.

Its own code is run, so a file that `jaxgpt.published.scripts` doesn't know is refused.
"""

import ast
import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch

from jaxgpt.published.scripts import identify
from jaxgpt.recipes import RECIPES, DType, ModelConfig, Recipe, reduced
from parity_tests.pair import Weights, tokens, torch_batch, torch_tree
from torch_ref.model import rotary_tables


class Script(NamedTuple):
    """A loaded script: the names that its definitions made, all of its statements, and the recipe it ran."""

    names: dict[str, Any]
    body: list[ast.stmt]
    recipe: Recipe

    def run(self, statements: list[ast.stmt], **names: Any) -> dict[str, Any]:
        """Run some of its statements beside its definitions, with `names`; all names afterwards."""
        scope = self.names | names
        exec(compile(ast.Module(statements, []), "the published script", "exec"), scope)
        return scope

    def assignments(self, *targets: str) -> list[ast.stmt]:
        """Its first assignment to each of these names, in its own order."""
        found: dict[str, ast.stmt] = {}
        for s in self.body:
            if isinstance(s, ast.Assign) and ast.unparse(s.targets[0]).strip("()") in targets:
                found.setdefault(ast.unparse(s.targets[0]).strip("()"), s)
        assert found.keys() == set(targets), f"no assignment to {set(targets) - found.keys()}"
        return list(found.values())

    def training_section(self) -> list[ast.stmt]:
        """One step of its loop: from `model.train()` to `model.zero_grad(...)`."""
        loop = next(s for s in self.body if isinstance(s, ast.For) and ast.unparse(s.target) == "step")
        lines = [ast.unparse(s) for s in loop.body]
        last = next(i for i, line in enumerate(lines) if line.startswith("model.zero_grad"))
        return loop.body[lines.index("model.train()") : last + 1]


def load(path: Path) -> Script:
    """Run the definitions of a known script: all up to its `assert torch.cuda.is_available()`, and later functions.

    `torch.compile` does nothing meanwhile, and the script doesn't read itself.
    """
    recipe = RECIPES[identify(path).recipe]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its docstrings hold \\s, which newer Pythons warn of
        body = ast.parse(path.read_text(encoding="utf-8")).body
        start = next(i for i, s in enumerate(body) if isinstance(s, ast.Assert))
        wanted = [s for s in body[:start] if not isinstance(s, ast.With)]
        wanted += [s for s in body[start:] if isinstance(s, ast.FunctionDef)]
        script = Script({"__name__": "the_published_script"}, body, recipe)
        with mock.patch.object(torch, "compile", lambda compiled, **_: compiled):
            exec(compile(ast.Module(wanted, []), str(path), "exec"), script.names)
    return script


@contextlib.contextmanager
def without(*methods: str) -> Iterator[None]:
    """These methods of tensors, such as the cast `bfloat16`, copy the tensor as it is meanwhile."""
    with contextlib.ExitStack() as stack:
        for method in methods:
            stack.enter_context(mock.patch.object(torch.Tensor, method, torch.Tensor.clone))
        yield


@contextlib.contextmanager
def widened(script: Script) -> Iterator[None]:
    """Its Newton-Schulz runs in the dtype of the gradients meanwhile."""
    if "zeropower_backends" not in script.names:
        yield
        return
    iterate = script.names["zeropower_backends"]["newtonschulz5"]

    def wide(*args, **kwargs):
        with without("bfloat16"):
            return iterate(*args, **kwargs)

    with mock.patch.dict(script.names["zeropower_backends"], newtonschulz5=wide):
        yield


@contextlib.contextmanager
def our_epsilons(script: Script) -> Iterator[None]:
    """`F.rms_norm` takes the recipe's eps, which the script leaves to the version of torch and the dtype."""
    model, F = script.recipe.model, torch.nn.functional

    def rms_norm(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        qk = x.ndim == 4
        return F.rms_norm(x, shape, eps=model.qk_norm_eps if qk else model.norm_eps)

    with mock.patch.dict(script.names, F=SimpleNamespace(**(vars(F) | {"rms_norm": rms_norm}))):
        yield


def reduced_model(script: Script, config: ModelConfig) -> torch.nn.Module:
    """Its model with the sizes of `config` and its own initial weights."""
    sizes = {"n_layer": config.layers, "n_head": config.heads, "n_embd": config.width}
    return script.names["GPT"](script.names["GPTConfig"](vocab_size=config.vocab, **sizes))


def build(script: Script, dtype: DType, start: Weights, context: int, our_tables: bool) -> torch.nn.Module:
    """Its model at reduced size with these weights, perhaps with our rotary tables in the place of its own."""
    config = reduced(script.recipe.name, context=context).model
    model = reduced_model(script, config)
    model.to(getattr(torch, dtype)).load_state_dict(
        {f"transformer.{n}": torch.tensor(w) for n, w in start.items()}
        | {"lm_head.weight": torch.tensor(start["wte.weight"])}
        | dict(model.named_buffers())
    )
    cos, sin = (table.squeeze(1) for table in rotary_tables(config, dtype))
    rotaries: list[Any] = [m for m in model.modules() if type(m).__name__ == "Rotary"]
    for each in rotaries * our_tables:
        each.seq_len_cached, each.cos_cached, each.sin_cached = context, cos, sin
    return model


def by_our_names(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name.removeprefix("transformer."): p for name, p in model.named_parameters()}


class Trained(NamedTuple):
    """What the script's own training section did in a step."""

    gradients: Weights
    weights: Weights
    moments: Weights


def published_steps(script: Script, dtype: DType, start: Weights, count: int) -> list[Trained]:
    """`count` runs of the script's training section on its own optimisers, in four micro-batches each."""
    recipe = reduced(script.recipe.name)
    rounds = recipe.data.sequences // recipe.data.micro_batch
    batches = [torch_batch(*tokens(recipe, seed)) for seed in range(count + 1)]
    micro = (pair for x, y in batches for pair in zip(x.chunk(rounds), y.chunk(rounds), strict=True))
    model = build(script, dtype, start, recipe.model.context, our_tables=True)
    model.no_sync = contextlib.nullcontext  # type: ignore[assignment]
    scope = script.run(script.assignments("optimizer1", "optimizer2", "optimizers", "schedulers"), raw_model=model)
    seen: dict[str, Weights] = {}

    def keep(*_: Any) -> None:
        seen["gradients"] = torch_tree({n: p.grad for n, p in by_our_names(model).items()})

    scope["optimizer1"].register_step_pre_hook(keep)
    x, y = next(micro)
    scope |= {"x": x, "y": y, "model": model, "ctx": contextlib.nullcontext(), "train_accumulation_steps": rounds}
    scope["train_loader"] = SimpleNamespace(next_batch=lambda: next(micro))
    trained, usual = [], torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))  # SOAP makes its statistics in it
    try:
        for _ in range(count):
            # Not `run`, which copies the names: x and y go from one step to the next.
            exec(compile(ast.Module(script.training_section(), []), "the published script", "exec"), scope)
            moments = published_moments(scope["optimizers"], model)
            trained.append(Trained(seen["gradients"], torch_tree(by_our_names(model)), moments))
    finally:
        torch.set_default_dtype(usual)
    return trained


def published_moments(optimizers: list[torch.optim.Optimizer], model: torch.nn.Module) -> Weights:
    """What the script's optimisers keep, by the names of ours."""
    kept: dict[str, torch.Tensor] = {}
    names: dict[torch.Tensor, str] = {p: n for n, p in by_our_names(model).items()}
    for optimizer in optimizers:
        for p, state in optimizer.state.items():
            for slot, value in state.items():
                prefix = f"opt.{type(optimizer).__name__.lower()}.{names[p]}.{slot.removesuffix('_buffer')}"
                if isinstance(value, list):
                    kept |= {f"{prefix}.{side}": each for side, each in enumerate(value)}
                elif isinstance(value, torch.Tensor) and slot != "step":
                    kept[prefix] = value
    return torch_tree(kept)
