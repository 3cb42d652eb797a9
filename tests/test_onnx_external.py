"""Weights in files beside an ONNX model: read whole, from the model's folder alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tvmx.errors import CorruptModelError, ModelError, TvmxError
from tvmx.frontends import check_model
from tvmx.frontends._onnx_check import read_model
from tvmx.testing.models import conv_model, graph_model

WHOLE = {"location": "weights.bin"}


def refer(tensor: TensorProto, **entries: str) -> bytes:
    """Make a tensor external; returns its bytes."""
    data = bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return data


def save(folder: Path, content: bytes | None = None, **entries: str) -> Path:
    """A convolution in ``folder/net`` whose weight is elsewhere."""
    proto = conv_model(16, 32)
    data = refer(proto.graph.initializer[0], **entries)
    net = folder / "net"
    net.mkdir(exist_ok=True)
    (net / "weights.bin").write_bytes(data if content is None else content)
    path = net / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def weight() -> bytes:
    return bytes(conv_model(16, 32).graph.initializer[0].raw_data)


@pytest.mark.parametrize(
    "before, entries",
    [
        (0, {}), (0, {"offset": "0"}), (0, {"length": str(16 * 32 * 9 * 4)}),
        (4096, {"offset": "4096"}), (3, {"offset": "3"}),
    ],
)  # fmt: skip
def test_the_weight_is_found(tmp_path: Path, before: int, entries: dict[str, str]) -> None:
    path = save(tmp_path, bytes(before) + weight() + b"more", **WHOLE, **entries)
    proto, files = read_model(path)
    assert proto.graph.initializer[0].raw_data == weight()
    assert files == (path, path.parent / "weights.bin")
    assert [i.shape for i in check_model(path)] == [(1, 16, 9, 11)]


def test_weights_in_subfolders_and_links_within(tmp_path: Path) -> None:
    path = save(tmp_path, location="deep/linked.bin")
    (path.parent / "deep").mkdir()
    (path.parent / "deep" / "linked.bin").symlink_to(path.parent / "weights.bin")
    assert read_model(path)[0].graph.initializer[0].raw_data == weight()


@pytest.mark.parametrize(
    "location",
    [
        "../weights.bin",
        "net/../../weights.bin",
        "/etc/passwd",
        "link.bin",
        "folder/w.bin",
        "",
    ],
)
def test_nothing_outside_the_folder_is_read(tmp_path: Path, location: str) -> None:
    for name in ("weights.bin", "w.bin"):
        (tmp_path / name).write_bytes(weight())
    path = save(tmp_path, location=location)
    (path.parent / "link.bin").symlink_to(tmp_path / "weights.bin")
    (path.parent / "folder").symlink_to(tmp_path)
    with pytest.raises(ModelError, match=r"'w' points outside the model's folder"):
        read_model(path)


def test_an_absolute_path_is_refused_wherever_it_leads(tmp_path: Path) -> None:
    path = save(tmp_path, location=str(tmp_path / "net" / "weights.bin"))
    with pytest.raises(ModelError, match="points outside the model's folder"):
        read_model(path)


@pytest.mark.parametrize(
    "entries, part",
    [
        ({"location": "gone.bin"}, "is missing"), ({"location": "."}, "is missing"),
        ({**WHOLE, "offset": "4"}, "more than"), ({**WHOLE, "offset": "-4"}, "more than"),
        ({**WHOLE, "offset": str(1 << 62)}, "more than"),
        ({**WHOLE, "offset": "here"}, "its offset is 'here'"),
        ({**WHOLE, "length": "12"}, "it states 12"), ({**WHOLE, "length": "-1"}, "it states -1"),
        ({"location": "a\0b"}, "impossible name"), ({"location": "w" * 5000}, "impossible name"),
        ({"location": "circle"}, "impossible name|is missing"),
    ],
)  # fmt: skip
def test_places_that_make_no_sense(tmp_path: Path, entries: dict[str, str], part: str) -> None:
    path = save(tmp_path, **entries)
    (path.parent / "circle").symlink_to(path.parent / "circle")
    with pytest.raises(CorruptModelError, match=rf"'w'.*({part})"):
        read_model(path)


def test_a_truncated_file(tmp_path: Path) -> None:
    path = save(tmp_path, weight()[:-1], **WHOLE)
    with pytest.raises(CorruptModelError, match=r"18432 bytes from 0 on are more .* 18431"):
        read_model(path)


@pytest.mark.parametrize("change", ["huge", "negative", "type", "text"])
def test_a_weight_of_no_size(tmp_path: Path, change: str) -> None:
    path = save(tmp_path, **WHOLE)
    proto = onnx.load(path, load_external_data=False)
    tensor = proto.graph.initializer[0]
    if change in ("huge", "negative"):
        tensor.dims[0] = 1 << 60 if change == "huge" else -1
    else:
        tensor.data_type = 99 if change == "type" else TensorProto.STRING
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(CorruptModelError, match="'w'"):
        read_model(path)


def branching(outside: str) -> onnx.ModelProto:
    """An If whose branches hold a weight each, one of them in ``outside``."""
    graphs = []
    for name in ("then", "else"):
        tensor = numpy_helper.from_array(np.ones(4, np.float32), f"{name}_w")
        if name == "else":
            refer(tensor, location=outside)
        nodes = [helper.make_node("Add", ["x", f"{name}_w"], [f"{name}_y"])]
        value = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [4])
        graphs.append(helper.make_graph(nodes, name, [], [value], [tensor]))
    node = helper.make_node("If", ["c"], ["y"], then_branch=graphs[0], else_branch=graphs[1])
    return graph_model([node], {"x": (4,)}, {"y": (4,)}, {"c": np.array(True)})


def test_weights_of_branches_and_constants_are_checked_too(tmp_path: Path) -> None:
    constant = numpy_helper.from_array(np.ones(4, np.float32), "k")
    refer(constant, location="../weights.bin")
    nodes = [helper.make_node("Constant", [], ["k"], value=constant),
             helper.make_node("Add", ["x", "k"], ["y"])]  # fmt: skip
    for proto in (branching("../weights.bin"), graph_model(nodes, {"x": (4,)}, {"y": (4,)})):
        path = tmp_path / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(ModelError, match="points outside the model's folder"):
            check_model(path)


def test_errors_have_a_way_on(tmp_path: Path) -> None:
    for entries in ({"location": "gone.bin"}, {"location": "../w"}):
        with pytest.raises(TvmxError) as caught:
            read_model(save(tmp_path, **entries))
        assert caught.value.hint
