"""Relay files for tests: small graphs written as TVM 0.17 writes them, and run."""

from __future__ import annotations

import base64
import json
import struct
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.frontends import load_model
from tvmx.frontends.relay._fields import ATTRS, FIELDS
from tvmx.frontends.relay._graph import (
    Call,
    Constant,
    Expr,
    Function,
    GlobalVar,
    Let,
    Op,
    TensorType,
    Tuple,
    TupleGetItem,
    Var,
)
from tvmx.ir import Model

Array = npt.NDArray[Any]
DATA = Path(__file__).parent / "data" / "relay"
_CODES = {"i": 0, "u": 1, "f": 2, "b": 1}


def var(name: str, array: Array) -> Var:
    """A parameter of the array's type."""
    return Var(name, TensorType(array.shape, array.dtype.name))


def call(op: str | Expr, *args: Expr | Array | float, span: str = "", **attrs: Any) -> Call:
    """An operator on expressions and constants."""
    made = Op(op) if isinstance(op, str) else op
    return Call(made, tuple(map(constant, args)), attrs, span)


def constant(value: Expr | Array | float) -> Expr:
    """Arrays and numbers as constants (float32, or int32 for whole numbers)."""
    if isinstance(value, bool | int):
        return Constant(np.array(value, np.int32))
    if isinstance(value, float):
        return Constant(np.array(value, np.float32))
    return Constant(value) if isinstance(value, np.ndarray | np.generic) else value


def blob(array: Array) -> bytes:
    """An array as TVM saves it."""
    array = np.asarray(array)
    bits = 1 if array.dtype == bool else array.dtype.itemsize * 8
    head = struct.pack("<QQiii", 0xDD5E40F096B4A13F, 0, 1, 0, array.ndim)
    kind = struct.pack("<BBH", _CODES[array.dtype.kind], bits, 1)
    return (
        head + kind + struct.pack(f"<{array.ndim}qq", *array.shape, array.nbytes) + array.tobytes()
    )


def params_file(arrays: Mapping[str, Array]) -> bytes:
    """What ``relay.save_param_dict`` returns."""
    out = struct.pack("<QQQ", 0xF7E58D4F05049CB7, 0, len(arrays))
    for name in arrays:
        out += struct.pack("<Q", len(name.encode())) + name.encode()
    return out + struct.pack("<Q", len(arrays)) + b"".join(map(blob, arrays.values()))


