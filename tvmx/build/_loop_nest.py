"""A scheduled kernel's loop nest, read from its IR: what runs how often and touches which memory.

Everything is counted on the statements LLVM will get, so that kernels of all templates are
described alike; :mod:`tvmx.build._nest_features` condenses it to numbers a cost model learns from.
Indices are taken as affine functions of the loop variables; what is not affine (a minimum that
moves a tile back, a remainder) counts as its affine part.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tvmx import _tvm
from tvmx._tvm import s_tir, tirx
from tvmx.build._affine import Affine, digits, divided, divisors, plus, remainder
from tvmx.build._memory import buffer_bytes, item_bytes

UNKNOWN_EXTENT = 16
"""Iterations counted for a loop whose extent only the data decides (kept blocks)."""
_REGISTER_FILE = 4096
"""Bytes up to which a buffer at fixed places counts as registers."""


@dataclass(eq=False)
class Loop:
    """One loop of ``extent`` iterations; ``registers`` are the register buffers its body uses."""

    extent: int
    parent: Loop | None
    parallel: bool = False
    unrolled: bool = False
    accesses: list[Access] = field(default_factory=list)
    children: list[Loop] = field(default_factory=list)
    ops: dict[str, float] = field(default_factory=dict)
    registers: dict[Any, int] = field(default_factory=dict)

    @property
    def times(self) -> float:
        """How often the body of the loop runs in all."""
        return self.extent * (self.parent.times if self.parent else 1.0)

    def count(self, op: str, number: float) -> None:
        """Note ``number`` vector operations in each iteration."""
        self.ops[op] = self.ops.get(op, 0.0) + number


@dataclass(frozen=True, eq=False)
class Access:
    """A load or store of ``bytes`` bytes at a time in the body of ``loop``.

    ``strides`` are bytes moved per step of each loop around it, ``offset`` bytes from where they
    are all zero; ``buffer`` is the memory it goes to and ``size`` that memory's bytes.
    """

    loop: Loop
    buffer: Any
    size: int
    bytes: int
    strides: tuple[tuple[Loop, float], ...]
    offset: float
    store: bool


@dataclass(frozen=True)
class LoopNest:
    """The nest below ``root``, a loop of one iteration; ``scratch`` bytes the kernel allocates."""

    root: Loop
    scratch: int
    arguments: int

    def loops(self) -> list[Loop]:
        """All loops, outer before inner."""
        found, pending = [], [self.root]
        while pending:
            loop = pending.pop()
            found.append(loop)
            pending += loop.children
        return found


def loop_nest(func: Any, vector_bytes: int) -> LoopNest:
    """The loop nest of a kernel as a template built it; vectors have ``vector_bytes`` bytes."""
    return _Reader(_flat(func), vector_bytes).nest


def _flat(func: Any) -> Any:
    """The kernel with its schedule's blocks lowered to loops."""
    if type(func.body).__name__ != "SBlockRealize":
        return func  # written statement by statement
    t, mod = s_tir.transform, _tvm.tvm.IRModule({"main": func})
    passes = [
        t.LowerInitBlock(), t.PlanAndUpdateBufferAllocationLocation(), t.ConvertBlocksToOpaque(),
        t.CompactBufferAllocation(), t.LowerMatchBuffer(), t.LowerOpaqueBlock(),
    ]  # fmt: skip
    return _tvm.tvm.transform.Sequential(passes)(mod)["main"]


