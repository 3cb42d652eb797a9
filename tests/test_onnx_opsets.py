"""Operators whose definition changed between opsets, opset by opset, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.network_plans import assert_same, execute, host, network_of, plan_of, registry
from tvmx.frontends import load_model
from tvmx.passes import lower
from tvmx.testing.models import onnx_reference

Array = npt.NDArray[Any]
X = (2, 6, 4, 6)
make = helper.make_node


class Graph:
    """A model of one opset; every operator reads ``x`` and is an output, as float32."""

    def __init__(self, opset: int) -> None:
        self.opset, self.count = opset, 0
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.outputs: list[str] = []

    def weight(self, value: Any, dtype: str = "int64") -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(value, dtype)
        return name

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        self.count += 1
        made = [f"{op}{self.count}_{i}" for i in range(outputs)]
        self.nodes.append(make(op, inputs or ["x"], made, **attributes))
        return made[0]

    def out(self, op: str, *inputs: str, of: int = 1, **attributes: Any) -> None:
        value = self.add(op, *inputs, outputs=of, **attributes)
        for name in [value.rsplit("_", 1)[0] + f"_{i}" for i in range(of)]:
            self.nodes.append(make("Cast", [name], [f"{name}_f"], to=TensorProto.FLOAT))
            self.outputs.append(f"{name}_f")

    def shaped(self, op: str, name: str, value: Any, since: int, **attributes: Any) -> None:
        """An attribute that became an input in opset ``since``."""
        if self.opset < since:
            self.out(op, "x", **{name: value}, **attributes)
        else:
            self.out(op, "x", self.weight(value), **attributes)

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, X)],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in self.outputs],
            [numpy_helper.from_array(a, n) for n, a in self.weights.items()],
        )  # fmt: skip
        version = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, ir_version=8, opset_imports=version)


def shapes(g: Graph) -> None:
    """What moves elements."""
    g.nodes.append(make("Relu", ["x"], ["r"]))
    one = g.add("Reshape", "r", g.weight([2, 1, 6, 24]))
    for op, value in (("Squeeze", one), ("Unsqueeze", "r")):
        if g.opset < 13:
            g.out(op, value, axes=[1])
        else:
            g.out(op, value, g.weight([1 if op == "Squeeze" else -2]))
    if g.opset < 10:
        g.out("Slice", "x", starts=[0, 1], ends=[-1, 3], axes=[2, 3])
        g.out("Upsample", "x", g.weight([1, 1, 2, 2], "float32"), mode="nearest")
        g.out("Upsample", "x", g.weight([1, 1, 2, 3], "float32"), mode="linear")
    else:
        parts = [g.weight(v) for v in ([-1, 1], [-9, 6], [2, 3], [-2, 3])]
        g.out("Slice", "x", *parts)
    if g.opset < 11:
        g.out("Pad", "x", pads=[0, 0, 1, 2, 0, 0, 0, 1], mode="constant", value=0.5)
        g.out("Pad", "x", pads=[0, 0, 1, 2, 0, 0, 0, 1], mode="reflect")
    else:
        pads = g.weight([0, 0, 1, 2, 0, 0, 0, 1])
        g.out("Pad", "x", pads, g.weight(0.5, "float32"), mode="constant")
        g.out("Pad", "x", pads, mode="edge")
    if g.opset >= 18:
        g.out("Pad", "x", g.weight([2, 1]), "", g.weight([-1]))
        g.out("Split", "x", of=3, axis=3, num_outputs=3)
    if g.opset >= 19:
        g.out("Pad", "x", g.weight([0, 0, 1, 2, 0, 0, 0, 1]), mode="wrap")
    if g.opset < 13:
        g.out("Split", "x", of=3, axis=1, split=[1, 3, 2])
    else:
        g.out("Split", "x", g.weight([1, 3, 2]), of=3, axis=1)
    g.out("Gather", "x", g.weight([[0, 3], [5, 1 if g.opset < 11 else -1]]), axis=1)
    g.out("Flatten", "x", axis=2)
    g.out("DepthToSpace", g.add("Concat", "x", "x", axis=1), blocksize=2,
          **({"mode": "CRD"} if g.opset >= 11 else {}))  # fmt: skip
    indices, updates = g.weight([[[[1], [0]]]]), g.weight([[[[7.0], [8.0]]]], "float32")
    scatter = "Scatter" if g.opset < 11 else "ScatterElements"
    g.out(scatter, "x", indices, updates, axis=3)
    if g.opset >= 16:
        g.out(scatter, "x", g.weight([[[[1], [-1]]]]), updates, axis=2, reduction="add")
    g.out("Expand", "r", g.weight([3, 1, 1, 4, 1]))
    g.out("Shape", "x", **({"start": 1, "end": -1} if g.opset >= 15 else {}))


def arithmetic(g: Graph) -> None:
    """What computes."""
    if g.opset < 11:
        g.out("Clip", "x", min=-0.5, max=0.25)
    else:
        g.out("Clip", "x", "", g.weight(0.25, "float32"))
        g.out("Clip", "x", g.weight(-0.5, "float32"))
        g.out("Gemm", g.add("Flatten", "x"), g.weight(np.linspace(-1, 1, 144 * 3).reshape(3, 144),
              "float32"), transB=1, alpha=0.5)  # fmt: skip
        g.out("CumSum", "x", g.weight(-1), exclusive=1, reverse=1)
        g.out("ArgMax", "x", axis=-2)
    for op in ("Softmax", "LogSoftmax", "Hardmax"):
        g.out(op, "x", axis=2)
        g.out(op, "x")  # the default axis changed in opset 13
    g.shaped("ReduceSum", "axes", [1, 3], 13, keepdims=0)
    for op in ("ReduceMean", "ReduceMax", "ReduceL2", "ReduceLogSumExp"):
        g.shaped(op, "axes", [1, 3], 18)
    if g.opset < 10:
        g.out("TopK", "x", k=2, axis=1, of=2)
    elif g.opset < 11:
        g.out("TopK", "x", g.weight([2]), axis=-1, of=2)
    else:
        g.out("TopK", "x", g.weight([3]), axis=1, largest=0, of=2)
    g.out("Where", g.add("Less", "x", g.weight(0.1, "float32")), "x", g.weight(2.0, "float32"))
    if g.opset >= 10:
        g.out("Mod", "x", g.weight(0.3, "float32"), fmod=1)
    if g.opset >= 12:
        g.out("Pow", "x", g.weight(2))
        g.out("Einsum", "x", "x", equation="nchw,nkhw->nck")
        g.out("Max", g.add("Cast", "x", to=TensorProto.INT64), g.weight(0))
    if g.opset >= 14:
        g.out("HardSwish", "x")
    if g.opset >= 20:
        g.out("Gelu", "x", approximate="tanh")
        g.out("ReduceMax", g.add("Greater", "x", g.weight(1.5, "float32")), g.weight([2]))
    g.out("OneHot", g.add("ArgMin", "x", axis=1), g.weight(6), g.weight([-1, 3], "float32"), axis=1)


def networks(g: Graph) -> None:
    """What has weights, pools and resizes."""
    ones = [g.weight(np.linspace(low, 1.5, 6), "float32") for low in (0.5, -1, -0.5, 0.1)]
    g.out("BatchNormalization", "x", *ones, epsilon=1e-3)
    weight = g.weight(np.sin(np.arange(4 * 3 * 9)).reshape(4, 3, 3, 3), "float32")
    g.out("Conv", "x", weight, group=2, pads=[1, 1, 1, 1], strides=[1, 2])
    g.out("MaxPool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])
    g.out("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 0, 0], count_include_pad=1)
    if g.opset >= 10:
        g.out("MaxPool", "x", kernel_shape=[2, 2], dilations=[2, 3], ceil_mode=1, strides=[1, 2])
        g.out("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    if g.opset >= 19:
        g.out("AveragePool", "x", kernel_shape=[2, 2], dilations=[2, 2], pads=[1, 1, 1, 1])
    if g.opset < 12:
        g.out("Dropout", "x", ratio=0.3)
    else:
        g.out("Dropout", "x", g.weight(0.3, "float32"), of=2)
    scales = g.weight([1, 1, 2, 1.5], "float32")
    if g.opset == 10:
        g.out("Resize", "x", scales, mode="nearest")
        g.out("Resize", "x", scales, mode="linear")
    elif g.opset >= 11:
        none = g.weight([], "float32")
        for mode, coordinates in (
            ("nearest", "asymmetric"), ("linear", "half_pixel"), ("linear", "align_corners"),
            ("cubic", "pytorch_half_pixel"),
        ):  # fmt: skip
            attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
            roi = none if g.opset < 13 else ""
            g.out("Resize", "x", roi, scales, **attributes)
            g.out("Resize", "x", roi, none if g.opset < 13 else "", g.weight([2, 6, 7, 3]),
                  **attributes)  # fmt: skip
    if g.opset >= 17:
        scale, bias = (g.weight(np.linspace(a, 1, 24).reshape(4, 6), "float32") for a in (0, -1))
        g.out("LayerNormalization", "x", scale, bias, axis=2)
    if g.opset >= 18:
        size = 2 if g.opset < 21 else 6
        scale, bias = (g.weight(np.linspace(a, 1, size), "float32") for a in (0.5, -1))
        g.out("GroupNormalization", "x", scale, bias, num_groups=2)
    if g.opset >= 23:
        g.out("RMSNormalization", "x", g.weight(np.linspace(0, 1, 6), "float32"))
        g.out("Attention", "x", "x", "x")


PARTS = (shapes, arithmetic, networks)
CHANGED = [
    *((shapes, opset) for opset in (9, 10, 11, 13, 19)),
    *((arithmetic, opset) for opset in (9, 11, 13, 20)),
    *((networks, opset) for opset in (9, 10, 12, 18, 23)),
]
"""Where operators of the part changed; in between, that the shapes are right must do."""


def reference(graph: Graph) -> tuple[onnx.ModelProto, Array, list[Array]]:
    proto = graph.model()
    x = np.random.default_rng(graph.opset).standard_normal(X, dtype=np.float32)
    return proto, x, onnx_reference(proto, {"x": x})


@pytest.mark.parametrize("part, opset", CHANGED)
def test_an_opset_that_changed_something(part: Callable[[Graph], None], opset: int) -> None:
    graph = Graph(opset)
    part(graph)
    proto, x, want = reference(graph)
    network = network_of(proto)
    lowered = lower(network, plan_of(network, host()), registry(), host())
    got = execute(lowered.mod, host(), [x])
    for name, a, b in zip(graph.outputs, got, want, strict=True):
        try:
            assert_same([a], [b])
        except AssertionError as err:
            raise AssertionError(f"{name} of opset {opset}: {err}") from None


@pytest.mark.parametrize("opset", range(9, 24))
def test_every_opset_imports(opset: int, tmp_path: Path) -> None:
    for part in PARTS:
        graph = Graph(opset)
        part(graph)
        proto, _, want = reference(graph)
        path = tmp_path / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        assert [out.shape for out in load_model(path).outputs] == [a.shape for a in want]
