"""What a Relay program computes, by NumPy and PyTorch, without the importer.

JSON files are read by code of their own too; of texts, tvmx's parser makes the same expressions.
Knows the operators of the networks in ``tests/data/relay``, in NCHW.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from tests.relay_files import Array
from tests.test_frontend_relay_qnn import fixed_point
from tvmx.frontends.relay._graph import (
    Call,
    Constant,
    Expr,
    Function,
    Op,
    Tuple,
    TupleGetItem,
    Var,
)

Value = Any  # an array or a tuple of them
_LISTS = {"strides", "padding", "dilation", "channels", "kernel_size", "pool_size", "units"}
_TEXTS = {"data_layout", "kernel_layout", "out_layout", "layout"}
_KINDS = {0: "i", 1: "u", 2: "f"}


class UnknownError(Exception):
    """What the program computes cannot be told here."""


class _Json:
    """Expressions of a node table, by Python's recursion."""

    def __init__(self, text: str) -> None:
        data = json.loads(text)
        self._nodes, self._arrays = data["nodes"], data.get("b64ndarrays", [])
        self._done: dict[int, Expr] = {}
        self.root = data["root"]

    def main(self) -> Function:
        functions = self._nodes[int(self._nodes[self.root]["attrs"]["functions"])]["data"]
        if len(functions) != 2:
            raise UnknownError("several functions")
        made = self._expr(functions[1])
        assert isinstance(made, Function)
        return made

    def _ref(self, index: int, name: str) -> int:
        return int(self._nodes[index]["attrs"][name])

    def _list(self, index: int) -> list[int]:
        found: list[int] = self._nodes[index]["data"]
        return found

    def _expr(self, index: int) -> Expr:
        if index not in self._done:
            self._done[index] = self._make(index)
        return self._done[index]

    def _exprs(self, index: int, name: str) -> tuple[Expr, ...]:
        return tuple(self._expr(i) for i in self._list(self._ref(index, name)))

    def _make(self, index: int) -> Expr:
        kind = self._nodes[index]["type_key"]
        if kind == "Op":
            return Op(self._nodes[index]["repr_str"])
        if kind == "relay.Var":
            vid = self._ref(index, "vid")
            return Var(self._nodes[self._ref(vid, "name_hint")].get("repr_str", ""))
        if kind == "relay.Constant":
            return Constant(_array(base64.b64decode(self._arrays[self._ref(index, "data")])))
        if kind == "relay.Tuple":
            return Tuple(self._exprs(index, "fields"))
        if kind == "relay.TupleGetItem":
            return TupleGetItem(self._expr(self._ref(index, "tuple_value")),
                                self._ref(index, "index"))  # fmt: skip
        if kind == "relay.Function":
            params = tuple(p for p in self._exprs(index, "params") if isinstance(p, Var))
            return Function(params, self._expr(self._ref(index, "body")))
        if kind == "relay.Call":
            attrs = {name: self._attribute(name, text)
                     for name, text in self._nodes[self._ref(index, "attrs")].get("attrs", {})
                     .items()}  # fmt: skip
            return Call(self._expr(self._ref(index, "op")), self._exprs(index, "args"), attrs)
        raise UnknownError(kind)

    def _attribute(self, name: str, text: str) -> Any:
        if name in _LISTS:
            return self._plain(int(text))
        if name in _TEXTS:
            return self._nodes[int(text)].get("repr_str", "")
        try:
            return float(text)
        except ValueError:
            return text

    def _plain(self, index: int) -> Any:
        node = self._nodes[index]
        if node["type_key"] == "Array":
            return tuple(self._plain(i) for i in node["data"])
        return int(node["attrs"]["value"]) if node["type_key"] == "IntImm" else None


def _array(data: bytes) -> Array:
    """16 bytes of magic, a device, then dimensions, dtype, shape, size and figures."""
    rank = int.from_bytes(data[24:28], "little")
    kind, bits = _KINDS[data[28]], data[29]
    sizes = [int.from_bytes(data[at : at + 8], "little") for at in range(32, 40 + 8 * rank, 8)]
    figures = data[40 + 8 * rank :]
    return np.frombuffer(figures, f"<{kind}{bits // 8}").reshape(sizes[:-1])


def json_main(text: str) -> Function:
    """The only function of a file."""
    return _Json(text).main()


def evaluate(main: Function, values: Mapping[str, Array]) -> list[Array]:
    """Results for values of the parameters, by their names.

    Raises UnknownError for what it does not know, and anything at all for damage.
    """
    done: dict[Expr, Value] = {}

    def value(expr: Expr) -> Value:
        if expr not in done:
            done[expr] = found(expr)
        return done[expr]

    def found(expr: Expr) -> Value:
        if isinstance(expr, Var):
            return values[expr.name]
        if isinstance(expr, Constant):
            return expr.array
        if isinstance(expr, Tuple):
            return tuple(map(value, expr.fields))
        if isinstance(expr, TupleGetItem):
            return value(expr.value)[expr.index]
        if isinstance(expr, Call) and isinstance(expr.op, Op) and expr.op.name in _OPERATORS:
            return _OPERATORS[expr.op.name](_Given(expr.attrs), *map(value, expr.args))
        raise UnknownError(f"{expr.op.name if isinstance(expr, Call) else expr}"[:60])

    result = value(main.body)
    return list(result) if isinstance(result, tuple) else [result]