class Writer:
    """The node table of ``tvm.ir.save_json``."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = [{"type_key": ""}]
        self.blobs: list[str] = []
        self._done: dict[int, int] = {}
        self._kept: list[Expr] = []

    def add(self, key: str, **fields: Any) -> int:
        self.nodes.append({"type_key": key, **fields})
        return len(self.nodes) - 1

    def node(self, key: str, **attrs: object) -> int:
        return self.add(key, attrs={name: str(value) for name, value in attrs.items()})

    def text(self, text: str) -> int:
        return self.add("runtime.String", **({"repr_str": text} if text else {}))

    def value(self, value: Any) -> int:
        """An attribute that is an object."""
        if value is None:
            return 0
        if isinstance(value, str):
            return self.add("tir.Any") if value == "?" else self.text(value)
        if isinstance(value, int):
            return self.node("IntImm", dtype="int32", span=0, value=value)
        if isinstance(value, float):
            return self.node("FloatImm", dtype="float64", span=0, value=value)
        return self.add("Array", data=[self.value(item) for item in value])

    def exprs(self, exprs: Sequence[Expr]) -> int:
        return self.add("Array", data=[self.expr(e) for e in exprs])

    def type(self, kind: TensorType | None) -> int:
        if kind is None:
            return 0
        return self.node("relay.TensorType", dtype=kind.dtype, shape=self.value(kind.shape), span=0)

    def expr(self, expr: Expr) -> int:
        if id(expr) not in self._done:
            self._kept.append(expr)
            self._done[id(expr)] = self._make(expr)
        return self._done[id(expr)]

    def _make(self, expr: Expr) -> int:
        if isinstance(expr, Var):
            vid = self.node("relay.Id", name_hint=self.text(expr.name))
            kind = self.type(expr.type)
            return self.node("relay.Var", _checked_type_=0, span=0, type_annotation=kind, vid=vid)
        if isinstance(expr, Constant):
            self.blobs.append(base64.b64encode(blob(expr.array)).decode())
            return self.node("relay.Constant", data=len(self.blobs) - 1, span=0)
        if isinstance(expr, GlobalVar):
            return self.node("GlobalVar", name_hint=self.text(expr.name), span=0)
        if isinstance(expr, Op):
            return self.add("Op", repr_str=expr.name)
        if isinstance(expr, Tuple):
            return self.node("relay.Tuple", fields=self.exprs(expr.fields), span=0)
        if isinstance(expr, TupleGetItem):
            value = self.expr(expr.value)
            return self.node("relay.TupleGetItem", index=expr.index, tuple_value=value, span=0)
        if isinstance(expr, Let):
            parts = {"var": expr.var, "value": expr.value, "body": expr.body}
            indices = {name: self.expr(part) for name, part in parts.items()}
            return self.node("relay.Let", **indices, span=0)
        if isinstance(expr, Function):
            params = self.exprs(expr.params)
            return self.node("relay.Function", params=params, body=self.expr(expr.body), span=0)
        assert isinstance(expr, Call)
        return self.node(
            "relay.Call", op=self.expr(expr.op), args=self.exprs(expr.args),
            attrs=self._attrs(expr), type_args=0, span=self._span(expr.span),
        )  # fmt: skip

    def _attrs(self, expr: Call) -> int:
        key = ATTRS.get(expr.op.name) if isinstance(expr.op, Op) else None
        if key is None:
            assert not expr.attrs, expr.op
            return 0
        kinds, fields = FIELDS[f"{key}Attrs"], {}
        for name, value in expr.attrs.items():
            in_place = name.endswith("dtype") or kinds[name] in ("int", "float")
            fields[name] = value if in_place else self.value(value)
        return self.node(f"relay.attrs.{key}Attrs", **fields)

    def _span(self, name: str) -> int:
        if not name:
            return 0
        source = self.add("SourceName", repr_str=name)
        return self.node("Span", source_name=source, line=1, column=2, end_line=1, end_column=3)

    def json(self, root: int) -> str:
        attrs = {"tvm_version": "0.17.dev0"}
        data = {"root": root, "nodes": self.nodes, "b64ndarrays": self.blobs, "attrs": attrs}
        return json.dumps(data)

    def module(self, functions: Mapping[str, Function]) -> str:
        """A whole module."""
        pairs = [(self.expr(GlobalVar(name)), self.expr(f)) for name, f in functions.items()]
        table = self.add("Map", data=[index for pair in pairs for index in pair])
        return self.json(self.node("IRModule", functions=table, attrs=0))


def module_json(inputs: Sequence[Var], body: Expr, **functions: Function) -> str:
    """A module with ``main`` and other functions."""
    return Writer().module({"main": Function(tuple(inputs), body), **functions})


def load(text: str, suffix: str = ".relay.json") -> Model:
    """The file imported."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"net{suffix}"
        path.write_text(text)
        return load_model(path)


def run(model: Model, feeds: Mapping[str, Array]) -> tuple[Array, ...]:
    """The outputs, by TVM's default pipeline; LLVM, which is what takes long, does not optimise."""
    from tvmx._tvm import relax, tvm

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "net.so")
        target = tvm.target.Target({"kind": "llvm", "opt-level": 0})
        relax.build(model.mod, target).export_library(path)
        machine = relax.VirtualMachine(tvm.runtime.load_module(path), tvm.cpu())
    out = machine["main"](*(tvm.runtime.tensor(feeds[spec.name]) for spec in model.inputs))
    tensors = [out] if isinstance(out, tvm.runtime.Tensor) else out
    return tuple(tensor.numpy() for tensor in tensors)


def check(
    feeds: Mapping[str, Array], cases: Sequence[tuple[Expr, Array]], tol: float = 1e-5
) -> None:
    """Every expression of the inputs (by name, see ``var``) against what it should be."""
    found: dict[str, Var] = {}
    stack = [expr for expr, _ in cases]
    while stack:
        expr = stack.pop()
        if isinstance(expr, Var):
            found[expr.name] = expr
        elif isinstance(expr, Call):
            stack += expr.args
        elif isinstance(expr, Tuple):
            stack += expr.fields
        elif isinstance(expr, TupleGetItem):
            stack.append(expr.value)
    inputs = [found[name] for name in feeds]
    got = run(load(module_json(inputs, Tuple(tuple(expr for expr, _ in cases)))), feeds)
    for (expr, want), have in zip(cases, got, strict=True):
        name = expr.op.name if isinstance(expr, Call) and isinstance(expr.op, Op) else expr
        assert have.shape == want.shape, (name, have.shape, want.shape)
        assert have.dtype == want.dtype, (name, have.dtype, want.dtype)
        scale = max(1.0, float(np.abs(want.astype(np.float64)).max())) if want.size else 1.0
        limit = tol * scale if want.dtype.kind == "f" else 0
        np.testing.assert_allclose(have, want, rtol=0, atol=limit, err_msg=str(name))
