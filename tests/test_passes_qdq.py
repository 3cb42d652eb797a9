"""Quantised models: integer layers with the model's own numbers, against ONNX Runtime's."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import onnx
import pytest

from tests.network_plans import execute, host, narrow, network_of, registry
from tests.qdq_models import QdqModel
from tvmx.errors import BuildError
from tvmx.explore._walk import estimate_arena, possible_conversions
from tvmx.ir import Plan
from tvmx.passes import (
    Network,
    Simulator,
    baseline_plan,
    choose,
    equalisation,
    int8_plan,
    lower,
)
from tvmx.search import GraphBorderWalk
from tvmx.targets import Target
from tvmx.testing.models import onnx_reference

Array = np.ndarray[Any, Any]


def onnxruntime(
    proto: onnx.ModelProto, inputs: dict[str, Array], integer: bool = True
) -> list[Array]:
    """ONNX Runtime with all its optimisations, which make ``integer`` operators, or with none."""
    import onnxruntime as ort

    if not integer:
        return onnx_reference(proto, inputs)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(out) for out in session.run(None, inputs)]


def noise(shape: Any, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def stated(network: Network) -> list[str]:
    return [la.name for la in network.graph.layers if la.workload.dtype == "int8"]


def run(network: Network, inputs: list[Array], plan: Plan | None = None,
        target: Target | None = None) -> list[Array]:  # fmt: skip
    """Built and run; the simulation must give the same, but for the last bits of float sums."""
    target = target or host()
    plan = plan or baseline_plan(network, registry(), target)
    lowered = lower(network, plan, registry(), target)
    outputs = execute(lowered.mod, target, inputs)
    for got, want in zip(outputs, Simulator(network, host()).expected(plan, inputs), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    return outputs


def compare(
    proto: onnx.ModelProto, steps: list[float], shape: Any, integer: bool = True
) -> Network:
    """Outputs at most one step (of ``steps``) from ONNX Runtime's at 99.9 % of the elements."""
    network, x = network_of(proto), noise(shape)
    outputs, wanted = run(network, [x]), onnxruntime(proto, {"x": x}, integer)
    for got, want, step in zip(outputs, wanted, steps, strict=True):
        assert got.shape == want.shape
        distance = np.abs(got.astype(np.float64) - want.astype(np.float64)) / step
        assert (distance <= 1.001).mean() >= 0.999
        assert np.ptp(want.astype(np.float64)) > 20 * step, "a constant would prove nothing"
    return network


def small(activation: Any = np.uint8, **conv: Any) -> onnx.ModelProto:
    """A stem, a residual block, depthwise, a concat of unlike scales, pools and a classifier."""
    m = QdqModel(activation)
    x = m.pair(m.input(1, 3, 17, 19), 0.03, 3)
    a = m.op("Relu", m.conv(x, (20, 3, 3, 3), strides=[2, 2], pads=[1, 0, 1, 2], **conv))
    a = m.pair(a, 0.02, -128)
    b = m.pair(m.conv(a, (20, 20, 1, 1), **conv), 0.05, 10)
    s = m.pair(m.op("Relu", m.op("Add", a, b)), 0.04, -128)
    d = m.pair(m.conv(s, (20, 1, 3, 3), group=20, pads=[1] * 4, **conv), 0.06, -3)
    c = m.pair(m.op("Concat", s, d, axis=1), 0.05, -20)
    p = m.pair(m.op("MaxPool", c, kernel_shape=[3, 3], strides=[2, 2]), 0.05, -20)
    q = m.pair(m.op("AveragePool", p, kernel_shape=[2, 2], pads=[1, 0, 0, 1]), 0.03, -10)
    g = m.pair(m.op("GlobalAveragePool", q), 0.01, -40)
    f = m.pair(m.op("Flatten", g), 0.01, -40)
    m.output(m.pair(m.dense(f, 11, 40), 0.01, 5))
    return m.proto()


@pytest.mark.parametrize("activation", [np.uint8, np.int8])
@pytest.mark.parametrize(
    "conv", [{}, {"axis": None}, {"axis": None, "dtype": np.uint8, "zero": 128}]
)
def test_every_layer_is_integer_arithmetic(activation: Any, conv: dict[str, Any]) -> None:
    network = compare(small(activation, **conv), [0.01], (1, 3, 17, 19))
    assert len(stated(network)) == len(network.graph.layers) == 4
    floats = [n.op for n in network.graph.nodes if n.layer is None and not n.int8]
    assert floats == ["quantise"], "only the input's"


def test_blocks_of_four_lanes() -> None:
    network, x = network_of(small()), noise((1, 3, 17, 19))
    (got,) = run(network, [x], baseline_plan(network, registry(), narrow()), narrow())
    np.testing.assert_allclose(got, onnxruntime(small(), {"x": x})[0], atol=0.0101)


def test_more_than_one_image() -> None:
    m = QdqModel(np.int8)
    x = m.pair(m.input(3, 5, 9, 7), 0.03, 3)
    m.output(m.pair(m.conv(x, (6, 5, 3, 3), pads=[1] * 4, dilations=[2, 1]), 0.05, 3))
    compare(m.proto(), [0.05], (3, 5, 9, 7))


