"""Canonical form: right results against ONNX Runtime, and the forms that are promised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tvmx.frontends import load_model
from tvmx.ir import Model
from tvmx.passes._dataflow import const
from tvmx.testing.models import (
    conv_model,
    graph_model,
    multi_io_model,
    onnx_reference,
    residual_model,
)

RNG = np.random.default_rng(7)
make = helper.make_node


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def load(proto: onnx.ModelProto, tmp_path: Path, **shapes: tuple[int, ...]) -> Model:
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    return load_model(path, shapes)


def calls(model: Model) -> list[tuple[str, str, Any]]:
    """(operator, variable name, call) of every binding."""
    (block,) = model.mod["main"].body.blocks
    return [
        (getattr(getattr(b.value, "op", None), "name", type(b.value).__name__), b.var.name, b.value)
        for b in block.bindings
    ]


def ops(model: Model) -> list[str]:
    return [op.removeprefix("relax.").removeprefix("nn.") for op, _, _ in calls(model)]


def run(model: Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    import tvm
    from tvm import relax

    machine = relax.VirtualMachine(tvm.compile(model.mod, "llvm"), tvm.cpu())
    result = machine["main"](*(tvm.runtime.tensor(feeds[i.name]) for i in model.inputs))
    parts = list(result) if len(model.outputs) > 1 else [result]
    return [part.numpy() for part in parts]


def check(proto: onnx.ModelProto, tmp_path: Path, **shapes: tuple[int, ...]) -> Model:
    """Import, run through Relax's default build, compare with ONNX Runtime."""
    model = load(proto, tmp_path, **shapes)
    feeds = {i.name: normal(*i.shape) for i in model.inputs}
    expected = onnx_reference(proto, feeds)
    results = run(model, feeds)
    assert len(results) == len(expected) == len(model.outputs)
    for spec, result, want in zip(model.outputs, results, expected, strict=True):
        assert result.shape == want.shape == spec.shape
        assert np.ptp(want) > 1e-3, "a constant output would prove nothing"
        np.testing.assert_allclose(result, want, rtol=1e-4, atol=1e-5 * max(1, np.abs(want).max()))
    return model


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("group", [1, 2, 8])
def test_batch_norm_folds_into_convolution(tmp_path: Path, bias: bool, group: int) -> None:
    proto = conv_model(
        8, 8, bias=bias, batch_norm=True, relu=True, group=group, pads=[1, 0, 2, 1], strides=[2, 1]
    )
    model = check(proto, tmp_path)
    assert ops(model) == ["conv2d", "add", "relu"]
    call = calls(model)[0][2]
    assert [int(p) for p in call.attrs.padding] == [1, 0, 2, 1]
    assert tuple(calls(model)[1][2].args[1].value.shape) == (1, 8, 1, 1)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("size", [(9, 11), (8, 10)])
def test_auto_pad_convolution(tmp_path: Path, mode: str, size: tuple[int, int]) -> None:
    proto = conv_model(3, 5, size, (4, 3), auto_pad=mode, strides=[2, 2])
    assert ops(check(proto, tmp_path)) == ["conv2d", "add"]


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
def test_auto_pad_pools(tmp_path: Path, kind: str, mode: str) -> None:
    node = make(kind, ["x"], ["y"], auto_pad=mode, kernel_shape=[3, 2], strides=[2, 2])
    proto = graph_model([node], {"x": (1, 3, 9, 8)}, {"y": None})
    proto.graph.output[0].type.tensor_type.shape.SetInParent()
    for _ in range(4):
        proto.graph.output[0].type.tensor_type.shape.dim.add()
    assert len(ops(check(proto, tmp_path))) == 1


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 0, 1, 1]])
@pytest.mark.parametrize("size", [(8, 8), (7, 6)])
def test_pools_with_ceil_mode(
    tmp_path: Path, kind: str, include: int, pads: list[int], size: tuple[int, int]
) -> None:
    extra = {"count_include_pad": include} if kind == "AveragePool" else {}
    node = make(
        kind, ["x"], ["y"], kernel_shape=[3, 2], strides=[2, 2], pads=pads, ceil_mode=1, **extra
    )
    check(graph_model([node], {"x": (1, 3, *size)}, {"y": ("n", "c", "h", "w")}), tmp_path)


