"""Layer extraction: what is fused into a layer, what is not, and how layers are called."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.network_plans import check_plan, network_of
from tvmx.ir import (
    Conv2dWorkload,
    DenseWorkload,
    Epilogue,
    Implementation,
    LayoutWalk,
    NetworkGraph,
)
from tvmx.passes import LayerStep, Network
from tvmx.testing.models import conv_model, graph_model, multi_io_model, residual_model

make = helper.make_node
RNG = np.random.default_rng(0)
PADS = [1, 1, 1, 1]
SHAPE = (1, 4, 6, 6)


def array(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def scalar(value: float) -> Any:
    return np.array(value, np.float32)


def conv(source: str, result: str, name: str, weight: str = "w", **attributes: Any) -> Any:
    return make("Conv", [source, weight], [result], name=name, pads=PADS, **attributes)


def model(nodes: list[Any], outputs: tuple[str, ...] = ("y",), **weights: Any) -> onnx.ModelProto:
    """A network on ``x`` (1, 4, 6, 6) with the 4-4 3x3 filters ``w`` and ``v``."""
    known = {"w": array(4, 4, 3, 3), "v": array(4, 4, 3, 3), **weights}
    read = {name for node in nodes for name in node.input}
    used = {n: a for n, a in known.items() if n in read}
    return graph_model(nodes, {"x": SHAPE}, dict.fromkeys(outputs), used)


def epilogues(network: Network) -> dict[str, str]:
    return {la.name: la.workload.epilogue.describe() for la in network.graph.layers}


def kinds(network: Network) -> list[str]:
    return [node.kind for node in network.graph.nodes]


# what is fused


@pytest.mark.parametrize(
    ("tail", "weights", "expected"),
    [
        ([], {}, Epilogue()),
        ([make("Add", ["c", "b"], ["y"])], {"b": array(4, 1, 1)}, Epilogue(bias=True)),
        ([make("Add", ["b", "c"], ["y"])], {"b": array(1, 4, 1, 1)}, Epilogue(bias=True)),
        ([make("Add", ["c", "b"], ["y"])], {"b": scalar(0.5)}, Epilogue(bias=True)),
        ([make("Relu", ["c"], ["y"])], {}, Epilogue(clip_min=0.0)),
        (
            [make("Clip", ["c", "lo", "hi"], ["y"])],
            {"lo": scalar(0), "hi": scalar(6)},
            Epilogue(clip_min=0.0, clip_max=6.0),
        ),
        (
            [make("Clip", ["c", "lo"], ["y"])], {"lo": scalar(-0.25)}, Epilogue(clip_min=-0.25),
        ),
        (
            [make("Clip", ["c", "", "hi"], ["y"])], {"hi": scalar(0.25)}, Epilogue(clip_max=0.25),
        ),
        ([make("Add", ["c", "x"], ["y"])], {}, Epilogue(residual=True)),
        ([make("Add", ["x", "c"], ["y"])], {}, Epilogue(residual=True)),
        (
            [make("Add", ["c", "b"], ["d"]), make("Add", ["d", "x"], ["e"]),
             make("Relu", ["e"], ["y"])],
            {"b": array(4, 1, 1)},
            Epilogue(bias=True, residual=True, clip_min=0.0),
        ),
        (
            [make("Add", ["c", "b"], ["d"]), make("Add", ["d", "b"], ["y"])],
            {"b": array(4, 1, 1)},
            Epilogue(bias=True),
        ),
    ],
)  # fmt: skip
def test_epilogue(tail: list[Any], weights: dict[str, Any], expected: Epilogue) -> None:
    first = conv("x", "c" if tail else "y", "conv")
    proto = model([first, *tail], **weights)
    network = network_of(proto)
    (layer,) = network.graph.layers
    assert layer.workload.epilogue == expected
    assert kinds(network) == ["layer"]
    assert check_plan(proto, network=network).hits == 1


@pytest.mark.parametrize(
    ("tail", "weights", "fused"),
    [
        # One value per pixel, a whole image, a broadcast image: no channel vector.
        ([make("Add", ["c", "b"], ["y"])], {"b": array(6)}, ""),
        ([make("Add", ["c", "b"], ["y"])], {"b": array(*SHAPE)}, ""),
        ([make("Sub", ["x", "c"], ["y"])], {}, ""),
        ([make("Mul", ["c", "x"], ["y"])], {}, ""),
        ([make("Add", ["c", "c"], ["y"])], {}, ""),
        ([make("Sigmoid", ["c"], ["y"])], {}, ""),
        # Only in the order bias, residual, clip.
        ([make("Relu", ["c"], ["d"]), make("Add", ["d", "x"], ["y"])], {}, "relu"),
        (
            [make("Relu", ["c"], ["d"]), make("Add", ["d", "b"], ["y"])],
            {"b": array(4, 1, 1)},
            "relu",
        ),
        (
            [make("Add", ["c", "x"], ["d"]), make("Add", ["d", "b"], ["y"])],
            {"b": array(6)},
            "add",
        ),
    ],
)
def test_not_fused(tail: list[Any], weights: dict[str, Any], fused: str) -> None:
    proto = model([conv("x", "c", "conv"), *tail], **weights)
    network = network_of(proto)
    (layer,) = network.graph.layers
    assert layer.workload.epilogue.describe() == fused
    assert len(network.graph.nodes) > 1
    check_plan(proto, network=network)


def test_a_residual_of_another_shape_is_no_residual() -> None:
    pooled = make("GlobalAveragePool", ["x"], ["p"])
    proto = model([pooled, conv("x", "c", "conv"), make("Add", ["c", "p"], ["y"])])
    network = network_of(proto)
    assert network.graph.layers[0].workload.epilogue == Epilogue()
    check_plan(proto, network=network)


def test_of_two_convolutions_joined_the_later_takes_the_add() -> None:
    nodes = [
        conv("x", "a", "first"), conv("x", "b", "second", "v"),
        make("Add", ["a", "b"], ["s"]), make("Relu", ["s"], ["y"]),
    ]  # fmt: skip
    proto = model(nodes)
    network = network_of(proto)
    assert epilogues(network) == {"first": "", "second": "add+relu"}
    first, second = network.graph.nodes
    assert second.inputs == (network.graph.inputs[0], first.output)
    check_plan(proto, network=network)


def test_a_residual_made_after_the_convolution_is_there_when_the_layer_runs() -> None:
    nodes = [
        conv("x", "a", "conv"), make("Sigmoid", ["x"], ["late"]), make("Add", ["a", "late"], ["y"])
    ]  # fmt: skip
    proto = model(nodes)
    network = network_of(proto)
    assert epilogues(network) == {"conv": "add"}
    assert [n.op for n in network.graph.nodes] == ["relax.sigmoid", "conv2d"]
    check_plan(proto, network=network)


@pytest.mark.parametrize("outputs", [("y", "z"), ("y", "c")])
def test_an_output_that_is_read_twice_ends_the_layer(outputs: tuple[str, ...]) -> None:
    nodes = [
        conv("x", "c", "conv"), make("Relu", ["c"], ["y"]), make("Sigmoid", ["c"], ["z"])
    ]  # fmt: skip
    proto = model([n for n in nodes if n.output[0] in {*outputs, "c"}], outputs)
    network = network_of(proto)
    assert epilogues(network) == {"conv": ""}
    check_plan(proto, network=network)


def test_the_clip_of_an_output_that_is_read_later_is_fused() -> None:
    nodes = [conv("x", "c", "one"), make("Relu", ["c"], ["r"]), conv("r", "y", "two", "v")]
    proto = model(nodes, ("y", "r"))
    network = network_of(proto)
    assert epilogues(network) == {"one": "relu", "two": ""}
    check_plan(proto, network=network)


# anchors


def test_dense_bias_and_residual() -> None:
    nodes = [
        make("Gemm", ["x", "w", "b"], ["h"], name="fc1", transB=1),
        make("Relu", ["h"], ["r"], name="act"),
        make("MatMul", ["r", "v"], ["g"], name="fc2"),
        make("Add", ["g", "x"], ["y"], name="join"),
    ]
    weights = {"w": array(7, 5), "b": array(7), "v": array(7, 5)}
    proto = graph_model(nodes, {"x": (3, 5)}, {"y": (3, 5)}, weights)
    network = network_of(proto)
    one, two = network.graph.layers
    assert one.workload == DenseWorkload(
        batch=3, in_features=5, out_features=7, epilogue=Epilogue(bias=True, clip_min=0.0)
    )
    assert two.workload == DenseWorkload(
        batch=3, in_features=7, out_features=5, epilogue=Epilogue(residual=True)
    )
    assert (one.name, one.fused) == ("fc1", ("act",))
    assert (two.name, two.fused) == ("fc2", ("join",))
    assert (one.parameters, two.parameters) == (42, 35)
    check_plan(proto, network=network)


def test_a_dense_bias_per_row_is_not_a_bias() -> None:
    nodes = [make("MatMul", ["x", "w"], ["h"]), make("Add", ["h", "b"], ["y"])]
    proto = graph_model(nodes, {"x": (3, 5)}, {"y": (3, 3)}, {"w": array(5, 3), "b": array(3, 1)})
    network = network_of(proto)
    assert network.graph.layers[0].workload.epilogue == Epilogue()
    check_plan(proto, network=network)


def test_the_operators_of_layers() -> None:
    full = {"in_channels": 8, "out_channels": 8, "pads": PADS}
    for group, out, op in ((1, 8, "conv2d"), (2, 8, "conv2d"), (8, 8, "depthwise_conv2d"),
                           (8, 16, "conv2d")):  # fmt: skip
        network = network_of(conv_model(**(full | {"group": group, "out_channels": out})))
        (layer,) = network.graph.layers
        assert layer.op == op
        assert isinstance(layer.workload, Conv2dWorkload)
        assert layer.workload.groups == group
        assert layer.parameters == out * (8 // group) * 9 + out


def test_the_workload_holds_every_attribute() -> None:
    proto = conv_model(
        6, 10, (17, 13), (3, 2), batch=2, strides=[2, 3], dilations=[2, 1], group=2,
        pads=[1, 0, 2, 3],
    )  # fmt: skip
    network = network_of(proto)
    (layer,) = network.graph.layers
    assert layer.workload == Conv2dWorkload(
        batch=2, in_channels=6, height=17, width=13, out_channels=10, kernel=(3, 2),
        strides=(2, 3), dilation=(2, 1), groups=2, padding=(1, 0, 2, 3),
        epilogue=Epilogue(bias=True),
    )  # fmt: skip
    assert layer.workload.macs == 2 * 10 * layer.workload.out_height * layer.workload.out_width * 18
    check_plan(proto, network=network)


def test_a_product_of_two_activations_is_no_layer() -> None:
    nodes = [make("MatMul", ["x", "z"], ["m"]), make("MatMul", ["m", "w"], ["y"], name="fc")]
    proto = graph_model(nodes, {"x": (3, 5), "z": (5, 4)}, {"y": (3, 6)}, {"w": array(4, 6)})
    network = network_of(proto)
    assert epilogues(network) == {"fc": ""}
    assert kinds(network) == ["opaque", "layer"]
    check_plan(proto, network=network)


def test_equal_layers_have_equal_workloads() -> None:
    nodes = [conv("x", "a", "one"), conv("a", "b", "two", "v"), conv("b", "y", "three")]
    digests = {la.workload.digest for la in network_of(model(nodes)).graph.layers}
    assert len(digests) == 1


# names


def test_layers_keep_the_names_of_their_nodes() -> None:
    network = network_of(residual_model())
    layers = network.graph.layers
    assert [la.name for la in layers] == ["stem", "a", "b", "depthwise", "fc"]
    assert [la.index for la in layers] == list(range(5))
    assert "join" in layers[2].fused
    assert "join_relu" in layers[2].fused
    assert layers[2].workload.epilogue.describe() == "bias+add+relu"
    assert layers[3].workload.epilogue.describe() == "relu6"


def test_names_are_unique() -> None:
    nodes = [conv("x", "a", "c"), conv("a", "b", "c", "v"), conv("b", "y", "")]
    names = [la.name for la in network_of(model(nodes)).graph.layers]
    assert len(set(names)) == 3
    assert names[0] == "c"
    assert all(names)


# the graph


def test_values_and_steps_belong_together() -> None:
    network = network_of(residual_model())
    graph = network.graph
    assert len(network.values) == len(graph.shapes)
    assert len(network.steps) == len(graph.nodes)
    assert len({node.output for node in graph.nodes}) == len(graph.nodes)
    known = set(graph.inputs)
    for node, step in zip(graph.nodes, network.steps, strict=True):
        assert set(node.inputs) <= known, "not in topological order"
        known.add(node.output)
        assert (node.layer is not None) == isinstance(step, LayerStep)
    assert set(graph.outputs) <= known
    assert graph.macs == sum(la.workload.macs for la in graph.layers)


def test_several_inputs_and_outputs() -> None:
    network = network_of(multi_io_model())
    graph = network.graph
    assert [graph.shapes[v] for v in graph.inputs] == [(1, 4, 8, 8)] * 2
    assert [graph.shapes[v] for v in graph.outputs] == [(1, 6, 8, 8), (1, 12, 8, 8), (1, 4)]
    assert len(graph.layers) == 2


# the layout walk


def impl(layout: str, data: str = "") -> Implementation:
    return Implementation(template="t", layout=layout, data_layout=data or layout)


def walk(graph: NetworkGraph, layouts: list[str]) -> tuple[list[tuple[int, str, str]], list[str]]:
    """Conversions (value, from, to) and what each node writes, layers in these layouts."""
    walker = LayoutWalk(graph)
    found, writes = [], []
    for node in graph.nodes:
        chosen = None if node.layer is None else impl(layouts[node.layer])
        placed = walker.step(node, chosen)
        found += [(c.value, c.source, c.destination) for c in placed.conversions]
        writes.append(placed.writes)
    found += [(c.value, c.source, c.destination) for c in walker.finish()]
    return found, writes


def test_equal_layouts_need_no_conversion_between_them() -> None:
    graph = network_of(residual_model()).graph
    conversions, writes = walk(graph, ["NCHW8c"] * 4 + ["NC"])
    assert conversions == [(graph.inputs[0], "NCHW", "NCHW8c")]
    assert writes[-2:] == ["NCHW", "NCHW"]
    assert set(writes[:-2]) == {"NCHW8c"}
    assert walk(graph, ["NCHW"] * 4 + ["NC"])[0] == []


def test_a_value_is_converted_once_for_all_its_readers() -> None:
    nodes = [
        conv("x", "a", "one"), conv("a", "b", "two"), conv("a", "c", "three", "v"),
        make("Concat", ["b", "c"], ["y"], axis=1),
    ]  # fmt: skip
    graph = network_of(model(nodes)).graph
    a = graph.nodes[0].output
    conversions, _ = walk(graph, ["NCHW", "NCHW4c", "NCHW4c"])
    assert [c for c in conversions if c[0] == a] == [(a, "NCHW", "NCHW4c")]


def test_concat_stays_plain_where_blocks_are_not_full() -> None:
    nodes = [
        conv("x", "a", "one"), conv("x", "b", "two", "v"), make("Concat", ["a", "b"], ["y"], axis=1)
    ]  # fmt: skip
    graph = network_of(model(nodes)).graph
    assert walk(graph, ["NCHW4c", "NCHW4c"])[1][-1] == "NCHW4c"
    assert walk(graph, ["NCHW8c", "NCHW8c"])[1][-1] == "NCHW"


def test_the_network_outputs_are_plain() -> None:
    graph = network_of(model([conv("x", "y", "one")])).graph
    conversions, writes = walk(graph, ["NCHW4c"])
    assert writes == ["NCHW4c"]
    assert conversions[-1] == (graph.outputs[0], "NCHW4c", "NCHW")


def test_state_and_restore() -> None:
    graph = network_of(residual_model()).graph
    choices = ["NCHW8c", "NCHW", "NCHW8c", "NCHW", "NC"]
    straight = [LayoutWalk(graph)]
    expected = []
    for node in graph.nodes:
        chosen = None if node.layer is None else impl(choices[node.layer])
        expected.append((straight[0].state(), straight[0].step(node, chosen)))
    end = straight[0].finish()
    detour = LayoutWalk(graph)
    for node, (state, placement) in zip(graph.nodes, expected, strict=True):
        detour.restore(state)
        hash(detour.state())
        detour.step(node, None if node.layer is None else impl("NCHW16c"))  # a dead end
        detour.restore(state)
        chosen = None if node.layer is None else impl(choices[node.layer])
        assert detour.step(node, chosen) == placement
    assert detour.finish() == end
    detour.reset()
    assert detour.state() == LayoutWalk(graph).state()


def test_forgotten_values_make_equal_futures_equal() -> None:
    graph = network_of(model([conv("x", "a", "one"), conv("a", "y", "two", "v")])).graph
    first = graph.nodes[0]
    states = []
    for data in ("NCHW", "NCHW4c"):
        walker = LayoutWalk(graph)
        walker.step(first, impl("NCHW4c", data))
        walker.forget(first.inputs)
        states.append(walker.state())
    assert states[0] == states[1]
