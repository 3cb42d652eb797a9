"""Nodes that make no sense are refused in a sentence, not in whatever Python ran into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from tests.network_plans import execute, host, network_of, plan_of, registry
from tvmx.errors import ModelError
from tvmx.frontends import load_model
from tvmx.frontends._reason import RuleError, quoted, reason_of
from tvmx.passes import lower
from tvmx.testing.models import graph_model

make = helper.make_node


def refusal(folder: Path, node: Any, weights: dict[str, Any], *shape: int, opset: int = 20) -> str:
    path = folder / "net.onnx"
    path.write_bytes(
        graph_model([node], {"x": shape}, {"y": None}, weights, opset).SerializeToString()
    )
    with pytest.raises(ModelError, match="node 'n'") as caught:
        load_model(path)
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize(
    "size",
    [[1, 1, 4], [2, 1, 4, 5], [1, 1, 0, 5], [1, 1, -1, 5], [1, 1, 4, 5, 6], [1, 1, 1, 1 << 40]],
)
def test_grids_of_impossible_sizes(size: list[int], tmp_path: Path) -> None:
    node = make("AffineGrid", ["x", "size"], ["y"], name="n")
    message = refusal(tmp_path, node, {"size": np.array(size)}, 1, 2, 3)
    assert f"cannot be imported: a grid of size {size} by matrices of shape (1, 2, 3)" in message


def test_what_a_converter_trips_over_is_told_as_such(tmp_path: Path) -> None:
    node = make("ConvTranspose", ["x", "w"], ["y"], name="n", strides=[2], output_shape=[9, 9])
    weights = {"w": np.ones((1, 1, 3, 3), np.float32)}
    message = refusal(tmp_path, node, weights, 1, 1, 4, 4)
    assert message.endswith("its converter does not take it (IndexError: tuple index out of range)")


def test_reasons() -> None:
    assert (
        reason_of(RuleError("axis 7 of a tensor with 2 axes")) == "axis 7 of a tensor with 2 axes"
    )
    assert reason_of(KeyError("x")) == "its converter does not take it (KeyError: 'x')"
    assert quoted(ValueError("\n  first \nsecond")) == "ValueError: first"
    assert quoted(AssertionError()) == "AssertionError"


@pytest.mark.parametrize("corners", [0, 1])
def test_grids_of_one_pixel_and_scalar_axes(corners: int) -> None:
    """A row of one pixel is in the middle; an axis may be a scalar, as ONNX's functions have it."""
    nodes = [make("AffineGrid", ["x", "size"], ["g"], align_corners=corners),
             make("Squeeze", ["g", "one"], ["s"]),
             make("Unsqueeze", ["s", "one"], ["y"])]  # fmt: skip
    weights = {"size": np.array([1, 1, 1, 3]), "one": np.array(1)}
    network = network_of(graph_model(nodes, {"x": (1, 2, 3)}, {"y": (1, 1, 3, 2)}, weights, 20))
    theta = np.arange(1, 7, dtype=np.float32).reshape(1, 2, 3)
    lowered = lower(network, plan_of(network, host()), registry(), host())
    (got,) = execute(lowered.mod, host(), [theta])
    x = np.array([-1, 0, 1]) * (1 if corners else 2 / 3)
    want = np.stack([1 * x + 3, 4 * x + 6], -1).reshape(1, 1, 3, 2)
    np.testing.assert_allclose(got, want, rtol=1e-6)
