"""Layers written in whole numbers: recognised where exact, left as written where not.

What the module itself computes, by TVM's default pipeline, is what must come out, to the bit.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.network_plans import execute, host, narrow, registry
from tests.qnn_graphs import QnnGraph, random_network
from tests.relay_files import Array, call, load, module_json, run, var
from tvmx.frontends.relay._graph import Expr, Tuple
from tvmx.ir import Plan
from tvmx.passes import Network, Simulator, baseline_plan, choose, extract_layers, lower
from tvmx.targets import Target

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (1, 6, 9, 8)).astype(np.uint8)
S = RNG.integers(-128, 128, (1, 6, 9, 8)).astype(np.int8)
W = RNG.integers(-127, 128, (8, 6, 3, 3)).astype(np.int8)
x, s = var("x", X), var("s", S)


def conv(data: Expr, weight: Array = W, zero: int = 7, w_zero: int = 0, **attrs: Any) -> Expr:
    """qnn.conv2d: int32 sums."""
    return call("qnn.conv2d", data, weight, zero, w_zero, 0.1, 0.2, padding=(1, 1, 1, 1),
                channels=len(weight), kernel_size=(3, 3), out_dtype="int32", **attrs)  # fmt: skip


def rescaled(value: Expr, source: Any, target: float, zero: int = 3, dtype: str = "uint8",
             rounding: str = "UPWARD") -> Expr:  # fmt: skip
    return call("qnn.requantize", value, source, 0, target, zero, out_dtype=dtype, axis=1,
                rounding=rounding)  # fmt: skip


def layers(network: Network) -> list[str]:
    return [la.workload.epilogue.describe() for la in network.graph.layers]


def compare(
    outputs: Sequence[Expr], feeds: dict[str, Array], *, plan: Plan | None = None,
    target: Target | None = None,
) -> Network:  # fmt: skip
    """The network as it is deployed and as it is simulated, against the module."""
    inputs = [var(name, array) for name, array in feeds.items()]
    found = {v.name: v for v in (x, s)}
    body = outputs[0] if len(outputs) == 1 else Tuple(tuple(outputs))
    text = module_json([found.get(v.name, v) for v in inputs], body)
    return check(load_network(text), feeds, plan, target)


def load_network(text: str) -> Network:
    return extract_layers(load(text))


def check(
    network: Network, feeds: dict[str, Array], plan: Plan | None = None,
    target: Target | None = None, want: Sequence[Array] = (),
) -> Network:  # fmt: skip
    target = target or host()
    want = want or run(network.model, feeds)
    plan = plan or baseline_plan(network, registry(), target)
    got = execute(lower(network, plan, registry(), target).mod, target, list(feeds.values()))
    simulated = Simulator(network, host()).expected(plan, list(feeds.values()))
    for ours, theirs, again in zip(got, want, simulated, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(again, theirs)
        assert np.unique(theirs).size > 20
    return network


def test_ways_to_write_a_layer() -> None:
    """Ties abound: scales are powers of two, and so are the factors between them."""
    up, away = "UPWARD", "TONEAREST"
    bias = RNG.integers(-5000, 5000, 8).astype(np.int32)
    scales = np.array([2.0**-k for k in (8, 9, 9, 10, 11, 12, 9, 10)], np.float32)

    def sums(which: int) -> Expr:
        return call("nn.bias_add", conv(x, np.roll(W, which, 0)), bias)

    wide = call("qnn.requantize", sums(2), scales, 0, 1.0, 100, out_dtype="int32", axis=1,
                rounding=away)  # fmt: skip
    outputs = [
        rescaled(sums(0), scales, 1.0, 100, "uint8", up),
        call("clip", rescaled(sums(1), scales, 1.0, -9, "int8", away), a_min=-9.0, a_max=100.0),
        call("cast", call("clip", wide, a_min=100.0, a_max=255.0), dtype="uint8"),
        rescaled(call("nn.relu", call("add", conv(s, zero=-5), bias.reshape(8, 1, 1))),
                 np.float32(0.0071), 1.0, 0, "int8", up),
        rescaled(conv(s, zero=-128, strides=(2, 1)), 1.3, 770.0, 127, "int8", away),
        rescaled(conv(x, (W // 2).astype(np.int8), w_zero=-3, dilation=(2, 2)), 1.0, 300.0),
    ]  # fmt: skip
    network = compare(outputs, {"x": X, "s": S})
    assert layers(network) == [
        "bias+upward", "bias+tonearest", "bias+tonearest", "bias+upward", "tonearest", "upward"
    ]  # fmt: skip
    assert {la.workload.dtype for la in network.graph.layers} == {"int8"}


def test_vectors_of_four_lanes_and_other_configs() -> None:
    text = module_json([x], rescaled(conv(rescaled(conv(x), 1.0, 300.0), W[:, :1].repeat(8, 1),
                                          zero=3), 1.0, 500.0))  # fmt: skip
    network = load_network(text)
    want = run(network.model, {"x": X})
    check(network, {"x": X}, target=narrow(), want=want)
    rng, choices = random.Random(0), []
    for layer in network.graph.layers:
        entry, implementation = rng.choice(registry().implementations(layer.workload, host()))
        assert implementation.stated and implementation.exact
        config = rng.choice(entry.template.space(layer.workload, host()).points())
        choices.append(choose(entry, layer, host(), config, implementation))
    plan = Plan(model=network.model.digest, target="host", choices=tuple(choices))
    check(network, {"x": X}, Plan.model_validate_json(plan.model_dump_json()), want=want)


def test_a_layer_without_a_template_is_computed_as_written() -> None:
    padded = call("nn.pad", x, 7, pad_width=((0, 0), (0, 0), (2, 0), (0, 1)), pad_mode="constant")
    first = rescaled(conv(padded), 1.0, 300.0)
    network = load_network(
        module_json([x], rescaled(conv(first, W[:, :1].repeat(8, 1)), 1.0, 400.0))
    )
    assert network.graph.layers[0].workload.padding == (3, 1, 1, 2)  # type: ignore[union-attr]
    whole, want = baseline_plan(network, registry(), host()), run(network.model, {"x": X})
    check(network, {"x": X}, whole, want=want)
    check(network, {"x": X}, whole.model_copy(update={"choices": whole.choices[1:]}), want=want)


def test_values_that_others_read_as_they_are() -> None:
    """Sums in int32, int8 values as outputs, an argmax: those stay operators of their own."""
    sums = conv(x)
    q = rescaled(sums, 1.0, 300.0)
    again = rescaled(conv(q, W[:, :1].repeat(8, 1), zero=3), 1.0, 400.0, 0, "int8")
    largest = call("multiply", call("cast", call("max", q, axis=(2,)), dtype="int32"), 3)
    network = compare([again, q, sums, largest], {"x": X})
    # Of the first the sums are returned: it stays as it is written.
    assert layers(network) == ["upward"]


def test_what_no_int8_kernel_computes_to_the_bit() -> None:
    def sums(which: int) -> Expr:  # of weights of their own: nothing is read twice
        return conv(x, np.roll(W, which, 0))

    twice = call("nn.relu", call("nn.relu", sums(1)))
    outputs = {
        # A sum of 128 * 128 twice does not fit.
        "weights": rescaled(conv(x, np.full_like(W, -128), zero=0), 1.0, 5000.0, 250),
        # This is no zero point of u8.
        "zero point": rescaled(conv(x, zero=300), 1.0, 900.0),
        "int32": rescaled(twice, np.float32(1.5), 0.001, 0, "int32"),
        "wrapped": call("cast", call("right_shift", sums(2), np.array(9, np.int32)), dtype="int8"),
        "capped": rescaled(call("minimum", sums(3), np.array(900, np.int32)), 1.0, 13.0),
        "multiplied": rescaled(call("multiply", sums(4), np.array(3, np.int32)), 1.0, 900.0),
    }
    network = load_network(module_json([x], Tuple(tuple(outputs.values()))))
    assert network.graph.layers == ()
    want = run(network.model, {"x": X})
    plan = baseline_plan(network, registry(), host())
    got = execute(lower(network, plan, registry(), host()).mod, host(), [X])
    for name, ours, theirs in zip(outputs, got, want, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
        assert np.unique(theirs).size > 1, name


def test_sums_that_may_not_fit_32_bits_are_no_layer() -> None:
    """What they are then is not defined; that much is certain, it is not the kernel's result."""
    for bias, known in ((2**31 - 9, 0), (2**30, 1)):
        sums = call("nn.bias_add", conv(x), np.full(8, bias, np.int32))
        network = load_network(module_json([x], rescaled(sums, 1.0, 2.0**25)))
        assert len(network.graph.layers) == known


