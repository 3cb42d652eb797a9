"""int8 layers that end in float: float outputs, and biases that are added behind the scale."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tests import test_schedules_smmla as arm
from tests.mixed_plans import params_of
from tests.network_plans import execute, host, inputs_of, narrow, network_of, registry
from tests.qdq_models import QdqModel
from tvmx._resources import schedules_dir
from tvmx.explore._walk import estimate_arena, possible_conversions
from tvmx.ir import Conv2dWorkload, DenseWorkload, Epilogue, Plan
from tvmx.numerics import Requantise, requantise
from tvmx.passes import Network, Simulator, baseline_plan, choose, int8_plan, lower
from tvmx.targets import Target, load_target
from tvmx.templates import ScheduleTemplate, load_template
from tvmx.testing.models import graph_model, onnx_reference
from tvmx.testing.templates import evaluate_template, odd_workloads

Workload = Conv2dWorkload | DenseWorkload
Array = np.ndarray[Any, Any]
SHAPE = (1, 3, 17, 19)


# numbers


def exactly(x: float) -> Fraction:
    return Fraction(float(x))


def nearest(got: Array, want: list[Fraction]) -> bool:
    """Whether float32 numbers are the exact ones, rounded once."""
    half = [exactly(s) / 2 for s in np.spacing(np.abs(got))]
    return all(abs(exactly(g) - w) <= h for g, w, h in zip(got, want, half, strict=True))


def how(count: int, **fields: Any) -> Requantise:
    rng = np.random.default_rng(3)
    base = {
        "multiplier": rng.uniform(1e-4, 2e-2, count).astype(np.float32), "data_zero_point": 4,
        "offset": rng.normal(0, 30, count).astype(np.float32), "out_zero_point": 0,
        "low": -128, "high": 127,
    }  # fmt: skip
    return Requantise(**{**base, **fields})


def test_sums_in_real_units_are_rounded_once() -> None:
    record = how(600, float_out=True, low=-np.inf, high=np.inf)
    assert record.offset is not None
    sums = np.random.default_rng(1).integers(-(2**23), 2**23, 600)
    got = requantise(sums[None], record)[0]
    assert got.dtype == np.float32
    triples = zip(sums, record.multiplier, record.offset, strict=True)
    assert nearest(got, [int(s) * exactly(m) + exactly(b) for s, m, b in triples])
    clipped = requantise(sums[None], how(600, float_out=True, low=0.0, high=np.inf))
    np.testing.assert_array_equal(clipped[0], np.maximum(got, 0))


def test_a_float_bias_keeps_its_fraction() -> None:
    """0.4 of a step of the sums, and the sums' steps are large: int32 would lose it."""
    record = how(1, multiplier=np.array([0.5], np.float32), offset=np.array([0.2], np.float32))
    sums = np.array([[0], [1], [2], [3], [-1]])
    assert requantise(sums, record)[:, 0].tolist() == [0, 1, 1, 2, 0]
    moved = how(1, multiplier=np.array([0.5], np.float32), offset=np.array([0.2], np.float32),
                residual_factor=1.0, residual_offset=-0.25)  # fmt: skip
    residual = np.array([[0], [0], [0], [0], [7]], np.int8)
    assert requantise(sums, moved, residual)[:, 0].tolist() == [0, 0, 1, 1, 6]


@pytest.mark.parametrize(
    "fields",
    [{"rounding": "upward", "float_out": True}, {"rounding": "gemmlowp", "float_bias": True},
     {"float_out": True, "float_bias": True}],
)  # fmt: skip
def test_what_does_not_go_together(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="float"):
        Epilogue(bias=True, **fields)


def test_digests_of_other_layers_are_as_before() -> None:
    layer = DenseWorkload(batch=1, in_features=8, out_features=8, dtype="int8")
    assert "float" not in layer.canonical().replace("float32", "")
    ends = layer.variant("int8", float_out=True)
    assert (ends.out_dtype, layer.out_dtype) == ("float32", "int8")
    assert ends.digest != layer.digest
    assert ends.describe() == "dense 8-8 float-out int8"


