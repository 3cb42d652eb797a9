"""Sensitivities and joint drops against brute force with ONNX Runtime and plain loops."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.network_plans import host, network_of
from tvmx.accuracy import (
    DEFAULT_METRIC,
    Metric,
    Samples,
    UserMetric,
    _batches,
    _sensitivity,
    calibrate,
    joint_drop,
    sensitivities,
    sensitivity_key,
)
from tvmx.errors import DataError
from tvmx.ir import Implementation
from tvmx.passes._simulate import Simulator
from tvmx.testing.models import graph_model, onnx_reference

Array = Any
make = helper.make_node
COUNT = 40
LAYERS = ("one", "two", "three")


def model(batch: int = 1, classes: int = 5) -> onnx.ModelProto:
    """conv 1x1 - relu - conv 3x3 - relu - mean - dense."""
    rng = np.random.default_rng(7)

    def weight(*shape: int) -> Array:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    nodes = [
        make("Conv", ["x", "one_w"], ["a"], name="one"),
        make("Relu", ["a"], ["b"]),
        make("Conv", ["b", "two_w"], ["c"], name="two", pads=[1, 1, 1, 1]),
        make("Relu", ["c"], ["d"]),
        make("GlobalAveragePool", ["d"], ["e"]),
        make("Flatten", ["e"], ["f"]),
        make("Gemm", ["f", "three_w"], ["y"], name="three", transB=1),
    ]
    weights = {
        "one_w": weight(8, 4, 1, 1), "two_w": weight(12, 8, 3, 3), "three_w": weight(classes, 12)
    }  # fmt: skip
    return graph_model(nodes, {"x": (batch, 4, 4, 4)}, {"y": None}, weights)


def implementation(layer: str, precision: str = "int8", sparsity: str = "dense") -> Implementation:
    layout = "NC" if layer == "three" else "NCHW"
    return Implementation(
        template="t", layout=layout, data_layout=layout, precision=precision, sparsity=sparsity
    )  # type: ignore[arg-type]


def options() -> dict[int, list[Implementation]]:
    """float, int8 twice (two layouts), and three levels of sparsity where it is possible."""
    found = {
        index: [implementation(layer, "f32"), implementation(layer)]
        for index, layer in enumerate(LAYERS)
    }
    found[0].append(found[0][1].model_copy(update={"layout": "NCHW16c", "template": "other"}))
    for index, layer in ((0, "one"), (2, "three")):
        found[index] += [implementation(layer, "f32", f"2x1@{n}") for n in (90, 50, 70)]
    return found


@dataclass
class Case:
    """A network with samples, ready to be asked."""

    proto: onnx.ModelProto
    labelled: bool = True
    metric: Metric = DEFAULT_METRIC
    results: list[tuple[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        network = network_of(self.proto)
        self.simulator = Simulator(network, host())
        self.specs = {spec.name: spec for spec in network.model.inputs}
        rng = np.random.default_rng(1)
        x = rng.standard_normal((COUNT, 4, 4, 4)).astype(np.float32)
        self.reference = self.outputs(model(), x)
        labels = np.where(rng.random(COUNT) < 0.8, self.reference.argmax(1), 0)
        self.samples = Samples({"x": x}, labels if self.labelled else None)
        self.params = calibrate(self.simulator, self.samples, self.specs, "minmax")

    @staticmethod
    def outputs(proto: onnx.ModelProto, x: Array) -> Array:
        return np.concatenate([onnx_reference(proto, {"x": row[None]})[0] for row in x])

    def points(self, **extra: Any) -> Any:
        return sensitivities(
            self.simulator, self.samples, self.specs, self.metric, self.params, options(),
            on_result=lambda key, points: self.results.append((key, points)),
            **({"budget_s": 60.0} | extra),
        )  # fmt: skip


def pruned(layer: str, level: int) -> onnx.ModelProto:
    """The model with the weakest 2x1 blocks of one layer's weights set to zero."""
    proto = model()
    tensor = next(t for t in proto.graph.initializer if t.name == f"{layer}_w")
    weight = numpy_helper.to_array(tensor).copy()
    blocks = []
    for row in range(0, len(weight), 2):
        for column in range(weight.shape[1]):
            block = weight[row : row + 2, column].astype(float)
            blocks.append((float((block**2).sum()), row, column))
    for _, row, column in sorted(blocks)[: len(blocks) * level // 100]:
        weight[row : row + 2, column] = 0
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    return proto


def brute_force(reference: Array, changed: Array, labels: Array | None) -> float:
    """The figure of tvmx.accuracy._sensitivity, sample by sample."""
    right = reference.argmax(1) if labels is None else labels

    def margins(outputs: Array) -> list[float]:
        return [
            float(row[r]) - max(float(v) for i, v in enumerate(row) if i != r)
            for row, r in zip(outputs, right, strict=True)
        ]

    before, after = margins(reference), margins(changed)
    moved = math.sqrt(sum((a - b) ** 2 for a, b in zip(after, before, strict=True)) / len(before))

    def kept(values: list[float]) -> float:
        return sum(0.5 * (1 + math.erf(m / (0.1 * moved) / math.sqrt(2))) for m in values)

    lost = 100 * (kept(before) - kept(after)) / len(before)
    return max(0.0, lost) + float(((changed - reference) ** 2).sum() / (reference**2).sum())


@pytest.mark.parametrize("labelled", [True, False])
def test_sparse_layers_against_brute_force(labelled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sensitivity, "HOPELESS", 1e9)
    case = Case(model(), labelled)
    found = case.points()
    assert found.samples == COUNT
    drops = []
    for layer in ("one", "three"):
        for level in (50, 70, 90):
            wanted = brute_force(
                case.reference, case.outputs(pruned(layer, level), case.samples.inputs["x"]),
                case.samples.labels,
            )  # fmt: skip
            points = found.points[f"{layer}|f32|2x1@{level}"]
            assert points == pytest.approx(wanted, rel=1e-3, abs=1e-4)
            drops.append(points)
    assert max(drops) > 2


def fake_quantised(layer: str, case: Case) -> Array:
    """Outputs with weights, input and output of one layer rounded to int8, in float."""
    proto = model()
    constants = list(proto.graph.initializer)
    nodes: dict[str, list[Any]] = {}
    graph = case.simulator.network.graph
    node = next(n for n in graph.nodes if n.layer == LAYERS.index(layer))
    ends = {"one": ("x", "b"), "two": ("b", "d"), "three": ("f", "y")}[layer]
    for tensor in constants:
        if tensor.name == f"{layer}_w":
            weight = numpy_helper.to_array(tensor)
            scale = np.abs(weight).reshape(len(weight), -1).max(1) / 127
            scale = scale.reshape(-1, *[1] * (weight.ndim - 1))
            tensor.CopyFrom(
                numpy_helper.from_array((np.rint(weight / scale) * scale).astype("f4"), tensor.name)
            )
    for original in proto.graph.node:
        renamed = [f"{n}_q" if n in ends else n for n in original.input]
        del original.input[:]
        original.input.extend(renamed)
    for name, value in zip(ends, (node.inputs[0], node.output), strict=True):
        p = case.params[value]
        constants += [
            numpy_helper.from_array(np.float32(p.scale), f"{name}_s"),
            numpy_helper.from_array(np.array(p.zero_point, np.int8), f"{name}_z"),
        ]
        form = [f"{name}_s", f"{name}_z"]
        nodes[name] = [
            make("QuantizeLinear", [name, *form], [f"{name}_i"]),
            make("DequantizeLinear", [f"{name}_i", *form], [f"{name}_q"]),
        ]
    order = nodes.get("x", [])
    for original in proto.graph.node:
        order = [*order, original, *nodes.get(original.output[0], [])]
    weights = {t.name: numpy_helper.to_array(t) for t in constants}
    last = "y_q" if layer == "three" else "y"
    changed = graph_model(order, {"x": (1, 4, 4, 4)}, {last: None}, weights)
    return case.outputs(changed, case.samples.inputs["x"])


@pytest.mark.parametrize("layer", ["one", "three"])
def test_int8_layers_against_fake_quantisation(layer: str) -> None:
    """Errors of the size that rounding weights and activations makes, and so few points."""
    case = Case(model())
    points = case.points().points[f"{layer}|int8|dense"]
    changed = fake_quantised(layer, case)
    wanted = brute_force(case.reference, changed, case.samples.labels)
    error = float(((changed - case.reference) ** 2).sum() / (case.reference**2).sum())
    assert 0 < error < 0.01
    assert points == pytest.approx(wanted, rel=0.05, abs=0.05)


def test_keys_shared_figures_and_ranking() -> None:
    case = Case(model())
    found = case.points().points
    names = {(i, o) for i, os in options().items() for o in os}
    assert set(found) == {sensitivity_key(LAYERS[i], o) for i, o in names}
    assert sensitivity_key("a", implementation("one")) == "a|int8|dense"
    for layer in LAYERS:
        assert found[f"{layer}|f32|dense"] == 0.0
        assert found[f"{layer}|int8|dense"] > 0.0  # the error breaks ties
    computed = [key for key, _ in case.results]
    assert len(computed) == len(set(computed)) == len(found) - 3
    assert not any(key.endswith("f32|dense") for key in computed)
    assert found["one|f32|2x1@50"] < found["one|f32|2x1@90"]
    assert dict(case.results).items() <= found.items()


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_joint_drop_of_a_plan(labelled: bool, batch: int) -> None:
    """Of two pruned layers together; 40 samples are no multiple of the batch of 3."""
    case = Case(model(batch), labelled)
    choices = {i: implementation(LAYERS[i], "f32", "2x1@70") for i in (0, 2)}
    found = joint_drop(
        case.simulator, case.samples, case.specs, DEFAULT_METRIC, case.params, choices
    )
    proto = pruned("one", 70)
    other = next(t for t in pruned("three", 70).graph.initializer if t.name == "three_w")
    next(t for t in proto.graph.initializer if t.name == "three_w").CopyFrom(other)
    changed = case.outputs(proto, case.samples.inputs["x"]).argmax(1)
    right = case.samples.labels if labelled else case.reference.argmax(1)
    wanted = np.mean(case.reference.argmax(1) == right) - np.mean(changed == right)
    assert found == pytest.approx(100 * wanted)
    assert found != 0.0
    nothing = {0: implementation("one", "f32")}
    ask = (case.simulator, case.samples, case.specs, DEFAULT_METRIC, case.params, nothing)
    assert joint_drop(*ask) == 0.0


def negative_error(outputs: Array, labels: Array | None) -> float:
    """A metric that knows nothing of classes."""
    assert labels is not None
    return 50.0 - float(np.abs(outputs[:, 0] - labels).mean())


def test_metric_of_the_users() -> None:
    case = Case(model(), metric=UserMetric("m:f", negative_error))
    found = case.points().points
    changed = case.outputs(pruned("one", 70), case.samples.inputs["x"])
    labels = case.samples.labels
    lost = negative_error(case.reference, labels) - negative_error(changed, labels)
    error = float(((changed - case.reference) ** 2).sum() / (case.reference**2).sum())
    assert found["one|f32|2x1@70"] == pytest.approx(max(0.0, lost) + min(error, 1), rel=1e-3)


def test_known_figures_are_kept_and_resumed() -> None:
    case = Case(model())
    whole = case.points().points
    done = dict(case.results[:4]) | {"two|int8|dense": 12.25}
    case.results.clear()
    again = case.points(known=done)
    assert set(dict(case.results)).isdisjoint(done)
    assert again.points == whole | done
    case.results.clear()
    nothing = case.points(known=again.points)
    assert (nothing.points, nothing.samples, case.results) == (again.points, 0, [])


def test_budget_bounds_the_samples() -> None:
    case = Case(model())
    assert case.points(budget_s=0.0).samples == _sensitivity.FEWEST_SAMPLES
    assert case.points(budget_s=0.0, fewest_samples=9).samples == 9
    assert case.points(budget_s=600.0).samples == COUNT
    assert case.points(budget_s=600.0, most_samples=7).samples == 7


def test_many_chunks_give_the_same_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(model(3))
    whole = case.points().points
    monkeypatch.setattr(_batches, "CHUNK_BYTES", 1)  # one call at a time
    chunked = case.points().points
    assert chunked.keys() == whole.keys()
    for key, points in whole.items():
        assert chunked[key] == pytest.approx(points, rel=1e-3, abs=1e-4)


def test_higher_levels_of_a_hopeless_layer_are_not_simulated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case(model())
    honest = case.points().points
    monkeypatch.setattr(_sensitivity, "HOPELESS", honest["one|f32|2x1@50"])
    found = case.points().points
    levels = [found[f"one|f32|2x1@{n}"] for n in (50, 70, 90)]
    assert levels == [honest["one|f32|2x1@50"]] * 3
    assert found["one|int8|dense"] == honest["one|int8|dense"]


def test_output_without_classes() -> None:
    case = Case(model(classes=1), labelled=False)
    with pytest.raises(DataError, match="no classes to decide between"):
        case.points()
    with pytest.raises(DataError, match="no classes to decide between"):
        joint_drop(case.simulator, case.samples, case.specs, DEFAULT_METRIC, case.params, {})


def test_outputs_that_became_nan_cost_everything() -> None:
    reference = np.eye(4, dtype=np.float32) * 3
    broken = np.full_like(reference, np.nan)
    assert _sensitivity.drop_points(DEFAULT_METRIC, broken, reference, None) == 101.0
    assert _sensitivity.drop_points(DEFAULT_METRIC, reference, reference, None) == 0.0
