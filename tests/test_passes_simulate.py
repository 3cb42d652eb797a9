"""The simulator: float networks as ONNX Runtime, int8 layers as explicit integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import helper

from tests.network_plans import assert_same, host, inputs_of, network_of
from tests.random_networks import networks
from tvmx.ir import Activation, Implementation, LayerChoice, Plan
from tvmx.numerics import QuantParams
from tvmx.passes._quantise import tie
from tvmx.passes._simulate import Simulator
from tvmx.testing.models import conv_model, graph_model, onnx_reference

Array = Any
make = helper.make_node
NAMES = {"dense": "NC", "conv2d": "NCHW", "depthwise_conv2d": "NCHW"}


def implementation(op: str, precision: str = "int8", sparsity: str = "dense") -> Implementation:
    layout = NAMES[op]
    return Implementation(
        template="t", layout=layout, data_layout=layout, precision=precision, sparsity=sparsity
    )  # type: ignore[arg-type]


def simulator_of(proto: onnx.ModelProto) -> Simulator:
    return Simulator(network_of(proto), host())


def all_int8(simulator: Simulator) -> dict[int, Implementation]:
    return {la.index: implementation(la.op) for la in simulator.network.graph.layers}


def params_for(values: dict[int, Array]) -> dict[int, QuantParams]:
    return {v: QuantParams.from_range(float(a.min()), float(a.max())) for v, a in values.items()}


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks())
def test_float_run_is_what_onnx_runtime_computes(proto: onnx.ModelProto) -> None:
    simulator = simulator_of(proto)
    calls = [inputs_of(proto, seed) for seed in range(2)]
    values = simulator.run([np.stack([c[name] for c in calls]) for name in calls[0]])
    outputs = simulator.outputs(values)
    for index, call in enumerate(calls):
        assert_same([out[index] for out in outputs], onnx_reference(proto, call))


def mixed_model(batch: int = 1) -> onnx.ModelProto:
    """Convolutions (grouped, depthwise, strided, dilated), both pools, concat, add, dense."""
    rng = np.random.default_rng(3)

    def weight(*shape: int) -> Array:
        scale = np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 1
        return (rng.standard_normal(shape) / scale).astype(np.float32)

    nodes = [
        make("Conv", ["x", "w1", "b1"], ["c1"], name="one", pads=[1, 0, 2, 1], strides=[2, 1]),
        make("Relu", ["c1"], ["r1"]),
        make("Conv", ["r1", "w2"], ["d"], name="deep", pads=[1, 1, 1, 1], group=12),
        make("Conv", ["r1", "w3"], ["g"], name="group", pads=[2, 2, 2, 2], dilations=[2, 2],
             group=2),
        make("Add", ["d", "g"], ["s"], name="sum"),
        make("MaxPool", ["s"], ["m"], kernel_shape=[2, 3], strides=[1, 2], pads=[0, 1, 1, 1]),
        make("AveragePool", ["r1"], ["a"], kernel_shape=[2, 3], strides=[1, 2], pads=[0, 1, 1, 1]),
        make("Concat", ["m", "a"], ["k"], axis=1),
        make("Conv", ["k", "w4"], ["p"], name="point"),
        make("GlobalAveragePool", ["p"], ["mean"]),
        make("Flatten", ["mean"], ["f"]),
        make("Gemm", ["f", "w5", "b5"], ["y"], name="dense", transB=1),
    ]  # fmt: skip
    weights = {
        "w1": weight(12, 5, 3, 2), "b1": weight(12), "w2": weight(12, 1, 3, 3),
        "w3": weight(12, 6, 3, 3), "w4": weight(7, 24, 1, 1), "w5": weight(3, 7), "b5": weight(3),
    }  # fmt: skip
    outputs = {"y": None, "p": None, "k": None}
    return graph_model(nodes, {"x": (batch, 5, 9, 8)}, outputs, weights)


@pytest.mark.parametrize("batch", [1, 2])
def test_operators_on_constants_tuples_and_more(batch: int) -> None:
    """Split makes a tuple, LRN and softmax have no blocked form, the second output no layer."""
    weights = {
        "w": np.random.default_rng(0).standard_normal((6, 4, 1, 1)).astype(np.float32),
        "halves": np.array([2, 4]),
        "c": np.linspace(-1, 1, 6, dtype=np.float32).reshape(1, 6, 1, 1),
    }  # fmt: skip
    nodes = [
        make("Conv", ["x", "w"], ["a"], name="conv"),
        make("Split", ["a", "halves"], ["left", "right"], axis=1),
        make("LRN", ["right"], ["n"], size=3),
        make("Concat", ["n", "left"], ["k"], axis=1),
        make("Softmax", ["k"], ["s"], axis=1),
        make("Mul", ["s", "c"], ["y"]),
        make("Transpose", ["left"], ["z"], perm=[0, 2, 3, 1]),
    ]
    proto = graph_model(nodes, {"x": (batch, 4, 5, 3)}, {"y": None, "z": None}, weights)
    simulator = simulator_of(proto)
    calls = [inputs_of(proto, seed) for seed in range(3)]
    outputs = simulator.outputs(simulator.run([np.stack([c["x"] for c in calls])]))
    for index, call in enumerate(calls):
        assert_same([out[index] for out in outputs], onnx_reference(proto, call))


def test_several_calls_are_one_by_one_also_in_int8() -> None:
    simulator = simulator_of(mixed_model(2))
    x = np.random.default_rng(1).standard_normal((3, 2, 5, 9, 8)).astype(np.float32)
    together = simulator.run([x])
    params = tie(simulator.network.graph, params_for(together))
    changed = simulator.rerun(together, all_int8(simulator), params)
    for call in range(3):
        alone = simulator.run([x[call : call + 1]])
        for value, array in alone.items():
            np.testing.assert_allclose(together[value][call : call + 1], array, atol=1e-5)
        # From the same float values: their last bit may differ with the number of calls.
        own = {v: a[call : call + 1] for v, a in together.items()}
        for value, array in simulator.rerun(own, all_int8(simulator), params).items():
            np.testing.assert_array_equal(changed[value][call : call + 1], array)


def test_rerun_with_nothing_changed_is_identical() -> None:
    simulator = simulator_of(mixed_model())
    x = np.random.default_rng(1).standard_normal((2, 1, 5, 9, 8)).astype(np.float32)
    values = simulator.run([x])
    exact = {la.index: implementation(la.op, "f32") for la in simulator.network.graph.layers}
    for choices in ({}, exact):
        again = simulator.rerun(values, choices, {})
        assert all(again[v] is values[v] for v in values)


def test_rerun_changes_only_what_lies_behind() -> None:
    simulator = simulator_of(mixed_model())
    x = np.random.default_rng(1).standard_normal((2, 1, 5, 9, 8)).astype(np.float32)
    values = simulator.run([x])
    deep = next(la for la in simulator.network.graph.layers if la.name == "deep")
    again = simulator.rerun(values, {deep.index: implementation(deep.op)}, params_for(values))
    same = {v for v in values if again[v] is values[v]}
    node = next(n for n in simulator.network.graph.nodes if n.layer == deep.index)
    behind = {node.output}
    for later in simulator.network.graph.nodes:
        if behind & set(later.inputs):
            behind.add(later.output)
    assert same == set(values) - behind
    assert len(behind) > 3


def integers(
    x: Array, weight: Array, bias: Array | None, data: QuantParams, out: QuantParams, *,
    strides: tuple[int, int], pads: tuple[int, ...], groups: int = 1,
    clip: tuple[float, float] = (-np.inf, np.inf),
) -> Array:  # fmt: skip
    """An int8 convolution by the rules in tvmx.numerics, with loops over Python-exact int64."""
    q = np.clip(np.rint(x * np.float32(1 / data.scale)) + data.zero_point, -128, 127)
    q = np.pad(q.astype(np.int64) - data.zero_point, [(0, 0), (0, 0), pads[0::2], pads[1::2]])
    largest = np.abs(weight).reshape(len(weight), -1).max(1)
    scale = (largest / 127).astype(np.float32)
    w = np.rint(weight / scale[:, None, None, None]).astype(np.int64)
    (kh, kw), per = weight.shape[2:], len(weight) // groups
    rows = (q.shape[2] - kh) // strides[0] + 1
    columns = (q.shape[3] - kw) // strides[1] + 1
    acc = np.zeros((len(x), len(weight), rows, columns), np.int64)
    for o in range(len(weight)):
        first = o // per * weight.shape[1]
        for i in range(rows):
            for j in range(columns):
                top, left = i * strides[0], j * strides[1]
                window = q[:, first : first + weight.shape[1], top : top + kh, left : left + kw]
                acc[:, o, i, j] = (window * w[o]).sum(axis=(1, 2, 3))
    accumulator = np.float64(data.scale) * scale
    if bias is not None:
        acc += np.rint(bias / accumulator).astype(np.int64)[:, None, None]
    multiplier = (accumulator / out.scale).astype(np.float32)
    scaled = acc.astype(np.float32) * multiplier[:, None, None]
    low, high = (np.clip(np.rint(c / out.scale), -999, 999) for c in clip)
    low, high = max(low, -128 - out.zero_point), min(high, 127 - out.zero_point)
    return np.rint(np.clip(scaled, low, high)).astype(np.float32) * np.float32(out.scale)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd": {"pads": [0, 1, 2, 1], "strides": [2, 1], "kernel": (3, 2), "relu": True, "batch": 2},
    "many channels": {"in_channels": 130, "size": (4, 5)},  # more products than float32 sums up
    "groups": {"in_channels": 6, "out_channels": 9, "group": 3, "bias": False},
    "depthwise": {"in_channels": 5, "out_channels": 5, "group": 5, "pads": [1, 1, 1, 1]},
    "large kernel": {"in_channels": 1, "out_channels": 2, "size": (35, 35), "kernel": (34, 33)},
    "one pixel": {"in_channels": 17, "size": (1, 1), "kernel": (1, 1), "out_channels": 3},
}


@pytest.mark.parametrize("case", CASES)
def test_int8_layer_against_integers(case: str) -> None:
    how = CASES[case]
    proto = conv_model(**how)
    simulator = simulator_of(proto)
    (x,) = inputs_of(proto).values()
    x[0, 0, 0, 0] = 30.0  # saturates
    values = simulator.run([np.stack([x, -x])])
    data, out = QuantParams.from_range(-2.5, 3.0), QuantParams.from_range(-2.0, 1.5)
    choice = {0: implementation("depthwise_conv2d" if case == "depthwise" else "conv2d")}
    # The layer must be int8 throughout: 0 is the input, 1 the output.
    after = simulator.rerun(values, choice, {0: data, 1: out})
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in proto.graph.initializer}
    for call, sign in enumerate((1, -1)):
        wanted = integers(
            sign * x, weights["w"], weights.get("b"), data, out,
            strides=tuple(how.get("strides", (1, 1))), pads=tuple(how.get("pads", (0, 0, 0, 0))),
            groups=how.get("group", 1), clip=(0, np.inf) if how.get("relu") else (-np.inf, np.inf),
        )  # fmt: skip
        np.testing.assert_array_equal(after[1][call], wanted)
        assert len(np.unique(wanted)) > 1


def qdq(name: str, params: QuantParams) -> tuple[list[Any], dict[str, Array]]:
    """Quantise and dequantise the tensor ``name``, as ``name_q``."""
    constants = {
        f"{name}_s": np.float32(params.scale), f"{name}_z": np.array(params.zero_point, np.int8),
    }  # fmt: skip
    with_zero = [f"{name}_s", f"{name}_z"]
    nodes = [
        make("QuantizeLinear", [name, *with_zero], [f"{name}_i"]),
        make("DequantizeLinear", [f"{name}_i", *with_zero], [f"{name}_q"]),
    ]
    return nodes, constants


@pytest.mark.parametrize("residual", [False, True])
def test_int8_layer_against_onnx_runtime_qdq(residual: bool) -> None:
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((8, 8, 3, 3)).astype(np.float32) / 8
    bias = rng.standard_normal(8).astype(np.float32)
    conv = make("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1])
    tail = [make("Add", ["c", "x"], ["s"])] if residual else []
    last = "s" if residual else "c"
    plain = graph_model(
        [conv, *tail, make("Relu", [last], ["y"])], {"x": (2, 8, 6, 7)}, {"y": None},
        {"w": weight, "b": bias},
    )  # fmt: skip
    simulator = simulator_of(plain)
    x = rng.standard_normal((1, 2, 8, 6, 7)).astype(np.float32)
    values = simulator.run([x])
    assert len(values) == 2
    params = params_for(values)
    after = simulator.rerun(values, {0: implementation("conv2d")}, params)[1][0]

    scale = (np.abs(weight).reshape(8, -1).max(1) / 127).astype(np.float32)
    before, constants = qdq("x", params[0])
    behind, more = qdq("y", params[1])
    constants |= more | {
        "w_i": np.rint(weight / scale[:, None, None, None]).astype(np.int8), "w_s": scale,
        "w_z": np.zeros(8, np.int8), "b": bias,
    }  # fmt: skip
    weights = make("DequantizeLinear", ["w_i", "w_s", "w_z"], ["w"], axis=0)
    conv.input[0] = "x_q"
    if residual:
        tail[0].input[1] = "x_q"
    nodes = [*before, weights, conv, *tail, make("Relu", [last], ["y"]), *behind]
    reference = graph_model(nodes, {"x": (2, 8, 6, 7)}, {"y_q": None}, constants)
    (wanted,) = onnx_reference(reference, {"x": x[0]})
    steps = np.rint(np.abs(after - wanted) / params[1].scale)
    assert steps.max() <= 1
    assert (steps == 0).mean() > 0.98


def test_int8_network_stays_near_the_float_one() -> None:
    simulator = simulator_of(mixed_model(2))
    x = np.random.default_rng(1).standard_normal((4, 2, 5, 9, 8)).astype(np.float32)
    values = simulator.run([x])
    params = tie(simulator.network.graph, params_for(values))
    after = simulator.rerun(values, all_int8(simulator), params)
    for got, want in zip(simulator.outputs(after), simulator.outputs(values), strict=True):
        assert got.shape == want.shape
        error = np.sqrt(np.mean(np.square(got - want)) / np.mean(np.square(want)))
        assert 0 < error < 0.08
    # Concat and pools took int8 and made int8: every element is on the grid of the output.
    k = simulator.network.graph.outputs[2]
    steps = after[k] / np.float32(params[k].scale)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)


def test_sparse_layer_is_the_float_one_with_pruned_weights() -> None:
    proto = conv_model(20, 8, (5, 6), (1, 1), bias=True)
    simulator = simulator_of(proto)
    (x,) = inputs_of(proto).values()
    values = simulator.run([x[None]])
    after = simulator.rerun(values, {0: implementation("conv2d", "f32", "4x1@50")}, {})
    weight = next(i for i in proto.graph.initializer if i.name == "w")
    pruned = onnx.numpy_helper.to_array(weight).copy()
    strength = np.square(pruned[:, :, 0, 0]).reshape(2, 4, 20).sum(1)  # block rows, columns
    weakest = np.argsort(strength, axis=None)[:20]
    for row, column in zip(*np.unravel_index(weakest, strength.shape), strict=True):
        pruned[4 * row : 4 * row + 4, column] = 0
    weight.CopyFrom(onnx.numpy_helper.from_array(pruned, "w"))
    assert_same([after[1][0]], onnx_reference(proto, {"x": x}))


def test_expected_outputs_of_a_plan() -> None:
    proto = conv_model(5, 8, (6, 5), pads=[1, 1, 1, 1])
    simulator = simulator_of(proto)
    (layer,) = simulator.network.graph.layers
    (x,) = inputs_of(proto).values()
    values = simulator.run([x[None]])
    params = params_for(values)
    choice = LayerChoice(
        layer=layer.name, workload=layer.workload.digest, implementation=implementation("conv2d"),
        config={},
    )  # fmt: skip
    plan = Plan(
        model=simulator.network.model.digest, target="host", choices=(choice,),
        activations=tuple(
            Activation(value=v, scale=p.scale, zero_point=p.zero_point) for v, p in params.items()
        ),
    )  # fmt: skip
    (got,) = simulator.expected(plan, [x])
    wanted = simulator.rerun(values, {0: choice.implementation}, params)[1][0]
    np.testing.assert_array_equal(got, wanted)
    assert not np.array_equal(got, values[1][0])
