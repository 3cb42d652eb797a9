"""Quantised networks in QDQ format, built operator by operator with scales of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray[Any, Any]


class QdqModel:
    """Tensors are named by strings; :meth:`pair` puts Q and DQ on one. Shapes are NCHW or NC."""

    def __init__(self, activation: Any = np.uint8, seed: int = 0) -> None:
        self.activation = activation
        self._rng = np.random.default_rng(seed)
        self._nodes: list[Any] = []
        self._constants: dict[str, Array] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._count = 0
        self._scales: dict[str, Any] = {}  # of dequantised tensors and weights

    def input(self, *shape: int) -> str:
        """A float32 network input."""
        self._inputs.append(helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape))
        return "x"

    def input8(self, *shape: int) -> str:
        """An int8 network input."""
        code = helper.np_dtype_to_tensor_dtype(np.dtype(self.activation))
        self._inputs.append(helper.make_tensor_value_info("x", code, shape))
        return "x"

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """A float operator."""
        out = self._new(kind.lower())
        self._nodes.append(
            helper.make_node(kind, list(inputs), [out], name=name or out, **attributes)
        )
        return out

    def pair(self, tensor: str, scale: float, zero: int = 0) -> str:
        """The tensor quantised and dequantised; ``zero`` is that of s8."""
        return self.dequantised(self.quantised(tensor, scale, zero), scale, zero)

    def quantised(self, tensor: str, scale: float, zero: int = 0) -> str:
        return self.op("QuantizeLinear", tensor, *self._params(scale, zero))

    def dequantised(self, tensor: str, scale: float, zero: int = 0) -> str:
        out = self.op("DequantizeLinear", tensor, *self._params(scale, zero))
        self._scales[out] = np.float32(scale)
        return out

    def weight(
        self, shape: Sequence[int], dtype: Any = np.int8, axis: int | None = 0, zero: int = 0
    ) -> str:
        """A random quantised weight, dequantised; per channel along ``axis``, or None."""
        channels = 1 if axis is None else shape[axis]
        info = np.iinfo(dtype)
        low, high = max(info.min, zero - 127), min(info.max, zero + 127)
        values = self._rng.integers(low, high + 1, shape).astype(dtype)
        scales = self._rng.uniform(0.001, 0.01, channels).astype(np.float32)
        zeros = np.full(channels, zero, dtype)
        if axis is None:
            scales, zeros = scales.reshape(()), zeros.reshape(())
        names = [self._constant(a) for a in (values, scales, zeros)]
        out = self.op("DequantizeLinear", *names, **({} if axis is None else {"axis": axis}))
        self._scales[out] = scales
        return out

    def bias(self, data: str, weight: str, channels: int) -> str:
        """A random int32 bias, dequantised by the product of the scales of data and weight.

        ONNX Runtime takes any other bias for one of that scale.
        """
        values = self._rng.integers(-3000, 3000, channels).astype(np.int32)
        scales = np.float32(self._scales[data]) * self._scales[weight]
        zeros = np.zeros(np.shape(scales), np.int32)
        names = [self._constant(a) for a in (values, scales, zeros)]
        return self.op("DequantizeLinear", *names, **({"axis": 0} if np.ndim(scales) else {}))

    def conv(self, data: str, shape: Sequence[int], bias: bool = True, **attributes: Any) -> str:
        """A convolution with weights of ``shape`` (OIHW), named conv1, conv2, ..."""
        kind = {k: attributes.pop(k) for k in ("dtype", "axis", "zero") if k in attributes}
        weight = self.weight(shape, **kind)
        biases = [self.bias(data, weight, shape[0])] if bias else []
        return self.op("Conv", data, weight, *biases, **attributes)

    def dense(self, data: str, outputs: int, inputs: int) -> str:
        """A Gemm with weights (outputs, inputs) per channel and a bias."""
        weight = self.weight((outputs, inputs))
        return self.op("Gemm", data, weight, self.bias(data, weight, outputs), transB=1)

    def output(self, tensor: str, dtype: Any = np.float32) -> None:
        code = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self._outputs.append(helper.make_tensor_value_info(tensor, code, None))

    def proto(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self._nodes, "quantised", self._inputs, self._outputs,
            [numpy_helper.from_array(np.asarray(a), n) for n, a in self._constants.items()],
        )  # fmt: skip
        return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])

    def _params(self, scale: float, zero: int) -> list[str]:
        shift = 128 if self.activation == np.uint8 else 0
        point = np.array(zero + shift, self.activation)
        return [self._constant(np.float32(scale)), self._constant(point)]

    def _constant(self, array: Any) -> str:
        name = self._new("c")
        self._constants[name] = array
        return name

    def _new(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}_{self._count}"