def test_residual_network(tmp_path: Path) -> None:
    model = check(residual_model(), tmp_path)
    assert ops(model) == [
        "conv2d", "add", "relu", "conv2d", "add", "relu", "conv2d", "add", "add", "relu",
        "conv2d", "clip", "max_pool2d", "mean", "reshape", "matmul", "add",
    ]  # fmt: skip
    anchors = {
        model.sources[name].name
        for op, name, _ in calls(model)
        if op.endswith(("conv2d", "matmul"))
    }
    assert anchors == {"stem", "a", "b", "depthwise", "fc"}
    assert model.sources["stem"].op == "Conv"
    assert model.sources["join"].op == "Add"


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    model = check(multi_io_model(), tmp_path)
    assert [i.name for i in model.inputs] == ["left", "right"]
    assert [(o.name, o.shape) for o in model.outputs] == [
        ("sum", (1, 6, 8, 8)), ("cat", (1, 12, 8, 8)), ("mean", (1, 4)),
    ]  # fmt: skip


def test_affine_chain_folds_into_convolution(tmp_path: Path) -> None:
    nodes = [
        make("Conv", ["x", "w"], ["a"], name="conv"),
        make("Mul", ["s", "a"], ["b"], name="scale"),
        make("Sub", ["b", "t"], ["c"], name="shift"),
        make("Div", ["c", "two"], ["d"], name="half"),
        make("Add", ["d", "one"], ["y"], name="plus"),
    ]
    weights = {"w": normal(6, 3, 3, 3), "s": normal(6, 1, 1), "t": normal(1, 6, 1, 1),
               "two": np.array(2, np.float32), "one": np.array([1], np.float32)}  # fmt: skip
    model = check(graph_model(nodes, {"x": (1, 3, 7, 6)}, {"y": (1, 6, 5, 4)}, weights), tmp_path)
    assert ops(model) == ["conv2d", "add"]
    assert model.sources["conv"].name == "conv"


def test_affine_not_folded_where_the_convolution_is_read_twice(tmp_path: Path) -> None:
    nodes = [
        make("Conv", ["x", "w"], ["a"], name="conv"),
        make("Mul", ["a", "s"], ["b"], name="scale"),
        make("Add", ["a", "b"], ["y"], name="join"),
    ]
    weights = {"w": normal(6, 3, 3, 3), "s": normal(6, 1, 1)}
    model = check(graph_model(nodes, {"x": (1, 3, 7, 6)}, {"y": (1, 6, 5, 4)}, weights), tmp_path)
    assert ops(model) == ["conv2d", "multiply", "add"]


def test_constant_over_pixels_is_no_bias(tmp_path: Path) -> None:
    nodes = [make("Conv", ["x", "w"], ["a"]), make("Mul", ["a", "m"], ["y"])]
    weights = {"w": normal(6, 3, 3, 3), "m": normal(1, 1, 5, 4)}
    model = check(graph_model(nodes, {"x": (1, 3, 7, 6)}, {"y": (1, 6, 5, 4)}, weights), tmp_path)
    assert ops(model) == ["conv2d", "multiply"]


def test_scale_before_convolution_folds_and_shift_stays(tmp_path: Path) -> None:
    nodes = [
        make("Sub", ["x", "mean"], ["a"]), make("Div", ["a", "std"], ["b"]),
        make("Conv", ["b", "w"], ["y"], pads=[1, 1, 1, 1]),
    ]  # fmt: skip
    weights = {"mean": normal(1, 3, 1, 1), "std": np.abs(normal(1, 3, 1, 1)) + 1,
               "w": normal(4, 3, 3, 3)}  # fmt: skip
    model = check(graph_model(nodes, {"x": (1, 3, 6, 6)}, {"y": (1, 4, 6, 6)}, weights), tmp_path)
    assert ops(model) == ["add", "conv2d"]


