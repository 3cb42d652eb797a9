"""Calibration against NumPy on ONNX Runtime's intermediate values."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.network_plans import host, network_of
from tvmx.accuracy import Samples, _batches, _calibrate, calibrate
from tvmx.accuracy._histogram import BINS, Histogram
from tvmx.accuracy._observers import METHODS
from tvmx.errors import DataError
from tvmx.numerics import QuantParams
from tvmx.passes import Network
from tvmx.passes._simulate import Simulator
from tvmx.testing.models import graph_model, onnx_reference

Array = Any
make = helper.make_node


def model(batch: int = 1, gain: float = 1.0) -> onnx.ModelProto:
    """conv-relu, softmax, pool, conv, flatten, dense; every value between layers is an output."""
    rng = np.random.default_rng(2)

    def weight(*shape: int) -> Array:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    nodes = [
        make("Conv", ["x", "w1"], ["c"], name="one", pads=[1, 1, 0, 0]),
        make("Relu", ["c"], ["r"]),
        make("Softmax", ["r"], ["s"], axis=1, name="soft"),
        make("MaxPool", ["r"], ["m"], kernel_shape=[2, 2], strides=[2, 2], name="pool"),
        make("Conv", ["m", "w2"], ["d"], name="two"),
        make("Flatten", ["d"], ["f"]),
        make("Gemm", ["f", "w3"], ["y"], name="three", transB=1),
    ]
    weights = {
        "w1": weight(6, 3, 3, 3) * np.float32(gain), "w2": weight(4, 6, 2, 2),
        "w3": weight(5, 4 * 2 * 3),
    }  # fmt: skip
    outputs = dict.fromkeys(("y", "r", "s", "m", "d", "f"))
    return graph_model(nodes, {"x": (batch, 3, 7, 9)}, outputs, weights)


def setup(proto: onnx.ModelProto) -> tuple[Simulator, dict[str, Any]]:
    network = network_of(proto)
    return Simulator(network, host()), {spec.name: spec for spec in network.model.inputs}


def samples_of(count: int) -> Samples:
    rng = np.random.default_rng(0)
    return Samples({"x": rng.standard_normal((count, 3, 7, 9)).astype(np.float32)})


def runtime_values(network: Network, samples: Samples) -> dict[int, Array]:
    """Value number -> all samples' elements, by ONNX Runtime one sample at a time."""
    fields = list(network.model.mod["main"].body.body.fields)
    numbers = [network.values.index(next(v for v in network.values if v.same_as(f)))
               for f in fields]  # fmt: skip
    found = [onnx_reference(model(), {"x": x[None]}) for x in samples.inputs["x"]]
    values = {n: np.stack([f[i] for f in found]) for i, n in enumerate(numbers)}
    return values | {0: samples.inputs["x"]}


def tied(network: Network) -> set[int]:
    return {node.output for node in network.graph.nodes if node.tied}


@pytest.mark.parametrize("batch", [1, 2])  # 5 samples: the third call of two has a filler row
def test_minmax_is_numpys(batch: int) -> None:
    simulator, specs = setup(model(batch))
    samples = samples_of(5)
    values = runtime_values(simulator.network, samples)
    params = calibrate(simulator, samples, specs, "minmax")
    assert set(params) == set(values)
    for value, array in values.items():
        if value not in tied(simulator.network):
            wanted = QuantParams.from_range(array.min(), array.max())
            assert params[value].scale == pytest.approx(wanted.scale, rel=1e-5)
            assert abs(params[value].zero_point - wanted.zero_point) <= 1
    pool = next(n for n in simulator.network.graph.nodes if "max_pool" in n.op)
    assert params[pool.output] == params[pool.inputs[0]]


@pytest.mark.parametrize("batch", [1, 2])
def test_percentiles_are_numpys_within_a_bin(batch: int) -> None:
    simulator, specs = setup(model(batch))
    samples = samples_of(5)
    params = calibrate(simulator, samples, specs, "percentile", percentile=97.0)
    narrower = 0
    for value, array in runtime_values(simulator.network, samples).items():
        if value in tied(simulator.network):
            continue
        low, high = np.percentile(array, [3.0, 97.0])
        wanted = QuantParams.from_range(low, high)
        width = 4 * np.abs(array).max() / BINS  # at most: the reach is up to twice the largest
        assert abs(params[value].scale - wanted.scale) * 255 <= 2.01 * width
        narrower += wanted.scale < 0.9 * QuantParams.from_range(array.min(), array.max()).scale
    assert narrower >= 3


def test_only_samples_count_not_what_fills_a_batch() -> None:
    """With 3 samples in batches of 2 the last one is there twice; percentiles would tell."""
    samples = samples_of(3)
    one, two = setup(model(1)), setup(model(2))
    a = calibrate(one[0], samples, one[1], percentile=90.0)
    b = calibrate(two[0], samples, two[1], percentile=90.0)
    assert len(a) == len(b)
    for value in a:
        assert a[value].scale == pytest.approx(b[value].scale, rel=1e-4), value
    twice = samples.take(np.array([0, 1, 2, 2]))
    c = calibrate(one[0], twice, one[1], percentile=90.0)
    assert any(a[v].scale != pytest.approx(c[v].scale, rel=1e-3) for v in a)


