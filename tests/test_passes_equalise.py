"""Cross-layer equalisation: the float function stays, ranges become equal, int8 gains."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.mixed_plans import params_of
from tests.network_plans import assert_same, execute, host, inputs_of, network_of, plan_of, registry
from tests.test_passes_simulate import all_int8
from tests.unequal_networks import unequal
from tvmx.errors import BuildError
from tvmx.ir import ChannelValues
from tvmx.passes import Network, Simulator, equalisation, equalised, int8_plan, lower
from tvmx.passes._layers import LayerStep
from tvmx.testing.models import graph_model, onnx_reference

Array = Any
make = helper.make_node


def layers_of(network: Network) -> dict[str, LayerStep]:
    return {s.layer.name: s for s in network.steps if isinstance(s, LayerStep)}


def ranges(step: LayerStep) -> Array:
    """Largest magnitude of each output channel's weights and bias."""
    weight = np.abs(step.weight).reshape(len(step.weight), -1).max(axis=1)
    return weight if step.bias is None else np.maximum(weight, np.abs(step.bias))


def reads(step: LayerStep) -> Array:
    """Largest magnitude of each input channel's weights; a depthwise layer's are its outputs'."""
    if step.layer.op == "depthwise_conv2d":
        return np.abs(step.weight).max(axis=(1, 2, 3))
    return np.abs(step.weight).reshape(*step.weight.shape[:2], -1).max(axis=(0, 2))


def sqnr(simulator: Simulator, inputs: list[Array]) -> float:
    """Signal to noise of the network with every layer int8, in dB."""
    values = simulator.run([x[None] for x in inputs])
    (wanted,) = simulator.outputs(values)
    params = params_of(simulator, inputs)
    (found,) = simulator.outputs(simulator.rerun(values, all_int8(simulator), params))
    return float(10 * np.log10(np.mean(wanted**2) / np.mean((found - wanted) ** 2)))