def test_scales_as_powers_of_two() -> None:
    """What relay.quantize leaves: int8 operands, a sum, half of the divisor, a shift, a clip."""
    weight = RNG.integers(-127, 128, (8, 6, 3, 3)).astype(np.int8)
    same = {"padding": (1, 1, 1, 1), "channels": 8, "kernel_size": (3, 3), "out_dtype": "int32"}
    bias = RNG.integers(-3000, 3000, (8, 1, 1)).astype(np.int32)

    def ended(sums: Expr, shift: int) -> Expr:
        half = call("add", sums, np.array(1 << (shift - 1), np.int32))
        moved = call("right_shift", half, np.array(shift, np.int32))
        return call("cast", call("clip", moved, a_min=-127.0, a_max=127.0), dtype="int8")

    first = ended(call("nn.relu", call("add", call("nn.conv2d", s, weight, **same), bias)), 10)
    second = ended(call("nn.conv2d", first, W[:, :1].repeat(8, 1), **same), 9)
    network = compare([first, second], {"s": S})
    assert layers(network) == ["bias+upward", "upward"]


def test_operators_between_layers_stay_blocked() -> None:
    g = QnnGraph(3)
    a = g.input((1, 16, 9, 9), "uint8", True)
    b, c = g.conv(a, 16, 3), g.conv(a, 16, 1)
    c = c if c.dtype == b.dtype else g.requantised(c, b.dtype)
    j = g.concatenate([g.pair("qnn.add", b, c), g.pair("qnn.mul", b, c)])
    p = g.pool(g.pool(j, "avg", 3, 2, 1), "max", 2, 1, 1)
    d = g.conv(p, 16, 1)
    network = check(load_network(g.json(d.expr)), g.feeds)
    between = {n.op for n in network.graph.nodes if n.int8}
    assert between == {"integer", "max_pool"}
    lowered = lower(network, baseline_plan(network, registry(), host()), registry(), host())
    # The input's and the output's; nothing is converted where v channels fill a block.
    assert [(c.source, c.destination) for c in lowered.conversions][1:] == [
        ("NCHW16c/s8", "NCHW")
    ] or host().lanes("float32") != 16
    assert len(network.graph.layers) == g.layers == 3


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "nhwc"), [(0, False), (2, True)])
def test_random_networks(seed: int, nhwc: bool) -> None:
    g, text = random_network(seed, nhwc)
    network = load_network(text)
    assert [la.workload.dtype for la in network.graph.layers] == ["int8"] * g.layers
    want = run(network.model, g.feeds)
    plan = baseline_plan(network, registry(), host())
    got = execute(lower(network, plan, registry(), host()).mod, host(), list(g.feeds.values()))
    simulated = Simulator(network, host()).expected(plan, list(g.feeds.values()))
    for ours, theirs, again in zip(got, want, simulated, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(again, theirs)
    assert np.unique(want[0]).size >= 10 and np.unique(want[1]).size > 20
