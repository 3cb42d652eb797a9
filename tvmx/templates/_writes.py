"""Whether a kernel writes each element of its output once: what working in place needs."""

from __future__ import annotations

import math
from typing import Any


def writes_once(func: Any) -> bool:
    """Whether the scheduled PrimFunc ``func`` stores each element of its last argument once.

    It counts the elements that the stores write, over all turns of the loops around them. A
    kernel that computes its whole output and writes no more elements than that writes each one
    once. False where that does not show: border tiles that are moved back over others, vectors
    cut off by a condition, sums that are kept in the output, pointers given to calls.
    """
    out = func.params[-1]
    return _Counter(out).elements(func.body) == math.prod(int(extent) for extent in out.shape)


class _Counter:
    def __init__(self, out: Any) -> None:
        self._out = [out]

    def elements(self, stmt: Any) -> float:
        """Elements of the output that a statement stores at most; infinite where it is unknown."""
        from tvmx._tvm import s_tir, tirx

        match stmt:
            case tirx.SeqStmt():
                return sum(self.elements(child) for child in stmt.seq)
            case tirx.For():
                inside = self.elements(stmt.body)
                known = isinstance(stmt.extent, tirx.IntImm)
                return inside and inside * (int(stmt.extent) if known else math.inf)
            case tirx.IfThenElse():
                cases = [case for case in (stmt.then_case, stmt.else_case) if case is not None]
                return self._none(stmt.condition) + sum(self.elements(case) for case in cases)
            case s_tir.SBlockRealize():
                return self.elements(stmt.block)
            case s_tir.SBlock():
                init = 0 if stmt.init is None else self.elements(stmt.init)
                matched = sum(self._none(match.source) for match in stmt.match_buffers)
                return init + matched + self.elements(stmt.body)
            case tirx.BufferStore():
                read = self._none(stmt.value, *stmt.indices)
                return read + (_lanes(stmt.value) if self._is_output(stmt.buffer) else 0)
            case tirx.DeclBuffer():
                if self._none(stmt.data):
                    self._out.append(stmt.buffer)
                return 0
            case tirx.AllocBuffer():
                return 0
            case tirx.Bind() | tirx.Evaluate():
                return self._none(stmt.value)
            case tirx.AttrStmt():
                return self._none(stmt.value) + self.elements(stmt.body)
        return math.inf

    def _is_output(self, buffer: Any) -> bool:
        return any(buffer.same_as(known) for known in self._out)

    def _none(self, *exprs: Any) -> float:
        """0 if the expressions do not name the output, else infinite."""
        import tvm_ffi

        found: list[Any] = []

        def visit(var: Any) -> None:
            if self._is_output(var):
                found.append(var)

        for expr in exprs:
            tvm_ffi.structural_walk(expr, [(type(self._out[0]), visit)])
        return math.inf if found else 0


def _lanes(value: Any) -> int:
    from tvmx._tvm import tvm

    return int(tvm.DataType(str(value.ty.dtype)).lanes)
