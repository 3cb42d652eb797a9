"""Lowering: any plan computes what ONNX Runtime computes; replays are checked and exact."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from tests.network_plans import (
    assert_same,
    check_plan,
    execute,
    host,
    inputs_of,
    narrow,
    network_of,
    plan_of,
    registry,
)
from tests.random_networks import networks
from tvmx.build import build_network
from tvmx.errors import BuildError, IllegalConfigError, TemplateLoadError
from tvmx.ir import BlockSparsity, LayerChoice, Plan
from tvmx.numerics import LayerConstants, prune
from tvmx.passes import (
    LayerStep,
    Network,
    baseline_plan,
    check_replay,
    constants_named,
    float_constants,
    lower,
    named,
    planned,
    transfer_plan,
    with_pruned,
)
from tvmx.targets import load_target
from tvmx.templates import Registry
from tvmx.testing.models import (
    conv_model,
    graph_model,
    multi_io_model,
    onnx_reference,
    residual_model,
)

make = helper.make_node
RNG = np.random.default_rng(0)


def array(*shape: int) -> Any:
    return (RNG.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])))).astype(np.float32)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks(), st.lists(st.integers(0, 3), min_size=1, max_size=6), st.booleans())
def test_any_plan_computes_the_network(
    proto: onnx.ModelProto, picks: list[int], small: bool
) -> None:
    check_plan(proto, picks, narrow() if small else host())


def joined(left: int, right: int, *, tail: str = "Add") -> onnx.ModelProto:
    """Two convolutions ``one`` and ``two`` on ``x``, joined, then ``three``; all are outputs."""
    nodes = [
        make("Conv", ["x", "w1"], ["a"], name="one", pads=[1, 0, 0, 1]),
        make("Conv", ["x", "w2"], ["b"], name="two", pads=[0, 1, 1, 0]),
        make(tail, ["a", "b"], ["j"], name="join", **({"axis": 1} if tail == "Concat" else {})),
        make("Conv", ["j", "w3"], ["y"], name="three", strides=[2, 2], pads=[1, 0, 1, 2]),
    ]
    middle = left + right if tail == "Concat" else left
    weights = {
        "w1": array(left, 5, 2, 2), "w2": array(right, 5, 2, 2), "w3": array(7, middle, 3, 3)
    }  # fmt: skip
    return graph_model(nodes, {"x": (2, 5, 9, 7)}, {"y": None, "j": None, "a": None}, weights)


MIXES = [(a, b, c) for a in "id" for b in "id" for c in "id"]
NAMES = {"i": "conv2d_im2col", "d": "conv2d_direct"}


@pytest.mark.parametrize("mix", MIXES, ids="".join)
def test_residual_join_of_layouts(mix: tuple[str, str, str]) -> None:
    choice = dict(zip(("one", "two", "three"), (NAMES[m] for m in mix), strict=True))
    lowered = check_plan(joined(12, 12), choice)
    assert (lowered.hits, lowered.total) == (3, 3)
    if "d" not in mix:
        assert lowered.conversions == ()


@pytest.mark.parametrize("channels", [(8, 16), (5, 11), (16, 3)])
def test_concat_of_ragged_channels(channels: tuple[int, int]) -> None:
    proto = joined(*channels, tail="Concat")
    network = network_of(proto)
    for mix in ("ddd", "did", "idi"):
        choice = dict(zip(("one", "two", "three"), (NAMES[m] for m in mix), strict=True))
        check_plan(proto, choice, narrow(), network)


def test_every_layer_of_a_residual_network_in_both_layouts() -> None:
    proto = residual_model(channels=10, size=13)
    network = network_of(proto)
    plain = dict.fromkeys(("stem", "a", "b", "depthwise"), "conv2d_im2col")
    assert check_plan(proto, {}, network=network).hits == 5
    legal = {e.name for e in registry().legal(network.graph.layers[3].workload, host())}
    if "conv2d_im2col" not in legal:
        del plain["depthwise"]
    check_plan(proto, plain, network=network)


def test_several_inputs_and_outputs_one_of_them_an_input() -> None:
    check_plan(multi_io_model())
    nodes = [
        make("Conv", ["x", "w"], ["c"], name="conv"),
        make("Identity", ["z"], ["copy"]),
        make("Add", ["c", "z"], ["y"]),
    ]
    proto = graph_model(
        nodes, {"x": (1, 3, 4, 4), "z": (1, 6, 4, 4)}, {"y": None, "copy": None, "c": None},
        {"w": array(6, 3, 1, 1)},
    )  # fmt: skip
    check_plan(proto)


def test_layers_without_a_template_run_anyway() -> None:
    empty = Registry()
    proto = residual_model()
    network = network_of(proto)
    target = host()
    full = plan_of(network, target)
    some = full.model_copy(update={"choices": full.choices[1:3]})
    lowered = lower(network, some, registry(), target)
    assert (lowered.hits, lowered.total) == (2, 5)
    feeds = inputs_of(proto)
    assert_same(execute(lowered.mod, target, list(feeds.values())), onnx_reference(proto, feeds))
    with pytest.raises(BuildError, match="none of the 5 layers"):
        lower(network, baseline_plan(network, empty, target), empty, target)


def test_a_kernel_is_emitted_once_for_equal_layers() -> None:
    nodes = [
        make("Conv", ["x", "w"], ["a"], name="one", pads=[1] * 4),
        make("Conv", ["a", "v"], ["y"], name="two", pads=[1] * 4),
    ]
    proto = graph_model(
        nodes, {"x": (1, 16, 8, 8)}, {"y": None},
        {"w": array(16, 16, 3, 3), "v": array(16, 16, 3, 3)},
    )  # fmt: skip
    lowered = check_plan(proto)
    assert sum("conv2d" in gv.name_hint for gv in lowered.mod.get_global_vars()) == 1
    assert set(lowered.weights_bytes) == {"one", "two"}


# replay


def test_a_plan_for_another_workload_is_refused() -> None:
    network = network_of(conv_model(3, 8, pads=[1] * 4))
    other = network_of(conv_model(3, 9, pads=[1] * 4))
    plan = plan_of(other, host())
    with pytest.raises(BuildError, match="another workload"):
        lower(network, plan, registry(), host())


def test_a_config_outside_the_space_names_the_layer() -> None:
    network = network_of(conv_model(3, 8, pads=[1] * 4))
    plan = plan_of(network, host())
    knobs = dict(plan.choices[0].config)
    knobs[next(k for k, v in knobs.items() if isinstance(v, int))] = 999
    wrong = plan.choices[0].model_copy(update={"config": knobs})
    with pytest.raises(IllegalConfigError, match="layer 'conv'"):
        lower(network, plan.model_copy(update={"choices": (wrong,)}), registry(), host())


def test_check_replay() -> None:
    network = network_of(residual_model())
    plan = plan_of(network, host())
    check_replay(plan, network, registry())
    with pytest.raises(BuildError, match="was made for model"):
        check_replay(plan, network_of(residual_model(seed=1)), registry())
    first = plan.choices[0]
    edited = first.implementation.model_copy(update={"fingerprint": "0" * 12})
    changed = first.model_copy(update={"implementation": edited})
    with pytest.raises(BuildError, match=r"'stem'.*has changed"):
        check_replay(plan.model_copy(update={"choices": (changed,)}), network, registry())
    with pytest.raises(TemplateLoadError, match="conv2d_direct"):
        check_replay(plan, network, Registry())


def test_a_plan_carried_to_another_target_keeps_its_templates() -> None:
    network = network_of(residual_model(channels=16, size=16))
    plan = plan_of(network, host(), {"a": "conv2d_im2col"})
    there = load_target("rpi4")
    carried = transfer_plan(plan, network, registry(), there)
    assert carried.target == "rpi4"
    assert [c.implementation.template for c in carried.choices] == [
        c.implementation.template for c in plan.choices
    ]
    for layer, choice in zip(network.graph.layers, carried.choices, strict=True):
        template = registry().get(choice.implementation.template).template
        assert choice.knobs == template.space(layer.workload, there).default


def reconstructed(network: Network, sparsity: str) -> tuple[Network, Plan]:
    """A plan whose dense layer has pruned weights of its own, and the network with them."""
    plan = plan_of(network, host())
    steps = [s for s in network.steps if isinstance(s, LayerStep)]
    index, step = next((i, s) for i, s in enumerate(steps) if s.layer.workload.op == "dense")
    blocks = BlockSparsity.parse(sparsity)
    assert blocks is not None
    constants = LayerConstants(prune(step.weight, blocks) * np.float32(1.25), step.bias)
    network = with_pruned(network, {step.layer.index: {sparsity: constants}})
    choices = list(plan.choices)
    implementation = choices[index].implementation.model_copy(update={"sparsity": sparsity})
    choices[index] = named(
        choices[index].model_copy(update={"implementation": implementation}), network
    )
    assert choices[index].weights
    return network, plan.model_copy(update={"choices": tuple(choices)})


def pruned_choice(plan: Plan) -> LayerChoice:
    (choice,) = (c for c in plan.choices if c.weights)
    return choice


@pytest.mark.parametrize("sparsity", ["16x1@50", "8x1@70"])
def test_reconstructed_weights_are_carried_to_smaller_blocks(sparsity: str) -> None:
    """Blocks follow the lanes: 16x1 or 8x1 on the host, 4x1 on the Pi, as sparse and the same."""
    network, plan = reconstructed(network_of(residual_model(channels=32, size=8)), sparsity)
    there = load_target("rpi4")
    carried = transfer_plan(plan, network, registry(), there)
    choice = pruned_choice(carried)
    assert choice.implementation.sparsity.startswith("4x1@")
    assert choice.weights == pruned_choice(plan).weights
    (before,) = constants_named(network, plan).values()
    steps = [s for s in planned(network, carried).steps if isinstance(s, LayerStep)]
    step = next(s for s in steps if s.layer.name == choice.layer)
    after = float_constants(step, choice.implementation).weight
    np.testing.assert_array_equal(after, before.weight)
    level = int(choice.implementation.sparsity.partition("@")[2])
    rows, columns = before.weight.shape
    padded = np.pad(before.weight, ((0, -rows % 4), (0, 0))).reshape(-1, 4, columns)
    empty, total = int((padded == 0).all(axis=1).sum()), len(padded) * columns
    assert total * level // 100 <= empty
    assert level >= 50
    lower(network, carried, registry(), there)


def test_reconstructed_weights_are_not_carried_to_larger_blocks() -> None:
    """Rows of 4 zeros seldom make 16: magnitude may prune anew, reconstruction may not."""
    network, plan = reconstructed(network_of(residual_model(channels=32, size=8)), "4x1@50")
    there = host()
    with pytest.raises(BuildError, match=r"pruned by reconstruction in blocks of 4x1@50") as err:
        transfer_plan(plan, network, registry(), there)
    assert "--target host" in str(err.value.hint)
    choices = tuple(c.model_copy(update={"weights": ""}) for c in plan.choices)
    transfer_plan(plan.model_copy(update={"choices": choices}), network, registry(), there)


def test_the_same_plan_builds_the_same_library(tmp_path: Path) -> None:
    network = network_of(residual_model())
    plan = plan_of(network, host(), {"a": "conv2d_im2col"})
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert again.digest == plan.digest
    digests = []
    for index, chosen in enumerate((plan, again)):
        lowered = lower(network, chosen, registry(), host())
        path = tmp_path / str(index) / "model.so"
        build_network(lowered.mod, host(), path)
        digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
    assert digests[0] == digests[1]
