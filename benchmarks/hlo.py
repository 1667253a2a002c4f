"""Where each instruction of a compiled program comes from, read from XLA's text of it. No framework is imported.

The text names the stack of functions in which an operation was called. A fusion is many operations: it has the stacks
of all that are in it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

Stack = tuple[str, ...]
"""Functions by their qualified names, the innermost first."""

_TABLE_ROW = re.compile(r"(\d+) (.*)")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.\-]+) = .*? ([a-z][\w\-]*)\(")
_COMPUTATION = re.compile(r"(?:ENTRY )?%([\w.\-]+) .*\{\s*$")
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_SCOPE = re.compile(r'op_name="([^"]*)"')
_CALLS = re.compile(r"calls=%([\w.\-]+)")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')


@dataclass(frozen=True)
class Instruction:
    """An instruction: what it is, and whence what it computes comes."""

    opcode: str
    target: str
    """Of a custom call; "" otherwise."""
    stacks: tuple[Stack, ...]
    """Its own; of a fusion, those of what is fused."""
    scopes: tuple[str, ...]
    """JAX's names of the same operations, such as jit(step)/mul."""
    has_product: bool
    """Whether it is a matrix product, or has one fused into it."""
    computation: str = ""
    """Which it is in. `instructions` keeps the order in which they stand there; a scheduled program runs them so."""
    line: str = ""
    """As XLA writes it."""


def instructions(text: str) -> dict[str, Instruction]:
    """Name -> instruction, of all computations of a program: `compiled.as_text()`."""
    stacks = _stacks(text)
    members: dict[str, list[str]] = {}
    found: dict[str, Instruction] = {}
    calls: dict[str, str] = {}
    computation = ""
    for line in text.splitlines():
        if started := _COMPUTATION.match(line):
            computation = started[1]
            members[computation] = []
        elif said := _INSTRUCTION.match(line):
            name, opcode = said[1], said[2]
            frame, scope, target = _FRAME.search(line), _SCOPE.search(line), _TARGET.search(line)
            found[name] = Instruction(
                opcode,
                target[1] if target else "",
                (stacks.get(int(frame[1]), ()),) if frame else (),
                (scope[1],) if scope else (),
                opcode in ("dot", "convolution") or "__triton_gemm" in line,
                computation,
                line,
            )
            members.setdefault(computation, []).append(name)
            if called := _CALLS.search(line):
                calls[name] = called[1]
    for name, inner in calls.items():
        inside = [found[each] for each in members.get(inner, ())]
        found[name] = replace(
            found[name],
            stacks=_joined(each.stacks for each in inside) or found[name].stacks,
            scopes=_joined(each.scopes for each in inside) or found[name].scopes,
            has_product=found[name].has_product or any(each.has_product for each in inside),
        )
    return found


def _joined(parts: Iterable[tuple]) -> tuple:
    return tuple(each for part in parts for each in part)


def _stacks(text: str) -> dict[int, Stack]:
    """Number of a stack -> the stack, from the tables before the computations; none where a version writes none."""
    tables: dict[str, dict[int, str]] = {}
    heading = ""
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            heading = line
            tables[heading] = {}
        elif line.startswith(("%", "ENTRY ")):
            break
        elif heading and (row := _TABLE_ROW.match(line)):
            tables[heading][int(row[1])] = row[2]
    functions = {number: name.strip('"') for number, name in tables.get("FunctionNames", {}).items()}
    at = {n: functions.get(_field(row, "function_name_id"), "") for n, row in tables.get("FileLocations", {}).items()}
    frames = tables.get("StackFrames", {})
    # The first frame has no parent. jaxlib 0.10 writes parents one too high, so its own number stands there.
    none = _field(frames.get(1, ""), "parent_frame_id")
    stacks = {}
    for number in frames:
        stack, frame, seen = [], number, set()
        while frame in frames and frame not in seen:
            seen.add(frame)
            stack.append(at.get(_field(frames[frame], "file_location_id"), ""))
            frame = _field(frames[frame], "parent_frame_id") - none
        stacks[number] = tuple(stack)
    return stacks


def _field(row: str, name: str) -> int:
    found = re.search(rf"{name}=(\d+)", row)
    return int(found[1]) if found else 0