class _Reader:
    def __init__(self, func: Any, vector_bytes: int) -> None:
        self._vector = vector_bytes
        self._affine: dict[Any, Affine] = {}
        self._ranges: dict[Any, tuple[int, int]] = {}
        self._lanes_of: dict[Any, int] = {}
        self._alias: dict[Any, Any] = {}
        self._sizes: dict[Any, int] = {}
        self._registers: set[Any] = set()
        self._scratch = 0
        self._handlers: dict[str, Callable[[Any, Loop], None]] = {
            "SeqStmt": self._sequence, "For": self._for, "Bind": self._bind,
            "BufferStore": self._store, "AllocBuffer": self._allocate, "DeclBuffer": self._declare,
            "IfThenElse": self._branch, "Evaluate": self._evaluate, "AttrStmt": self._inside,
            "While": self._inside,
        }  # fmt: skip
        arguments = 0
        for buffer in func.params:
            self._sizes[buffer] = buffer_bytes(buffer)
            arguments += self._sizes[buffer]
        root = Loop(1, None)
        self._visit(func.body, root)
        self.nest = LoopNest(root, self._scratch, arguments)

    def _visit(self, node: Any, loop: Loop) -> None:
        handler = self._handlers.get(type(node).__name__)
        if handler is not None:
            handler(node, loop)

    def _sequence(self, node: Any, loop: Loop) -> None:
        for child in node.seq:
            self._visit(child, loop)

    def _inside(self, node: Any, loop: Loop) -> None:
        self._visit(node.body, loop)

    def _for(self, node: Any, loop: Loop) -> None:
        bounds = self._bounds(node.extent)
        known = UNKNOWN_EXTENT if bounds is None else bounds[1]
        kind = node.kind
        if kind == tirx.ForKind.VECTORIZED:
            self._lanes_of[node.loop_var] = known
            self._visit(node.body, loop)
            del self._lanes_of[node.loop_var]
            return
        parallel, unrolled = kind == tirx.ForKind.PARALLEL, kind == tirx.ForKind.UNROLLED
        # A loop over several axes at once counts as one loop for each.
        splits = divisors(node.body, node.loop_var) if parallel else set()
        place: Affine = {}
        for extent, pace in digits(known, splits):
            inner = Loop(extent, loop, parallel, unrolled)
            loop.children.append(inner)
            place[inner] = float(pace)
            loop = inner
        self._affine[node.loop_var] = place
        self._ranges[node.loop_var] = (0, known - 1)
        self._visit(node.body, loop)

    def _bind(self, node: Any, loop: Loop) -> None:
        self._count(node.value, loop)
        self._affine[node.var] = self._index(node.value)
        bounds = self._bounds(node.value)
        if bounds is not None:
            self._ranges[node.var] = bounds

    def _allocate(self, node: Any, loop: Loop) -> None:
        size = buffer_bytes(node.buffer)
        self._sizes[node.buffer] = size
        if size <= _REGISTER_FILE:
            self._registers.add(node.buffer)
        else:
            self._scratch += size

    def _declare(self, node: Any, loop: Loop) -> None:
        memory = node.data.args[0] if isinstance(node.data, _tvm.tvm.ir.Call) else node.data
        self._alias[node.buffer] = self._alias.get(memory, memory)

    def _branch(self, node: Any, loop: Loop) -> None:
        # The other branch is a border's, which few iterations take.
        self._visit(node.then_case, loop)

    def _evaluate(self, node: Any, loop: Loop) -> None:
        self._count(node.value, loop)

    def _store(self, node: Any, loop: Loop) -> None:
        self._count(node.value, loop)
        self._access(node.buffer, node.indices, loop, store=True)

    def _count(self, node: Any, loop: Loop) -> None:
        """Note the loads and the vector arithmetic of an expression."""
        pending = [node]
        while pending:
            node = pending.pop()
            name = type(node).__name__
            if name == "TensorLoad":
                self._access(node.source, node.indices, loop, store=False)
            elif name in _ARITHMETIC:
                dtype = node.ty.dtype
                if dtype.lanes > 1 or str(dtype).startswith("float"):
                    loop.count(_ARITHMETIC[name], self._vectors(dtype))
                pending += [node.a, node.b]
            elif name == "Call":
                if hasattr(node.ty, "dtype") and node.ty.dtype.lanes > 1:
                    loop.count("call", self._vectors(node.ty.dtype))
                pending += list(node.args)
            elif name in ("Broadcast", "Cast"):
                pending.append(node.value)
            elif name == "Shuffle":
                pending += list(node.vectors)
            elif name == "Select":
                pending += [node.true_value, node.false_value]

    def _vectors(self, dtype: Any) -> float:
        """Vector operations that arithmetic on ``dtype`` takes."""
        bits = dtype.bits * dtype.lanes * math.prod(self._lanes_of.values())
        return max(1.0, float(bits) / 8 / self._vector)

    def _access(self, buffer: Any, indices: Any, loop: Loop, *, store: bool) -> None:
        memory = self._alias.get(buffer, buffer)
        if memory in self._registers:
            loop.registers[memory] = self._sizes[memory]
            return
        item = item_bytes(buffer)
        affine: Affine = {}
        pace = 1
        for index, extent in zip(reversed(indices), reversed(buffer.shape), strict=True):
            affine = plus(affine, self._index(index), float(pace))
            pace *= int(extent)
        lanes = int(indices[-1].lanes) if isinstance(indices[-1], tirx.Ramp) else 1
        for var, extent in self._lanes_of.items():
            if var in affine:
                lanes *= extent
        strides = tuple(
            (at, step * item) for at, step in affine.items() if isinstance(at, Loop) and step
        )
        loop.accesses.append(
            Access(
                loop, memory, self._sizes.get(memory, 0), lanes * item, strides,
                affine.get(None, 0.0) * item, store,
            )
        )  # fmt: skip

    def _bounds(self, node: Any) -> tuple[int, int] | None:
        """Smallest and largest value of an index, as far as loops decide it."""
        name = type(node).__name__
        if name == "IntImm":
            return int(node.value), int(node.value)
        if name == "Var":
            return self._ranges.get(node)
        if name not in _INTERVALS:
            return None
        a, b = self._bounds(node.a), self._bounds(node.b)
        if a is None or b is None:
            return None
        if name in ("FloorDiv", "FloorMod") and b[0] <= 0:
            return None
        if name == "FloorMod":
            return (0, b[1] - 1)
        corners = [_INTERVALS[name](x, y) for x in a for y in b]
        return min(corners), max(corners)

    def _index(self, node: Any) -> Affine:
        """The affine part of an index."""
        match type(node).__name__:
            case "IntImm":
                return {None: float(int(node.value))}
            case "Var":
                if node in self._lanes_of:
                    return {node: 1.0}
                return self._affine.get(node, {})
            case "Add":
                return plus(self._index(node.a), self._index(node.b), 1.0)
            case "Sub":
                return plus(self._index(node.a), self._index(node.b), -1.0)
            case "Mul":
                a, b = self._index(node.a), self._index(node.b)
                constant, other = (a, b) if set(a) <= {None} else (b, a)
                return {k: v * constant.get(None, 0.0) for k, v in other.items()}
            case "FloorDiv" | "Div":
                return divided(self._index(node.a), self._index(node.b).get(None, 1.0))
            case "FloorMod" | "Mod":
                return remainder(self._index(node.a), self._index(node.b).get(None, 1.0))
            case "Min" | "Max":
                a, b = self._index(node.a), self._index(node.b)
                return a if len(a) >= len(b) else b
            case "Ramp":
                return self._index(node.base)
            case "Cast" | "Broadcast":
                return self._index(node.value)
            case "Select":
                return self._index(node.true_value)
            case "Call" if len(node.args) == 3:  # if_then_else
                return self._index(node.args[1])
        return {}


_INTERVALS: dict[str, Callable[[int, int], int]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Min": min, "Max": max,
    "FloorDiv": operator.floordiv, "FloorMod": operator.mod,
}  # fmt: skip
_ARITHMETIC = {"Mul": "multiply", "Add": "add", "Sub": "add", "Max": "add", "Min": "add"}