def test_the_float_function_stays() -> None:
    proto = unequal()
    network = network_of(proto)
    other = equalised(network, equalisation(network))
    inputs = inputs_of(proto)
    stacked = [x[None] for x in inputs.values()]
    found = []
    for one in (network, other):
        simulator = Simulator(one, host())
        found.append(simulator.outputs(simulator.run(stacked))[0][0])
    wanted = onnx_reference(proto, inputs)[0]
    for out in found:
        assert np.abs(out - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert layers_of(other)["deep1"].weight.dtype == np.float32


def test_every_pair_has_equal_ranges() -> None:
    network = network_of(unequal())
    before, after = layers_of(network), layers_of(equalised(network, equalisation(network)))
    names = ["stem", "deep1", "point1", "deep2", "point2", "dense"]
    for first, second in itertools.pairwise(names):
        unlike = ranges(before[first]) / reads(before[second])
        assert unlike.max() / unlike.min() > 10
        assert ranges(after[first]) == pytest.approx(reads(after[second]), rel=0.01), first


def test_int8_gains_much_where_channels_are_unequal() -> None:
    proto = unequal(1.0)
    network = network_of(proto)
    inputs = list(inputs_of(proto).values())
    plain = sqnr(Simulator(network, host()), inputs)
    better = sqnr(Simulator(equalised(network, equalisation(network)), host()), inputs)
    assert better > plain + 12


def pair_model(
    *between: onnx.NodeProto, outputs: dict[str, Any] | None = None, last: str = "m",
    group: int = 1, extra: tuple[onnx.NodeProto, ...] = (),
) -> onnx.ModelProto:  # fmt: skip
    """``one`` (4 channels) -> ``c``, ``between`` -> ``last``, ``two``."""
    rng = np.random.default_rng(1)
    scale = 10 ** rng.uniform(-1, 1, 4)
    weights = {
        "w1": rng.standard_normal((4, 3, 3, 3)) * scale[:, None, None, None],
        "b1": rng.standard_normal(4) * scale,
        "w2": rng.standard_normal((8, 4 // group, 1, 1)),
        "w3": rng.standard_normal((2, 4, 1, 1)),
        "low": np.zeros(()),
        "six": np.full((), 6.0),
    }
    nodes = [
        make("Conv", ["x", "w1", "b1"], ["c"], name="one", pads=[1] * 4),
        *between,
        make("Conv", [last, "w2"], ["y"], name="two", group=group),
        *extra,
    ]
    return graph_model(
        nodes, {"x": (1, 3, 8, 8)}, outputs or {"y": None},
        {name: w.astype(np.float32) for name, w in weights.items()},
    )  # fmt: skip


POOL: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1] * 4}


@pytest.mark.parametrize(
    "between",
    [
        [make("Relu", ["c"], ["m"])],
        [make("Identity", ["c"], ["m"])],
        [make("Relu", ["c"], ["r"]), make("MaxPool", ["r"], ["m"], **POOL)],
        [make("AveragePool", ["c"], ["a"], **POOL), make("Relu", ["a"], ["m"])],
        [make("MaxPool", ["c"], ["a"], **POOL), make("GlobalAveragePool", ["a"], ["m"])],
    ],
    ids=["relu", "nothing", "max pool", "average pool, relu", "max pool, mean"],
)
@pytest.mark.parametrize("group", [1, 2, 4])
def test_what_a_pair_may_have_between(between: list[onnx.NodeProto], group: int) -> None:
    proto = pair_model(*between, group=group)
    network = network_of(proto)
    factors = equalisation(network)
    assert [f.layer for f in factors] == ["one"]
    inputs = inputs_of(proto)
    simulator = Simulator(equalised(network, factors), host())
    (out,) = simulator.outputs(simulator.run([x[None] for x in inputs.values()]))
    assert_same([out[0]], onnx_reference(proto, inputs))


@pytest.mark.parametrize(
    "proto",
    [
        pair_model(make("Clip", ["c", "low", "six"], ["m"])),
        pair_model(make("Sigmoid", ["c"], ["m"])),
        pair_model(make("Relu", ["c"], ["m"]), outputs={"y": None, "m": None}),
        pair_model(make("Relu", ["c"], ["m"]), outputs={"y": None, "z": None},
                   extra=(make("Conv", ["m", "w3"], ["z"], name="three"),)),
        pair_model(make("Add", ["c", "c"], ["m"])),
    ],
    ids=["relu6", "sigmoid", "an output", "two readers", "read twice"],
)  # fmt: skip
def test_what_a_pair_may_not_have_between(proto: onnx.ModelProto) -> None:
    assert equalisation(network_of(proto)) == ()


def test_a_residual_sum_is_no_pair() -> None:
    """Neither the layer that adds, nor the one that is added, may be scaled."""
    rng = np.random.default_rng(0)
    weights = {n: rng.standard_normal((4, 4, 1, 1)).astype(np.float32) for n in "abc"}
    nodes = [
        make("Conv", ["x", "a"], ["u"], name="A"),
        make("Conv", ["x", "b"], ["v"], name="B"),
        make("Add", ["u", "v"], ["s"]),
        make("Conv", ["s", "c"], ["y"], name="C"),
    ]
    network = network_of(graph_model(nodes, {"x": (1, 4, 5, 5)}, {"y": None}, weights))
    assert len(network.graph.layers) == 3
    assert equalisation(network) == ()


def test_channels_of_zeros_are_left_alone() -> None:
    proto = pair_model(make("Relu", ["c"], ["m"]))
    arrays = {i.name: onnx.numpy_helper.to_array(i).copy() for i in proto.graph.initializer}
    arrays["w1"][1], arrays["b1"][1], arrays["w2"][:, 2] = 0, 0, 0
    for initializer in proto.graph.initializer:
        initializer.CopyFrom(
            onnx.numpy_helper.from_array(arrays[initializer.name], initializer.name)
        )
    (factors,) = equalisation(network_of(proto))
    assert factors.array[1] == factors.array[2] == 1
    assert factors.array[0] != 1


def test_factors_are_applied_to_the_original() -> None:
    network = network_of(unequal())
    factors = equalisation(network)
    once = equalised(network, factors)
    assert equalised(once, factors) is once
    assert equalised(once, ()) is network
    fewer = equalised(once, factors[:1])
    assert layers_of(fewer)["point2"].weight is layers_of(network)["point2"].weight
    steps = layers_of(once), layers_of(equalised(fewer, factors))
    assert all((steps[0][n].weight == steps[1][n].weight).all() for n in steps[0])


@pytest.mark.parametrize(
    ("layer", "values"),
    [("nowhere", [2.0]), ("stem", [2.0]), ("dense", [2.0] * 10), ("stem", [0.0] * 16)],
)
def test_factors_of_another_model(layer: str, values: list[float]) -> None:
    with pytest.raises(BuildError, match=f"output channels of layer '{layer}'"):
        equalised(network_of(unequal()), [ChannelValues.of(layer, np.array(values))])


def test_layers_without_a_template_are_scaled_too() -> None:
    """They run their Relax bindings, whose constants must be the scaled ones."""
    proto = unequal()
    network = network_of(proto)
    plan = plan_of(network, host())
    some = [c for c in plan.choices if c.layer in ("deep1", "point2")]
    plan = plan.model_copy(update={"choices": tuple(some), "equalisation": equalisation(network)})
    inputs = inputs_of(proto)
    lowered = lower(network, plan, registry(), host())
    assert (lowered.hits, lowered.total) == (2, 6)
    assert_same(execute(lowered.mod, host(), list(inputs.values())), onnx_reference(proto, inputs))


def test_an_int8_plan_computes_what_its_simulation_does() -> None:
    """With equalisation and corrections, which only the plan knows."""
    proto = unequal(1.0)
    network = network_of(proto)
    factors = equalisation(network)
    inputs = list(inputs_of(proto).values())
    params = params_of(Simulator(equalised(network, factors), host()), inputs)
    plain = int8_plan(network, registry(), host(), params)
    rng = np.random.default_rng(0)
    corrections = [
        ChannelValues.of(la.name, rng.standard_normal(la.workload.out_shape[1]) * 0.1)
        for la in network.graph.layers
    ]
    plan = plain.model_copy(update={"equalisation": factors, "corrections": tuple(corrections)})
    simulator = Simulator(network, host())
    wanted = simulator.expected(plan, inputs)[0]
    found = execute(lower(network, plan, registry(), host()).mod, host(), inputs)[0]
    assert np.array_equal(found, wanted)
    for field in ("equalisation", "corrections"):
        without = simulator.expected(plan.model_copy(update={field: ()}), inputs)[0]
        assert np.abs(without - wanted).max() > 0.01 * np.ptp(wanted)
    stranger = ChannelValues.of("stem", np.ones(3))
    with pytest.raises(BuildError, match="corrects 3 channels of layer 'stem'"):
        lower(network, plan.model_copy(update={"corrections": (stranger,)}), registry(), host())