@pytest.mark.parametrize("method", METHODS)
def test_deterministic_and_the_same_in_any_chunks(
    method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator, specs = setup(model())
    samples = samples_of(7)
    first = calibrate(simulator, samples, specs, method)
    assert calibrate(simulator, samples, specs, method) == first
    elements = sum(int(np.prod(shape)) for shape in simulator.network.graph.shapes)
    monkeypatch.setattr(_batches, "CHUNK_BYTES", 8 * elements)
    assert _batches.calls_at_once(simulator.network) == 2
    chunked = calibrate(simulator, samples, specs, method)
    assert all(chunked[v].scale == pytest.approx(first[v].scale, rel=1e-5) for v in first)


def test_most_samples_are_spread_over_all() -> None:
    simulator, specs = setup(model())
    samples = samples_of(9)
    few = calibrate(simulator, samples, specs, "minmax", most_samples=3)
    assert few == calibrate(simulator, samples.take(np.array([0, 3, 6])), specs, "minmax")
    assert few != calibrate(simulator, samples, specs, "minmax")


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (3e38, "infinity")])
def test_what_is_not_finite_is_named(value: float, kind: str) -> None:
    simulator, specs = setup(model(gain=100.0))
    samples = samples_of(2)
    samples.inputs["x"][1, 0, 3, 3] = value
    where = "input 'x'" if kind == "NaN" else "layer 'one'"
    with pytest.raises(DataError, match=f"{kind} in {where}"):
        calibrate(simulator, samples, specs)


def test_a_network_of_zeros_has_valid_parameters() -> None:
    simulator, specs = setup(model())
    zeros = Samples({"x": np.zeros((2, 3, 7, 9), np.float32)})
    for method in METHODS:
        params = calibrate(simulator, zeros, specs, method)
        assert set(params) == set(range(len(simulator.network.values)))
        assert all(p.scale > 0 for p in params.values())


def test_no_sample() -> None:
    simulator, specs = setup(model())
    with pytest.raises(DataError, match="no calibration sample"):
        calibrate(simulator, Samples({"x": np.zeros((0, 3, 7, 9), np.float32)}), specs)


@pytest.mark.parametrize("percent", [0.0, 0.01, 3.0, 50.0, 99.9, 100.0])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 5e8])
def test_histogram_percentile(percent: float, scale: float) -> None:
    rng = np.random.default_rng(4)
    parts = [(rng.standard_normal(n) ** 3 * scale * grow).astype(np.float32)
             for n, grow in ((10, 0), (500, 0.01), (1, 1), (900, 1), (77, 30))]  # fmt: skip
    histogram = Histogram()
    for part in parts:
        histogram.add(part.reshape(-1, 1) if len(part) % 2 else part[None])
    everything = np.concatenate(parts)
    assert (histogram.low, histogram.high) == (everything.min(), everything.max())
    assert histogram.count == everything.size
    wanted = np.percentile(everything.astype(np.float64), percent)
    assert abs(histogram.percentile(percent) - wanted) <= histogram.width
    assert histogram.width <= 4 * np.abs(everything).max() / BINS


def test_histogram_of_every_fifth_element_knows_all_extremes() -> None:
    values = np.random.default_rng(0).standard_normal((3, 100, 200)).astype(np.float32)
    values[1, 0, 1], values[2, 0, 3] = -50.0, 60.0  # left out by the step
    histogram = Histogram()
    histogram.add(values, 5)
    assert histogram.count == values.size // 5
    assert (histogram.low, histogram.high) == (-50.0, 60.0)
    kept = values.reshape(3, -1)[:, ::5]
    for percent in (0.1, 50.0, 99.9):
        error = abs(histogram.percentile(percent) - np.percentile(kept, percent))
        assert error <= histogram.width


def test_large_values_are_counted_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    simulator, specs = setup(model())
    samples = samples_of(30)
    whole = calibrate(simulator, samples, specs, percentile=99.0)
    monkeypatch.setattr(_calibrate, "_COUNTED", 64)
    part = calibrate(simulator, samples, specs, percentile=99.0)
    assert part != whole
    assert all(part[v].scale == pytest.approx(whole[v].scale, rel=0.15) for v in whole)


def test_histogram_does_not_depend_on_order() -> None:
    values = np.concatenate([np.geomspace(1e-6, 1e6, 999), -np.geomspace(1e-3, 64, 500)])
    values = values.astype(np.float32)
    rising, falling = Histogram(), Histogram()
    for value in values:
        rising.add(np.array([[value]]))
    falling.add(values[None, ::-1])
    for percent in np.linspace(0, 100, 41):
        assert rising.percentile(percent) == falling.percentile(percent)
