"""Dynamic quantisation: ONNX Runtime's ``quantize_dynamic`` models as int8 layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.network_plans import execute, host, narrow, network_of, registry
from tests.test_passes_int8_ops import stored
from tests.test_passes_qdq import onnxruntime
from tvmx._tvm import build_module, tvm
from tvmx.explore._whole import as_reference
from tvmx.numerics import dynamic_params, dynamic_quantise
from tvmx.passes import Network, Simulator, baseline_plan, lower
from tvmx.passes._dynamic_kernels import range_kernel
from tvmx.targets import Target, load_target

Array = np.ndarray[Any, Any]
SHAPE = (1, 3, 12, 12)


def float_model() -> onnx.ModelProto:
    """A stem, depthwise, a block with a residual, pooling, two dense layers."""
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> Array:
        fan = int(np.prod(shape[1:]))
        return rng.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(fan))

    weights = {
        "w0": weight(20, 3, 3, 3), "b0": weight(20), "w1": weight(20, 1, 3, 3),
        "w2": weight(20, 20, 1, 1), "b2": weight(20), "w3": weight(20, 20, 3, 3),
        "f": weight(64, 20), "fb": weight(64), "g": weight(64, 10),
    }  # fmt: skip
    node, pads = helper.make_node, [1, 1, 1, 1]
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["a"], name="stem", pads=pads),
        node("Relu", ["a"], ["a1"]),
        node("Conv", ["a1", "w1"], ["b"], name="depthwise", group=20, pads=pads, strides=[2, 2]),
        node("Conv", ["b", "w2", "b2"], ["c"], name="point"),
        node("Relu", ["c"], ["c1"]),
        node("Conv", ["c1", "w3"], ["d"], name="block", pads=pads),
        node("Add", ["d", "b"], ["d1"]),
        node("Relu", ["d1"], ["d2"]),
        node("GlobalAveragePool", ["d2"], ["e"]),
        node("Flatten", ["e"], ["e1"]),
        node("Gemm", ["e1", "f", "fb"], ["h"], name="first", transB=1),
        node("Relu", ["h"], ["h1"]),
        node("MatMul", ["h1", "g"], ["y"], name="second"),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", 1, SHAPE)], [info("y", 1, [1, 10])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def quantised(folder: Path, **how: Any) -> onnx.ModelProto:
    """By ONNX Runtime's own tool."""
    from onnxruntime.quantization import quantize_dynamic

    source, out = folder / "float.onnx", folder / "dynamic.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(float_model()), source)
    quantize_dynamic(source, out, op_types_to_quantize=["Conv", "MatMul", "Gemm"], **how)
    return onnx.load(out)


def inputs(seed: int, spread: float = 1.0) -> Array:
    values = np.random.default_rng(seed).standard_normal(SHAPE) * spread
    return values.astype(np.float32)


def run(network: Network, target: Target, x: Array, without: int = 0) -> Array:
    """Built and run, which must equal the simulation; the first ``without`` layers unplanned."""
    plan = baseline_plan(network, registry(), target)
    plan = plan.model_copy(update={"choices": plan.choices[without:]})
    lowered = lower(network, plan, registry(), target)
    assert (lowered.hits, lowered.total) == (len(network.graph.layers) - without, lowered.total)
    (got,) = execute(lowered.mod, target, [x])
    (want,) = Simulator(network, host()).expected(plan, [x])
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-5 if without else 1e-7)
    return got


def close(got: Array, want: Array) -> None:
    """Far less than a step of u8 apart."""
    assert np.abs(got - want).max() <= 1e-4 * np.ptp(want)


EDGES = [
    [0.0, 0.0], [1.0, 3.0], [-4.0, -0.5], [1e-40, 0.0], [-1e-30, 1e-30], [5.0, 5.0],
    [-1.0, 1.0, 0.5, 2 / 255 * 0.5, 2 / 255 * 1.5], [-255.0, 0.0, -0.5, -1.5, -2.5],
]  # fmt: skip


@pytest.mark.parametrize("values", [*EDGES, list(np.random.default_rng(0).normal(0.3, 2, 5000))])
def test_numbers_are_those_of_onnxruntime(values: list[float]) -> None:
    info = helper.make_tensor_value_info
    x = np.array(values, np.float32)
    graph = helper.make_graph(
        [helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])], "g",
        [info("x", 1, [len(x)])], [info("q", 2, [len(x)]), info("s", 1, []), info("z", 2, [])],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    q, scale, zero = onnxruntime(proto, {"x": x})
    found = dynamic_params(x)
    assert found == (scale, int(zero) - 128)
    np.testing.assert_array_equal(dynamic_quantise(x, *found), q.astype(np.int32) - 128)


@pytest.mark.parametrize(
    ("shape", "form"),
    [
        (shape, form)
        for shape in [(2, 19, 7, 5), (1, 32, 60, 61), (1, 1, 1, 3), (3, 70)]
        for form in ["NCHW", "NCHW4c", "NCHW16c"]
        if len(shape) == 4 or form == "NCHW"
    ],
)
@pytest.mark.parametrize("offset", [0.0, 9.0, -9.0])
def test_ranges_do_not_see_lanes_without_a_channel(
    offset: float, shape: tuple[int, ...], form: str
) -> None:
    x = (np.random.default_rng(1).standard_normal(shape) + offset).astype(np.float32)
    func = range_kernel(shape, form, narrow()).with_attr("global_symbol", "f")
    compiled = build_module(tvm.IRModule({"f": func}), narrow())
    got = tvm.runtime.tensor(np.zeros(2, np.float32))
    compiled["f"](tvm.runtime.tensor(stored(x, form)), got)  # padding lanes hold 77
    assert tuple(got.numpy()) == dynamic_params(x)