def test_batch_norm_alone_is_multiply_and_add(tmp_path: Path) -> None:
    node = make("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], name="bn", epsilon=1e-3)
    weights = {n: normal(3) for n in "sbm"} | {"v": np.abs(normal(3))}
    model = check(graph_model([node], {"x": (2, 3, 5, 4)}, {"y": (2, 3, 5, 4)}, weights), tmp_path)
    assert ops(model) == ["multiply", "add"]
    assert {model.sources[name].name for _, name, _ in calls(model)} == {"bn"}


def test_batch_norm_after_dense(tmp_path: Path) -> None:
    nodes = [
        make("Gemm", ["x", "w", "c"], ["a"], transB=1),
        make("BatchNormalization", ["a", "s", "b", "m", "v"], ["y"]),
    ]
    weights = {n: normal(5) for n in "sbmc"} | {"v": np.abs(normal(5)), "w": normal(5, 7)}
    model = check(graph_model(nodes, {"x": (2, 7)}, {"y": (2, 5)}, weights), tmp_path)
    assert ops(model) == ["matmul", "add"]


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("alpha, beta", [(1.0, 1.0), (0.5, -2.0)])
def test_gemm(tmp_path: Path, trans_a: int, trans_b: int, alpha: float, beta: float) -> None:
    node = make(
        "Gemm", ["x", "w", "c"], ["y"], transA=trans_a, transB=trans_b, alpha=alpha, beta=beta
    )
    weights = {"w": normal(5, 7) if trans_b else normal(7, 5), "c": normal(1, 5)}
    shape = (7, 3) if trans_a else (3, 7)
    model = check(graph_model([node], {"x": shape}, {"y": (3, 5)}, weights), tmp_path)
    assert ops(model) == ["permute_dims"] * trans_a + ["matmul", "add"]
    product = next(call for op, _, call in calls(model) if op == "relax.matmul")
    assert tuple(product.args[1].value.shape) == (7, 5)
    assert tuple(calls(model)[-1][2].args[1].value.shape) == (5,)


def test_stacked_rows_become_one_matrix_product(tmp_path: Path) -> None:
    node = make("MatMul", ["x", "w"], ["y"], name="fc")
    proto = graph_model([node], {"x": (2, 3, 7)}, {"y": (2, 3, 5)}, {"w": normal(7, 5)})
    model = check(proto, tmp_path)
    assert ops(model) == ["reshape", "matmul", "reshape"]
    assert model.sources["fc"].name == "fc"


def pad_then(
    reader: onnx.NodeProto, pads: list[int], value: float, *, before: str | None = None
) -> onnx.ModelProto:
    nodes = [make(before, ["x"], ["b"])] if before else []
    nodes += [make("Pad", ["b" if before else "x", "pads", "value"], ["p"], name="pad"), reader]
    weights = {
        "pads": np.array(pads),
        "value": np.array(value, np.float32),
        "w": normal(4, 3, 3, 3),
    }
    return graph_model(nodes, {"x": (1, 3, 8, 9)}, {"y": ("n", "c", "h", "w")}, weights)


CONV = make("Conv", ["p", "w"], ["y"], pads=[0, 1, 0, 0])
MAX = make("MaxPool", ["p"], ["y"], kernel_shape=[3, 3], strides=[2, 2])
AVERAGE = make("AveragePool", ["p"], ["y"], kernel_shape=[3, 3], strides=[2, 2])


@pytest.mark.parametrize(
    "proto, want",
    [
        (pad_then(CONV, [0, 0, 1, 2, 0, 0, 3, 0], 0.0), ["conv2d"]),
        (pad_then(CONV, [0, 0, 1, 2, 0, 0, 3, 0], 0.5), ["pad", "conv2d"]),
        (pad_then(MAX, [0, 0, 1, 2, 0, 0, 1, 0], 0.0), ["pad", "max_pool2d"]),
        (pad_then(MAX, [0, 0, 1, 2, 0, 0, 1, 0], 0.0, before="Relu"), ["relu", "max_pool2d"]),
        (
            pad_then(MAX, [0, 0, 4, 2, 0, 0, 1, 0], 0.0, before="Relu"),
            ["relu", "pad", "max_pool2d"],
        ),
        (pad_then(AVERAGE, [0, 0, 1, 1, 0, 0, 2, 0], 0.0), ["avg_pool2d"]),
        (pad_then(AVERAGE, [0, 1, 1, 1, 0, 0, 2, 0], 0.0), ["pad", "avg_pool2d"]),
    ],
)  # fmt: skip
def test_padding(tmp_path: Path, proto: onnx.ModelProto, want: list[str]) -> None:
    assert ops(check(proto, tmp_path)) == want


def test_reflect_padding_is_kept(tmp_path: Path) -> None:
    node = make("Pad", ["x", "pads"], ["y"], mode="reflect")
    pads = {"pads": np.array([0, 0, 1, 2, 0, 0, 2, 1])}
    check(graph_model([node], {"x": (1, 2, 6, 7)}, {"y": (1, 2, 9, 10)}, pads), tmp_path)


CLIPS = [
    (0.0, None, ["relu"]), (0.0, 6.0, ["clip"]), (-0.5, 0.5, ["clip"]), (None, 0.3, ["clip"]),
    (-0.2, None, ["clip"]),
]  # fmt: skip


@pytest.mark.parametrize("low, high, want", CLIPS)
def test_clip_by_attributes(
    tmp_path: Path, low: float | None, high: float | None, want: list[str]
) -> None:
    bounds = {k: v for k, v in (("min", low), ("max", high)) if v is not None}
    node = make("Clip", ["x"], ["y"], **bounds)
    proto = graph_model([node], {"x": (1, 3, 4, 5)}, {"y": (1, 3, 4, 5)}, opset=10)
    assert ops(check(proto, tmp_path)) == want


@pytest.mark.parametrize("low, high, want", [*CLIPS, (float("nan"), 0.3, ["clip"])])
def test_clip_by_inputs(
    tmp_path: Path, low: float | None, high: float | None, want: list[str]
) -> None:
    names = ["" if low is None else "low", "" if high is None else "high"]
    weights = {n: np.array(v, np.float32) for n, v in zip(names, (low, high), strict=True) if n}
    node = make("Clip", ["x", *names], ["y"])
    proto = graph_model([node], {"x": (1, 3, 4, 5)}, {"y": (1, 3, 4, 5)}, weights)
    assert ops(check(proto, tmp_path)) == want


def test_chained_clips_merge(tmp_path: Path) -> None:
    six = {"six": np.array(6, np.float32), "half": np.array(0.5, np.float32)}
    nodes = [
        make("Relu", ["x"], ["a"]), make("Relu", ["a"], ["b"]), make("Min", ["b", "six"], ["c"]),
        make("Max", ["half", "c"], ["y"]),
    ]  # fmt: skip
    model = check(graph_model(nodes, {"x": (1, 3, 4, 5)}, {"y": (1, 3, 4, 5)}, six), tmp_path)
    (only,) = calls(model)
    assert (float(only[2].args[1].value), float(only[2].args[2].value)) == (0.5, 6.0)


def test_clips_that_do_not_overlap_keep_their_order(tmp_path: Path) -> None:
    bounds = {"a": np.array(0.2, np.float32), "b": np.array(-0.2, np.float32)}
    nodes = [
        make("Max", ["x", "a"], ["c"]),
        make("Min", ["c", "b"], ["d"]),
        make("Add", ["d", "x"], ["y"]),
    ]
    check(graph_model(nodes, {"x": (1, 3, 4, 5)}, {"y": (1, 3, 4, 5)}, bounds), tmp_path)


def test_nothing_is_left_of_what_does_nothing(tmp_path: Path) -> None:
    weights = {"zero": np.array(0, np.float32), "one": np.array([1], np.float32),
               "shape": np.array([1, -1, 4, 5])}  # fmt: skip
    nodes = [
        make("Identity", ["x"], ["a"]), make("Dropout", ["a"], ["b"]),
        make("Add", ["b", "zero"], ["c"]), make("Mul", ["c", "one"], ["d"]),
        make("Reshape", ["d", "shape"], ["e"]), make("Concat", ["e"], ["f"], axis=1),
        make("Transpose", ["f"], ["g"], perm=[0, 2, 3, 1]),
        make("Transpose", ["g"], ["h"], perm=[0, 3, 1, 2]),
        make("Cast", ["h"], ["i"], to=1), make("Relu", ["i"], ["y"]),
    ]  # fmt: skip
    model = check(graph_model(nodes, {"x": (1, 3, 4, 5)}, {"y": (1, 3, 4, 5)}, weights), tmp_path)
    assert ops(model) == ["relu"]


def test_equal_operators_are_computed_once(tmp_path: Path) -> None:
    nodes = [
        make("Sigmoid", ["x"], ["a"]), make("Sigmoid", ["x"], ["b"]), make("Relu", ["x"], ["c"]),
        make("MaxPool", ["a"], ["d"], kernel_shape=[2, 2]),
        make("MaxPool", ["b"], ["e"], kernel_shape=[2, 2]),
        make("MaxPool", ["c"], ["f"], kernel_shape=[2, 2], strides=[1, 1]),
        make("Sum", ["d", "e", "f"], ["y"]),
    ]  # fmt: skip
    model = check(graph_model(nodes, {"x": (1, 3, 4, 5)}, {"y": (1, 3, 3, 4)}), tmp_path)
    assert sorted(ops(model)) == ["add", "add", "max_pool2d", "max_pool2d", "relu", "sigmoid"]


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [[2, 3], [-1, -2]])
def test_global_mean(tmp_path: Path, keepdims: int, axes: list[int]) -> None:
    node = make("ReduceMean", ["x"], ["y"], axes=axes, keepdims=keepdims)
    shape = (1, 6, 1, 1) if keepdims else (1, 6)
    model = check(graph_model([node], {"x": (1, 6, 4, 5)}, {"y": shape}), tmp_path)
    assert ops(model) == ["mean"] + ["reshape"] * (not keepdims)


