"""Local response normalisation of int8: exact arithmetic, its kernels, nothing float kept."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.network_plans import execute, host, narrow, network_of, registry
from tests.qdq_models import QdqModel
from tests.test_passes_int8_ops import any_int8, same, stored
from tests.test_passes_qdq import compare
from tvmx._tvm import build_module, tvm
from tvmx.build import build_network
from tvmx.ir import LayoutWalk, Plan, is_int8, physical_shape
from tvmx.numerics import ChannelWindow, QuantParams, dequantise, inverse_power, lrn_int8
from tvmx.passes import Network, Simulator, baseline_plan, int8_plan, lower
from tvmx.passes._lrn import Lrn
from tvmx.passes._lrn_kernel import lrn_kernel
from tvmx.testing.models import graph_model

A, OUT = QuantParams(0.05, 3), QuantParams(0.013, -70)
WINDOWS = [
    ChannelWindow(5, 2, 0.2, 1.0, 0.75),
    ChannelWindow(4, 1, 2e-5, 2.0, 0.5),
    ChannelWindow(25, 12, 0.01, 0.5, 1.25),
    ChannelWindow(1, 0, 3.0, 1e-4, 2.0),
]


def exactly(data: Any, window: ChannelWindow) -> Any:
    """In float64, element by element."""
    x = dequantise(data, A).astype(np.float64)
    out = np.empty_like(x)
    for c in range(x.shape[1]):
        first = max(0, c - window.before)
        near = x[:, first : c - window.before + window.size]
        total = (near**2).sum(axis=1)
        out[:, c] = x[:, c] / (window.bias + window.scale * total) ** window.beta
    return out


@pytest.mark.parametrize("window", WINDOWS)
def test_it_is_what_real_numbers_give(window: ChannelWindow) -> None:
    data = any_int8(1, 40, 23, 17, seed=3)
    steps = np.clip(exactly(data, window) / OUT.scale, -58, 197)  # what OUT can hold
    got = lrn_int8(data, A, window, OUT).astype(np.float64) - OUT.zero_point
    assert np.abs(got - steps).max() < 0.5 + 1e-3
    assert np.unique(got).size > 8


@pytest.mark.parametrize("quarters", range(1, 9))
def test_powers_without_roots(quarters: int) -> None:
    base = np.exp2(np.linspace(-20, 100, 100_001)).astype(np.float32)
    base = np.append(base, np.float32(1e38))  # beyond 2**100: as 2**100
    with np.errstate(under="ignore"):
        got = inverse_power(base, quarters).astype(np.float64)
    want = np.minimum(base.astype(np.float64), 2.0**100) ** (-quarters / 4)
    normal = want > 2.0**-126
    np.testing.assert_allclose(got[normal], want[normal], rtol=2e-6)
    assert normal.sum() > 50_000


@pytest.mark.parametrize("form", ["NCHW/s8", "NCHW4c/s8", "NCHW16c/s8"])
@pytest.mark.parametrize("channels", [32, 19])
@pytest.mark.parametrize("window", WINDOWS)
def test_kernels_give_the_same_bits(window: ChannelWindow, channels: int, form: str) -> None:
    data = any_int8(2, channels, 6, 7)
    func = lrn_kernel(Lrn(None, (0,), data.shape, window), form, narrow(), (A, OUT))
    compiled = build_module(tvm.IRModule({"f": func.with_attr("global_symbol", "f")}), narrow())
    got = tvm.runtime.tensor(np.zeros(physical_shape(data.shape, form), np.int8))
    compiled["f"](tvm.runtime.tensor(stored(data, form)), got)
    same(got.numpy(), lrn_int8(data, A, window, OUT), form)


def net(beta: float = 0.75, channels: int = 48) -> onnx.ModelProto:
    """conv -> LRN -> pool -> conv, as AlexNet begins; the second reads what int8 made."""
    rng = np.random.default_rng(1)
    weights = {
        "w0": rng.standard_normal((channels, 3, 3, 3)).astype(np.float32) / 5,
        "w1": rng.standard_normal((channels, channels, 1, 1)).astype(np.float32) / 7,
        "w2": rng.standard_normal((8, channels, 1, 1)).astype(np.float32) / 7,
    }
    norm = {"size": 5, "alpha": 0.8, "beta": beta, "bias": 1.0}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("LRN", ["b"], ["c"], name="norm", **norm),
        helper.make_node("MaxPool", ["c"], ["d"], kernel_shape=[3, 3], strides=[2, 2]),
        helper.make_node("Conv", ["d", "w1"], ["e"], name="second"),
        helper.make_node("LRN", ["e"], ["f"], name="again", **norm),
        helper.make_node("Conv", ["f", "w2"], ["y"], name="third"),
    ]
    return graph_model(nodes, {"x": (1, 3, 35, 35)}, {"y": (1, 8, 16, 16)}, weights)


def planned(network: Network) -> tuple[Plan, Any]:
    """Every layer int8, and the input it is calibrated and run on."""
    simulator = Simulator(network, host())
    x = np.random.default_rng(2).standard_normal((1, 3, 35, 35)).astype(np.float32)
    values = simulator.run([x[None]])
    ranges = {v: QuantParams.from_range(float(a.min()), float(a.max())) for v, a in values.items()}
    return int8_plan(network, registry(), host(), ranges), x


def float_values(network: Network, plan: Plan) -> list[str]:
    """The operators whose result is float under the plan."""
    walk, graph, found = LayoutWalk(network.graph), network.graph, []
    for node in graph.nodes:
        choice = None if node.layer is None else plan.choice(graph.layers[node.layer].name)
        placed = walk.step(node, choice.implementation if choice else None)
        if not is_int8(placed.writes):
            found.append(node.op)
    return found


@pytest.mark.parametrize("channels", [48, 19])
def test_no_float_tensor_is_kept(channels: int, tmp_path: Any) -> None:
    network = network_of(net(channels=channels))
    plan, x = planned(network)
    assert float_values(network, plan) == ["conv2d"]  # the network's output
    simulator = Simulator(network, host())
    lowered = lower(network, plan, registry(), host())
    (got,) = execute(lowered.mod, host(), [x])
    (want,) = simulator.expected(plan, [x])
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    (exact,) = (a[0] for a in simulator.outputs(simulator.run([x[None]])))
    assert np.abs(got - exact).max() < 0.05 * np.ptp(exact)
    dense = lower(network, baseline_plan(network, registry(), host()), registry(), host())
    arenas = [
        build_network(mod, host(), tmp_path / f"{i}.so").arena_bytes
        for i, mod in enumerate((dense.mod, lowered.mod))
    ]
    assert arenas[0] > 3 * arenas[1]


def test_other_powers_stay_float() -> None:
    network = network_of(net(beta=0.6))
    plan, x = planned(network)
    assert float_values(network, plan).count("lrn") == 2
    (got,) = execute(lower(network, plan, registry(), host()).mod, host(), [x])
    (want,) = Simulator(network, host()).expected(plan, [x])
    assert np.abs(got - want).max() < 0.03 * np.ptp(want)


@pytest.mark.parametrize("activation", [np.uint8, np.int8])
def test_a_quantised_model_keeps_its_numbers(activation: Any) -> None:
    model = QdqModel(activation)
    x = model.pair(model.input(1, 3, 20, 20), 0.02, -4)
    x = model.pair(model.conv(x, (32, 3, 3, 3)), 0.05, 7)
    x = model.pair(model.op("LRN", x, size=5, alpha=0.3, beta=0.75, bias=1.0), 0.02, -9)
    x = model.pair(model.conv(x, (16, 32, 1, 1)), 0.07)
    model.output(x)
    network = compare(model.proto(), [0.07], (1, 3, 20, 20))
    plan = baseline_plan(network, registry(), host())
    assert [n.int8 for n in network.graph.nodes if n.op == "lrn"] == [True]
    kernels = lower(network, plan, registry(), host()).mod.functions.items()
    (lrn,) = (f for var, f in kernels if var.name_hint.startswith("lrn"))
    assert "llvm.fma" in lrn.script() and "int8" in lrn.script().split("with")[0]


def test_where_its_result_is_not_stated_it_computes_in_float() -> None:
    model = QdqModel()
    x = model.pair(model.input(1, 3, 12, 12), 0.02)
    x = model.pair(model.conv(x, (16, 3, 3, 3)), 0.05, 7)
    model.output(model.op("LRN", x, size=5, alpha=0.3, beta=0.75, bias=1.0))
    network = compare(model.proto(), [0.01], (1, 3, 12, 12))
    assert [n.int8 for n in network.graph.nodes if n.op == "lrn"] == [False]


@pytest.mark.parametrize("target", ["rpi3b+", "rpi5"])
def test_arm_code_needs_no_roots_and_quotients(target: str) -> None:
    from tvmx.targets import load_target

    board = load_target(target)
    lrn = Lrn(None, (0,), (1, 16, 8, 8), WINDOWS[0])
    func = lrn_kernel(lrn, "NCHW4c/s8", board, (A, OUT)).with_attr("global_symbol", "f")
    text = build_module(tvm.IRModule({"f": func}), board).inspect_source("asm")
    assert re.search(r"fmla\s+v\d+\.4s", text)
    assert not re.search(r"powf|fsqrt|fdiv", text)
