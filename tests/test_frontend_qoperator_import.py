"""Quantised ONNX models imported and compiled by TVM alone, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from tests.qoperator_models import (
    TYPES,
    Array,
    close,
    conv,
    imported,
    ints,
    kinds,
    model,
    node,
    rewritten,
    two,
    zero,
)
from tvmx.testing.models import onnx_reference


def test_imported_conv(tmp_path: Path) -> None:
    proto, inputs = conv(pads=[1, 1, 1, 1])
    loaded, results = imported(proto, tmp_path, inputs)
    close(results[0], onnx_reference(proto, inputs)[0])
    names = [name for name, source in loaded.sources.items() if source.name == "conv1_quant"]
    assert "conv1_quant" in names


@pytest.mark.parametrize("op", ["QLinearAdd", "QGemm"])
def test_imported_others(op: str, tmp_path: Path) -> None:
    inputs, constants = two(np.uint8, 0.05)
    names = ["x", "xs", "xz", "v", "vs", "vz", "ys", "yz"]
    if op == "QGemm":
        inputs = {"x": ints(np.uint8, 5, 7)}
        constants |= {"v": ints(np.int8, 6, 7), "vz": np.int8(0), "xs": np.float32(0.004),
                      "b": np.arange(6, dtype=np.int32) * 400}  # fmt: skip
        names.insert(6, "b")
    attributes = {"transB": 1} if op == "QGemm" else {}
    proto = model([node(op, names, **attributes)], inputs, constants, {"y": np.uint8})
    _, results = imported(proto, tmp_path, inputs)
    close(results[0], onnx_reference(proto, inputs)[0])


@pytest.mark.parametrize("w", TYPES)
@pytest.mark.parametrize("zeros", ["scalar", "channel", "none"])
def test_conv_integer_is_exact(w: str, zeros: str, tmp_path: Path) -> None:
    inputs = {"x": ints(np.uint8, 2, 6, 7, 9)}
    constants = {
        "w": ints(TYPES[w], 4, 3, 3, 2, seed=1), "xz": np.array([131], np.uint8),
        "wz": zero(TYPES[w], 2) if zeros == "scalar" else np.full(4, zero(TYPES[w], 3)),
    }  # fmt: skip
    tail = [] if zeros == "none" else ["xz", "wz"]
    layer = node(
        "ConvInteger", ["x", "w", *tail], "whole", group=2, pads=[1, 0, 2, 1], strides=[2, 1]
    )
    proto = model([layer], inputs, constants, {"y": np.int32})
    loaded, results = imported(proto, tmp_path, inputs)
    if zeros == "channel":  # which ONNX Runtime has not
        data, weight = (
            torch.from_numpy(a.astype(np.float64) - z)
            for a, z in ((inputs["x"], 131), (constants["w"], float(constants["wz"][0])))
        )
        padded = torch.nn.functional.pad(data, (0, 1, 1, 2))
        want = torch.nn.functional.conv2d(padded, weight, stride=(2, 1), groups=2).numpy()
    else:
        (want,) = onnx_reference(proto, inputs)
    np.testing.assert_array_equal(results[0], want)
    assert np.ptp(results[0]) > 1000
    assert "whole" in loaded.sources


def test_matmul_integer_is_exact(tmp_path: Path) -> None:
    inputs = {"x": ints(np.uint8, 3, 5, 7)}
    constants = {
        "w": ints(np.int8, 7, 6, seed=1),
        "xz": np.uint8(131),
        "wz": np.arange(6, dtype=np.int8),
    }
    proto = model(
        [node("MatMulInteger", ["x", "w", "xz", "wz"])], inputs, constants, {"y": np.int32}
    )
    _, results = imported(proto, tmp_path, inputs)
    np.testing.assert_array_equal(results[0], onnx_reference(proto, inputs)[0])


@pytest.mark.parametrize("what", ["both signs", "positive", "zeros"])
def test_dynamic_quantising(what: str, tmp_path: Path) -> None:
    value = np.random.default_rng(0).standard_normal((3, 5, 7)).astype(np.float32)
    value = {"both signs": value, "positive": np.abs(value) + 1, "zeros": value * 0}[what]
    layer = helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"], name="dynamic")
    outputs = {"y": np.uint8, "s": np.float32, "z": np.uint8}
    proto = model([layer], {"x": value}, {}, outputs)
    _, (got, scale, point) = imported(proto, tmp_path, {"x": value})
    want, want_scale, want_point = onnx_reference(proto, {"x": value})
    np.testing.assert_allclose(scale, want_scale, rtol=1e-6)
    np.testing.assert_array_equal(point, want_point)
    assert np.abs(got.astype(int) - want).max() <= (1 if what != "zeros" else 0)


# networks quantised by ONNX Runtime's tools


def network(folder: Path) -> Path:
    """Convolutions, pools, a concatenation, a sum and dense layers; opset 13."""
    rng = np.random.default_rng(0)
    make = helper.make_node

    def weight(*shape: int) -> Array:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    constants = {
        "w1": weight(8, 3, 3, 3), "b1": weight(8), "w2": weight(8, 8, 3, 3),
        "w3": weight(8, 1, 3, 3), "b3": weight(8), "g": weight(10, 16), "gb": weight(10),
        "shape": np.array([1, 16]), "m": weight(10, 6),
    }  # fmt: skip
    nodes = [
        make("Conv", ["x", "w1", "b1"], ["c1"], name="first", pads=[1, 1, 1, 1]),
        make("Relu", ["c1"], ["r1"], name="relu"),
        make("MaxPool", ["r1"], ["p1"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        make("Conv", ["p1", "w2"], ["c2"], name="second", pads=[1, 1, 1, 1]),
        make("Conv", ["p1", "w3", "b3"], ["c3"], name="depthwise", pads=[1, 1, 1, 1], group=8),
        make("Add", ["c2", "p1"], ["a"], name="sum"),
        make("Sigmoid", ["c3"], ["s"], name="sigmoid"),
        make("Concat", ["a", "s"], ["cat"], name="concat", axis=1),
        make("AveragePool", ["cat"], ["ap"], name="average", kernel_shape=[2, 2]),
        make("GlobalAveragePool", ["ap"], ["gap"], name="global"),
        make("Reshape", ["gap", "shape"], ["flat"], name="flatten"),
        make("Gemm", ["flat", "g", "gb"], ["d"], name="dense", transB=1),
        make("MatMul", ["d", "m"], ["y"], name="product"),
    ]
    shape = {"x": np.zeros((1, 3, 12, 14), np.float32)}
    proto = model(nodes, shape, constants, {"y": np.float32}, 13)
    path = folder / "float.onnx"
    onnx.save(proto, path)
    return path


def sample(seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((1, 3, 12, 14)).astype(np.float32)}


@pytest.mark.parametrize("per_channel", [True, False])
def test_network_of_the_static_quantiser(
    per_channel: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    class Reader:
        feeds = iter([sample(i) for i in range(4)])

        def get_next(self) -> Any:
            return next(self.feeds, None)

    path = tmp_path / "int8.onnx"
    quantize_static(
        network(tmp_path), path, Reader(), quant_format=QuantFormat.QOperator,
        per_channel=per_channel, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    proto, feeds = onnx.load(path), sample(9)
    assert {"QLinearConv", "QLinearAdd", "QLinearConcat", "QGemm", "QLinearMatMul"} <= set(
        kinds(proto.graph)
    )
    (want,) = onnx_reference(proto, feeds)
    (got,) = onnx_reference(rewritten(proto), feeds)
    loaded, (compiled,) = imported(proto, tmp_path, feeds)
    (last,) = [n for n in proto.graph.node if n.output[0] == "y"]
    step = next(
        float(numpy_helper.to_array(i)) for i in proto.graph.initializer if i.name == last.input[1]
    )
    assert np.ptp(want) > 50 * step
    for result in (got, compiled):
        assert np.abs(result - want).max() <= 1.01 * step
    names = {source.name for source in loaded.sources.values()}
    assert {"first_quant", "second_quant", "depthwise_quant", "dense_quant", "pool"} <= names
    int8 = [b for b in loaded.mod["main"].body.blocks[0].bindings if "max_pool2d" in str(b.value)]
    assert [str(b.var.ty.dtype) for b in int8] == ["float32"]


def test_network_of_the_dynamic_quantiser(tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = tmp_path / "dynamic.onnx"
    quantize_dynamic(network(tmp_path), path, weight_type=QuantType.QUInt8)
    proto, feeds = onnx.load(path), sample(9)
    assert {"ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"} <= set(kinds(proto.graph))
    (want,) = onnx_reference(proto, feeds)
    _, (got,) = imported(proto, tmp_path, feeds)
    assert np.ptp(want) > 0.1
    np.testing.assert_allclose(got, want, atol=0.02 * float(np.ptp(want)))
