"""Reconstruction that is stopped: what is done by then is used, and a continued run repeats it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.network_plans import host, network_of
from tvmx.accuracy import Samples, prune_layers
from tvmx.errors import StoreError
from tvmx.explore import _prune_method
from tvmx.explore._context import Context
from tvmx.explore._prune_method import RECONSTRUCTED, Reconstruction, reconstructed
from tvmx.ir import BlockSparsity
from tvmx.numerics import Moments, reconstruct
from tvmx.passes import LayerStep, Network, Simulator
from tvmx.testing.models import graph_model

LEVELS = [BlockSparsity(8, 1, 50), BlockSparsity(8, 1, 80)]
SIZES = {"small": 16, "large": 64, "middle": 32}  # output channels, in the network's order


def model() -> onnx.ModelProto:
    rng, nodes, weights, channels = np.random.default_rng(4), [], {}, 32
    names = list(SIZES)
    for source, (name, size) in zip(["x", *names], SIZES.items(), strict=False):
        weight = rng.standard_normal((size, channels, 1, 1)) / np.sqrt(channels)
        weights[f"w {name}"] = weight.astype(np.float32)
        nodes.append(helper.make_node("Conv", [source, f"w {name}"], [name], name=name))
        channels = size
    return graph_model(nodes, {"x": (1, 32, 6, 6)}, {names[-1]: (1, channels, 6, 6)}, weights)


def samples() -> Samples:
    data = np.random.default_rng(5).standard_normal((24, 32, 6, 6)).astype(np.float32)
    return Samples({"x": data})


def after(calls: int) -> Callable[[], bool]:
    """False so many times, then True."""
    left = iter([False] * calls)
    return lambda: next(left, True)


def names_of(network: Network) -> dict[int, str]:
    return {layer.index: layer.name for layer in network.graph.layers}


def test_a_stopped_layer_is_not_half_done() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((16, 24)).astype(np.float32)
    moments = Moments.of(rng.standard_normal((200, 24)))
    whole = reconstruct(weight, moments, LEVELS)
    # Two rows of blocks to order, then two for each level to solve.
    assert reconstruct(weight, moments, LEVELS, stop=after(5)) is None
    enough = reconstruct(weight, moments, LEVELS, stop=after(6))
    assert whole is not None and enough is not None
    for level in LEVELS:
        np.testing.assert_array_equal(enough[level].weight, whole[level].weight)


def test_layers_with_most_operations_come_first_and_are_the_same_alone() -> None:
    network = network_of(model())
    simulator, data = Simulator(network, host()), samples()
    specs = {spec.name: spec for spec in network.model.inputs}
    wanted = {layer.index: LEVELS for layer in network.graph.layers}
    order: list[int] = []
    whole = prune_layers(simulator, data, specs, wanted, on_layer=order.append)
    assert [names_of(network)[at] for at in order] == ["middle", "large", "small"]
    done: list[int] = []
    part = prune_layers(
        simulator, data, specs, wanted, on_layer=done.append, stop=lambda: bool(done)
    )
    assert list(part) == order[:1]
    alone = prune_layers(simulator, data, specs, {order[1]: LEVELS})
    for found in (part, alone):
        for at, levels in found.items():
            for sparsity, made in levels.items():
                np.testing.assert_array_equal(
                    made.constants.weight, whole[at][sparsity].constants.weight
                )
    assert prune_layers(simulator, data, specs, wanted, stop=lambda: True) == {}


def pruned_names(context: Context) -> set[str]:
    """Layers that have weights found by reconstruction."""
    return {
        step.layer.name for step in context.network.steps
        if isinstance(step, LayerStep) and step.pruned
    }  # fmt: skip


def test_an_exploration_stops_and_a_continued_one_does_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(model().SerializeToString())
    context = Context.open(path, {}, "host", [], exact=False)
    options, data, seen = context.options(), samples(), []

    def clock() -> float:
        return float(len(seen) > 0)  # the first layer takes a second

    monkeypatch.setattr(_prune_method, "now", clock)

    def explored(seconds: float | None) -> tuple[Context, list[str]]:
        seen.clear()
        return reconstructed(
            context, data, options, tmp_path, seconds, lambda done, total: seen.append(done)
        )

    first, told = explored(1.0)
    kept = Reconstruction.load(tmp_path / RECONSTRUCTED)
    assert kept is not None and len(kept.done) == 1 and set(kept.done + kept.left) == set(SIZES)
    assert pruned_names(first) <= set(kept.done)
    assert told[1].startswith("2 more layers are pruned by magnitude") and len(told) == 2
    for seconds in (1.0, None):
        again, told_again = explored(seconds)
        assert told_again == told
        for one, other in zip(first.network.steps, again.network.steps, strict=True):
            if isinstance(one, LayerStep) and isinstance(other, LayerStep):
                assert set(one.pruned) == set(other.pruned)
                for sparsity, constants in one.pruned.items():
                    np.testing.assert_array_equal(constants.weight, other.pruned[sparsity].weight)
    (tmp_path / RECONSTRUCTED).unlink()
    whole, told = explored(None)
    assert len(told) == 1 and pruned_names(whole) >= pruned_names(first)
    assert len(Reconstruction.load(tmp_path / RECONSTRUCTED).done) == 3  # type: ignore[union-attr]


def test_a_damaged_record(tmp_path: Path) -> None:
    (tmp_path / RECONSTRUCTED).write_text('{"done": 3}')
    with pytest.raises(StoreError, match="damaged") as caught:
        Reconstruction.load(tmp_path / RECONSTRUCTED)
    assert "--fresh" in str(caught.value.hint)
