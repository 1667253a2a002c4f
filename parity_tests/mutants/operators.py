"""What is done to a node of a syntax tree to make a mutant of it: one small error of the kind that people make.

Left alone, because a change there is no error of the computation: docstrings, annotations, decorators, `raise` and
`assert` with their texts, imports, `zip`'s `strict`, and f-strings, whose parts have no positions in Python 3.11.
"""

import ast
import copy
from collections.abc import Iterator

Change = tuple[str, ast.AST]
"""Name of the operator, what stands in the node's place."""

ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
}
COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
CHOICES = [
    ("sum", "mean"),
    ("average", "sum"),
    ("sqrt_max", "sqrt_ratio"),
    ("tied", "untied"),
    ("before_rotary", "after_rotary"),
    ("half_rotary", "learned"),
    ("exact", "fast"),
    ("product_first", "polynomial_first"),
    ("rms", "layer"),
    ("none", "tanh"),
    ("pinned", "free"),
    ("masked", "trained"),
    ("linear", "cosine"),
    ("adamw", "muon"),
    ("soap", "shampoo"),
    ("hidden", "vector"),
    ("embedding", "head"),
    ("float32", "float64"),
    ("fused", "separate"),
    ("weight", "bias"),
    ("newton_schulz", "svd"),
    ("inverse_sqrt_2L", "one"),
]
"""Text that names one of several: each is changed to the other, a third one to the first it is listed with."""
STRINGS = {b: a for a, b in reversed(CHOICES)} | dict(reversed(CHOICES))
FUNCTIONS = {"max": "min", "min": "max"}
METHODS = FUNCTIONS | {"sum": "mean", "mean": "sum", "cos": "sin", "sin": "cos", "rsqrt": "sqrt"}
METHODS |= {"zeros_like": "ones_like", "ones_like": "zeros_like"}
UNWRAPPED = {"astype", "to", "square", "sqrt", "relu", "exp", "flip", "cap", "rms_norm", "rotate", "rounded"}
UNWRAPPED |= {"attend", "reduce_precision", "rsqrt", "gelu", "min", "max", "cos", "sin"}
"""Calls whose first argument, or the object they are a method of, is much like their result."""
MODULES = {"jnp", "jax", "jax.nn", "lax", "np", "torch", "F", "math"}


def changes(node: ast.AST, parents: dict[ast.AST, ast.AST], assigned: set[ast.AST]) -> Iterator[Change]:
    """Everything that is done to this node.

    Args:
      node: of a module's tree.
      parents: node -> the one it is part of.
      assigned: assignments to names that have a value before: without one, the old value stays.
    """
    match node:
        case ast.BinOp():
            yield from _arithmetic(node)
            if isinstance(parents[node], ast.Return):
                yield "last-term", node.left
        case ast.AugAssign() if type(node.op) in ARITHMETIC:
            yield "arithmetic", _with(node, op=ARITHMETIC[type(node.op)]())
            yield "statement", ast.Pass()
        case ast.Assign() if node in assigned:
            yield "statement", ast.Pass()
        case ast.Expr(value=ast.Call()):
            yield "statement", ast.Pass()
        case ast.Compare():
            for i, op in enumerate(node.ops):
                yield "comparison", _with(node, ops=[*node.ops[:i], COMPARISONS[type(op)](), *node.ops[i + 1 :]])
        case ast.BoolOp():
            yield "condition", _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.USub() | ast.Not()):
            yield "sign" if isinstance(node.op, ast.USub) else "condition", node.operand
        case ast.Constant():
            yield from (("constant", ast.Constant(value)) for value in _constants(node.value))
        case ast.Call():
            yield from _calls(node)
        case ast.Tuple(ctx=ast.Load()):
            for i, (a, b) in enumerate(zip(node.elts, node.elts[1:], strict=False)):
                if ast.dump(a) != ast.dump(b):
                    yield "order", _with(node, elts=[*node.elts[:i], b, a, *node.elts[i + 2 :]])
    if _is_condition(node, parents[node]):
        yield "condition", ast.UnaryOp(ast.Not(), node)


def _arithmetic(node: ast.BinOp) -> Iterator[Change]:
    if isinstance(node.op, ast.MatMult):
        yield "arguments", _with(node, left=node.right, right=node.left)
    elif type(node.op) in ARITHMETIC:
        yield "arithmetic", _with(node, op=ARITHMETIC[type(node.op)]())


def _constants(value: object) -> list[object]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [0, 2] if value == 1 else [value + 1]
    if isinstance(value, float):
        return [2 * value or 1.0]
    return [STRINGS[value]] if isinstance(value, str) and value in STRINGS else []


def _calls(node: ast.Call) -> Iterator[Change]:
    """The function exchanged, its two last arguments exchanged, or the call left out."""
    match node.func:
        case ast.Name(id=name):
            object_, swapped = None, ast.Name(FUNCTIONS.get(name, name), ast.Load())
        case ast.Attribute(value=owner, attr=name):
            object_ = None if ast.unparse(owner) in MODULES else owner
            swapped = ast.Attribute(owner, METHODS.get(name, name), ast.Load())
        case _:
            return
    if ast.unparse(swapped) != ast.unparse(node.func):
        yield "function", _with(node, func=swapped)
    if name in ("where", "matmul", "outer"):
        yield "arguments", _with(node, args=[*node.args[:-2], node.args[-1], node.args[-2]])
    inner = object_ or next(iter(node.args), None)
    if name in UNWRAPPED and inner is not None and not isinstance(inner, ast.Starred):
        yield "call", inner


def _is_condition(node: ast.AST, parent: ast.AST) -> bool:
    """Whether a branch hangs on it; comparisons for equality have their opposite already."""
    if isinstance(node, ast.Compare | ast.Constant) or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)):
        return False
    return isinstance(parent, ast.If | ast.IfExp | ast.While) and parent.test is node


def _with(node: ast.AST, **fields) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed
