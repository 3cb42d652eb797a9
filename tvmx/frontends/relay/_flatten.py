"""A Relay function as a list of operators: lets, tuples and calls of functions resolved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvmx.errors import CorruptModelError, ModelError
from tvmx.frontends.relay._graph import (
    Array,
    Call,
    Constant,
    Expr,
    Function,
    GlobalVar,
    Let,
    Module,
    Op,
    Tuple,
    TupleGetItem,
    Unknown,
    Var,
)

_MOST_STEPS = 50_000
_MOST_CALLS = 64  # functions within functions
_NO_SPANS = {"from_string", "GeneratedSource"}  # what TVM's parser calls every text
_WEIGHT_WORDS = {
    "weight", "weights", "kernel", "w", "bias", "b", "gamma", "beta", "moving", "running", "mean",
    "var", "variance", "scale",
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """Output ``field`` of step ``step``; None: its only one, or all of them as a tuple."""

    step: int
    field: int | None = None


@dataclass(frozen=True, eq=False)
class Closure:
    """A function as a value, with the names it can see."""

    function: Function
    frame: Frame


Value = Var | Constant | Result | Closure | Op | tuple[Any, ...]
"""``Var``: an input of the network; tuples hold values."""


@dataclass
class Step:
    """One operator on values: ``name`` is unique, from the source or made up."""

    name: str
    op: str
    args: tuple[Value, ...]
    attrs: Mapping[str, Any]


@dataclass(eq=False)
class Frame:
    """One call of a function: what its expressions are worth."""

    depth: int
    outer: Frame | None = None
    values: dict[Expr, Value] = field(default_factory=dict)
    calls: dict[Call, tuple[Function, Frame]] = field(default_factory=dict)

    def find(self, var: Var) -> Value | None:
        """The value of a name here or further out."""
        frame: Frame | None = self
        while frame is not None:
            if var in frame.values:
                return frame.values[var]
            frame = frame.outer
        return None


@dataclass(frozen=True)
class Program:
    """``main`` unrolled: its inputs, steps in order, and results (a tuple of several)."""

    inputs: tuple[Var, ...]
    steps: tuple[Step, ...]
    result: Value


def main_function(module: Module, path: Path) -> Function:
    """``@main``, or the only function. Raises CorruptModelError where there is neither."""
    main = module.functions.get("main")
    if main is None and len(module.functions) == 1:
        main = next(iter(module.functions.values()))
    if main is None:
        raise CorruptModelError(
            f"{path} has no function @main", hint="save the module with its main function"
        )
    return main


def flatten(module: Module, params: Mapping[str, Array], path: Path) -> Program:
    """Unroll ``main`` with its parameters bound by name.

    Raises:
        CorruptModelError: names without a value, no ``main``, items out of range.
        ModelError: recursion, or more than 50,000 operators once functions are inlined.
    """
    main = main_function(module, path)
    frame = Frame(0)
    inputs = []
    for var in main.params:
        if var.name in params:
            frame.values[var] = Constant(params[var.name], var.name)
        else:
            frame.values[var] = var
            inputs.append(var)
    flattener = _Flattener(module, path)
    result = flattener.run(main.body, frame)
    steps = flattener.live(result)
    _name(steps)
    return Program(tuple(inputs), tuple(steps), result)


class _Flattener:
    def __init__(self, module: Module, path: Path) -> None:
        self._module, self._path = module, path
        self._steps: list[Step] = []

    def run(self, body: Expr, frame: Frame) -> Value:
        """The value of an expression, with a stack of our own: graphs are deep."""
        stack = [(body, frame)]
        while stack:
            expr, here = stack[-1]
            if expr in here.values:
                stack.pop()
                continue
            missing = [(e, f) for e, f in self._needs(expr, here) if e not in f.values]
            if missing:
                stack.extend(reversed(missing))
                continue
            here.values[expr] = self._evaluate(expr, here)
            stack.pop()
        return frame.values[body]

    def _needs(self, expr: Expr, frame: Frame) -> Iterator[tuple[Expr, Frame]]:
        if isinstance(expr, Tuple):
            yield from ((item, frame) for item in expr.fields)
        elif isinstance(expr, TupleGetItem):
            yield expr.value, frame
        elif isinstance(expr, Let):
            yield expr.value, frame
            if expr.value in frame.values:
                frame.values.setdefault(expr.var, frame.values[expr.value])
                yield expr.body, frame
        elif isinstance(expr, Call):
            yield expr.op, frame
            yield from ((arg, frame) for arg in expr.args)
            if all(e in frame.values for e in (expr.op, *expr.args)):
                callee = frame.values[expr.op]
                if isinstance(callee, Closure):
                    function, inner = self._enter(expr, callee, frame)
                    yield function.body, inner

    def _enter(self, call: Call, callee: Closure, frame: Frame) -> tuple[Function, Frame]:
        if call not in frame.calls:
            function = callee.function
            if len(function.params) != len(call.args):
                raise self._damaged(
                    f"a function of {len(function.params)} parameters gets {len(call.args)}"
                )
            if frame.depth >= _MOST_CALLS:
                raise ModelError(
                    f"{self._path}: functions call themselves, or are nested too deep",
                    hint="inline them with the old TVM (relay.transform.Inline)",
                )
            inner = Frame(frame.depth + 1, callee.frame)
            for param, arg in zip(function.params, call.args, strict=True):
                inner.values[param] = frame.values[arg]
            frame.calls[call] = (function, inner)
        return frame.calls[call]

    def _evaluate(self, expr: Expr, frame: Frame) -> Value:
        if isinstance(expr, Var):
            value = frame.find(expr)
            if value is None:
                raise self._damaged(f"%{expr.name} has no value where it is used")
            return value
        if isinstance(expr, Constant | Op):
            return expr
        if isinstance(expr, GlobalVar):
            if expr.name not in self._module.functions:
                raise self._damaged(f"there is no function @{expr.name}")
            return Closure(self._module.functions[expr.name], Frame(0))
        if isinstance(expr, Function):
            return Closure(expr, frame)
        if isinstance(expr, Unknown):
            return self._step(expr.kind, (), {}, "")
        if isinstance(expr, Tuple):
            return tuple(frame.values[item] for item in expr.fields)
        if isinstance(expr, TupleGetItem):
            return self._item(frame.values[expr.value], expr.index)
        if isinstance(expr, Let):
            return frame.values[expr.body]
        return self._call(expr, frame)

    def _item(self, value: Value, index: int) -> Value:
        if isinstance(value, tuple) and 0 <= index < len(value):
            found: Value = value[index]
            return found
        if isinstance(value, Result) and value.field is None and index >= 0:
            return Result(value.step, index)
        raise self._damaged(f"there is no item {index} in what it is taken of")

    def _call(self, call: Call, frame: Frame) -> Value:
        callee = frame.values[call.op]
        if isinstance(callee, Closure):
            function, inner = frame.calls[call]
            return inner.values[function.body]
        if isinstance(callee, Op):
            args = tuple(frame.values[arg] for arg in call.args)
            return self._step(callee.name, args, call.attrs, call.span)
        raise self._damaged("what is called is neither an operator nor a function")

    def _step(
        self, op: str, args: tuple[Value, ...], attrs: Mapping[str, Any], span: str
    ) -> Result:
        if len(self._steps) >= _MOST_STEPS:
            raise ModelError(
                f"{self._path}: more than {_MOST_STEPS} operators once functions are inlined",
                hint="import a part of the network",
            )
        self._steps.append(Step(span, op, args, attrs))
        return Result(len(self._steps) - 1)

    def live(self, result: Value) -> list[Step]:
        """The steps; raises where a function or operator is used as a tensor."""
        for value in (result, *(arg for step in self._steps for arg in step.args)):
            for leaf in leaves(value):
                if isinstance(leaf, Closure | Op):
                    raise self._damaged("a function or an operator is used as a tensor")
        return self._steps

    def _damaged(self, what: str) -> CorruptModelError:
        return CorruptModelError(
            f"{self._path} is damaged: {what}", hint="save or copy the file again"
        )


def leaves(value: Value) -> Iterator[Var | Constant | Result | Closure | Op]:
    """The values in a tuple of tuples, in order."""
    stack: list[Value] = [value]
    while stack:
        top = stack.pop()
        if isinstance(top, tuple):
            stack.extend(reversed(top))
        else:
            yield top


def _name(steps: list[Step]) -> None:
    """Names from spans, else from the weights' own, else operator and number; all unique."""
    seen: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    for step in steps:
        span = "" if step.name in _NO_SPANS else step.name
        name = span or _weight_name(step)
        if not name:
            name = f"{step.op}_{numbers[step.op]}"
            numbers[step.op] += 1
        seen[name] += 1
        step.name = name if seen[name] == 1 else f"{name}#{seen[name]}"


def _weight_name(step: Step) -> str:
    for arg in step.args:
        if isinstance(arg, Constant) and arg.name:
            name = arg.name
            while True:
                cut = max(name.rfind(mark) for mark in "_./")
                if cut <= 0 or name[cut + 1 :].lower() not in _WEIGHT_WORDS:
                    return name
                name = name[:cut]
    return ""
