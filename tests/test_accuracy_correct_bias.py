"""Bias correction against explicit means over all samples and pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.network_plans import host, network_of
from tests.test_passes_simulate import all_int8
from tests.unequal_networks import unequal
from tvmx.accuracy import Samples, _batches, calibrate, correct_biases
from tvmx.errors import DataError
from tvmx.ir import BlockSparsity, Implementation
from tvmx.numerics import (
    LayerConstants,
    QuantParams,
    dequantise,
    prune,
    quantise,
    quantise_weight,
)  # fmt: skip
from tvmx.passes import Simulator, with_pruned
from tvmx.testing.models import graph_model

Array = Any


def linear_chain(batch: int = 1) -> onnx.ModelProto:
    """Two convolutions and a dense layer without activations: means show what correction does."""
    rng = np.random.default_rng(3)
    weights = {
        "w1": rng.standard_normal((8, 3, 3, 3)), "w2": rng.standard_normal((6, 8, 1, 1)) + 0.5,
        "b2": rng.standard_normal(6), "w3": rng.standard_normal((4, 6 * 9)),
    }  # fmt: skip
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "w1"], ["a"], name="one", strides=[2, 2]),
        make("Conv", ["a", "w2", "b2"], ["b"], name="two"),
        make("Flatten", ["b"], ["f"]),
        make("Gemm", ["f", "w3"], ["y"], name="three", transB=1),
    ]
    arrays = {name: w.astype(np.float32) for name, w in weights.items()}
    return graph_model(nodes, {"x": (batch, 3, 7, 7)}, {"y": None}, arrays)


class Case:
    """A model's simulator, calibration samples and everything calibrated."""

    def __init__(self, proto: onnx.ModelProto, count: int = 24) -> None:
        self.network = network_of(proto)
        self.simulator = Simulator(self.network, host())
        (spec,) = self.network.model.inputs
        self.specs = {spec.name: spec}
        rng = np.random.default_rng(7)
        data = rng.standard_normal((count, *spec.shape[1:])) + 0.4
        self.samples = Samples({spec.name: data.astype(np.float32)})
        self.params: dict[int, QuantParams] = calibrate(
            self.simulator, self.samples, self.specs, "minmax"
        )
        self.choices: dict[int, Implementation] = all_int8(self.simulator)

    def corrections(self, **options: Any) -> dict[int, Array]:
        return correct_biases(
            self.simulator, self.samples, self.specs, self.params, self.choices, **options
        )

    def errors(self, simulator: Simulator) -> dict[str, Array]:
        """Mean error of each layer's output channels with all layers int8."""
        stacked = self.samples.inputs["x"][:, None]
        values = simulator.run([stacked])
        after = simulator.rerun(values, self.choices, self.params)
        return {
            self.network.graph.layers[node.layer].name: _channel_means(
                after[node.output] - values[node.output]
            )
            for node in self.network.graph.nodes
            if node.layer is not None
        }


def _channel_means(values: Array) -> Array:
    """Of (calls, batch, channels, ...)."""
    flat = values.reshape(-1, values.shape[2], *values.shape[3:])
    return flat.reshape(*flat.shape[:2], -1).mean(axis=(0, 2), dtype=np.float64)


def test_the_first_layer_by_hand() -> None:
    case = Case(linear_chain())
    step = next(s for s in case.network.steps if hasattr(s, "layer"))
    assert step.layer.name == "one"
    x = case.samples.inputs["x"]
    data = case.params[case.network.graph.inputs[0]]
    quantised, scale = quantise_weight(step.weight)
    weights = step.weight, quantised * scale[:, None, None, None]
    inputs = x, dequantise(quantise(x, data), data)
    means = []
    for image, weight in zip(inputs, weights, strict=True):
        patches = np.lib.stride_tricks.sliding_window_view(image, (3, 3), (2, 3))[:, :, ::2, ::2]
        means.append(np.einsum("ncyxij,ocij->noyx", patches, weight).mean(axis=(0, 2, 3)))
    assert case.corrections()[0] == pytest.approx(means[0] - means[1], abs=1e-5)
    assert np.abs(means[0] - means[1]).max() > 1e-3