# kernels


def named(name: str) -> ScheduleTemplate:
    return load_template(name, schedules_dir() / f"{name}.py")


def ending(workload: Workload, kind: str) -> Workload:
    if kind == "output":
        return workload.variant("int8", float_out=True)
    fields = {name: getattr(workload, name) for name in type(workload).model_fields}
    epilogue = workload.epilogue.model_copy(update={"float_bias": True})
    return type(workload).model_validate(fields | {"dtype": "int8", "epilogue": epilogue})


def cases(name: str, kind: str, target: Target) -> list[Workload]:
    """Odd layers that a template supports: one with a residual, one without."""
    template = named(name)
    made = [ending(w, kind) for w in odd_workloads(template.op)]
    made = [w for w in made if template.supports(w, target) is None]
    random.Random(f"{name} {kind}").shuffle(made)
    picked = [
        [w for w in made if w.epilogue.residual is residual][:1] for residual in (True, False)
    ]
    return [w for some in picked for w in some]


@pytest.mark.parametrize("kind", ["output", "bias"])
@pytest.mark.parametrize("name", ["conv2d_int8", "dense_int8", "depthwise_int8", "depthwise_vnni"])
def test_kernels_are_exact(name: str, kind: str) -> None:
    template = named(name)
    if name == "depthwise_vnni" and "+avx512vnni" not in host().features:
        pytest.skip("this machine has no AVX-512 VNNI")
    # The contract's tests check float outputs on this machine.
    for target in (narrow(),) if kind == "output" else (host(), narrow()):
        assert len(cases(name, kind, target)) == 2
        for workload in cases(name, kind, target):
            assert evaluate_template(template, workload, target).absolute == 0, workload.describe()


