"""What the devices of a compiled program say to each other, read from XLA's text of it. No framework is imported.

A collective that waits is one operation. One that doesn't is a start and a done, and what is scheduled between the two
runs meanwhile; on TPUs both are fusions, and so is what runs between.
"""

import math
import re
from collections import deque
from dataclasses import dataclass

from benchmarks.hlo import Instruction, instructions

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

_RESULT = re.compile(r" = (.*?) [a-z][\w\-]*\(")
_ARRAY = re.compile(r"\b(pred|bf16|c64|c128|[suf]\d+\w*)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CALLED = re.compile(r"(?:calls|body|to_apply|branch_computations)=\{?((?:%[\w.\-]+(?:, )?)+)")
_BODY = re.compile(r"body=%([\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"(\d+)"')
_IOTA_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_LISTED_GROUPS = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")


@dataclass(frozen=True)
class Collective:
    """One exchange between devices."""

    kind: str
    """Of `KINDS`."""
    bytes: int
    """On a device: what is summed, or what is there after a gather or before a scatter."""
    devices: int
    """Of the group that takes part; 0 is all."""
    times: int
    """In a step: a loop's body runs several times."""
    scope: str
    """JAX's name of the operation; "" where XLA wrote none."""
    waits: bool
    """Whether the program stands still for it: it isn't asynchronous."""
    during: int
    """Matrix products, or loops with such, scheduled between its start and its done."""
    during_backward: int
    """Those of them in the backward pass."""
    free_backward: int
    """Products of the backward pass that neither go into it nor wait for it: what could run meanwhile."""


def collectives(text: str) -> list[Collective]:
    """Those of a program, `compiled.as_text()`, in its order."""
    program = _Program(instructions(text))
    found = []
    for name, each in program.all.items():
        kind, starts = program.collective_at(name)
        if kind is None:
            continue
        inner = program.inside(each, kind) if starts else each
        rows = program.members[each.computation]
        between: list[str] = []
        if starts and (end := program.done_of(name)) is not None:
            between = rows[rows.index(name) + 1 : rows.index(end)]
        heavy = [row for row in between if program.has_products(row)]
        found.append(
            Collective(
                kind,
                _bytes(kind, each, inner),
                2 if kind == "collective-permute" else _group(inner.line),
                program.trips.get(each.computation, 1),
                next(iter(inner.scopes or each.scopes), ""),
                not starts,
                len(heavy),
                sum(map(program.is_backward, heavy)),
                program.free_backward(name),
            )
        )
    return found


def gradient_overlap(found: list[Collective]) -> str:
    """Whether the sum of gradients over devices runs while the backward pass does, in words."""
    sums = [each for each in found if each.kind in ("all-reduce", "reduce-scatter") and each.bytes > 1024]
    if not sums:
        return "no gradients are summed over devices"
    total = sum(each.bytes for each in sums)
    hidden = sum(each.bytes for each in sums if each.during_backward)
    if hidden:
        return f"{hidden / total:.0%} of {total / 1e6:,.0f} MB travel while products of the backward pass run"
    meanwhile = sum(each.bytes for each in sums if each.during)
    other = f"; {meanwhile / total:.0%} travel while other products run" if meanwhile else ""
    free = max(each.free_backward for each in sums)
    if free:
        return f"none of {total / 1e6:,.0f} MB in this program, though up to {free} products need not wait{other}"
    return f"none of {total / 1e6:,.0f} MB: each sum waits for the last product of the backward pass{other}"


class _Program:
    """Instructions by computation, and who calls whom."""

    def __init__(self, found: dict[str, Instruction]):
        self.all = found
        self.members: dict[str, list[str]] = {}
        self.called: dict[str, list[str]] = {}
        fused: set[str] = set()
        bodies: dict[str, tuple[str, int]] = {}
        for name, each in found.items():
            self.members.setdefault(each.computation, []).append(name)
            self.called[name] = _called(each)
            if each.opcode == "fusion" or each.opcode.endswith("-start"):
                fused.update(self.called[name])
            if body := _BODY.search(each.line):
                trips = _TRIPS.search(each.line)
                bodies[body[1]] = (each.computation, int(trips[1]) if trips else 1)
        self.fused = fused
        self.trips = {body: self._product(body, bodies) for body in bodies}
        self._heavy: dict[str, bool] = {}

    def _product(self, body: str, bodies: dict[str, tuple[str, int]]) -> int:
        total = 1
        while body in bodies:
            body, trips = bodies[body]
            total *= trips
        return total

    def collective_at(self, name: str) -> tuple[str | None, bool]:
        """The kind of the collective that runs or starts here, and whether it starts; (None, False) for others."""
        each = self.all[name]
        if each.computation in self.fused:
            return None, False
        if each.opcode in KINDS:
            return each.opcode, False
        if each.opcode.removesuffix("-start") in KINDS:
            return each.opcode.removesuffix("-start"), True
        if each.opcode == "async-start" or self._has_target(name, "AsyncCollectiveStart"):
            inside = [self.all[row].opcode for row in self._rows_inside(name)]
            return next((opcode for opcode in inside if opcode in KINDS), None), True
        return None, False

    def inside(self, each: Instruction, kind: str) -> Instruction:
        """The collective itself, where `each` calls a computation that holds it."""
        rows = [self.all[row] for called in _called(each) for row in self.members.get(called, [])]
        return next((row for row in rows if row.opcode == kind), each)

    def done_of(self, name: str) -> str | None:
        """The instruction that waits for what `name` started."""
        each = self.all[name]
        rows = self.members[each.computation]
        later = rows[rows.index(name) + 1 :]
        if each.opcode == "fusion":
            channel = self._channel(name)
            fits = (r for r in later if self._has_target(r, "AsyncCollectiveDone") and self._channel(r) == channel)
            return next(fits, None)
        ends = each.opcode.replace("-start", "-done")
        return next((r for r in later if self.all[r].opcode == ends and name in _operands(self.all[r])), None)

    def _rows_inside(self, name: str) -> list[str]:
        return [row for computation in self.called[name] for row in self.members.get(computation, [])]

    def _has_target(self, name: str, target: str) -> bool:
        each = self.all[name]
        return each.opcode == "fusion" and any(self.all[row].target == target for row in self._rows_inside(name))

    def _channel(self, name: str) -> str | None:
        lines = (self.all[row].line for row in self._rows_inside(name))
        return next((said[1] for line in lines if (said := _CHANNEL.search(line))), None)

    def has_products(self, name: str) -> bool:
        """Whether it is a product, a library's kernel of such, or calls what holds one."""
        if name not in self._heavy:
            each = self.all[name]
            library = each.target.startswith(("__cublas", "__cudnn"))
            self._heavy[name] = each.has_product or library or any(map(self.has_products, self._rows_inside(name)))
        return self._heavy[name]

    def is_backward(self, name: str) -> bool:
        """Whether JAX made it, or something that it calls, by transposing: so it names what a gradient is made of."""
        return any("transpose(" in scope for scope in self.all[name].scopes) or any(
            self.is_backward(row) for row in self._rows_inside(name) if self.has_products(row)
        )

    def free_backward(self, name: str) -> int:
        """Products of the backward pass, in the same computation, that neither feed `name` nor need it."""
        rows = set(self.members[self.all[name].computation])
        needs = {row: [o for o in _operands(self.all[row]) if o in rows] for row in rows}
        users: dict[str, list[str]] = {row: [] for row in rows}
        for row, operands in needs.items():
            for operand in operands:
                users[operand].append(row)
        bound = _reached(name, needs) | _reached(name, users)
        return sum(self.has_products(row) and self.is_backward(row) for row in rows - bound)


def _called(each: Instruction) -> list[str]:
    return [name for group in _CALLED.findall(each.line) for name in _NAME.findall(group)]


def _operands(each: Instruction) -> list[str]:
    return _NAME.findall(each.line.split(f" {each.opcode}(", 1)[1].split(")", 1)[0])


def _reached(start: str, edges: dict[str, list[str]]) -> set[str]:
    seen, queue = {start}, deque([start])
    while queue:
        for other in edges[queue.popleft()]:
            if other not in seen:
                seen.add(other)
                queue.append(other)
    return seen


def _bytes(kind: str, each: Instruction, inner: Instruction) -> int:
    """By the shape of its result; that of a start holds what goes in as well."""
    said = _RESULT.search(inner.line)
    sizes = [_size(*array) for array in _ARRAY.findall(said[1])] if said else []
    group = max(_group(inner.line), 1)
    if inner is each and each.opcode == "all-gather-start":
        return sum(sizes) * group // (group + 1)
    if inner is each and each.opcode == "collective-permute-start":
        return max(sizes, default=0)
    return sum(sizes) * (group if kind == "reduce-scatter" else 1)


def _size(dtype: str, shape: str) -> int:
    bits = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}.get(dtype) or int(re.findall(r"\d+", dtype)[0])
    return math.prod(map(int, filter(None, shape.split(",")))) * bits // 8


def _group(line: str) -> int:
    """How many devices take part; 0 where the text says all."""
    if said := _IOTA_GROUPS.search(line):
        return int(said[1])
    if said := _LISTED_GROUPS.search(line):
        return said[1].count(",") + 1
    if said := _MESH_GROUPS.search(line):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", said[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", said[2]))
    return 0
