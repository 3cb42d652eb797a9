"""Hypothesis strategy: small random CNNs as ONNX, made to put layouts next to each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper

from tvmx.testing.models import graph_model

CHANNELS = (1, 3, 4, 5, 8, 12, 16, 17, 20, 32)
Shape = tuple[int, ...]


@dataclass
class _Builder:
    draw: Any
    rng: np.random.Generator
    nodes: list[Any] = field(default_factory=list)
    weights: dict[str, Any] = field(default_factory=dict)
    images: list[tuple[str, Shape]] = field(default_factory=list)

    def pick(self, *values: Any) -> Any:
        return self.draw(st.sampled_from(values))

    def image(self) -> tuple[str, Shape]:
        """One of the last images: mostly chains, sometimes a long way back."""
        return self.images[-1 - min(self.pick(0, 0, 0, 1, 2, 4), len(self.images) - 1)]

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        scale = np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 1.0
        self.weights[name] = (self.rng.standard_normal(shape) / scale).astype(np.float32)
        return name

    def add(self, op: str, inputs: list[str], shape: Shape, **attributes: Any) -> tuple[str, Shape]:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"n_{name}", **attributes))
        if len(shape) == 4:
            self.images.append((name, shape))
        return name, shape

    def conv(self) -> None:
        source, (n, c, h, w) = self.image()
        kernel = tuple(self.pick(1, 2, 3) for _ in "hw")
        strides = [self.pick(1, 1, 2) for _ in "hw"]
        pads = [self.pick(0, 1, 2) for _ in range(4)]
        if min(h + pads[0] + pads[2] - kernel[0], w + pads[1] + pads[3] - kernel[1]) < 0:
            return
        out = self.pick(*CHANNELS)
        group = self.pick(1, 1, 1, c, 2)
        if group == c and c > 1:
            out = c
        elif c % group or out % group:
            group = 1
        inputs = [source, self.weight(out, c // group, *kernel)]
        if self.pick(True, False):
            inputs.append(self.weight(out))
        size = [
            (extent + pads[i] + pads[i + 2] - kernel[i]) // strides[i] + 1
            for i, extent in enumerate((h, w))
        ]
        found, shape = self.add(
            "Conv", inputs, (n, out, *size), pads=pads, strides=strides, group=group
        )
        same = [name for name, other in self.images[:-1] if other == shape]
        if same and self.pick(True, False):
            found, _ = self.add("Add", [found, self.pick(*same)], shape)
        if self.pick(True, False):
            self.add(self.pick("Relu", "Sigmoid"), [found], shape)

    def join(self) -> None:
        name, shape = self.image()
        same = [other for other, s in self.images if s == shape]
        op = self.pick("Add", "Sub", "Mul", "Max")
        self.add(op, [name, self.pick(*same)], shape)

    def concat(self) -> None:
        _, (n, _, h, w) = self.image()
        fits = [(o, s) for o, s in self.images if (s[0], *s[2:]) == (n, h, w)]
        parts = [self.pick(*fits) for _ in range(self.pick(2, 3))]
        if (channels := sum(s[1] for _, s in parts)) <= 80:
            self.add("Concat", [o for o, _ in parts], (n, channels, h, w), axis=1)

    def pool(self) -> None:
        name, (n, c, h, w) = self.image()
        k, stride, pad = self.pick(2, 3), self.pick(1, 2), self.pick(0, 1)
        if min(h, w) + 2 * pad < k:
            return
        size = [(e + 2 * pad - k) // stride + 1 for e in (h, w)]
        op = self.pick("MaxPool", "AveragePool")
        extra = {"count_include_pad": self.pick(0, 1)} if op == "AveragePool" else {}
        self.add(op, [name], (n, c, *size), kernel_shape=[k, k], strides=[stride] * 2,
                 pads=[pad] * 4, **extra)  # fmt: skip

    def pointwise(self) -> None:
        name, shape = self.image()
        op = self.pick("Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSwish", "Mul", "Sub", "Div")
        inputs = [name]
        if op in ("Mul", "Sub", "Div"):
            inputs.append(self.weight(shape[1], 1, 1))
        if op == "Div":  # away from zero
            self.weights[inputs[1]] = np.abs(self.weights[inputs[1]]) + np.float32(0.5)
        if op in ("Mul", "Sub") and self.pick(True, False):
            inputs.reverse()
        self.add(op, inputs, shape)

    def attention(self) -> None:
        """A value per channel, multiplied onto the image: squeeze and excite."""
        name, shape = self.image()
        pooled, small = self.add("GlobalAveragePool", [name], (*shape[:2], 1, 1))
        gate, _ = self.add("Sigmoid", [pooled], small)
        self.add("Mul", [name, gate], shape)

    def opaque(self) -> None:
        """What has no blocked form."""
        name, (n, c, h, w) = self.image()
        op = self.pick("Softmax", "Transpose", "LRN")
        if op == "Softmax":
            self.add(op, [name], (n, c, h, w), axis=1)
        elif op == "LRN":
            self.add(op, [name], (n, c, h, w), size=3)
        else:
            self.add(op, [name], (n, c, w, h), perm=[0, 1, 3, 2])

    def head(self) -> str:
        """Global mean (or the whole image), flattened, and a dense layer."""
        name, (n, c, h, w) = self.image()
        if c * h * w > 500 or self.pick(True, False):
            name, (_, _, h, w) = self.add("GlobalAveragePool", [name], (n, c, 1, 1))
        flat, _ = self.add("Flatten", [name], (n, c * h * w))
        classes = self.pick(3, 10, 16)
        inputs = [flat, self.weight(classes, c * h * w), self.weight(classes)]
        return self.add("Gemm", inputs, (n, classes), transB=1)[0]


_STEPS = ("conv", "conv", "conv", "conv", "join", "concat", "pool", "pointwise", "attention",
          "opaque")  # fmt: skip


@st.composite
def networks(draw: Any, most: int = 8) -> onnx.ModelProto:
    """Networks of up to ``most`` steps; at least one convolution; one or two image inputs."""
    builder = _Builder(draw, np.random.default_rng(draw(st.integers(0, 99))))
    batch, size = builder.pick(1, 1, 2), (builder.pick(5, 8, 9), builder.pick(6, 8, 11))
    inputs = {f"x{i}": (batch, builder.pick(*CHANNELS), *size) for i in range(builder.pick(1, 2))}
    builder.images += inputs.items()
    builder.conv()
    for step in draw(st.lists(st.sampled_from(_STEPS), min_size=1, max_size=most)):
        getattr(builder, step)()
    if not any(node.op_type == "Conv" for node in builder.nodes):
        name, (_, channels, *plane) = builder.images[-1]
        builder.add("Conv", [name, builder.weight(8, channels, 1, 1)], (batch, 8, *plane))
    outputs = [builder.head()] if builder.pick(True, False) else [builder.images[-1][0]]
    outputs += [builder.pick(*builder.images)[0] for _ in range(builder.pick(0, 1, 2))]
    names = {}
    for index, name in enumerate(dict.fromkeys(outputs)):
        # An Identity, which the import drops: inputs and values that are read can be outputs.
        builder.nodes.append(helper.make_node("Identity", [name], [f"y{index}"]))
        names[f"y{index}"] = None
    read = {name for node in builder.nodes for name in node.input}
    for name in inputs.keys() - read:
        builder.nodes.append(helper.make_node("Identity", [name], [f"y_{name}"]))
        names[f"y_{name}"] = None
    return graph_model(builder.nodes, inputs, names, builder.weights)