@pytest.mark.parametrize("kind", ["output", "bias"])
@pytest.mark.parametrize("workload", [arm.ODD[0], arm.DENSE[1]], ids=lambda w: w.describe())
def test_matrix_products_are_exact(
    workload: Workload, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = arm.load(f"{workload.op}_smmla")
    names: dict[str, Any] = type(template).supports.__globals__
    monkeypatch.setitem(names, "smmla", arm.spelt_out)
    monkeypatch.setitem(names, "has_mmla", lambda _: True)
    assert evaluate_template(template, ending(workload, kind), narrow()).absolute == 0


@pytest.mark.parametrize("board", ["rpi4", "rpi5", "orion-o6"])
def test_every_board_has_a_kernel(board: str) -> None:
    target = load_target(board)
    for op in ("conv2d", "dense"):
        for kind in ("output", "bias"):
            plain = [w for w in odd_workloads(op) if registry().legal(w.variant("int8"), target)]
            assert len(plain) >= 7
            for workload in plain:
                legal = registry().legal(ending(workload, kind), target)
                assert legal, (workload.describe(), kind)


# networks


def compare(network: Network, wanted: list[Array], x: Array, plan: Plan | None = None,
            target: Target | None = None) -> list[Array]:  # fmt: skip
    """Built and run: the simulation but for float sums, ``wanted`` as close as float sums are."""
    target = target or host()
    plan = plan or baseline_plan(network, registry(), target)
    outputs = execute(lower(network, plan, registry(), target).mod, target, [x])
    expected = Simulator(network, host()).expected(plan, [x])
    for got, same, want in zip(outputs, expected, wanted, strict=True):
        np.testing.assert_allclose(got, same, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
        assert np.ptp(want) > 0.9, "a constant would prove nothing"
    return outputs


def heads() -> onnx.ModelProto:
    """int8 to float in every kind of layer; one output in int8 that a float one is added to."""
    m = QdqModel(np.int8)
    x = m.pair(m.input(*SHAPE), 0.03, 3)
    a = m.pair(m.conv(x, (16, 3, 3, 3), strides=[2, 2], pads=[1] * 4), 0.05, -7)
    m.output(m.op("Relu", m.conv(a, (20, 16, 1, 1))))
    m.output(m.op("Softmax", m.conv(a, (16, 1, 3, 3), group=16, pads=[1] * 4), axis=1))
    b = m.op("Relu", m.op("Add", m.conv(a, (16, 16, 3, 3), pads=[1] * 4), a))
    m.output(b)
    m.output(m.op("Add", m.conv(a, (16, 16, 1, 1)), b))
    pooled = m.op("GlobalAveragePool", m.pair(b, 0.05, -100))
    m.output(m.dense(m.pair(m.op("Flatten", pooled), 0.05, -100), 10, 16))
    return m.proto()


@pytest.mark.parametrize("target", [host(), narrow()], ids=["host", "4 lanes"])
def test_stated_layers_without_an_int8_output(target: Target) -> None:
    proto = heads()
    network = network_of(proto)
    x = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    layers = network.graph.layers
    assert [la.workload.dtype for la in layers] == ["int8"] * 6
    assert sum(la.workload.epilogue.float_out for la in layers) == 5
    compare(network, onnx_reference(proto, {"x": x}), x, target=target)


def test_stated_layers_that_no_template_covers() -> None:
    proto = heads()
    network = network_of(proto)
    x = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    whole = baseline_plan(network, registry(), host())
    # Two remain: the last bits of a float sum would move what is quantised behind them.
    kept = tuple(whole.choices[index] for index in (0, 3))
    plan = whole.model_copy(update={"choices": kept})
    compare(network, onnx_reference(proto, {"x": x}), x, plan)


def test_every_conversion_and_the_arena_are_foreseen() -> None:
    network = network_of(heads())
    options = {la.index: [i for _, i in registry().implementations(la.workload, host())]
               for la in network.graph.layers}  # fmt: skip
    assert all(i.stated and i.exact for legal in options.values() for i in legal)
    foreseen = {c.key for c in possible_conversions(network.graph, options)}
    rng = random.Random(1)
    for _ in range(3):
        chosen = {index: rng.choice(legal) for index, legal in options.items()}
        choices = [
            choose(registry().get(chosen[la.index].template), la, host(),
                   implementation=chosen[la.index])
            for la in network.graph.layers
        ]  # fmt: skip
        plan = Plan(model=network.model.digest, target=host().name, choices=tuple(choices))
        lowered = lower(network, plan, registry(), host())
        assert {c.key for c in lowered.conversions} <= foreseen
        assert estimate_arena(network.graph, chosen) > 0


def test_a_template_that_does_not_know_float_outputs_is_not_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    template = registry().get("dense_int8").template
    stated = DenseWorkload(batch=1, in_features=8, out_features=8, dtype="int8")
    other = stated.variant("int8", float_out=True)
    assert [e.name for e in registry().legal(other, host())] == ["dense_int8"]
    monkeypatch.setattr(type(template), "float_epilogue", False)
    assert registry().legal(other, host()) == []
    assert [e.name for e in registry().legal(stated, host())] == ["dense_int8"]
    model = stated.variant("float32")
    found = registry().implementations(model, host(), float_out=True)
    assert [i.float_out for _, i in found if i.precision == "int8"] == [False]


def classifier() -> onnx.ModelProto:
    """A float network whose last layers only float reads: logits, and a head that is reshaped."""
    rng = np.random.default_rng(4)

    def normal(*shape: int) -> Array:
        fan_in = int(np.prod(shape[1:]))
        return (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], pads=[1] * 4, name="stem"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["h"], name="head"),
        helper.make_node("Reshape", ["h", "flat"], ["boxes"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"], transB=1, name="logits"),
        helper.make_node("Softmax", ["logits"], ["y"]),
    ]
    weights = {
        "w1": normal(32, 3, 3, 3), "b1": normal(32, 1)[:, 0], "w2": normal(12, 32, 1, 1),
        "w3": 5 * normal(50, 32), "b3": normal(50, 1)[:, 0], "flat": np.array([1, -1]),
    }  # fmt: skip
    outputs = {"boxes": (1, 12 * 81), "y": (1, 50), "logits": (1, 50)}
    return graph_model(nodes, {"x": (1, 3, 9, 9)}, outputs, weights)


def test_last_layers_of_a_float_network_write_float_in_int8_plans() -> None:
    proto = classifier()
    network = network_of(proto)
    assert [network.graph.layers[i].name for i in sorted(network.graph.read_in_float)] == [
        "head", "logits",
    ]  # fmt: skip
    feeds = inputs_of(proto)
    x = feeds["x"]
    simulator = Simulator(network, host())
    params = params_of(simulator, [x])
    plan = int8_plan(network, registry(), host(), params)
    ends = {c.layer: c.implementation.float_out for c in plan.choices}
    assert ends == {"stem": False, "head": True, "logits": True}
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    lowered = lower(network, plan, registry(), host())
    got = execute(lowered.mod, host(), [x])
    for one, want in zip(got, simulator.expected(plan, [x]), strict=True):
        np.testing.assert_allclose(one, want, rtol=1e-5, atol=1e-6)
    calls = np.random.default_rng(6).standard_normal((16, *x.shape)).astype(np.float32)
    values = simulator.run([calls])
    wanted = simulator.outputs(values)
    errors = []
    for float_out in (True, False):
        choices = {
            la.index: plan.choice(la.name).implementation.model_copy(
                update={"float_out": float_out and la.name != "stem"}
            )
            for la in network.graph.layers
        }
        found = simulator.outputs(simulator.rerun(values, choices, params))
        errors.append([np.square(a - b).mean() for a, b in zip(found, wanted, strict=True)])
    (boxes, _, logits), (rounded_boxes, _, rounded_logits) = errors
    assert boxes < 0.95 * rounded_boxes and logits < 0.95 * rounded_logits


# biases


class FloatBias(QdqModel):
    """Biases are float constants, and no whole numbers of the sums' steps."""

    def bias(self, data: str, weight: str, channels: int) -> str:
        return self._constant(self._rng.normal(0, 0.5, channels).astype(np.float32))


def test_float_biases_are_added_in_float() -> None:
    """Within one step of a float computation at every element, and mostly equal."""
    m = FloatBias(np.int8)
    x = m.pair(m.input(*SHAPE), 0.03, 3)
    a = m.pair(m.conv(x, (16, 3, 3, 3), pads=[1] * 4), 0.05, -7)
    b = m.pair(m.op("Relu", m.op("Add", m.conv(a, (16, 16, 1, 1)), a)), 0.06, -128)
    m.output(a)
    m.output(b)
    proto = m.proto()
    network = network_of(proto)
    assert [la.workload.epilogue.float_bias for la in network.graph.layers] == [True, True]
    data = np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32)
    plan = baseline_plan(network, registry(), host())
    outputs = execute(lower(network, plan, registry(), host()).mod, host(), [data])
    expected = Simulator(network, host()).expected(plan, [data])
    wanted = onnx_reference(proto, {"x": data})
    for got, same, want, step in zip(outputs, expected, wanted, (0.05, 0.06), strict=True):
        np.testing.assert_allclose(got, same, rtol=1e-6, atol=1e-6)
        distance = np.abs(got - want) / step
        assert distance.max() <= 1.001
        assert (distance < 0.01).mean() >= 0.999


def test_biases_of_whole_steps_stay_integers() -> None:
    m = QdqModel(np.int8)
    x = m.pair(m.input(*SHAPE), 0.03, 3)
    m.output(m.pair(m.conv(x, (16, 3, 3, 3)), 0.05, -7))
    (layer,) = network_of(m.proto()).graph.layers
    assert layer.workload.epilogue == Epilogue(bias=True)
