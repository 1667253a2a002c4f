"""Mutants of the two trainers: which ones there are, and which of them a seed chooses. A mutant is a text edit."""

import ast
import collections
import functools
import itertools
import random
import types
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from parity_tests.mutants.operators import changes

FRAMEWORKS = ("jaxgpt", "torch_ref")
MODULES = ("model", "loss", "muon", "optimizer", "tokens")
FILES = [f"{framework}/{module}.py" for framework in FRAMEWORKS for module in MODULES]
PER_FRAMEWORK = 100
SEED = 12


class Mutant(NamedTuple):
    """One change of one file."""

    id: str
    """file:line:column:operator:n, the n-th that the operator makes there."""
    file: str
    line: int
    operator: str
    before: str
    after: str
    start: int
    """Byte of the file where `before` stands."""

    @property
    def framework(self) -> str:
        return self.file.split("/")[0]

    def applied(self, source: str) -> str:
        """The file's text with the change. ValueError: `before` doesn't stand there."""
        text, end = source.encode(), self.start + len(self.before.encode())
        if text[self.start : end] != self.before.encode():
            raise ValueError(f"{self.id}: {self.before!r} doesn't stand there; the file is another one")
        return (text[: self.start] + self.after.encode() + text[end:]).decode()


def mutants(file: str, source: str) -> list[Mutant]:
    """All mutants of a file that differ from it and from each other, in the order of the text."""
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    text, assigned = source.encode(), _assigned_again(tree)
    lines = list(itertools.accumulate(map(len, text.splitlines(keepends=True)), initial=0))
    found: dict[tuple[int, str, str], Mutant] = {}
    counts: collections.Counter[str] = collections.Counter()
    for node in _computing(tree):
        start, end = lines[node.lineno - 1] + node.col_offset, lines[node.end_lineno - 1] + node.end_col_offset
        before = text[start:end].decode()
        for operator, new in changes(node, parents, assigned):
            where, after = f"{file}:{node.lineno}:{node.col_offset}:{operator}", _text(new, parents[node])
            mutant = Mutant(f"{where}:{counts[where]}", file, node.lineno, operator, before, after, start)
            counts[where] += 1
            found.setdefault((start, before, after), mutant)
    return sorted(found.values(), key=lambda mutant: (mutant.start, mutant.id))


def sources(root: Path) -> dict[str, str]:
    """file -> its text, of all that are mutated."""
    return {file: (root / file).read_text(encoding="utf-8") for file in FILES}


def chosen(sources: dict[str, str], seed: int = SEED, each: int = PER_FRAMEWORK) -> list[Mutant]:
    """`each` mutants of either framework, of every file in proportion to how many it has.

    A mutant whose file can't be imported is passed over: it says nothing about tests.
    """
    chosen = []
    for framework in FRAMEWORKS:
        every = {file: mutants(file, sources[file]) for file in FILES if file.startswith(framework)}
        for file, share in _shares({file: len(all_of_it) for file, all_of_it in every.items()}, each).items():
            rng = random.Random(f"{seed} {file}")
            drawn = (m for m in rng.sample(every[file], len(every[file])) if imports(m, sources[file]))
            chosen += sorted((mutant for mutant, _ in zip(drawn, range(share), strict=False)), key=lambda m: m.start)
    return chosen


def imports(mutant: Mutant, source: str) -> bool:
    """Whether the changed text is another program than the file's, and runs as a module."""
    try:
        tree = ast.parse(changed := mutant.applied(source))
        if ast.dump(tree) == _dumped(source):
            return False
        module = types.ModuleType(mutant.file.removesuffix(".py").replace("/", "."))
        exec(compile(changed, mutant.file, "exec"), module.__dict__)
    except Exception:  # whatever it is, no test is needed to see it
        return False
    return True


@functools.lru_cache(maxsize=len(FILES))
def _dumped(source: str) -> str:
    return ast.dump(ast.parse(source))


def _shares(sizes: dict[str, int], total: int) -> dict[str, int]:
    """`total` divided in proportion to sizes, by largest remainders."""
    exact = {name: total * size / sum(sizes.values()) for name, size in sizes.items()}
    shares = {name: int(share) for name, share in exact.items()}
    for name in sorted(exact, key=lambda name: shares[name] - exact[name])[: total - sum(shares.values())]:
        shares[name] += 1
    return shares


def _computing(tree: ast.Module) -> Iterator[ast.expr | ast.stmt]:
    """Every expression and statement that takes part in what is computed; see `operators` for what doesn't."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        left_out: list[ast.AST] = []
        match node:
            case ast.FunctionDef():
                left_out = [*node.decorator_list, *filter(None, [node.returns])]
            case ast.ClassDef():
                left_out = [*node.decorator_list, *node.bases, *node.keywords]
            case ast.arg() | ast.AnnAssign():
                left_out = [node.annotation] if node.annotation else []
            case ast.Raise() | ast.Assert() | ast.Import() | ast.ImportFrom() | ast.JoinedStr() | ast.Delete():
                continue
            case ast.keyword(arg="strict"):
                continue
            case ast.Expr(value=ast.Constant()):
                continue
            case ast.Assign(value=ast.Subscript(value=ast.Name(id="Callable" | "tuple" | "dict"))):
                continue  # the name of a type
        if isinstance(node, ast.expr | ast.stmt):
            yield node
        waiting += [child for child in ast.iter_child_nodes(node) if child not in left_out]


def _assigned_again(tree: ast.Module) -> set[ast.AST]:
    """Assignments to names alone that the same function has assigned, or been given, above."""
    again: set[ast.AST] = set()
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
        known = {argument.arg for argument in arguments}
        inside = [node for node in ast.walk(function) if isinstance(node, ast.Assign)]
        for node in sorted(inside, key=lambda node: node.lineno):
            parts = [part for target in node.targets for part in ast.walk(target)]
            names = {part.id for part in parts if isinstance(part, ast.Name)}
            if names <= known and not any(isinstance(part, ast.Subscript | ast.Attribute) for part in parts):
                again.add(node)
            known |= names
    return again


def _text(new: ast.AST, parent: ast.AST) -> str:
    """The node as text that can stand where the old one stood, whatever is around it."""
    if isinstance(new, ast.Tuple) and isinstance(parent, ast.Subscript):
        return ", ".join(map(ast.unparse, new.elts))  # slices can't stand in parentheses
    bare = ast.stmt | ast.Constant | ast.Name | ast.Attribute | ast.Call | ast.Subscript | ast.Tuple | ast.List
    text = ast.unparse(new)
    return text if isinstance(new, bare) else f"({text})"