@pytest.mark.parametrize("picks", range(3))
def test_any_template_and_layout_gives_the_same(picks: int) -> None:
    network, x = network_of(small()), noise((1, 3, 17, 19))
    rng, target, choices = random.Random(picks), host(), []
    for layer in network.graph.layers:
        options = registry().implementations(layer.workload, target)
        assert all(i.stated and i.exact and i.precision == "int8" for _, i in options)
        entry, implementation = rng.choice(options)
        config = rng.choice(entry.template.space(layer.workload, target).points())
        choices.append(choose(entry, layer, target, config, implementation))
    plan = Plan(model=network.model.digest, target=target.name, choices=tuple(choices))
    np.testing.assert_array_equal(run(network, [x], plan)[0], run(network, [x])[0])
    again = Plan.model_validate_json(plan.model_dump_json())
    assert again == plan and again.exact and again.digest == plan.digest


def test_one_plan_whatever_is_asked_for() -> None:
    """There is nothing to calibrate, to equalise or to turn back into float."""
    network = network_of(small())
    same = [baseline_plan(network, registry(), host()), int8_plan(network, registry(), host(), {})]
    assert same[0].choices == same[1].choices and same[0].exact
    assert equalisation(network) == ()


def test_a_weight_off_centre_stays_float() -> None:
    """u8 less its zero point leaves s8: the layer computes in float, between int8 neighbours."""
    m = QdqModel()
    x = m.pair(m.input(1, 4, 9, 9), 0.03, 3)
    a = m.pair(m.conv(x, (8, 4, 3, 3), axis=None, dtype=np.uint8, zero=100), 0.05)
    m.output(m.pair(m.conv(a, (8, 8, 1, 1)), 0.06))
    proto = m.proto()
    values = next(i for i in proto.graph.initializer if list(i.dims) == [8, 4, 3, 3])
    array = onnx.numpy_helper.to_array(values).copy()
    array.flat[0] = 255
    values.CopyFrom(onnx.numpy_helper.from_array(array, values.name))
    network = network_of(proto)
    assert [la.workload.dtype for la in network.graph.layers] == ["float32", "int8"]
    x1 = noise((1, 4, 9, 9))
    (want,) = onnxruntime(proto, {"x": x1})
    plan = baseline_plan(network, registry(), host())
    (got,) = execute(lower(network, plan, registry(), host()).mod, host(), [x1])
    assert (np.abs(got - want) <= 0.06 * 1.001).mean() >= 0.999


def test_float_operators_between_int8_layers() -> None:
    m = QdqModel()
    x = m.pair(m.input(1, 4, 9, 9), 0.03, 3)
    a = m.pair(m.conv(x, (8, 4, 3, 3)), 0.05)
    s = m.pair(m.op("Softmax", a, axis=1), 1 / 256, -128)
    m.output(m.pair(m.conv(s, (8, 8, 1, 1)), 0.06))
    m.output(m.op("Softmax", a, axis=1))
    network = compare(m.proto(), [0.06, 1 / 256], (1, 4, 9, 9))
    assert len(stated(network)) == 2


@pytest.mark.parametrize("activation", [np.uint8, np.int8])
def test_products_and_tables(activation: Any) -> None:
    """Squeeze and excite by a sigmoid, hard-swish, leaky rectifier: all of it int8 kernels."""
    m = QdqModel(activation)
    x = m.pair(m.input(2, 4, 9, 9), 0.03, 3)
    a = m.pair(m.conv(x, (20, 4, 3, 3)), 0.05, 5)
    three, six = m._constant(np.float32(3)), m._constant(np.float32(1 / 6))
    gate = m.op(
        "Clip", m.op("Add", a, three), m._constant(np.float32(0)), m._constant(np.float32(6))
    )
    h = m.pair(m.op("Mul", m.op("Mul", a, gate), six), 0.04, -100)
    s = m.pair(m.op("GlobalAveragePool", h), 0.02, -90)
    s = m.pair(m.conv(s, (20, 20, 1, 1)), 0.04, 0)
    s = m.pair(m.op("Sigmoid", s), 1 / 256, -128)
    e = m.pair(m.op("Mul", h, s), 0.03, -100)
    e = m.pair(m.conv(e, (6, 20, 1, 1)), 0.05, 1)
    e = m.pair(m.op("LeakyRelu", e, alpha=0.1), 0.04, -80)
    squared = m.pair(m.op("Mul", e, e), 0.05, -128)
    m.output(m.pair(m.op("Tanh", squared), 1 / 128, 0))
    network = compare(m.proto(), [1 / 128], (2, 4, 9, 9))
    others = [(n.op, n.int8) for n in network.graph.nodes if n.layer is None]
    assert others[1:] == [
        ("table", True), ("mean", True), ("table", True), ("multiply", True), ("table", True),
        ("table", True), ("table", True),
    ]  # fmt: skip


