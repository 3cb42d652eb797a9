"""Quantised constants wherever a network may read them, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from tests.network_plans import execute, host, network_of, plan_of, registry
from tvmx.passes import Network, lower
from tvmx.testing.models import graph_model, onnx_reference

make = helper.make_node
RNG = np.random.default_rng(0)
X = RNG.standard_normal((1, 3, 4, 5), dtype=np.float32)
SCALES: dict[str, Any] = {
    "s": np.array(0.02, np.float32), "z": np.array(3, np.int8),
    "channels": np.array([0.01, 0.02, 0.03, 0.04], np.float32), "zeros": np.zeros(4, np.int8),
}  # fmt: skip


def check(nodes: list[Any], weights: dict[str, Any], *outputs: str) -> Network:
    proto = graph_model(
        nodes, {"x": X.shape}, dict.fromkeys(outputs), {**SCALES, **weights}, opset=13
    )
    network = network_of(proto)
    lowered = lower(network, plan_of(network, host()), registry(), host())
    got = execute(lowered.mod, host(), [X])
    for ours, theirs in zip(got, onnx_reference(proto, {"x": X}), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(np.abs(theirs).max(), 1))
    return network


def test_constants_that_are_no_weight_of_a_layer() -> None:
    """Operands, products over stacks of matrices, outputs; one that a layer reads as well.

    And one whose scale the network computes.
    """
    weights = {
        "matrices": RNG.integers(-99, 99, (3, 5, 4)).astype(np.int8),
        "row": RNG.integers(-99, 99, (5,)).astype(np.int8),
        "kernel": RNG.integers(-99, 99, (4, 3, 1, 1)).astype(np.int8),
        "shared": RNG.integers(-99, 99, (4, 3, 2, 2)).astype(np.int8),
    }
    nodes = [make("DequantizeLinear", [name, "s", "z"], [f"{name}_f"])
             for name in ("matrices", "row", "shared")]  # fmt: skip
    nodes += [
        make("DequantizeLinear", ["kernel", "channels", "zeros"], ["kernel_f"], axis=0),
        make("MatMul", ["x", "matrices_f"], ["product"]), make("Mul", ["x", "row_f"], ["scaled"]),
        make("Conv", ["x", "kernel_f"], ["conv"]), make("Conv", ["x", "shared_f"], ["other"]),
        make("Exp", ["shared_f"], ["grown"]), make("Identity", ["row_f"], ["itself"]),
        make("ReduceMax", ["x"], ["most"], keepdims=0),
        make("DequantizeLinear", ["row", "most", "z"], ["computed"]),
    ]  # fmt: skip
    outputs = ("product", "scaled", "conv", "other", "grown", "itself", "computed")
    network = check(nodes, weights, *outputs)
    assert len(network.graph.layers) == 2


def test_constants_that_are_quantised_again() -> None:
    """Each time it is a constant of its own, which the last readers may or may not take whole."""
    kernel = RNG.standard_normal((4, 3, 1, 1)).astype(np.float32) * 0.3
    bias = RNG.standard_normal(4).astype(np.float32)
    twice = [
        node
        for name in ("kernel", "bias")
        for node in (
            make("QuantizeLinear", [name, "s", "z"], [f"{name}_q"]),
            make("DequantizeLinear", [f"{name}_q", "s", "z"], [f"{name}_1"]),
            make("QuantizeLinear", [f"{name}_1", "channels", "zeros"], [f"{name}_r"], axis=0),
            make("DequantizeLinear", [f"{name}_r", "channels", "zeros"], [f"{name}_2"], axis=0),
        )
    ]
    nodes = [*twice, make("Conv", ["x", "kernel_2", "bias_2"], ["y"]),
             make("Neg", ["kernel_1"], ["n"]), make("Identity", ["bias_2"], ["b"])]  # fmt: skip
    network = check(nodes, {"kernel": kernel, "bias": bias}, "y", "n", "b")
    assert len(network.graph.layers) == 1
