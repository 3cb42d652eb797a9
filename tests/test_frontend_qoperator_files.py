"""Quantised ONNX models that are wrong: one clear message that names the node."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.qoperator_models import ANY, MS, UNARY, conv, imported, model, node, same, two, unary
from tvmx.errors import CorruptModelError, ModelError, UnsupportedOpError
from tvmx.frontends import check_model, load_model, model_digest
from tvmx.frontends._onnx_prepare import prepare
from tvmx.testing.models import onnx_reference


def test_digest_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(conv()[0].SerializeToString())
    assert load_model(path).digest == model_digest(path)


def test_light_check_needs_no_tvm(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(conv()[0].SerializeToString())
    code = (
        "import sys; from tvmx.frontends import check_model\n"
        f"print(check_model({str(path)!r})[0].dtype, 'tvm' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["uint8", "False"]


def refused(proto: onnx.ModelProto, folder: Path, kind: type[Exception] = CorruptModelError) -> Any:
    """The error of the light check; the import says the same."""
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(kind) as caught:
        check_model(path)
    with pytest.raises(kind) as again:
        load_model(path)
    assert str(again.value) == str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("xs", np.float32(0), "'xs', of 0.0"), ("xs", np.float32("nan"), "'xs', of nan"),
        ("ys", np.float32(-1), "'ys', of -1.0"), ("ws", np.full(4, np.inf, np.float32), "inf"),
        ("ws", np.ones(3, np.float32), r"'ws', of shape \(3,\), not one value or 4"),
        ("xs", np.ones(2, np.float32), r"'xs', of shape \(2,\), not one value"),
        ("wz", np.zeros(3, np.int8), r"'wz', of shape \(3,\)"), ("xz", np.int8(0), "UINT8.*INT8"),
        ("xs", np.float16(1), "float16"), ("yz", np.int32(0), "type int32"),
        ("w", np.zeros((4, 6), np.int8), r"weight, 'w', of shape \(4, 6\)"),
        ("b", np.zeros(3, np.int32), r"bias, 'b', of shape \(3,\)"),
        ("b", np.zeros(4, np.float32), "bias, 'b', that is not int32"),
        ("ws", np.full(4, 3e38, np.float32), "beyond float32"),
    ],
)  # fmt: skip
def test_wrong_constants(name: str, value: Any, message: str, tmp_path: Path) -> None:
    proto, _ = conv()
    for tensor in proto.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), name))
        elif tensor.name == "xs" and message == "beyond float32":
            tensor.CopyFrom(numpy_helper.from_array(np.float32(5), "xs"))
    error = refused(proto, tmp_path, ModelError)
    assert re.search(message, str(error)), error
    assert "node 'conv1_quant' (QLinearConv)" in str(error)
    assert isinstance(error, CorruptModelError) == ("float16" not in message)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"input": ["x", "xs", "xz", "w"]}, "has 4 inputs, not 8 to 9"),
        ({"input": ["x", "", "xz", "w", "ws", "wz", "ys", "yz"]}, "has no input 1"),
        ({"input": ["q", "xs", "xz", "w", "ws", "wz", "ys", "yz"]}, "reads 'q'"),
        ({"output": ["y", "z"]}, "has 2 outputs"),
    ],
)
def test_wrong_nodes(change: dict[str, list[str]], message: str, tmp_path: Path) -> None:
    proto, _ = conv()
    for field, names in change.items():
        proto.graph.node[0].ClearField(field)
        getattr(proto.graph.node[0], field).extend(names)
    assert f"node 'conv1_quant' (QLinearConv) {message}" in str(refused(proto, tmp_path))


def test_any_input_may_be_missing(tmp_path: Path) -> None:
    """Every node cut short anywhere is a ModelError, or means zero points left out."""
    for op in (*UNARY, "QLinearAdd", "QLinearWhere", "QGemm", "QLinearConcat", "QLinearMatMul",
               "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "ConvInteger", "QLinearMul",
               "QLinearReduceMean", "QuantizeLinear", "DequantizeLinear"):  # fmt: skip
        for count in range(10):
            inputs, constants = two(np.uint8, 0.1)
            names = ["x", "xs", "xz", "v", "vs", "vz", "ys", "yz", "xs", "xz"][:count]
            proto = model([node(op, names)], inputs, constants, {"y": np.uint8})
            try:
                prepare(proto, ANY)
            except ModelError as error:
                assert "quantised" in str(error)


def test_scale_that_the_network_computes(tmp_path: Path) -> None:
    proto, _ = conv()
    kept = [i for i in proto.graph.initializer if i.name != "xs"]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    proto.graph.input.append(helper.make_tensor_value_info("xs", TensorProto.FLOAT, []))
    error = refused(proto, tmp_path, ModelError)
    assert "node 'conv1_quant' (QLinearConv) has a scale, 'xs', that the network computes" in str(
        error
    )


def test_scales_in_constant_nodes() -> None:
    proto, inputs = conv()
    (held,) = [i for i in proto.graph.initializer if i.name == "xs"]
    constant = helper.make_node("Constant", [], ["xs"], name="scale", value_float=0.03)
    proto.graph.initializer.remove(held)
    proto.graph.node.insert(0, constant)
    same(proto, inputs)


def test_channels_last_is_refused(tmp_path: Path) -> None:
    proto, _ = unary("QLinearAveragePool", np.uint8, channels_last=1)
    error = refused(proto, tmp_path, ModelError)
    assert "node 'quantised' (QLinearAveragePool) is in channels-last layout" in str(error)


def test_other_operators_of_that_domain_are_refused_by_name(tmp_path: Path) -> None:
    proto, _ = conv()
    proto.graph.node.append(helper.make_node("QAttention", ["y"], ["z"], name="odd", domain=MS))
    error = refused(proto, tmp_path, UnsupportedOpError)
    assert error.ops == {"com.microsoft::QAttention": ["odd"]}
    assert "QDQ" in error.hint


# constants and quantisation of the standard domain


@pytest.mark.parametrize(
    "attribute, shape",
    [("value_float", ()), ("value_floats", (3,)), ("value_int", ()), ("value_ints", (3,))],
)
def test_numbers_in_constant_nodes(attribute: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    value: Any = 3 if attribute.startswith("value_int") else 2.5
    value = [value, -value, 4] if shape else value
    nodes = [
        helper.make_node("Constant", [], ["c"], name="number", **{attribute: value}),
        helper.make_node("Cast", ["c"], ["f"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "f"], ["y"], name="product"),
    ]
    inputs = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    proto = model(nodes, inputs, {}, {"y": np.float32})
    _, (got,) = imported(proto, tmp_path, inputs)
    np.testing.assert_array_equal(got, onnx_reference(proto, inputs)[0])


@pytest.mark.parametrize(
    "code, attributes, message",
    [
        (TensorProto.INT4, {}, "element type INT4"),
        (TensorProto.FLOAT8E4M3FN, {}, "element type FLOAT8E4M3FN"),
        (TensorProto.BFLOAT16, {}, "element type BFLOAT16"),
        (TensorProto.INT8, {"block_size": 2, "axis": 1}, "in blocks of 2"),
    ],
)
@pytest.mark.parametrize("op", ["QuantizeLinear", "DequantizeLinear"])
def test_quantisation_that_cannot_be_imported(
    op: str, code: int, attributes: dict[str, int], message: str, tmp_path: Path
) -> None:
    scale = np.ones((2, 2), np.float32) if attributes else np.float32(1)
    inputs = {"x": np.zeros((2, 4), np.float32)}
    proto = model(
        [helper.make_node(op, ["x", "s", "z"], ["y"], name="odd", **attributes)],
        inputs, {"s": scale}, {"y": np.float32}, 21,
    )  # fmt: skip
    dims, graph = np.shape(scale), proto.graph
    graph.initializer.append(
        helper.make_tensor("z", code, dims, np.zeros(int(np.prod(dims)), np.float32))
    )
    if op == "DequantizeLinear":
        graph.node[0].input[0] = "w"
        graph.initializer.append(helper.make_tensor("w", code, [2, 4], np.zeros(8, np.float32)))
    graph.output[0].type.tensor_type.elem_type = 1 if op == "DequantizeLinear" else code
    error = refused(proto, tmp_path, ModelError)
    assert f"node 'odd' ({op}) is" in str(error)
    assert message in str(error)