def test_global_max_is_a_pool(tmp_path: Path) -> None:
    node = make("GlobalMaxPool", ["x"], ["y"])
    model = check(graph_model([node], {"x": (1, 6, 4, 5)}, {"y": (1, 6, 1, 1)}), tmp_path)
    assert ops(model) == ["max_pool2d"]


def test_shape_arithmetic_of_exporters_is_folded(tmp_path: Path) -> None:
    weights = {
        "zero": np.array(0),
        "axis": np.array([0]),
        "rest": np.array([-1]),
        "w": normal(60, 4),
    }
    nodes = [
        make("Shape", ["x"], ["s"]), make("Gather", ["s", "zero"], ["n"], axis=0),
        make("Unsqueeze", ["n", "axis"], ["n1"]), make("Concat", ["n1", "rest"], ["t"], axis=0),
        make("Reshape", ["x", "t"], ["f"]), make("MatMul", ["f", "w"], ["y"], name="fc"),
    ]  # fmt: skip
    proto = graph_model(nodes, {"x": ("batch", 3, 4, 5)}, {"y": ("batch", 4)}, weights)
    model = check(proto, tmp_path, x=(2, 3, 4, 5))
    assert ops(model) == ["reshape", "matmul"]


def test_constants_computed_by_nodes(tmp_path: Path) -> None:
    value = numpy_helper.from_array(np.array([0.5], np.float32))
    nodes = [
        make("ConstantOfShape", ["shape"], ["c"], value=value), make("Sin", ["t"], ["u"]),
        make("Mul", ["c", "u"], ["w"]), make("Conv", ["x", "w"], ["y"]),
    ]  # fmt: skip
    weights = {"shape": np.array([4, 3, 2, 2]), "t": normal(4, 3, 2, 2)}
    model = check(graph_model(nodes, {"x": (1, 3, 5, 5)}, {"y": (1, 4, 4, 4)}, weights), tmp_path)
    assert ops(model) == ["conv2d"]


