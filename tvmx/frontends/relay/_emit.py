"""Relax bindings named after the Relay operator they come from, within sane sizes."""

from __future__ import annotations

import math
from typing import Any

from tvmx._tvm import relax
from tvmx.frontends._names import identifier
from tvmx.frontends._reason import RuleError
from tvmx.frontends.relay._flatten import Step
from tvmx.frontends.relay._ops import MOST_ELEMENTS
from tvmx.ir import SourceNode
from tvmx.passes._dataflow import dtype_of, op_name, shape_of, variables

_ANCHORS = {"relax.nn.conv2d", "relax.matmul", "relax.nn.conv2d_transpose"}
_MOST_CONSTANTS = 1 << 26  # elements of all that constants alone make, which is folded here
_MOST_MADE = 4  # times the weights on top: they are transposed, reshaped, cast
MOST_DIMENSIONS = 16


class Emitter:
    """Binds calls in a dataflow block. The main result of a step gets the step's name.

    ``weights`` is the number of elements of the program's constants.
    """

    def __init__(self, builder: Any, inputs: set[str], weights: int) -> None:
        self._builder, self._inputs = builder, inputs
        self._source = SourceNode("", "")
        self._base, self._anchored = "", False
        self._constants: set[Any] = set()
        self._made, self._most = 0, _MOST_CONSTANTS + _MOST_MADE * weights
        self.sources: dict[str, SourceNode] = {}
        self.nchw: dict[Any, Any] = {}
        """NHWC variable -> the NCHW variable it is the transpose of."""

    def begin(self, step: Step) -> None:
        """What is emitted from here on comes from this step."""
        self._source = SourceNode(step.name, step.op)
        base = identifier(step.name)
        self._base = f"{base}_{identifier(step.op)}" if base in self._inputs else base
        self._anchored = False

    def emit(self, expr: Any) -> Any:
        """Bind a part of the step; constants and variables stay as they are."""
        return self._bind(expr, last=False)

    def finish(self, expr: Any) -> Any:
        """Bind the step's result."""
        return self._bind(expr, last=True)

    def _bind(self, expr: Any, last: bool) -> Any:
        if not isinstance(expr, relax.Call | relax.TupleGetItem):
            return expr
        expr = self._builder.normalize(expr)
        op = op_name(expr) or "item"
        self._check_size(expr)
        main = op in _ANCHORS or (last and not self._anchored)
        self._anchored |= op in _ANCHORS
        name = self._base if main else f"{self._base}_{op.rsplit('.', 1)[-1]}"
        var = self._builder.emit(expr, name_hint=name)
        self.sources[var.name] = self._source
        if all(leaf in self._constants for leaf in variables(expr)):
            self._constants.add(var)
        return var

    def _check_size(self, expr: Any) -> None:
        types = expr.ty.fields if isinstance(expr.ty, relax.TupleType) else [expr.ty]
        constant = all(leaf in self._constants for leaf in variables(expr))
        for ty in types:
            values = getattr(getattr(ty, "shape", None), "values", None)
            if values is None:
                raise RuleError("its shape depends on values of the input")
            if len(values) > MOST_DIMENSIONS:
                raise RuleError(f"its result has {len(values)} dimensions")
            sizes = [int(v) for v in values]
            if min(sizes, default=1) < 1:
                raise RuleError(f"its result has the shape {tuple(sizes)}")
            elements = math.prod(sizes)
            self._made += elements if constant else 0
            if elements > MOST_ELEMENTS or self._made > self._most:
                raise RuleError(f"its result of shape {tuple(sizes)} is too large")

    def items(self, call: Any, count: int) -> tuple[Any, ...]:
        """The fields of a call that returns a tuple."""
        whole = self.emit(call)
        return tuple(self.emit(relax.TupleGetItem(whole, index)) for index in range(count))


def rank_of(expr: Any) -> int:
    """Number of dimensions of a tensor."""
    return len(shape_of(expr))


def axis_of(axis: int, rank: int) -> int:
    """An axis counted from the front. Raises RuleError outside of the rank."""
    if not -rank <= axis < rank:
        raise RuleError(f"axis {axis} of {rank} dimensions")
    return axis % rank


def scalar(value: float, like: Any) -> Any:
    """A constant of the dtype of ``like``."""
    return relax.const(value, dtype_of(like))


def along(value: Any, axis: int, rank: int, emitter: Emitter) -> Any:
    """A vector shaped so that it broadcasts along ``axis`` of ``rank`` dimensions."""
    shape = [1] * rank
    shape[axis] = math.prod(shape_of(value))
    return emitter.emit(relax.op.reshape(value, shape))
