"""Static shapes for an exported program: its symbolic sizes become numbers.

Sizes are expressions of symbols (``s77``, ``3*s0*s53``), written by sympy in either of two
forms. They are evaluated here, on integers, and nothing symbolic is left for torch to parse.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from tvmx.errors import ModelError, ModelShapeError
from tvmx.frontends._shapes import (
    Dim,
    check_dtype,
    check_names,
    reject_dynamic,
    resolve_shape,
)
from tvmx.frontends._torch_archive import DTYPES, TorchArchive, damage
from tvmx.frontends._torch_check import name_of
from tvmx.ir import TensorSpec

_MOST = 1 << 40
_FUNCTIONS: dict[str, Callable[..., int]] = {
    "Integer": lambda a: a,
    "Add": lambda *a: sum(a),
    "Mul": lambda *a: math.prod(a),
    "Max": max,
    "Min": min,
    "FloorDiv": operator.floordiv,
    "CleanDiv": operator.floordiv,
    "CeilDiv": lambda a, b: -(-a // b),
    "Mod": operator.mod,
    "PythonMod": operator.mod,
    "ModularIndexing": lambda a, b, c: a // b % c,
    "Pow": lambda a, b: _power(a, b),
    "PowByNatural": lambda a, b: _power(a, b),
    "Identity": lambda a: a,
}
_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: lambda a, b: _power(a, b),
}


class Sizes:
    """Values of symbols, and expressions of them."""

    def __init__(self, values: Mapping[str, int] | None = None) -> None:
        self.values = dict(values or {})

    def of(self, size: Mapping[str, Any]) -> int:
        """The number that a size of the file (``as_int`` or ``as_expr``) stands for.

        Raises:
            ModelShapeError: it depends on what is not known before the network runs.
        """
        if "as_int" in size:
            return int(size["as_int"])
        text = size["as_expr"]["expr_str"]
        try:
            return self._evaluate(_parse(text))
        except (KeyError, ZeroDivisionError, OverflowError, TypeError) as err:
            raise ModelShapeError(
                f"a size ({text[:80]}) depends on values of the input; every shape must be known "
                "before",
                hint="export with static shapes: without dynamic_shapes=",
            ) from err

    def _evaluate(self, node: ast.expr) -> int:
        found = self._value(node)
        if abs(found) > _MOST:
            raise OverflowError(found)
        return found

    def _value(self, node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        if isinstance(node, ast.Name):
            return self.values[node.id]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self._evaluate(node.operand)
        if isinstance(node, ast.BinOp):
            function = _OPERATORS[type(node.op)]
            return function(self._evaluate(node.left), self._evaluate(node.right))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if (symbol := _symbol(node)) is not None:
                return self.values[symbol]
            return _FUNCTIONS[node.func.id](*map(self._evaluate, node.args))
        raise TypeError(ast.dump(node)[:80])


def _power(base: int, exponent: int) -> int:
    if not 0 <= exponent <= 8:
        raise OverflowError(exponent)
    return int(base**exponent)


def _parse(text: str) -> ast.expr:
    if len(text) > 4000:
        raise ValueError("an expression of a size is too long")
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, MemoryError) as err:
        raise ValueError(f"{text[:80]!r} is no size") from err


def _symbol(node: ast.expr) -> str | None:
    """The symbol's name where the expression is one: ``s0`` or ``Symbol('s0', ...)``."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Symbol":
        name = node.args[0]
        return name_of(name.value) if isinstance(name, ast.Constant) else None
    return None


def resolve_inputs(
    archive: TorchArchive, shapes: dict[str, tuple[int, ...]]
) -> tuple[tuple[TensorSpec, ...], Sizes]:
    """Shapes and dtypes of the network inputs, and the symbols' values that follow from them.

    Raises:
        ModelShapeError: ``shapes`` names no input, contradicts a static dimension or the limits
            the program was exported with, or leaves an input dynamic.
        ModelError: an input of a dtype that cannot be fed.
    """
    path = archive.path
    with damage(path):
        sizes = {name: archive.graph["tensor_values"][name]["sizes"] for name in _users(archive)}
        declared = {name: tuple(map(_declared, dims)) for name, dims in sizes.items()}
        check_names(declared, shapes, path)
        reject_dynamic(declared, shapes, path)
        specs = tuple(
            TensorSpec(
                name,
                resolve_shape(name, dims, shapes.get(name), path),
                check_dtype(name, _dtype(archive, name), path),
            )
            for name, dims in declared.items()
        )
        return specs, _solve(archive, specs, sizes)


def _users(archive: TorchArchive) -> list[str]:
    names = []
    for spec in archive.signature["input_specs"]:
        if "user_input" in spec:
            arg = spec["user_input"]["arg"]
            if "as_tensor" not in arg:
                raise ModelError(
                    f"{archive.path}: an input is not a tensor ({next(iter(arg))[3:]})",
                    hint="export a module whose forward takes tensors only",
                )
            names.append(name_of(arg["as_tensor"]["name"]))
    return names


def _declared(size: Mapping[str, Any]) -> Dim:
    if "as_int" in size:
        return int(size["as_int"])
    return _symbol(_parse(size["as_expr"]["expr_str"])) or "?"


def _dtype(archive: TorchArchive, name: str) -> str:
    code = archive.graph["tensor_values"][name]["dtype"]
    return DTYPES.get(code, f"number {code}")


def _solve(
    archive: TorchArchive, specs: tuple[TensorSpec, ...], sizes: dict[str, list[dict[str, Any]]]
) -> Sizes:
    """Symbols from the dimensions that are one; then every other dimension has to agree."""
    known: dict[str, int] = {}
    for spec in specs:
        for size, wanted in zip(sizes[spec.name], spec.shape, strict=True):
            symbol = None if "as_int" in size else _symbol(_parse(size["as_expr"]["expr_str"]))
            if symbol is not None:
                _check_range(archive, spec, symbol, wanted)
                known.setdefault(symbol, wanted)
    found = Sizes(known)
    for spec in specs:
        for axis, (size, wanted) in enumerate(zip(sizes[spec.name], spec.shape, strict=True)):
            value = found.of(size)
            if value != wanted:
                given = ",".join(map(str, spec.shape))
                raise ModelShapeError(
                    f"{archive.path}: shape {spec.name}={given}: dimension {axis} has to be "
                    f"{value} to agree with the other dimensions, as the program was exported"
                )
    return found


def _check_range(archive: TorchArchive, spec: TensorSpec, symbol: str, wanted: int) -> None:
    limits = archive.document.get("range_constraints", {}).get(symbol, {})
    least, most = limits.get("min_val"), limits.get("max_val")
    if (least is not None and wanted < least) or (most is not None and wanted > most):
        given = ",".join(map(str, spec.shape))
        to = "more" if most is None else str(most)
        raise ModelShapeError(
            f"{archive.path}: shape {spec.name}={given}: the program was exported for "
            f"{symbol} of {least} to {to}, not {wanted}",
            hint="export with the shape you want, without dynamic_shapes=",
        )