def test_convolution_1d_keeps_its_operator_and_folds(tmp_path: Path) -> None:
    nodes = [
        make("Conv", ["x", "w"], ["a"], name="conv", pads=[1, 2]),
        make("BatchNormalization", ["a", "s", "b", "m", "v"], ["y"]),
    ]
    weights = {n: normal(5) for n in "sbm"} | {"v": np.abs(normal(5)), "w": normal(5, 3, 3)}
    model = check(graph_model(nodes, {"x": (1, 3, 9)}, {"y": (1, 5, 10)}, weights), tmp_path)
    assert ops(model) == ["conv1d", "add"]


def test_local_response_norm_and_split(tmp_path: Path) -> None:
    nodes = [
        make("LRN", ["x"], ["a"], size=3, alpha=0.5), make("Split", ["a", "s"], ["b", "c"], axis=1),
        make("Relu", ["b"], ["d"]), make("Concat", ["c", "d"], ["y"], axis=1),
    ]  # fmt: skip
    proto = graph_model(nodes, {"x": (1, 6, 4, 5)}, {"y": (1, 6, 4, 5)}, {"s": np.array([2, 4])})
    check(proto, tmp_path)


def test_output_that_is_an_input_or_another_output(tmp_path: Path) -> None:
    nodes = [
        make("Relu", ["x"], ["a"]),
        make("Identity", ["a"], ["b"]),
        make("Identity", ["x"], ["c"]),
    ]
    shape = (1, 2, 3, 3)
    model = check(graph_model(nodes, {"x": shape}, {"a": shape, "b": shape, "c": shape}), tmp_path)
    assert ops(model) == ["relu"]


def test_canonical_form_is_stable(tmp_path: Path) -> None:
    import tvm

    from tvmx.passes._canonicalise import canonicalise

    model = load(residual_model(), tmp_path)
    tvm.ir.assert_structural_equal(canonicalise(model.mod), model.mod)


def test_constants_keep_their_rank() -> None:
    for shape in ((), (1,), (2, 3)):
        assert tuple(const(np.zeros(shape, np.float32)).ty.shape.values) == shape
