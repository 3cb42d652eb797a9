"""A Relay program as plain data, whatever file it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]
Dim = int | str
"""A size, or ``?`` where the file leaves it open."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape and dtype of a tensor, as annotated in the file."""

    shape: tuple[Dim, ...]
    dtype: str


@dataclass(eq=False, slots=True)
class Var:
    """A function's parameter or a let-bound name. ``type`` is None where none is written."""

    name: str
    type: TensorType | None = None


@dataclass(eq=False, slots=True)
class Constant:
    """An array in the file; ``name`` is that of the parameter it is the value of."""

    array: Array
    name: str = ""


@dataclass(eq=False, slots=True)
class GlobalVar:
    """A function of the module, by its name."""

    name: str


@dataclass(eq=False, slots=True)
class Op:
    """An operator by its registered name, such as ``nn.conv2d``."""

    name: str


@dataclass(eq=False, slots=True)
class Call:
    """An operator or a function applied to arguments. ``span`` is the source's name for it."""

    op: Expr
    args: tuple[Expr, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    span: str = ""


@dataclass(eq=False, slots=True)
class Tuple:
    """Several values as one."""

    fields: tuple[Expr, ...]


@dataclass(eq=False, slots=True)
class TupleGetItem:
    """One of several values."""

    value: Expr
    index: int


@dataclass(eq=False, slots=True)
class Let:
    """``value`` under the name ``var`` within ``body``."""

    var: Var
    value: Expr
    body: Expr


@dataclass(eq=False, slots=True)
class Function:
    """A function: of the module, or an expression."""

    params: tuple[Var, ...]
    body: Expr


@dataclass(eq=False, slots=True)
class Unknown:
    """An expression that is no dataflow (``If``, ``Match``, references), by its kind."""

    kind: str


Expr = Var | Constant | GlobalVar | Op | Call | Tuple | TupleGetItem | Let | Function | Unknown
"""Expressions form a directed acyclic graph: what is shared is one object."""


@dataclass(frozen=True)
class Module:
    """Functions by name."""

    functions: Mapping[str, Function]
