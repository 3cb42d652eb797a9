"""ONNX operators on int8 tensors: the float form they are imported in computes the same.

The reference is ONNX Runtime running the original model; what is compared is ONNX Runtime
without optimisations running the rewritten one, or the import compiled by TVM alone.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.qoperator_models import (
    MS,
    TYPES,
    UNARY,
    close,
    conv,
    imported,
    ints,
    kinds,
    model,
    node,
    rewritten,
    same,
    two,
    unary,
    zero,
)
from tvmx.frontends import load_model
from tvmx.testing.models import onnx_reference


@pytest.mark.parametrize("x, w", [("u8", "u8"), ("u8", "s8"), ("s8", "s8")])
@pytest.mark.parametrize("per_channel", [True, False])
def test_conv(x: str, w: str, per_channel: bool) -> None:
    """ONNX Runtime has no convolution of s8 by u8."""
    proto, inputs = conv(TYPES[x], TYPES[w], per_channel)
    graph = same(proto, inputs)
    assert kinds(graph) == ["DequantizeLinear"] * 3 + ["Conv", "QuantizeLinear"]
    assert graph.node[3].name == "conv1_quant"
    axes = [a.i for n in graph.node[:3] for a in n.attribute if a.name == "axis"]
    assert axes == ([0, 0] if per_channel else [])


@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [1, 0, 2, 1], "strides": [2, 1]}, {"auto_pad": "SAME_LOWER"}, {"groups": 2},
        {"dilations": [2, 3], "kernel_shape": [3, 2]}, {"bias": False},
    ],
)  # fmt: skip
def test_conv_attributes(attributes: dict[str, Any]) -> None:
    same(*conv(**attributes))


def test_bias_is_dequantised_by_the_product_of_the_scales() -> None:
    graph = rewritten(conv()[0]).graph
    made = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    bias = graph.node[2]
    assert bias.input[0] == "b"
    np.testing.assert_array_equal(made[bias.input[1]], made["xs"] * made["ws"])
    assert made[bias.input[1]].dtype == np.float32


@pytest.mark.parametrize("opset", [10, 11, 12])
def test_older_opsets_are_converted(opset: int, tmp_path: Path) -> None:
    """The scales per channel need 13; Softmax and Squeeze were other operators before."""
    proto, inputs = conv(opset=opset)
    more = [
        helper.make_node("DequantizeLinear", ["y", "ys", "yz"], ["f"], name="out"),
        helper.make_node("Softmax", ["f"], ["s"], name="soft", axis=2),
        helper.make_node("Unsqueeze", ["s"], ["u"], name="wide", axes=[0]),
    ]
    proto.graph.node.extend(more)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("u", TensorProto.FLOAT, None))
    new = rewritten(proto)
    assert {o.domain: o.version for o in new.opset_import}[""] == 13
    got, want = (onnx_reference(p, inputs)[0] for p in (new, proto))
    assert want.shape == (1, 2, 4, 5, 8)
    assert np.ptp(want) > 0.05
    np.testing.assert_allclose(got, want, atol=0.03)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    assert {"conv1_quant", "soft"} <= {
        s.name for s in load_model(tmp_path / "m.onnx").sources.values()
    }


@pytest.mark.parametrize("opset", [0, 8])
def test_models_of_onnx_runtimes_operators_alone(opset: int) -> None:
    """They may declare no version of the standard operators, or one without quantising."""
    proto, inputs = unary("QLinearSigmoid", np.uint8)
    want = onnx_reference(proto, inputs)[0]
    proto.ir_version = 3
    for tensor in proto.graph.initializer:  # as that version asks for
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        proto.graph.input.append(value)
    if opset:
        proto.opset_import[0].version = opset
    else:
        del proto.opset_import[0]
    close(onnx_reference(rewritten(proto), inputs)[0], want)


def test_an_older_opset_keeps_large_weights() -> None:
    """They are kept from the converter, which would copy them."""
    inputs = {"x": ints(np.uint8, 1, 64, 4, 4)}
    weight = ints(np.int8, 8, 64, 1, 1)
    constants = {
        "s": np.float32(0.01), "z": zero(np.uint8), "w": weight, "wz": np.int8(0),
        "ys": np.float32(0.7),
    }  # fmt: skip
    names = ["x", "s", "z", "w", "s", "wz", "ys", "z"]
    proto = model([node("QLinearConv", names)], inputs, constants, {"y": np.uint8}, 10)
    graph = same(proto, inputs)
    (kept,) = (i for i in graph.initializer if i.name == "w")
    np.testing.assert_array_equal(numpy_helper.to_array(kept), weight)
    assert [i.name for i in graph.input] == ["x"]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("per_column", [True, False])
def test_matmul(kind: str, per_column: bool) -> None:
    dtype = TYPES[kind]
    inputs = {"x": ints(dtype, 3, 5, 7)}
    scales = np.linspace(0.004, 0.02, 6, dtype=np.float32)
    constants = {
        "xs": np.float32(0.02), "xz": zero(dtype), "w": ints(np.int8, 7, 6, seed=1),
        "ws": scales if per_column else scales[2],
        "wz": np.arange(6, dtype=np.int8) if per_column else np.int8(3),
        "ys": np.float32(0.06), "yz": zero(dtype, 9),
    }  # fmt: skip
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
    graph = same(model([node("QLinearMatMul", names)], inputs, constants, {"y": dtype}), inputs)
    assert kinds(graph) == ["DequantizeLinear"] * 2 + ["MatMul", "QuantizeLinear"]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("bias", [None, (6,), (1,), (5, 6)])
@pytest.mark.parametrize("quantised", [True, False])
def test_gemm(
    transposed: bool, per_column: bool, bias: tuple[int, ...] | None, quantised: bool
) -> None:
    dtype = np.uint8 if bias else np.int8
    inputs = {"x": ints(dtype, *((7, 5) if transposed else (5, 7)))}
    weight = ints(np.int8, 7, 6, seed=1)
    scales = np.linspace(0.004, 0.02, 6, dtype=np.float32)
    constants = {
        "xs": np.float32(0.02), "xz": zero(dtype), "w": weight.T if transposed else weight,
        "ws": scales if per_column else scales[2],
        "wz": np.zeros(6, np.int8) if per_column else np.int8(3),
        "b": np.random.default_rng(2).integers(-3000, 3000, bias or ()).astype(np.int32),
        "ys": np.float32(0.05), "yz": zero(dtype, 9),
    }  # fmt: skip
    names = ["x", "xs", "xz", "w", "ws", "wz", "b" if bias else ""]
    gemm = node(
        "QGemm", [*names, *(["ys", "yz"] if quantised else [])], alpha=0.7,
        transA=int(transposed), transB=int(transposed),
    )  # fmt: skip
    proto = model([gemm], inputs, constants, {"y": dtype if quantised else np.float32})
    if quantised:
        same(proto, inputs)
        return
    got, want = (onnx_reference(p, inputs)[0] for p in (rewritten(proto), proto))
    assert np.ptp(want) > 1
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("op, ys", [("QLinearAdd", 0.05), ("QLinearMul", 0.08)])
def test_add_and_multiply(op: str, ys: float, kind: str) -> None:
    inputs, constants = two(TYPES[kind], ys)
    names = ["x", "xs", "xz", "v", "vs", "vz", "ys", "yz"]
    proto = model([node(op, names)], inputs, constants, {"y": TYPES[kind]})
    assert kinds(same(proto, inputs)) == [
        "DequantizeLinear", "DequantizeLinear", op.removeprefix("QLinear"), "QuantizeLinear",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
def test_concat(kind: str) -> None:
    dtype = TYPES[kind]
    inputs = {"x": ints(dtype, 2, 3, 5), "v": ints(dtype, 2, 4, 5, seed=1)}
    _, constants = two(dtype, 0.03)
    names = ["ys", "yz", "x", "xs", "xz", "v", "vs", "vz", "x", "xs", "xz"]
    proto = model([node("QLinearConcat", names, axis=1)], inputs, constants, {"y": dtype})
    graph = same(proto, inputs)
    assert kinds(graph).count("DequantizeLinear") == 2, "x is read twice, dequantised once"


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("op", UNARY)
def test_one_input(op: str, kind: str) -> None:
    same(*unary(op, TYPES[kind]))


@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [1, 1, 1, 0]}, {"pads": [1, 1, 0, 0], "count_include_pad": 1}, {"ceil_mode": 1},
        {"auto_pad": "SAME_UPPER"},
    ],
)  # fmt: skip
def test_average_pool(attributes: dict[str, Any]) -> None:
    same(*unary("QLinearAveragePool", np.uint8, **attributes))


@pytest.mark.parametrize("since, axis", [(11, 2), (11, -1), (13, 1), (13, -1), (13, 3)])
@pytest.mark.parametrize("opset", [11, 17])
def test_softmax_of_both_meanings(since: int, axis: int, opset: int) -> None:
    same(*unary("QLinearSoftmax", np.uint8, opset, opset=since, axis=axis))


def test_reduce_mean() -> None:
    """ONNX Runtime has no CPU kernel: the reference is what its documentation says."""
    inputs, constants = two(np.int8, 0.004)
    for opset in (13, 18):
        for keep in (0, 1):
            mean = node(
                "QLinearReduceMean", ["x", "xs", "xz", "ys", "yz"], axes=[1, -1], keepdims=keep
            )
            proto = model([mean], {"x": inputs["x"]}, constants, {"y": np.int8}, opset)
            (got,) = onnx_reference(rewritten(proto), {"x": inputs["x"]})
            value = (inputs["x"].astype(np.float64) - 4) * 0.02
            steps = np.rint(value.mean((1, 3), keepdims=bool(keep)) / 0.004) + 3
            close(got, np.clip(steps, -128, 127).astype(np.int8))


@pytest.mark.parametrize("kind", TYPES)
def test_where(kind: str) -> None:
    dtype = TYPES[kind]
    inputs, constants = two(dtype, 0.03)
    inputs["c"] = np.random.default_rng(3).integers(0, 2, (5, 7)).astype(bool)
    names = ["c", "x", "xs", "xz", "v", "vs", "vz", "ys", "yz"]
    same(model([node("QLinearWhere", names)], inputs, constants, {"y": dtype}), inputs)


@pytest.mark.parametrize("op, places", [
    ("QLinearAdd", (2, 5, 7)), ("QLinearConcat", (4, 7)), ("QLinearSigmoid", (2, 4)),
    ("QLinearAveragePool", (2,)), ("QLinearLeakyRelu", (2, 4)), ("QLinearWhere", (3, 6)),
])  # fmt: skip
@pytest.mark.parametrize("kind", TYPES)
def test_zero_points_left_out_are_zero(op: str, places: tuple[int, ...], kind: str) -> None:
    """Against ONNX Runtime with zeros given: it refuses or crashes on some left out."""
    dtype = TYPES[kind]
    inputs, constants = two(dtype, UNARY.get(op, ({}, 0.07))[1])
    inputs["c"] = np.random.default_rng(3).integers(0, 2, (5, 7)).astype(bool)
    names = {
        "QLinearAdd": ["x", "xs", "xz", "v", "vs", "vz", "ys", "yz"],
        "QLinearConcat": ["ys", "yz", "x", "xs", "xz", "x", "vs", "vz"],
        "QLinearWhere": ["c", "x", "xs", "xz", "v", "vs", "vz", "ys", "yz"],
    }.get(op, ["x", "xs", "xz", "ys", "yz"])
    attributes = {"QLinearConcat": {"axis": 1}}.get(op, UNARY.get(op, ({}, 0))[0])
    given = ["zero" if i in places else name for i, name in enumerate(names)]
    absent = ["" if i in places else name for i, name in enumerate(names)]
    while not absent[-1]:
        absent.pop()
    used = {k: v for k, v in inputs.items() if k in names}
    full, short = (
        model([node(op, n, **attributes)], used, constants, {"y": dtype}) for n in (given, absent)
    )
    (want,) = onnx_reference(full, used)
    (got,) = onnx_reference(rewritten(short), used)
    close(got, want)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("per_column", [True, False])
@pytest.mark.parametrize("op", ["DynamicQuantizeMatMul", "MatMulIntegerToFloat"])
def test_products_of_dynamic_scale(op: str, per_column: bool, bias: bool, tmp_path: Path) -> None:
    inputs = {"x": np.random.default_rng(0).standard_normal((2, 5, 7)).astype(np.float32)}
    scales = np.linspace(0.004, 0.02, 6, dtype=np.float32)
    constants = {
        "w": ints(np.int8, 7, 6, seed=1), "ws": scales if per_column else scales[2],
        "wz": np.arange(6, dtype=np.int8) if per_column else np.int8(-3),
        "b": np.linspace(-1, 1, 6, dtype=np.float32),
    }  # fmt: skip
    last = ["b"] if bias else []
    nodes = [node(op, ["x", "w", "ws", "wz", *last])]
    if op == "MatMulIntegerToFloat":
        nodes = [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="dynamic"),
            node(op, ["q", "w", "s", "ws", "z", "wz", *last]),
        ]
    proto = model(nodes, inputs, constants, {"y": np.float32})
    (want,) = onnx_reference(proto, inputs)
    (got,) = onnx_reference(rewritten(proto), inputs)
    assert np.ptp(want) > 1
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    if bias and per_column:
        loaded, results = imported(proto, tmp_path, inputs)
        np.testing.assert_allclose(results[0], want, rtol=1e-5, atol=1e-5)
        assert "quantised" in {source.name for source in loaded.sources.values()}


@pytest.mark.parametrize("kind", TYPES)
def test_quantising_operators_of_onnx_runtime(kind: str) -> None:
    inputs = {"x": np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)}
    scales = np.linspace(0.01, 0.03, 5, dtype=np.float32)
    constants = {"s": scales, "z": np.full(5, zero(TYPES[kind])), "one": scales[:1]}
    nodes = [
        helper.make_node(op, [x, "s", "z"], [y], name=y, domain=MS, axis=1)
        for op, x, y in (("QuantizeLinear", "x", "q"), ("DequantizeLinear", "q", "d"))
    ]
    nodes.append(helper.make_node("QuantizeLinear", ["d", "one"], ["y"], name="last", domain=MS))
    proto = model(nodes, inputs, constants, {"q": TYPES[kind], "y": np.uint8})
    graph = same(proto, inputs, 1.0)
    assert [n.name for n in graph.node] == ["q", "d", "last"]
    assert not any(n.domain for n in graph.node)


def test_moving_operators_are_written_on_floats() -> None:
    """With the scale of their input, the numbers stay."""
    proto, inputs = conv()
    proto.graph.node[0].output[0] = "c"
    proto.graph.node.extend([
        helper.make_node("MaxPool", ["c"], ["p"], name="pool", kernel_shape=[2, 2]),
        helper.make_node("Pad", ["p", "pads", "xz"], ["e"], name="pad"),
        helper.make_node("Transpose", ["e"], ["t"], name="turn", perm=[0, 2, 3, 1]),
        helper.make_node("Split", ["t"], ["y", "r"], name="cut", axis=3),
        helper.make_node("Pad", ["r", "pads"], ["w2"], name="pad0"),
    ])  # fmt: skip
    pads = numpy_helper.from_array(np.array([0, 0, 1, 0, 0, 0, 0, 2]), "pads")
    proto.graph.initializer.append(pads)
    proto.graph.output.append(helper.make_tensor_value_info("w2", TensorProto.UINT8, None))
    new = rewritten(proto)
    for got, want in zip(onnx_reference(new, inputs), onnx_reference(proto, inputs), strict=True):
        close(got, want)
    floats = [n for n in new.graph.node if "antizeLinear" not in n.op_type]
    assert [n.name for n in floats] == ["conv1_quant", "pool", "pad", "turn", "cut", "pad0"]
    made = {output: n.op_type for n in new.graph.node for output in n.output}
    assert {made[n.input[0]] for n in floats} == {"DequantizeLinear"}


def test_names_stay_unique() -> None:
    """Where the graph already has a name that would be derived, another is taken."""
    inputs, constants = two(np.uint8, 0.05)
    taken = {"x_dequantized": np.float32(1), "y_float": np.float32(2)}
    names = ["x", "xs", "xz", "x", "xs", "xz", "ys", "yz"]
    first = node("QLinearAdd", names, "x_DequantizeLinear")
    second = node("QLinearMul", ["y", "ys", "yz", "x", "xs", "xz", "ys", "yz"], "second")
    second.output[0] = "z"
    proto = model(
        [first, second], {"x": inputs["x"]}, constants | taken, {"z": np.uint8, "y": np.uint8}
    )
    graph = same(proto, {"x": inputs["x"]})
    for made in (
        [n.name for n in graph.node],
        [o for n in graph.node for o in n.output] + [i.name for i in graph.initializer],
    ):
        assert [name for name, count in Counter(made).items() if count > 1] == []
    assert kinds(graph).count("DequantizeLinear") == 2
