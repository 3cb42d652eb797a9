"""Relay networks with seeded weights, built layer by layer as ``relay.testing.layers`` builds them.

Attributes are those that TVM writes: those that a network sets, the others at Relay's defaults.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.relay_files import Array, call, module_json, params_file
from tvmx.frontends.relay._graph import Expr, TensorType, Tuple, TupleGetItem, Var

Pair = tuple[int, int]


@dataclass(frozen=True)
class Value:
    """A tensor of the network: its expression and its shape in the network's layout."""

    expr: Expr
    shape: tuple[int, ...]


class Layers:
    """Builds a network; ``params`` collects its weights, which are random by ``seed``."""

    def __init__(self, shape: tuple[int, ...], layout: str = "NCHW", seed: int = 0) -> None:
        self.params: dict[str, Array] = {}
        self.layout = layout
        self._rng = np.random.default_rng(seed)
        data = Var("data", TensorType(shape, "float32"))
        self._vars, self.data = [data], Value(data, shape)

    def files(self, result: Value) -> tuple[str, bytes]:
        """The module as JSON and its parameters, as TVM saves them."""
        return module_json(self._vars, result.expr), params_file(self.params)

    def conv2d(
        self, x: Value, channels: int, kernel: Pair, name: str, *, strides: Pair = (1, 1),
        padding: Pair = (0, 0), depthwise: bool = False, gain: float = 1.0,
    ) -> Value:  # fmt: skip
        """``layers.conv2d``; a depthwise one has a multiplier of 1.

        ``gain``: the size of the weights, compared to others.
        """
        n, c, h, w = self._nchw(x.shape)
        inner = 1 if depthwise else c
        order = "OIHW" if self.layout == "NCHW" else "HWOI" if depthwise else "HWIO"
        sizes = dict(zip("OIHW", (channels, inner, *kernel), strict=True))
        shape = tuple(sizes[letter] for letter in order)
        weight = self._xavier(name, shape, inner, kernel, gain)
        expr = call(
            "nn.conv2d", x.expr, weight, strides=strides, padding=padding * 2, dilation=(1, 1),
            groups=c if depthwise else 1, channels=channels, kernel_size=kernel,
            data_layout=self.layout, kernel_layout=order, out_layout="", out_dtype="",
        )  # fmt: skip
        return Value(expr, self._shape(n, channels, *_slid((h, w), kernel, strides, padding)))

    def conv2d_transpose(
        self, x: Value, channels: int, kernel: Pair, name: str, *, strides: Pair, padding: Pair,
        output_padding: Pair,
    ) -> Value:  # fmt: skip
        """``layers.conv2d_transpose``, weights in IOHW or HWOI."""
        n, c, h, w = self._nchw(x.shape)
        order = "IOHW" if self.layout == "NCHW" else "HWOI"
        sizes = dict(zip("IOHW", (c, channels, *kernel), strict=True))
        weight = self._xavier(name, tuple(sizes[letter] for letter in order), c, kernel)
        expr = call(
            "nn.conv2d_transpose", x.expr, weight, channels=channels, kernel_size=kernel,
            strides=strides, padding=padding * 2, output_padding=output_padding, dilation=(1, 1),
            groups=1, data_layout=self.layout, kernel_layout=order, out_layout="", out_dtype="",
        )  # fmt: skip
        out = [
            (size - 1) * s - 2 * p + k + more
            for size, s, p, k, more in zip(
                (h, w), strides, padding, kernel, output_padding, strict=True
            )
        ]
        return Value(expr, self._shape(n, channels, *out))

    def batch_norm(
        self, x: Value, name: str, *, epsilon: float = 1e-5, axis: int = 1, scale: bool = True
    ) -> Value:
        """``layers.batch_norm_infer``; what is not scaled has its gamma all the same."""
        size = x.shape[axis]
        parts = [
            self._uniform(f"{name}_{part}", (size,), *bounds)
            for part, bounds in (
                ("gamma", (0.5, 1.5)), ("beta", (-0.3, 0.3)), ("moving_mean", (-0.3, 0.3)),
                ("moving_var", (0.5, 1.5)),
            )
        ]  # fmt: skip
        norm = call("nn.batch_norm", x.expr, *parts, axis=axis, epsilon=epsilon, center=1,
                    scale=int(scale))  # fmt: skip
        return Value(TupleGetItem(norm, 0), x.shape)

    def bias_add(self, x: Value, name: str, axis: int = 1) -> Value:
        """``nn.bias_add`` of a parameter of that name."""
        bias = self._uniform(name, (x.shape[axis],), -0.2, 0.2)
        return Value(call("nn.bias_add", x.expr, bias, axis=axis), x.shape)

    def dense(self, x: Value, units: int, name: str, gain: float = 1.0) -> Value:
        """``nn.dense``, no bias."""
        weight = self._xavier(name, (units, x.shape[1]), x.shape[1], (1, 1), gain)
        expr = call("nn.dense", x.expr, weight, units=units, out_dtype="")
        return Value(expr, (x.shape[0], units))

    def dense_add_bias(self, x: Value, units: int, name: str, gain: float = 1.0) -> Value:
        """``layers.dense_add_bias``."""
        return self.bias_add(self.dense(x, units, name, gain), f"{name}_bias", axis=-1)

    def relu(self, x: Value) -> Value:
        """``nn.relu``."""
        return Value(call("nn.relu", x.expr), x.shape)

    def pool(
        self, kind: str, x: Value, size: Pair, strides: Pair = (1, 1), padding: Pair = (0, 0),
        **more: Any,
    ) -> Value:  # fmt: skip
        """``nn.max_pool2d`` or ``nn.avg_pool2d``; Relay's strides are 1 unless given."""
        n, c, h, w = self._nchw(x.shape)
        expr = call(
            f"nn.{kind}_pool2d", x.expr, pool_size=size, strides=strides, dilation=(1, 1),
            padding=padding * 2, layout=self.layout, out_layout="", ceil_mode=0, **more,
        )  # fmt: skip
        return Value(expr, self._shape(n, c, *_slid((h, w), size, strides, padding)))

    def avg_pool(
        self, x: Value, size: Pair, strides: Pair = (1, 1), padding: Pair = (0, 0), *,
        count_include_pad: bool = False,
    ) -> Value:  # fmt: skip
        """``nn.avg_pool2d``."""
        return self.pool("avg", x, size, strides, padding, count_include_pad=int(count_include_pad))

    def global_avg_pool(self, x: Value) -> Value:
        """``nn.global_avg_pool2d``."""
        n, c, _, _ = self._nchw(x.shape)
        expr = call("nn.global_avg_pool2d", x.expr, layout=self.layout, out_layout="")
        return Value(expr, self._shape(n, c, 1, 1))

    def flatten(self, x: Value) -> Value:
        """``nn.batch_flatten``."""
        return Value(call("nn.batch_flatten", x.expr), (x.shape[0], math.prod(x.shape[1:])))

    def dropout(self, x: Value) -> Value:
        """``nn.dropout``, which has two results."""
        return Value(TupleGetItem(call("nn.dropout", x.expr, rate=0.5), 0), x.shape)

    def concatenate(self, parts: Sequence[Value]) -> Value:
        """``concatenate`` of channels, in NCHW."""
        n, _, h, w = parts[0].shape
        expr = call("concatenate", Tuple(tuple(part.expr for part in parts)), axis=1)
        return Value(expr, (n, sum(part.shape[1] for part in parts), h, w))

    def add(self, a: Value, b: Value) -> Value:
        """``add`` of equal shapes."""
        return Value(call("add", a.expr, b.expr), a.shape)

    def reshape(self, x: Value, newshape: tuple[int, ...]) -> Value:
        """``reshape``; the first size is left open."""
        expr = call("reshape", x.expr, newshape=newshape, allowzero=0)
        return Value(expr, (x.shape[0], *newshape[1:]))

    def softmax(self, x: Value) -> Value:
        """``nn.softmax``."""
        return Value(call("nn.softmax", x.expr, axis=-1), x.shape)

    def tanh(self, x: Value) -> Value:
        """``tanh``."""
        return Value(call("tanh", x.expr), x.shape)

    def _nchw(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(shape[self.layout.index(letter)] for letter in "NCHW")

    def _shape(self, *nchw: int) -> tuple[int, ...]:
        return tuple(nchw["NCHW".index(letter)] for letter in self.layout)

    def _xavier(
        self, name: str, shape: tuple[int, ...], inner: int, kernel: Pair, gain: float = 1.0
    ) -> Var:
        """Large enough that activations keep their size through a deep network."""
        bound = gain * math.sqrt(6 / (inner * math.prod(kernel)))
        name = name if name.endswith("_weight") else f"{name}_weight"
        return self._uniform(name, shape, -bound, bound)

    def _uniform(self, name: str, shape: tuple[int, ...], low: float, high: float) -> Var:
        assert name not in self.params, name
        self.params[name] = self._rng.uniform(low, high, shape).astype(np.float32)
        self._vars.append(Var(name, TensorType(shape, "float32")))
        return self._vars[-1]


def _slid(image: Pair, kernel: Pair, strides: Pair, padding: Pair) -> list[int]:
    """Positions of a window along both axes."""
    return [
        (size + 2 * p - k) // s + 1
        for size, k, s, p in zip(image, kernel, strides, padding, strict=True)
    ]