class _Given:
    """Attributes, with Relay's defaults where a text leaves them out."""

    def __init__(self, attrs: Mapping[str, Any]) -> None:
        self._attrs = attrs

    def __call__(self, name: str, default: Any) -> Any:
        value = self._attrs.get(name, default)
        return default if value is None else value

    def pair(self, name: str, default: int) -> list[int]:
        given = self(name, (default, default))
        whole = list(given) if isinstance(given, tuple) else [int(given)]
        return whole * 2 if len(whole) == 1 else whole

    def edges(self) -> list[int]:
        """Left, right, top, bottom, as PyTorch pads."""
        sizes = self.pair("padding", 0)
        top, left, bottom, right = sizes * (4 // len(sizes))
        return [left, right, top, bottom]

    def require(self, **wanted: Any) -> None:
        for name, value in wanted.items():
            if self(name, value) not in (value, ""):
                raise UnknownError(f"{name}={self(name, value)!r}"[:60])


def _conv(a: _Given, data: Array, weight: Array) -> Array:
    """In float64: whole numbers up to 2 ** 53 stay exact."""
    a.require(data_layout="NCHW", kernel_layout="OIHW", out_layout="NCHW")
    out, _, *kernel = weight.shape
    if a("channels", out) != out or a.pair("kernel_size", 0) not in ([0, 0], list(kernel)):
        raise UnknownError("attributes and weights disagree")
    padded = functional.pad(torch.tensor(data.astype(np.float64)), a.edges())
    made = functional.conv2d(
        padded, torch.tensor(weight.astype(np.float64)), None, a.pair("strides", 1), 0,
        a.pair("dilation", 1), int(a("groups", 1)),
    )  # fmt: skip
    return np.asarray(made.numpy())


def _dense(a: _Given, data: Array, weight: Array) -> Array:
    if a("units", len(weight)) != len(weight):
        raise UnknownError("attributes and weights disagree")
    made: Array = data.astype(np.float64) @ weight.astype(np.float64).T
    return made


def _like(made: Array, data: Array) -> Array:
    if data.dtype.kind != "f":
        raise UnknownError("an integer convolution")
    return made.astype(data.dtype)


def _whole(run: Callable[[_Given, Array, Array], Array]) -> Callable[..., Array]:
    """The quantised operator: zero points taken off, sums modulo 2 ** 32."""

    def operator(a: _Given, data: Array, weight: Array, zero: Array, w_zero: Array,
                 *_: Array) -> Array:  # fmt: skip
        a.require(out_dtype="int32")
        if zero.size != 1 or w_zero.size != 1:
            raise UnknownError("zero points of channels")
        sums = run(a, data.astype(np.int64) - int(zero.reshape(())),
                   weight.astype(np.int64) - int(w_zero.reshape(())))  # fmt: skip
        if np.abs(sums).max(initial=0) >= 2**31:
            raise UnknownError("sums beyond int32")
        return sums.astype(np.int32)

    return operator


def _along(vector: Array, axis: float, like: Array) -> Array:
    shape = [1] * like.ndim
    shape[int(axis)] = vector.size
    return vector.reshape(shape)


def _batch_norm(a: _Given, data: Array, *vectors: Array) -> tuple[Array, Array, Array]:
    wide = [_along(v.astype(np.float64), a("axis", 1), data) for v in vectors]
    gamma, beta, mean, var = wide
    made = (data - mean) / np.sqrt(var + a("epsilon", 1e-5))
    made = made * (gamma if a("scale", 1) else 1) + (beta if a("center", 1) else 0)
    return made.astype(data.dtype), vectors[2], vectors[3]


def _avg_pool(a: _Given, data: Array) -> Array:
    a.require(layout="NCHW", out_layout="NCHW")
    if any(a.edges()) or a("ceil_mode", 0) or a.pair("dilation", 1) != [1, 1]:
        raise UnknownError("padding of a pool")
    (height, width), (down, right) = a.pair("pool_size", 1), a.pair("strides", 1)
    views = np.lib.stride_tricks.sliding_window_view(data, (height, width), (2, 3))
    views = views[:, :, ::down, ::right]
    if data.dtype.kind == "f":
        return views.mean((4, 5)).astype(data.dtype)
    if data.dtype != np.int32:
        raise UnknownError("sums of a small type")
    return np.trunc(views.sum((4, 5), dtype=np.int64) / (height * width)).astype(np.int32)


def _global_avg_pool(a: _Given, data: Array) -> Array:
    a.require(layout="NCHW")
    return _like(data.astype(np.float64).mean((2, 3), keepdims=True), data)


def _clip(a: _Given, data: Array) -> Array:
    low, high = a("a_min", None), a("a_max", None)
    if data.dtype.kind != "f":
        limits = np.iinfo(data.dtype)
        if not limits.min <= low <= high <= limits.max or low % 1 or high % 1:
            raise UnknownError("bounds beyond the type")
    return data.clip(data.dtype.type(low), data.dtype.type(high))


def _one(array: Array) -> float:
    if array.size != 1:
        raise UnknownError("one number expected")
    return float(array.reshape(()))


def _quantize(a: _Given, data: Array, scale: Array, zero: Array) -> Array:
    ratio = data / np.float32(_one(scale))
    near = np.sign(ratio) * np.floor(np.abs(ratio.astype(np.float64)) + 0.5) + _one(zero)
    return _bytes(near, a("out_dtype", "int8"))


def _dequantize(a: _Given, data: Array, scale: Array, zero: Array) -> Array:
    return (data.astype(np.int64) - int(_one(zero))).astype(np.float32) * np.float32(_one(scale))


def _rescaled(data: Array, scales: Array, target: float, rounding: str) -> Array:
    """Numbers of one scale in another, by Python's integers; halves go up, or away from zero."""
    parts = []
    for scale in np.ravel(scales):
        ratio = Fraction(1)
        if np.float32(scale) != np.float32(target):
            ratio = fixed_point(float(np.float32(scale)) / float(np.float32(target)))
        parts.append(ratio)
    over, under = (
        _along(np.array(n, object), 1, data) if len(parts) > 1 else n[0]
        for n in zip(*((p.numerator, p.denominator) for p in parts), strict=True)
    )
    twice, wide = 2 * data.astype(object) * over, 2 * under
    if rounding == "TONEAREST":
        return np.where(data < 0, -((under - twice) // wide), (twice + under) // wide)
    made: Array = (twice + under) // wide
    return made


def _bytes(values: Array, dtype: str) -> Array:
    limits = np.iinfo(dtype)
    return np.minimum(np.maximum(values, limits.min), limits.max).astype(dtype)


def _positive(*scales: Array) -> None:
    if any(not np.isfinite(scale).all() or (scale <= 0).any() for scale in scales):
        raise UnknownError("a scale that is none")


def _requantize(a: _Given, data: Array, *sides: Array) -> Array:
    a.require(compute_dtype="None")
    scale, zero, target, target_zero = sides
    if scale.size > 1 and a("axis", -1) % data.ndim != 1:
        raise UnknownError("scales along another axis")
    _positive(scale, target)
    rounding = a("rounding", "None")
    if rounding not in ("None", "", "UPWARD", "TONEAREST"):
        raise UnknownError(rounding)
    moved = _rescaled(data.astype(np.int64) - int(_one(zero)), scale, _one(target), rounding)
    return _bytes(moved + int(_one(target_zero)), a("out_dtype", "int8"))


def _add_quantised(a: _Given, left: Array, right: Array, *sides: Array) -> Array:
    _positive(*sides[::2])
    zeros, scale = [int(_one(side)) for side in sides[1::2]], _one(sides[4])
    both = (
        _rescaled(q.astype(np.int64) - zero, np.array(_one(one)), scale, "UPWARD")
        for q, zero, one in ((left, zeros[0], sides[0]), (right, zeros[1], sides[2]))
    )
    return _bytes(sum(both) + zeros[2], left.dtype.name)


def _flatten(a: _Given, data: Array) -> Array:
    return data.reshape(len(data), -1)


_OPERATORS: dict[str, Callable[..., Value]] = {
    "nn.conv2d": lambda a, data, weight: _like(_conv(a, data, weight), data),
    "nn.dense": lambda a, data, weight: _like(_dense(a, data, weight), data),
    "nn.bias_add": lambda a, data, bias: data + _along(bias, a("axis", 1), data),
    "nn.batch_norm": _batch_norm,
    "nn.relu": lambda a, data: np.maximum(data, 0),
    "nn.avg_pool2d": _avg_pool,
    "nn.global_avg_pool2d": _global_avg_pool,
    "nn.batch_flatten": _flatten,
    "add": lambda a, left, right: left + right,
    "clip": _clip,
    "cast": lambda a, data: data.astype(a("dtype", None)),
    "qnn.quantize": _quantize,
    "qnn.dequantize": _dequantize,
    "qnn.requantize": _requantize,
    "qnn.conv2d": _whole(_conv),
    "qnn.dense": _whole(_dense),
    "qnn.add": _add_quantised,
}


def same(got: Sequence[Array], want: Sequence[Array], share: float) -> bool:
    """Whether all outputs are equal: whole numbers exactly, others within a share of the range."""
    for ours, theirs in zip(got, want, strict=True):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return False
        finite = np.isfinite(theirs)
        limit = share * max(float(np.abs(theirs[finite]).max(initial=0)), 1e-6)
        if theirs.dtype.kind != "f":
            limit = 0
        if not np.allclose(ours, theirs, rtol=0, atol=limit, equal_nan=True):
            return False
    return True