@pytest.mark.parametrize(
    ("target", "per_channel", "spread"),
    [(host, False, 1.0), (host, True, 0.01), (narrow, False, 30.0)],
)
def test_models_of_onnxruntime(
    target: Any, per_channel: bool, spread: float, tmp_path: Path
) -> None:
    proto = quantised(tmp_path, per_channel=per_channel)
    network = network_of(proto)
    assert (network.dynamic_layers, network.integer_products_elsewhere) == (6, 0)
    assert [la.workload.dtype for la in network.graph.layers] == ["int8"] * 6
    assert [n.op for n in network.graph.nodes if n.op.startswith("relax.")] == [
        "relax.mean", "relax.reshape",
    ]  # fmt: skip
    x = inputs(1, spread)
    close(run(network, target(), x), onnxruntime(proto, {"x": x})[0])
    assert not as_reference(baseline_plan(network, registry(), target()), network.graph)


def test_an_input_of_zeros(tmp_path: Path) -> None:
    proto = quantised(tmp_path)
    x = np.zeros(SHAPE, np.float32)
    close(run(network_of(proto), host(), x), onnxruntime(proto, {"x": x})[0])


def test_what_no_template_covers_is_computed_on_the_same_numbers(tmp_path: Path) -> None:
    proto, x = quantised(tmp_path), inputs(0)
    close(run(network_of(proto), host(), x, without=4), onnxruntime(proto, {"x": x})[0])


def test_weights_beyond_int8_stay_in_int32(tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType

    proto, x = quantised(tmp_path, weight_type=QuantType.QUInt8), inputs(0)
    network = network_of(proto)
    assert network.dynamic_layers + network.integer_products_elsewhere == 6
    assert network.integer_products_elsewhere > 0
    simulated = Simulator(network, host())
    (got,) = (a[0] for a in simulated.outputs(simulated.run([x[None]])))
    close(got, onnxruntime(proto, {"x": x})[0])


def single(extra: list[Any] | None = None, outputs: dict[str, int] | None = None) -> Any:
    """One MatMulInteger, and its weight and scales."""
    rng = np.random.default_rng(3)
    w = rng.integers(-127, 128, (40, 24)).astype(np.int8)
    scales = rng.uniform(0.001, 0.01, 24).astype(np.float32)
    node = helper.make_node
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        node("MatMulInteger", ["q", "w", "z", "wz"], ["i"], name="product"),
        node("Cast", ["i"], ["f"], to=1),
        node("Mul", ["s", "ws"], ["both"]),
        node("Mul", ["f", "both"], ["y"]),
        *(extra or []),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", 1, [5, 40])],
        [info("y", 1, [5, 24]), *(info(n, t, None) for n, t in (outputs or {}).items())],
        [numpy_helper.from_array(a, n) for n, a in
         {"w": w, "wz": np.zeros((), np.int8), "ws": scales}.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 13)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8), w, scales


def test_sums_are_exact_integers() -> None:
    proto, w, scales = single()
    network = network_of(proto)
    assert network.dynamic_layers == 1
    x = np.random.default_rng(5).normal(1, 3, (5, 40)).astype(np.float32)
    low, high = min(x.min(), 0), max(x.max(), 0)
    step = np.float32((high - low) / np.float32(255))
    zero = int(np.rint(-low / step))
    q = np.clip(np.rint(x / step) + zero, 0, 255).astype(np.int64)
    whole = (q - zero) @ w.astype(np.int64)
    want = whole.astype(np.float32) * (step * scales)
    np.testing.assert_array_equal(run(network, host(), x), want)


def test_what_else_reads_the_scale_or_the_bytes_still_gets_them() -> None:
    """The operators of DynamicQuantizeLinear stay for them, beside the layer's own."""
    extra = [helper.make_node("Cast", ["q"], ["bytes"], to=1)]
    proto, _, _ = single(extra, {"s": 1, "bytes": 1})
    network = network_of(proto)
    assert network.dynamic_layers == 1
    x = np.random.default_rng(6).normal(-2, 1, (5, 40)).astype(np.float32)
    plan = baseline_plan(network, registry(), host())
    got = execute(lower(network, plan, registry(), host()).mod, host(), [x])
    for mine, other in zip(got, onnxruntime(proto, {"x": x}), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("board", ["rpi3b+", "rpi5"])
def test_arm_boards_have_the_same_kernels(board: str, tmp_path: Path) -> None:
    network, target = network_of(quantised(tmp_path)), load_target(board)
    plan = baseline_plan(network, registry(), target)
    lowered = lower(network, plan, registry(), target)
    assert (lowered.hits, lowered.total) == (6, 6)
    names = [var.name_hint for var in lowered.mod.functions]
    assert not [name for name in names if name.startswith(("conv2d_nchw", "matmul", "min", "max"))]
