"""Plans that mix float, int8 and block-sparse layers, checked against the simulation."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from tests.network_plans import execute, host, inputs_of, network_of, registry
from tests.rounding_borders import error_of, other_sides, simulated
from tvmx.explore._whole import rtol_of
from tvmx.ir import Implementation, Layer, Plan
from tvmx.numerics import QuantParams
from tvmx.passes import Lowered, Network, Simulator, activations_of, choose, lower, tie
from tvmx.targets import Target
from tvmx.testing.models import graph_model

Array = npt.NDArray[Any]
Pick = Callable[[Layer, Sequence[Implementation]], Implementation]


def neighbours(channels: int = 32) -> onnx.ModelProto:
    """1x1 layers A and B next to each other in a chain, a residual join, a concat and a pool.

    The joined tensors have ranges of their own: b is ten times as large as a.
    """
    rng = np.random.default_rng(1)

    def normal(outputs: int, inputs: int, scale: float) -> np.ndarray:
        weight = rng.standard_normal((outputs, inputs, 1, 1)) * scale / np.sqrt(inputs)
        return weight.astype(np.float32)

    nodes = [
        helper.make_node("Conv", ["x", "wa"], ["a"], name="A0"),
        helper.make_node("Conv", ["a", "wb"], ["b"], name="B0"),
        helper.make_node("Conv", ["b", "wc"], ["c"], name="A1"),
        helper.make_node("Add", ["c", "a"], ["joined"]),
        helper.make_node("Relu", ["joined"], ["r"]),
        helper.make_node("Concat", ["r", "b"], ["both"], axis=1),
        helper.make_node("Conv", ["both", "wd", "bias"], ["d"], name="B1"),
        helper.make_node(
            "MaxPool", ["d"], ["p"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4
        ),
        helper.make_node("AveragePool", ["r"], ["q"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Add", ["p", "q"], ["sum"]),
        helper.make_node("Conv", ["sum", "we"], ["y"], name="A2"),
    ]
    weights = {
        "wa": normal(channels, channels, 1.0), "wb": normal(channels, channels, 10.0),
        "wc": normal(channels, channels, 0.3), "wd": normal(channels, 2 * channels, 0.2),
        "bias": rng.standard_normal(channels).astype(np.float32),
        "we": normal(channels, channels, 1.0),
    }  # fmt: skip
    shape = (1, channels, 8, 8)
    return graph_model(nodes, {"x": shape}, {"y": (1, channels, 4, 4)}, weights)


def params_of(simulator: Simulator, inputs: Sequence[Array]) -> dict[int, QuantParams]:
    """Scales and zero points from the ranges of one call, by value."""
    values = simulator.run([x[None] for x in inputs])
    found = {
        value: QuantParams.from_range(float(array.min()), float(array.max()))
        for value, array in values.items()
        if array.dtype == np.float32
    }
    return tie(simulator.network.graph, found)


def mixed_plan(
    network: Network, target: Target, params: dict[int, QuantParams], pick: Pick
) -> Plan:
    """A plan of default configs whose implementations ``pick`` chooses."""
    choices = []
    for layer in network.graph.layers:
        in_float = layer.index in network.graph.read_in_float
        legal = registry().implementations(layer.workload, target, float_out=in_float)
        if not legal:
            continue
        wanted = pick(layer, [implementation for _, implementation in legal])
        entry = next(e for e, implementation in legal if implementation == wanted)
        choices.append(choose(entry, layer, target, implementation=wanted))
    return Plan(
        model=network.model.digest, target=target.name, choices=tuple(choices),
        activations=activations_of(params),
    )  # fmt: skip


def any_of(seed: int) -> Pick:
    """Any implementation, each precision and sparsity as often as the others."""
    rng = random.Random(seed)

    def pick(layer: Layer, legal: Sequence[Implementation]) -> Implementation:
        kinds = sorted({(i.precision, i.sparsity) for i in legal})
        kind = rng.choice([kinds[0], *kinds])
        return rng.choice([i for i in legal if (i.precision, i.sparsity) == kind])

    return pick


def check_mixed(proto: onnx.ModelProto, pick: Pick, target: Target | None = None) -> Lowered:
    """Lower a mixed plan, run it, and compare with the simulation.

    int8 is exact, floats are within 1e-4 of the output's range. Only where a value that float
    layers computed is quantised, elements at a rounding border may have gone to its other side:
    then the outputs must be those of a simulation in which some of them did.
    """
    target = target or host()
    simulator, inputs, params = _calibrated(proto.SerializeToString())
    network = simulator.network
    plan = mixed_plan(network, target, params, pick)
    lowered = lower(network, plan, registry(), target)
    got = execute(lowered.mod, target, inputs)
    want, near = simulated(simulator, plan, inputs)
    assert [a.shape for a in got] == [b.shape for b in want]
    for index, a in enumerate(got):
        assert np.isfinite(a).all(), f"output {index} is not finite"
    if rtol_of(plan, network.graph) > 1e-3:
        want = other_sides(simulator, plan, inputs, got, want, near)
    for index, (a, b) in enumerate(zip(got, want, strict=True)):
        error = error_of(a, b)
        assert error.max(initial=0) < 1, (
            f"output {index}: {np.quantile(error, [0.5, 0.9, 1.0])} of what is allowed, by the "
            f"plan {[(c.layer, c.implementation.label()) for c in plan.choices]}"
        )
    return lowered


@lru_cache(maxsize=1)
def _calibrated(model: bytes) -> tuple[Simulator, list[Array], dict[int, QuantParams]]:
    """Kept, because tests check many plans of one network."""
    proto = onnx.ModelProto.FromString(model)
    simulator, inputs = Simulator(network_of(proto), host()), list(inputs_of(proto).values())
    return simulator, inputs, params_of(simulator, inputs)
