"""Somebody else's training program, in whichever framework it is written, run by the functions its owner names.

Weights, gradients and what an optimiser keeps leave here as NumPy arrays under the program's own names.
"""

import copy
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from numpy.typing import NDArray

from jaxgpt.errors import BadInput

Arrays = dict[str, NDArray]
Batch = tuple[NDArray, ...]

_OURS = Path(__file__).resolve().parent
_PYTHON = Path(sysconfig.get_path("stdlib")).resolve()


class Program(NamedTuple):
    """One of the two programs: its weights, and functions of them that are called as they are.

    `weights` is a torch module, or a dict of tensors; or else JAX arrays in dicts, lists or any other pytree.
    `forward(weights, inputs)` gives the logits, or a dict or list of activations in the order they are made, the
    logits last. `loss(weights, *batch)` is a scalar. `gradients(weights, *batch)` gives gradients shaped like
    `weights`, from a torch module by parameter name; without it they are those of `loss`. `update(weights)` makes a
    torch optimiser of them; in JAX it is an optax transformation, or a pair of functions: `start(weights)`, and
    `step(weights, gradients, state)` that returns new weights and state. Without it the climb ends with the gradients.
    """

    weights: Any
    forward: Callable[..., Any]
    loss: Callable[..., Any]
    gradients: Callable[..., Any] | None = None
    update: Any = None