def test_values_read_in_float_as_well() -> None:
    """What Q and DQ round must be rounded for float readers, too."""
    m = QdqModel()
    raw = m.input(1, 4, 9, 9)
    x = m.pair(raw, 0.2, 3)
    a = m.pair(m.conv(x, (4, 4, 1, 1)), 0.05)
    m.output(m.op("Sub", a, x))
    m.output(m.op("Sub", raw, x))
    network = compare(m.proto(), [0.05, 0.001], (1, 4, 9, 9))
    kept = [n.int8 for n in network.graph.nodes if n.kind == "quantise"]
    assert kept == [True]


def test_layers_without_int8_output_read_int8_and_write_float() -> None:
    m = QdqModel()
    x = m.pair(m.input(2, 24), 0.03, 3)
    m.output(m.dense(x, 5, 24))
    network = compare(m.proto(), [1e-4], (2, 24))
    assert [la.workload.epilogue.float_out for la in network.graph.layers] == [True]
    assert len(stated(network)) == 1


def test_int8_inputs_and_outputs_of_the_network() -> None:
    m = QdqModel(np.uint8)
    x = m.dequantised(m.input8(1, 4, 9, 9), 0.03, 3)
    a = m.conv(x, (8, 4, 3, 3))
    q = m.quantised(a, 0.05, -7)
    m.output(q, np.uint8)
    m.output(m.op("Relu", m.dequantised(q, 0.05, -7)))
    proto = m.proto()
    network = network_of(proto)
    assert len(stated(network)) == 1
    data = np.random.default_rng(0).integers(0, 256, (1, 4, 9, 9)).astype(np.uint8)
    plan = baseline_plan(network, registry(), host())
    got = execute(lower(network, plan, registry(), host()).mod, host(), [data])
    want = onnxruntime(proto, {"x": data})
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_allclose(got[1], want[1], atol=1e-6)
    simulated = Simulator(network, host()).expected(plan, [data])
    np.testing.assert_array_equal(simulated[0], want[0])


def test_one_scale_after_another() -> None:
    m = QdqModel(np.int8)
    x = m.pair(m.input(1, 4, 9, 9), 0.03, 3)
    a = m.pair(m.pair(m.conv(x, (8, 4, 3, 3)), 0.05, 4), 0.11, -9)
    b = m.pair(m.op("Relu", a), 0.08, -128)
    m.output(m.pair(m.conv(b, (6, 8, 1, 1)), 0.1, 2))
    # With its optimisations ONNX Runtime makes one pair of two, and rounds but once.
    network = compare(m.proto(), [0.1], (1, 4, 9, 9), integer=False)
    assert [n.op for n in network.graph.nodes if n.layer is None] == ["quantise", "clip", "clip"]


def test_a_residual_without_a_pair_on_the_convolution() -> None:
    """Convolution, sum and clip under one pair: one kernel, its sum rounded once."""
    m = QdqModel(np.int8)
    x = m.pair(m.input(1, 8, 9, 9), 0.03, 3)
    a = m.pair(m.conv(x, (8, 8, 1, 1)), 0.05, 4)
    s = m.op("Relu", m.op("Add", m.conv(a, (8, 8, 3, 3), pads=[1] * 4), x))
    m.output(m.pair(s, 0.04, -128))
    network = compare(m.proto(), [0.04], (1, 8, 9, 9))
    assert network.graph.layers[1].workload.epilogue.describe() == "bias+add+relu"
    assert len(stated(network)) == 2


def test_costs_see_every_conversion() -> None:
    """Conversions that plans insert are among those that get measured."""
    network, target = network_of(small()), host()
    options = {la.index: [i for _, i in registry().implementations(la.workload, target)]
               for la in network.graph.layers}  # fmt: skip
    known = {c.key for c in possible_conversions(network.graph, options)}
    walk = GraphBorderWalk(network.graph, list(options), dict.fromkeys(known, 1.0))
    rng = random.Random(0)
    for _ in range(20):
        walk.reset()
        chosen = {index: rng.choice(legal) for index, legal in options.items()}
        for position, index in enumerate(options):
            walk.place(position, chosen[index])
        walk.finish()
        assert estimate_arena(network.graph, chosen) > 0


def test_a_float_layer_among_stated_ones_may_become_int8() -> None:
    m = QdqModel(np.int8)
    x = m.input(1, 8, 9, 9)
    first = m.op("Conv", x, m._constant(noise((8, 8, 1, 1)) / 3), name="first")
    a = m.pair(first, 0.05, 4)
    m.output(m.pair(m.conv(a, (6, 8, 1, 1)), 0.1, 2))
    network, target = network_of(m.proto()), host()
    assert [la.workload.dtype for la in network.graph.layers] == ["float32", "int8"]
    options = registry().implementations(network.graph.layers[0].workload, target)
    assert {i.precision for _, i in options} == {"f32", "int8"}
    plan = int8_plan(network, registry(), target, {})
    with pytest.raises(BuildError, match="has no scale and zero point"):
        lower(network, plan, registry(), target)
