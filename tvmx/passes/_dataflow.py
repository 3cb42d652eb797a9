"""A dataflow function as a plain list of bindings, and a forward rewriting walk over it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx._tvm import relax, tirx, tvm
from tvmx.errors import ModelError

Array = npt.NDArray[Any]
_TILE = 256  # a tile of float32 and its transpose fit L2
_TILED = 1 << 20
Rule = Callable[["Walk", Any, str], Any]
"""``rule(walk, value, name)``: a replacement of the bound ``value``, or None to leave it.

A replacement is a call, which is bound to ``name``, or a variable or constant to use instead.
"""


@dataclass(frozen=True)
class Dataflow:
    """``main`` of a module: parameters, bindings (var, value) in order, result expressions."""

    params: tuple[Any, ...]
    bindings: tuple[tuple[Any, Any], ...]
    outputs: tuple[Any, ...]
    is_tuple: bool
    attrs: dict[str, Any]
    functions: dict[Any, Any]

    @classmethod
    def from_module(cls, mod: Any) -> Dataflow:
        """Raises :class:`ModelError` when ``main`` is more than one dataflow block."""
        func = mod["main"]
        bindings: list[tuple[Any, Any]] = []
        for block in func.body.blocks:
            for binding in block.bindings:
                if not isinstance(binding, relax.VarBinding) or isinstance(binding.value, relax.If):
                    raise ModelError("control flow and run-time shape checks are not supported")
                bindings.append((binding.var, binding.value))
        tables = dict(bindings)
        result = func.body.body
        while isinstance(result, relax.Var) and isinstance(
            tables.get(result), relax.Var | relax.Tuple
        ):
            result = tables[result]
        is_tuple = isinstance(result, relax.Tuple)
        functions = {v: f for v, f in mod.functions.items() if isinstance(f, tirx.PrimFunc)}
        return cls(
            tuple(func.params),
            tuple(bindings),
            tuple(result.fields) if is_tuple else (result,),
            is_tuple,
            dict(func.attrs or {}),
            functions,
        )

    def without_dead(self) -> Dataflow:
        """The same function without bindings nothing reads."""
        live = {leaf for out in self.outputs for leaf in variables(out)}
        kept = []
        for var, value in reversed(self.bindings):
            if var in live:
                kept.append((var, value))
                live.update(variables(value))
        return Dataflow(
            self.params, tuple(reversed(kept)), self.outputs, self.is_tuple, self.attrs,
            self.functions,
        )  # fmt: skip

    def to_module(self) -> Any:
        """An IRModule whose ``main`` is one dataflow block; variable names are kept."""
        builder = relax.BlockBuilder(tvm.IRModule(self.functions))
        results = {var for out in self.outputs for var in variables(out)}
        env: dict[Any, Any] = {}
        taken = {param.name for param in self.params}
        with builder.function("main", params=list(self.params), attrs=self.attrs):
            with builder.dataflow():
                for var, value in self.bindings:
                    name = _unique(var.name, taken)
                    kind = relax.Var if var in results else relax.DataflowVar
                    call = builder.normalize(substitute(value, env))
                    env[var] = kind(name, call.ty)
                    builder.emit_normalized(relax.VarBinding(env[var], call))
            outputs = [substitute(out, env) for out in self.outputs]
            builder.emit_func_output(relax.Tuple(outputs) if self.is_tuple else outputs[0])
        return builder.get()


def _unique(name: str, taken: set[str]) -> str:
    unique, count = name, 1
    while unique in taken:
        count += 1
        unique = f"{name}_{count}"
    taken.add(unique)
    return unique


def variables(expr: Any) -> Iterator[Any]:
    """Variables an expression reads, with repeats."""
    if isinstance(expr, relax.Var):
        yield expr
    elif isinstance(expr, relax.Tuple):
        for field in expr.fields:
            yield from variables(field)
    elif isinstance(expr, relax.TupleGetItem):
        yield from variables(expr.tuple_value)
    elif isinstance(expr, relax.Call):
        for arg in expr.args:
            yield from variables(arg)


def substitute(expr: Any, env: dict[Any, Any]) -> Any:
    """``expr`` with variables replaced; the same object where nothing changes."""
    if isinstance(expr, relax.Var):
        return env.get(expr, expr)
    if isinstance(expr, relax.Tuple):
        fields = [substitute(field, env) for field in expr.fields]
        return expr if _same(fields, expr.fields) else relax.Tuple(fields)
    if isinstance(expr, relax.TupleGetItem):
        source = substitute(expr.tuple_value, env)
        if source.same_as(expr.tuple_value):
            return expr
        return relax.TupleGetItem(source, expr.index)
    if isinstance(expr, relax.Call):
        args = [substitute(arg, env) for arg in expr.args]
        if _same(args, expr.args):
            return expr
        return relax.Call(expr.op, args, expr.attrs, expr.ty_args)
    return expr


def _same(new: list[Any], old: Any) -> bool:
    return all(a.same_as(b) for a, b in zip(new, old, strict=True))


class Walk:
    """One pass over a dataflow function that offers every binding to the rules.

    ``uses`` counts readers as they were before the walk; a rule that drops a value's last
    reader leaves dead code behind, which :meth:`run` removes.
    """

    def __init__(self, flow: Dataflow, rules: tuple[Rule, ...]) -> None:
        self._flow, self._rules = flow, rules
        self._builder = relax.BlockBuilder()
        self._env: dict[Any, Any] = {}
        self._values: dict[Any, Any] = {}
        self._bindings: list[tuple[Any, Any]] = []
        self._uses: Counter[Any] = Counter()
        self.changed = False

    def run(self) -> Dataflow:
        """The rewritten function."""
        flow = self._flow
        before = Counter(v for _, value in flow.bindings for v in variables(value))
        before.update(v for out in flow.outputs for v in variables(out))
        for param in flow.params:
            self._uses[param] = before[param]
        for var, value in flow.bindings:
            result = self._rewrite(substitute(value, self._env), var.name)
            if _is_leaf(result):
                self._env[var] = result
                self._uses[result] += before[var] - 1
                continue
            new = var if result.same_as(value) else self.emit(result, var.name)
            if new.same_as(var):
                self._values[var] = value
                self._bindings.append((var, value))
            self._env[var] = new
            self._uses[new] = before[var]
        outputs = tuple(substitute(out, self._env) for out in flow.outputs)
        return Dataflow(
            flow.params, tuple(self._bindings), outputs, flow.is_tuple, flow.attrs, flow.functions
        ).without_dead()

    def _rewrite(self, value: Any, name: str) -> Any:
        if not _is_leaf(value):
            value = self._builder.normalize(value)
        for rule in self._rules:
            if _is_leaf(value):
                break
            result = rule(self, value, name)
            if result is not None:
                self.changed = True
                value = result if _is_leaf(result) else self._builder.normalize(result)
        return value

    def emit(self, call: Any, name: str) -> Any:
        """Bind a call to a new variable that will be read once."""
        call = self._builder.normalize(call)
        var = relax.DataflowVar(name, call.ty)
        self._values[var] = call
        self._bindings.append((var, call))
        self._uses[var] = 1
        return var

    def value(self, expr: Any, op: str = "") -> Any:
        """What a variable is bound to; None for parameters, and unless it is a call of ``op``."""
        value = self._values.get(expr) if isinstance(expr, relax.Var) else None
        return value if not op or op_name(value) == op else None

    def once(self, expr: Any) -> bool:
        """Is this variable read exactly once?"""
        return bool(self._uses[expr] == 1)


def _is_leaf(expr: Any) -> bool:
    return isinstance(expr, relax.Var | relax.ShapeExpr | tvm.ir.GenericConst)


def op_name(expr: Any) -> str:
    """Name of the Relax operator a call applies, such as ``relax.add``; "" for anything else."""
    op = getattr(expr, "op", None)
    return str(op.name) if isinstance(op, tvm.ir.Op) else ""


def array_of(expr: Any) -> Array | None:
    """The array of a constant (shared memory: do not write), None for anything else."""
    if not isinstance(expr, tvm.ir.GenericConst):
        return None
    if str(expr.ty.dtype) == "bool":
        return np.asarray(expr.value.numpy())
    return np.from_dlpack(expr.value)


def shape_of(expr: Any) -> tuple[int, ...]:
    """Static shape of a tensor expression; () for scalars and for what is no tensor."""
    values = getattr(getattr(expr.ty, "shape", None), "values", None)
    return tuple(int(v) for v in values) if values is not None else ()


def dtype_of(expr: Any) -> str:
    """Dtype of a tensor expression, "" for anything else."""
    return str(expr.ty.dtype) if isinstance(expr.ty, relax.TensorType) else ""


def const(array: Array) -> Any:
    """A Relax constant of the array, in its dtype."""
    return relax.const(tvm.runtime.tensor(_contiguous(array)))


def _contiguous(array: Array) -> Array:
    """``np.ascontiguousarray``, several times faster on large transposed matrices."""
    if array.ndim != 2 or array.size < _TILED or not array.T.flags.c_contiguous:
        # It makes one axis of none.
        return np.ascontiguousarray(array).reshape(array.shape)
    result = np.empty(array.shape, array.dtype)
    for start in range(0, array.shape[1], _TILE):
        stop = start + _TILE
        for row in range(0, array.shape[0], _TILE):
            result[row : row + _TILE, start:stop] = array[row : row + _TILE, start:stop]
    return result