@pytest.mark.parametrize("made_up", [False, True], ids=["magnitude", "reconstructed"])
def test_a_layer_that_is_pruned_as_well_by_hand(made_up: bool) -> None:
    """The mean is that of the weights that are left, and of the bias that came with them."""
    case, sparsity = Case(linear_chain()), "2x1@50"
    step = next(s for s in case.network.steps if hasattr(s, "layer"))
    blocks = BlockSparsity.parse(sparsity)
    assert blocks is not None and step.bias is None
    left = LayerConstants(prune(step.weight, blocks), None)
    if made_up:
        left = LayerConstants(1.3 * left.weight, np.linspace(-1, 1, 8).astype(np.float32))
        network = with_pruned(case.network, {0: {sparsity: left}})
        case.simulator = Simulator(network, host())
    case.choices[0] = case.choices[0].model_copy(update={"sparsity": sparsity})
    data = case.params[case.network.graph.inputs[0]]
    quantised, scale = quantise_weight(left.weight)
    x, means = case.samples.inputs["x"], []
    for image, weight in (
        (x, step.weight),
        (dequantise(quantise(x, data), data), quantised * scale[:, None, None, None]),
    ):
        patches = np.lib.stride_tricks.sliding_window_view(image, (3, 3), (2, 3))[:, :, ::2, ::2]
        means.append(np.einsum("ncyxij,ocij->noyx", patches, weight).mean(axis=(0, 2, 3)))
    wanted = means[0] - means[1] - (0 if left.bias is None else left.bias)
    assert case.corrections()[0] == pytest.approx(wanted, abs=1e-5)
    assert np.abs(wanted).max() > 0.1, "much more than quantisation does"


def test_means_of_pruned_layers_are_right_afterwards() -> None:
    case = Case(linear_chain(), 128)
    for index, how in case.choices.items():
        case.choices[index] = how.model_copy(update={"sparsity": "2x1@50"})
    before = case.errors(case.simulator)
    after = case.errors(Simulator(case.network, host(), case.corrections()))
    for name in ("one", "two", "three"):
        assert np.linalg.norm(after[name]) < 0.1 * np.linalg.norm(before[name]), name


def test_means_are_right_afterwards_in_every_layer() -> None:
    """Within what rounding the outputs leaves; before they are several times further off."""
    case = Case(linear_chain(), 128)
    before = case.errors(case.simulator)
    after = case.errors(Simulator(case.network, host(), case.corrections()))
    assert set(after) == {"one", "two", "three"}
    for name in after:
        assert np.linalg.norm(after[name]) < 0.5 * np.linalg.norm(before[name]), name


def test_later_layers_count_on_earlier_ones_being_corrected() -> None:
    """Left alone, the second layer's error is that of its own and of the first one's mean."""
    case = Case(linear_chain())
    both = case.corrections()
    case.choices = {1: case.choices[1]}
    alone = case.corrections()
    assert set(alone) == {1}
    uncorrected = Case(linear_chain()).errors(case.simulator)["two"]
    # With the first layer corrected there is less to do than its uncorrected error asks for.
    distance = [np.abs(found[1] - alone[1]).max() for found in (both, {1: -uncorrected})]
    assert distance[0] < distance[1]


def test_parts_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(unequal(0.5), 20)
    whole = case.corrections()
    elements = sum(int(np.prod(shape)) for shape in case.network.graph.shapes)
    monkeypatch.setattr(_batches, "CHUNK_BYTES", 4 * elements * 7)
    assert _batches.calls_at_once(case.network) == 7
    parts = case.corrections()
    for layer in whole:
        assert parts[layer].dtype == np.float32
        far = np.abs(parts[layer] - whole[layer]).max()
        assert far < 0.3 * np.abs(whole[layer]).max() + 1e-6, layer


def test_what_fills_a_batch_does_not_count() -> None:
    single, double = Case(linear_chain(), 3), Case(linear_chain(2), 3)
    double.params = single.params
    one, two = single.corrections(), double.corrections()
    for layer in one:
        assert two[layer] == pytest.approx(one[layer], abs=2e-3 * float(np.abs(one[layer]).max()))


def test_at_most_so_many_samples() -> None:
    case = Case(linear_chain(), 12)
    few = case.corrections(most_samples=3)
    case.samples = case.samples.take(np.array([0, 4, 8]))
    assert all(np.array_equal(few[i], c) for i, c in case.corrections().items())


def test_no_sample() -> None:
    case = Case(linear_chain(), 2)
    case.samples = case.samples.take(np.array([], int))
    with pytest.raises(DataError, match="no calibration sample"):
        case.corrections()
