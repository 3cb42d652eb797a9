"""When each tensor of a lowered Relax function is alive, and which may share memory on purpose.

Read from a function behind ``CallTIRRewrite``: tensors are allocated, then kernels are called
with the tensors they read and the one they write. A step is the number of a binding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tvmx._tvm import relax, tirx, tvm
from tvmx.passes import CONCAT, IN_PLACE

NEVER = 2**31
"""The end of a tensor that outlives the function."""


@dataclass
class Tensor:
    """An allocated tensor: its variable, bytes, first step, and the step after its last use."""

    var: Any
    bytes: int
    start: int = NEVER
    end: int = 0

    @property
    def escapes(self) -> bool:
        """Whether the function returns it."""
        return self.end == NEVER

    def use(self, step: int) -> None:
        """It is read or written at ``step``."""
        self.start = min(self.start, step)
        self.end = max(self.end, step + 1)


@dataclass(frozen=True)
class Join:
    """A concatenation at ``step``: ``parts`` (None: no tensor of ours), and where each starts."""

    step: int
    whole: Any
    parts: tuple[Any | None, ...]
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class Update:
    """A kernel at ``step`` that may write ``result`` over ``source``, its last reader."""

    step: int
    source: Any
    result: Any


@dataclass
class Lifetimes:
    """What :func:`lifetimes` found; tensors by variable, in the order of their allocation."""

    tensors: dict[Any, Tensor] = field(default_factory=dict)
    joins: list[Join] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)


def bindings(func: Any) -> Iterator[tuple[int, Any]]:
    """The bindings of a function's body with their steps."""
    yield from enumerate(b for block in func.body.blocks for b in block.bindings)


def is_kernel(mod: Any, value: Any) -> bool:
    """Whether ``value`` calls a PrimFunc of ``mod``."""
    known = isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.GlobalVar)
    return known and isinstance(mod[value.op], tirx.PrimFunc)


def lifetimes(mod: Any, func: Any) -> Lifetimes:
    """Lifetimes of the tensors of static shape that the body of ``func`` allocates.

    Whatever is no kernel call is taken to return its arguments, or views of them.
    """
    return _Reader(mod).read(func)


class _Reader:
    def __init__(self, mod: Any) -> None:
        self._mod = mod
        self._found = Lifetimes()
        self._roots: dict[Any, frozenset[Any]] = {}  # tensors whose memory a variable may show

    def read(self, func: Any) -> Lifetimes:
        for step, binding in bindings(func):
            var, value = binding.var, binding.value
            size = _allocated(value)
            if size is not None:
                self._found.tensors[var] = Tensor(var, size)
                self._roots[var] = frozenset([var])
                continue
            roots = self._shown(value)
            if not isinstance(value, relax.Var):  # another name for it is no use of it
                for root in roots:
                    self._found.tensors[root].use(step)
            if is_kernel(self._mod, value):
                self._kernel(step, value)
            else:
                self._roots[var] = roots
        for root in self._shown(func.body.body):
            self._found.tensors[root].use(NEVER - 1)
        return self._found

    def _shown(self, expr: Any) -> frozenset[Any]:
        found: set[Any] = set()

        def visit(node: Any) -> None:
            if isinstance(node, relax.Var):
                found.update(self._roots.get(node, ()))

        relax.analysis.post_order_visit(expr, visit)
        return frozenset(found)

    def _kernel(self, step: int, call: Any) -> None:
        attrs = self._mod[call.op].attrs
        result = self._whole(call.args[-1])
        if result is None or attrs is None:
            return
        if CONCAT in attrs:
            sizes = [tensor_bytes(part) for part in call.args[:-1]]
            offsets = tuple(sum(sizes[:index]) for index in range(len(sizes)))
            parts = tuple(self._whole(part) for part in call.args[:-1])
            assert sum(sizes) == tensor_bytes(call.args[-1])
            self._found.joins.append(Join(step, result, parts, offsets))
        for index in attrs.get(IN_PLACE, ()):
            source = self._whole(call.args[int(index)])
            others = [a for i, a in enumerate(call.args[:-1]) if i != int(index)]
            if source is not None and all(source not in self._shown(a) for a in others):
                self._found.updates.append(Update(step, source, result))

    def _whole(self, expr: Any) -> Any | None:
        """The tensor of ours that a kernel's argument is, all of it; else None."""
        roots = self._shown(expr)
        if len(roots) != 1:
            return None
        (root,) = roots
        return root if tensor_bytes(expr) == self._found.tensors[root].bytes else None


def tensor_bytes(expr: Any) -> int:
    """Bytes of a tensor expression of static shape."""
    dtype = tvm.DataType(str(expr.ty.dtype))
    items = math.prod(int(extent) for extent in expr.ty.shape.values)
    return items * -(-int(dtype.bits) * int(dtype.lanes) // 8)


def _allocated(value: Any) -> int | None:
    """Bytes that a value allocates; None: it allocates none, or not a known number."""
    if not (isinstance(value, relax.Call) and value.op == _ALLOCATE):
        return None
    static = all(isinstance(extent, tirx.IntImm) for extent in value.args[0].values)
    return (tensor_bytes(value) or None) if static else None


_ALLOCATE = tvm.ir.Op.get("relax.builtin.alloc_tensor")