@contextmanager
def blame(whose: str) -> Iterator[None]:
    """What the user's code raises here is bad input: one line that says whose it is, what, and where."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        frames = [each for each in traceback.extract_tb(error.__traceback__) if Path(each.filename).is_file()]
        own = [each for each in frames if _is_users(Path(each.filename).resolve())]
        where = f" at {Path(own[-1].filename).name}, line {own[-1].lineno}" if own else ""
        if isinstance(error, SyntaxError) and error.filename:
            where = f" at {Path(error.filename).name}, line {error.lineno}"
        said = (str(error).splitlines() or [""])[0]
        raise BadInput(f"{whose}: {type(error).__name__}: {said}{where}: mend it there") from error


def _is_users(file: Path) -> bool:
    """Not ours, except the examples, and not Python's or a package's."""
    packages = {"site-packages", "dist-packages"} & set(file.parts)
    return file.parent != _OURS and _PYTHON not in file.parents and not packages


class TorchProgram:
    """A program in torch with weights of its own, in one dtype."""

    def __init__(self, program: Program, dtype: str):
        self.program, self.dtype = program, getattr(torch, dtype)
        if isinstance(program.weights, torch.nn.Module):
            self.weights: Any = copy.deepcopy(program.weights).to(self.dtype)
            self.named = dict(self.weights.named_parameters())
        else:
            self.weights = {
                name: tensor.detach().clone().to(self.dtype).requires_grad_()
                for name, tensor in program.weights.items()
            }
            self.named = self.weights
        self.optimizer: Any = None

    def take(self, weights: Arrays) -> None:
        """These weights, and an optimiser that has seen nothing."""
        with torch.no_grad():
            for name, tensor in self.named.items():
                tensor.copy_(torch.tensor(weights[name]))
        self.optimizer = self.program.update(self.weights) if self.program.update else None

    def arrays(self) -> Arrays:
        return {name: _array(tensor) for name, tensor in self.named.items()}

    def forward(self, batch: Batch) -> dict[str, NDArray]:
        with torch.no_grad():
            return activations(self.program.forward(self.weights, *self._batch(batch[:1])), _array)

    def loss(self, batch: Batch) -> float:
        with torch.no_grad():
            return float(self.program.loss(self.weights, *self._batch(batch)))

    def gradients(self, batch: Batch) -> tuple[float, Arrays]:
        if self.program.gradients:
            grads = self.program.gradients(self.weights, *self._batch(batch))
            return self.loss(batch), {name: _array(grads[name]) for name in self.named}
        for tensor in self.named.values():
            tensor.grad = None
        loss = self.program.loss(self.weights, *self._batch(batch))
        loss.backward()
        grads = {n: torch.zeros_like(w) if w.grad is None else w.grad for n, w in self.named.items()}
        return float(loss.detach()), {name: _array(grad) for name, grad in grads.items()}

    def update(self, gradients: Arrays) -> None:
        for name, tensor in self.named.items():
            tensor.grad = torch.tensor(gradients[name], dtype=self.dtype)
        self.optimizer.step()

    def moments(self, slot: str) -> Arrays:
        """What the optimiser keeps of each weight under this name of its `state`."""
        state = self.optimizer.state
        return {name: _array(state[w][slot]) for name, w in self.named.items() if slot in state.get(w, {})}

    def _batch(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        whole = [np.issubdtype(np.asarray(each).dtype, np.integer) for each in batch]
        return tuple(
            torch.tensor(each, dtype=torch.int64 if i else self.dtype) for each, i in zip(batch, whole, strict=True)
        )


class JaxProgram:
    """A program in JAX with weights of its own, in one dtype. Its functions are called as they are, under no jit."""

    def __init__(self, program: Program, dtype: str):
        self.program, self.dtype = program, jnp.dtype(dtype)
        leaves, self.tree = jax.tree_util.tree_flatten_with_path(program.weights)
        self.names = [_name(path) if _is_weight(leaf) else None for path, leaf in leaves]
        self.leaves = [jnp.asarray(leaf, self.dtype) if _is_weight(leaf) else leaf for _, leaf in leaves]
        self.weights = self.tree.unflatten(self.leaves)
        self.derived = jax.value_and_grad(program.loss)
        self.optimizer = _pair(program.update) if program.update else None
        self.state: Any = None

    def take(self, weights: Arrays) -> None:
        """The same of `TorchProgram`."""
        self.weights = self._tree(weights)
        self.state = self.optimizer[0](self.weights) if self.optimizer else None

    def arrays(self) -> Arrays:
        return self._arrays(self.weights)

    def forward(self, batch: Batch) -> dict[str, NDArray]:
        return activations(self.program.forward(self.weights, *self._batch(batch[:1])), np.asarray)

    def loss(self, batch: Batch) -> float:
        return float(self.program.loss(self.weights, *self._batch(batch)))

    def gradients(self, batch: Batch) -> tuple[float, Arrays]:
        if self.program.gradients:
            grads = self.program.gradients(self.weights, *self._batch(batch))
            return self.loss(batch), self._arrays(grads)
        loss, grads = self.derived(self.weights, *self._batch(batch))
        return float(loss), self._arrays(grads)

    def update(self, gradients: Arrays) -> None:
        self.weights, self.state = self.optimizer[1](self.weights, self._tree(gradients), self.state)

    def moments(self, slot: str) -> Arrays:
        """What the state holds in the form of the weights, under this name or one that ends in it, as `mu` in optax."""
        like = lambda node: jax.tree.structure(node) == self.tree  # noqa: E731
        for path, node in jax.tree_util.tree_flatten_with_path(self.state, is_leaf=like)[0]:
            if like(node) and (_name(path) == slot or _name(path).endswith(f".{slot}")):
                return self._arrays(node)
        return {}

    def _tree(self, arrays: Arrays) -> Any:
        named = zip(self.names, self.leaves, strict=True)
        return self.tree.unflatten([leaf if n is None else jnp.asarray(arrays[n], self.dtype) for n, leaf in named])

    def _arrays(self, tree: Any) -> Arrays:
        leaves = self.tree.flatten_up_to(tree)
        return {name: np.asarray(leaf) for name, leaf in zip(self.names, leaves, strict=True) if name is not None}

    def _batch(self, batch: Batch) -> tuple[jax.Array, ...]:
        whole = [np.issubdtype(np.asarray(each).dtype, np.integer) for each in batch]
        return tuple(jnp.asarray(each, jnp.int32 if i else self.dtype) for each, i in zip(batch, whole, strict=True))


def run_as(program: Program, dtype: str) -> TorchProgram | JaxProgram:
    """The program in the framework of its weights."""
    weights = program.weights
    in_torch = isinstance(weights, torch.nn.Module) or (
        isinstance(weights, Mapping) and any(isinstance(each, torch.Tensor) for each in weights.values())
    )
    return TorchProgram(program, dtype) if in_torch else JaxProgram(program, dtype)


def outputs_of(module: torch.nn.Module, inputs: torch.Tensor, *names: str) -> dict[str, torch.Tensor]:
    """A `forward` for a torch module: the outputs of these submodules, in this order, and the logits it returns."""
    kept: dict[str, torch.Tensor] = {}
    keep = lambda name: lambda _, __, output: kept.__setitem__(name, output)  # noqa: E731
    hooks = [module.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        logits = module(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: kept[name] for name in names} | {"logits": logits}


def activations(given: Any, array: Callable[[Any], NDArray]) -> dict[str, NDArray]:
    """What a `forward` returned: name -> array, in order."""
    if isinstance(given, list | tuple):
        given = {f"activation {i}": each for i, each in enumerate(given)}
    return {name: array(each) for name, each in (given if isinstance(given, Mapping) else {"logits": given}).items()}


def _array(tensor: torch.Tensor) -> NDArray:
    return tensor.detach().cpu().numpy().copy()


def _is_weight(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _name(path: Any) -> str:
    """`blocks.0.w1`; Flax's variables hold their array in a `value`, which is no part of a weight's name."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def _pair(update: Any) -> tuple[Callable, Callable]:
    """`start` and `step` of either form of a JAX program's `update`."""
    if not isinstance(update, optax.GradientTransformation):
        return update

    def step(weights: Any, gradients: Any, state: Any) -> tuple[Any, Any]:
        updates, state = update.update(gradients, state, weights)
        return optax.apply_updates(weights, updates), state

    return update.init, step
