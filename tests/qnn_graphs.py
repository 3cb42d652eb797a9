"""Random quantised networks in Relay's QNN dialect, as TVM's importers write them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.relay_files import Array, call, constant, module_json, var
from tvmx.frontends.relay._graph import Expr, Tuple, Var

_LIMITS = {"uint8": (0, 255), "int8": (-128, 127)}


@dataclass(frozen=True)
class Q:
    """A quantised tensor: its expression, logical shape (n, c, h, w) or (n, c), and numbers."""

    expr: Expr
    shape: tuple[int, ...]
    dtype: str
    scale: float
    zero: int


class QnnGraph:
    """Builds expressions on ``q`` values; every choice is the random generator's."""

    def __init__(self, seed: int, nhwc: bool = False) -> None:
        self.rng, self.nhwc = random.Random(seed), nhwc
        self._np = np.random.default_rng(seed)
        self._input: Var | None = None
        self.feeds: dict[str, Array] = {}
        self.layers = 0

    def input(self, shape: tuple[int, int, int, int], dtype: str, quantised: bool) -> Q:
        """A network input, a float one behind a qnn.quantize where it is not ``quantised``."""
        q = self._like(shape, dtype)
        low, high = _LIMITS[dtype]
        values: Array = self._np.integers(low, high + 1, self._order(shape)).astype(dtype)
        if not quantised:
            steps = self._np.uniform(low - 3, high + 3, self._order(shape))
            values = ((steps - q.zero) * q.scale).astype(np.float32)
        self.feeds, self._input = {"x": values}, var("x", values)
        expr: Expr = self._input
        if not quantised:
            expr = call("qnn.quantize", expr, q.scale, q.zero, out_dtype=dtype, axis=-1)
        return Q(expr, *_fields(q))

    def conv(
        self, q: Q, out: int, kernel: int, *, rounding: str = "", depthwise: bool = False,
        **attrs: Any,
    ) -> Q:  # fmt: skip
        """qnn.conv2d with bias, requantisation and whatever comes between."""
        n, c, h, w = q.shape
        groups = c if depthwise else 1
        strides = attrs.get("strides", (1, 1))
        pad = attrs.get("padding", (kernel // 2,) * 4)
        weight = self._weight((out, c // groups, kernel, kernel), q.dtype)
        rows = (h + pad[0] + pad[2] - kernel) // strides[0] + 1
        columns = (w + pad[1] + pad[3] - kernel) // strides[1] + 1
        layout: dict[str, Any] = {}
        if self.nhwc:
            layout = {"data_layout": "NHWC", "kernel_layout": "HWOI" if depthwise else "HWIO"}
            # Relay's HWOI of a depthwise convolution: (h, w, channels, multiplier).
            axes = (2, 3, 0, 1) if depthwise else (2, 3, 1, 0)
            weight = np.ascontiguousarray(weight.transpose(axes))
        scales = self._scales(out)
        sums = call(
            "qnn.conv2d", q.expr, weight, q.zero, 0, q.scale, scales, strides=strides, padding=pad,
            groups=groups, channels=out, kernel_size=(kernel, kernel), out_dtype="int32", **layout,
        )  # fmt: skip
        return self._ended(sums, q, (n, out, rows, columns), c // groups * kernel**2, scales,
                           rounding)  # fmt: skip

    def dense(self, q: Q, out: int, rounding: str = "") -> Q:
        """qnn.dense of a matrix, likewise."""
        n, c = q.shape
        weight, scales = self._weight((out, c), q.dtype), self._scales(out)
        sums = call("qnn.dense", q.expr, weight, q.zero, 0, q.scale, scales, units=out,
                    out_dtype="int32")  # fmt: skip
        return self._ended(sums, q, (n, out), c, scales, rounding)

    def _ended(
        self, sums: Expr, q: Q, shape: tuple[int, ...], terms: int, scales: Array, rounding: str
    ) -> Q:
        """Bias, rectifier, requantisation and clip, in one of the ways that importers write."""
        self.layers += 1
        near = q.scale * terms**0.5 * (0.5 if len(shape) == 4 else 0.7)
        out = self._like(shape, self.rng.choice(("uint8", "int8")), near)
        axis = len(shape) - 1 if self.nhwc else 1
        if self.rng.random() < 0.7:
            bias = self._np.integers(-3000, 3000, shape[1]).astype(np.int32)
            if self.rng.random() < 0.5 or len(shape) == 2:
                sums = call("nn.bias_add", sums, bias, axis=axis)
            else:
                wide = (1, 1, 1, shape[1]) if self.nhwc else (shape[1], 1, 1)
                sums = call("add", sums, bias.reshape(wide))
        if self.rng.random() < 0.3:
            sums = call("nn.relu", sums)
        source = np.array(scales * np.float32(q.scale), np.float32)
        how = {"axis": axis, "rounding": rounding or self.rng.choice(("UPWARD", "TONEAREST"))}
        low, high = _LIMITS[out.dtype]
        bounds = {"a_min": float(max(low, out.zero)), "a_max": float(high)}
        if self.rng.random() < 0.3:  # PyTorch: wide, clipped, cast
            wide_q = call("qnn.requantize", sums, source, 0, out.scale, out.zero,
                          out_dtype="int32", **how)  # fmt: skip
            limits = (
                bounds if self.rng.random() < 0.5 else {"a_min": low * 1.0, "a_max": high * 1.0}
            )
            expr = call("cast", call("clip", wide_q, **limits), dtype=out.dtype)
        else:
            expr = call("qnn.requantize", sums, source, 0, out.scale, out.zero,
                        out_dtype=out.dtype, **how)  # fmt: skip
            if self.rng.random() < 0.5:
                expr = call("clip", expr, **bounds)
        return Q(expr, *_fields(out))

    def pair(self, op: str, a: Q, b: Q) -> Q:
        """qnn.add, qnn.subtract or qnn.mul."""
        out = self._like(a.shape, a.dtype, a.scale * (20 if op == "qnn.mul" else 1.3))
        sides = (a.scale, a.zero, b.scale, b.zero, out.scale, out.zero)
        return Q(call(op, a.expr, b.expr, *sides, lhs_axis=-1, rhs_axis=-1), *_fields(out))

    def concatenate(self, parts: list[Q]) -> Q:
        """qnn.concatenate along the channels."""
        n, _, *rest = parts[0].shape
        shape = (n, sum(q.shape[1] for q in parts), *rest)
        out = self._like(shape, parts[0].dtype, parts[0].scale)
        scales, zeros = (
            Tuple(tuple(constant(v) for v in values))
            for values in ([q.scale for q in parts], [q.zero for q in parts])
        )
        axis = len(shape) - 1 if self.nhwc else 1
        expr = call("qnn.concatenate", Tuple(tuple(q.expr for q in parts)), scales, zeros,
                    out.scale, out.zero, axis=axis)  # fmt: skip
        return Q(expr, *_fields(out))

    def requantised(self, q: Q, dtype: str = "") -> Q:
        """The same numbers at another scale."""
        out = self._like(q.shape, dtype or self.rng.choice(("uint8", "int8")), q.scale)
        how = {"axis": -1, "rounding": self.rng.choice(("UPWARD", "TONEAREST"))}
        expr = call("qnn.requantize", q.expr, q.scale, q.zero, out.scale, out.zero,
                    out_dtype=out.dtype, **how)  # fmt: skip
        return Q(expr, *_fields(out))

    def padded(self, q: Q, top: int, left: int, bottom: int, right: int) -> Q:
        """Zero points around the image, as TFLite's importer writes padding."""
        sides = ((0, 0), (0, 0), (top, bottom), (left, right))
        n, c, h, w = q.shape
        widths = tuple(sides[i] for i in ((0, 2, 3, 1) if self.nhwc else range(4)))
        expr = call("nn.pad", q.expr, q.zero, pad_width=widths, pad_mode="constant")
        return Q(expr, (n, c, h + top + bottom, w + left + right), q.dtype, q.scale, q.zero)

    def pool(self, q: Q, kind: str, size: int, stride: int, pad: int = 0) -> Q:
        """Maximum, or average in int32."""
        n, c, h, w = q.shape
        layout = {"layout": "NHWC"} if self.nhwc else {}
        how = {"pool_size": (size, size), "strides": (stride, stride), "padding": (pad,) * 4}
        rows, columns = ((x + 2 * pad - size) // stride + 1 for x in (h, w))
        if kind == "max":
            expr: Expr = call("nn.max_pool2d", q.expr, **how, **layout)
        else:
            wide = call("cast", q.expr, dtype="int32")
            expr = call("cast", call("nn.avg_pool2d", wide, **how, **layout), dtype=q.dtype)
        return Q(expr, (n, c, rows, columns), q.dtype, q.scale, q.zero)

    def flat_mean(self, q: Q) -> Q:
        """Global average in int32, as a matrix."""
        n, c = q.shape[:2]
        layout = {"layout": "NHWC"} if self.nhwc else {}
        mean = call("nn.global_avg_pool2d", call("cast", q.expr, dtype="int32"), **layout)
        expr = call("reshape", call("cast", mean, dtype=q.dtype), newshape=(-1, c))
        return Q(expr, (n, c), q.dtype, q.scale, q.zero)

    def dequantised(self, q: Q) -> Expr:
        """Real numbers."""
        return call("qnn.dequantize", q.expr, q.scale, q.zero, axis=-1, out_dtype="float32")

    def json(self, *outputs: Expr) -> str:
        """The module's file."""
        assert self._input is not None
        return module_json([self._input], outputs[0] if len(outputs) == 1 else Tuple(outputs))

    def _order(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        n, c, h, w = shape
        return (n, h, w, c) if self.nhwc else shape

    def _like(self, shape: tuple[int, ...], dtype: str, near: float = 0.05) -> Q:
        low, high = _LIMITS[dtype]
        scale = float(np.float32(near * self.rng.uniform(0.7, 1.5)))
        zero = self.rng.choice((low, high, self.rng.randint(low + 40, high - 40)))
        zero = low + 100 if zero == high else zero
        return Q(constant(0), shape, dtype, scale, zero)

    def _weight(self, shape: tuple[int, ...], dtype: str) -> Array:
        return self._np.integers(-127, 128, shape).astype(np.int8)

    def _scales(self, out: int) -> Array:
        if self.rng.random() < 0.3:
            return np.array(self.rng.uniform(0.004, 0.02), np.float32)
        return self._np.uniform(0.002, 0.02, out).astype(np.float32)


def _fields(q: Q) -> tuple[tuple[int, ...], str, float, int]:
    return q.shape, q.dtype, q.scale, q.zero


def random_network(seed: int, nhwc: bool) -> tuple[QnnGraph, str]:
    """A stem, a depthwise block with a sum, branches concatenated, a pool, a classifier."""
    g = QnnGraph(seed, nhwc)
    rng = g.rng
    batch, c = rng.choice((1, 1, 2)), rng.choice((16, 20, 32))
    x = g.input(
        (batch, 3, rng.randint(9, 13), rng.randint(9, 13)), rng.choice(("uint8", "int8")),
        rng.random() < 0.5,
    )  # fmt: skip
    a = g.conv(x, c, 3, strides=(2, 2), padding=(0, 1, 1, 0))
    d = g.conv(g.padded(a, 0, 1, 1, 0), c, 3, depthwise=True, padding=(1, 0, 0, 1))
    b = g.conv(d, c, 1)
    s = g.pair(rng.choice(("qnn.add", "qnn.subtract", "qnn.mul")), *_same_type(g, a, b))
    if rng.random() < 0.5:
        s = g.requantised(s)
    j = g.concatenate([*_same_type(g, s, d)])
    p = g.pool(j, rng.choice(("max", "avg")), 2, rng.choice((1, 2)), rng.choice((0, 1)))
    k = g.conv(p, 17, rng.choice((1, 3)))
    f = g.dense(g.flat_mean(k), 50)
    return g, g.json(g.dequantised(f), k.expr)


def _same_type(g: QnnGraph, a: Q, b: Q) -> tuple[Q, Q]:
    return (a, b) if a.dtype == b.dtype else (a, g.requantised(b, a.dtype))
