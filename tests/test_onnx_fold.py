"""What is known at import: shapes, branches, definitions; and what is refused with its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.network_plans import assert_same, execute, host, network_of, plan_of, registry
from tvmx.errors import ModelError, UnsupportedOpError
from tvmx.frontends import check_model, load_model
from tvmx.passes import lower
from tvmx.testing.models import graph_model, onnx_reference

make = helper.make_node
X = (2, 3, 4)


def save(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def check(proto: onnx.ModelProto, *feeds: Any) -> None:
    """Run and compare with ONNX Runtime."""
    names = [value.name for value in proto.graph.input]
    network = network_of(proto)
    lowered = lower(network, plan_of(network, host()), registry(), host())
    got = execute(lowered.mod, host(), feeds)
    assert_same(got, onnx_reference(proto, dict(zip(names, feeds, strict=True))))


def noise(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def branch(node: onnx.NodeProto, *weights: TensorProto) -> onnx.GraphProto:
    """A branch of one node, whose result may be of any shape."""
    output = helper.make_empty_tensor_value_info(node.output[0])
    return helper.make_graph([node], "branch", [], [output], list(weights))


def test_shapes_are_worked_out(tmp_path: Path) -> None:
    """As PyTorch exports ``x.view(x.size(0), -1, 2)``, and a range over positions."""
    nodes = [
        make("Shape", ["x"], ["s"]), make("Gather", ["s", "zero"], ["n"], axis=0),
        make("Unsqueeze", ["n", "axis"], ["n1"]), make("Concat", ["n1", "rest"], ["to"], axis=0),
        make("Reshape", ["x", "to"], ["r"]), make("Size", ["r"], ["count"]),
        make("Range", ["zero", "count", "one"], ["at"]),
        make("Cast", ["at"], ["f"], to=TensorProto.FLOAT), make("Shape", ["r"], ["s2"]),
        make("Reshape", ["f", "s2"], ["f2"]), make("Add", ["r", "f2"], ["y"]),
    ]  # fmt: skip
    weights = {"zero": np.array(0), "one": np.array(1), "axis": np.array([0]),
               "rest": np.array([-1, 2])}  # fmt: skip
    proto = graph_model(nodes, {"x": X}, {"y": (2, 6, 2)}, weights)
    model = load_model(save(proto, tmp_path))
    assert [s.op for s in model.sources.values()] == ["Reshape", "Add"]
    check(proto, noise(*X))


def test_a_shape_that_is_an_output() -> None:
    nodes = [make("Shape", ["x"], ["s"]), make("Cast", ["s"], ["y"], to=TensorProto.FLOAT),
             make("Relu", ["x"], ["r"])]  # fmt: skip
    check(graph_model(nodes, {"x": X}, {"y": (3,), "r": X}), noise(*X))


def test_nonzero_of_a_constant() -> None:
    nodes = [make("NonZero", ["mask"], ["at"]), make("Transpose", ["at"], ["at1"]),
             make("GatherND", ["x", "at1"], ["y"])]  # fmt: skip
    mask = np.array([[0, 1, 0], [1, 1, 0]])
    check(graph_model(nodes, {"x": (2, 3)}, {"y": (3,)}, {"mask": mask}), noise(2, 3))


@pytest.mark.parametrize("size", [3, 5])
def test_an_if_over_shapes_becomes_its_branch(size: int) -> None:
    """A branch reads tensors from outside, weights of its own, and holds an If itself."""
    inner = make("If", ["big"], ["e"], then_branch=branch(make("Relu", ["x"], ["e1"])),
                 else_branch=branch(make("Neg", ["x"], ["e2"])))  # fmt: skip
    weight = numpy_helper.from_array(noise(size), "w")
    nodes = [
        make("Shape", ["x"], ["s"]), make("ReduceMax", ["s"], ["m"], keepdims=0),
        make("Greater", ["m", "four"], ["big"]), make("Not", ["big"], ["small"]),
        make("If", ["big"], ["a"], then_branch=branch(make("Add", ["x", "w"], ["t"]), weight),
             else_branch=branch(inner)),
        make("If", ["small"], ["b"], then_branch=branch(make("Identity", ["a"], ["t2"])),
             else_branch=branch(make("Sigmoid", ["a"], ["e3"]))),
        make("Add", ["a", "b"], ["y"]),
    ]  # fmt: skip
    proto = graph_model(nodes, {"x": (2, size)}, {"y": (2, size)}, {"four": np.array(4)})
    check(proto, noise(2, size))


def test_nodes_of_a_branch_and_of_a_definition_are_named_after_it(tmp_path: Path) -> None:
    taken = branch(make("Sigmoid", ["x"], ["t"], name="squash"))
    nodes = [make("If", ["yes"], ["a"], name="choose", then_branch=taken, else_branch=taken),
             make("Celu", ["a"], ["y"], name="bend")]  # fmt: skip
    proto = graph_model(nodes, {"x": X}, {"y": X}, {"yes": np.array(True)})
    names = {source.name for source in load_model(save(proto, tmp_path)).sources.values()}
    assert "choose/squash" in names
    assert all(name.startswith(("choose/", "bend/")) for name in names)


def loop(name: str) -> onnx.NodeProto:
    body = helper.make_graph(
        [make("Identity", ["go"], ["go2"]), make("Frobnicate", ["v"], ["v2"], name="inside")], "b",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("v", TensorProto.FLOAT, X)],
        [helper.make_tensor_value_info("go2", TensorProto.BOOL, []),
         helper.make_tensor_value_info("v2", TensorProto.FLOAT, X)],
    )  # fmt: skip
    return make("Loop", ["trips", "", "x"], [f"{name}_y"], name=name, body=body)


def test_control_flow_is_refused_all_at_once(tmp_path: Path) -> None:
    scan = make("Scan", ["x"], ["z"], name="along", num_scan_inputs=1, body=helper.make_graph(
        [make("Relu", ["r"], ["q"])], "b",
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, X[1:])],
        [helper.make_tensor_value_info("q", TensorProto.FLOAT, X[1:])]))  # fmt: skip
    nodes = [
        make("Cast", ["x"], ["c"], to=TensorProto.BOOL),
        make("If", ["c"], ["i"], name="choose", then_branch=branch(make("Relu", ["x"], ["t"])),
             else_branch=branch(make("Unique", ["x"], ["e"], name="in_else"))),
        loop("again"), loop("once_more"), scan, make("Add", ["i", "z"], ["y"]),
    ]  # fmt: skip
    proto = graph_model(nodes, {"x": X}, {"y": X}, {"trips": np.array(3)})
    path = save(proto, tmp_path)
    for read in (check_model, load_model):
        with pytest.raises(UnsupportedOpError) as caught:
            read(path)
        assert caught.value.ops == {
            "If": ["choose"], "Loop": ["again", "once_more"], "Scan": ["along"],
            "Unique": ["in_else"], "Frobnicate": ["inside", "inside"],
        }  # fmt: skip
        for word in ("choose", "once_more", "along", "in_else"):
            assert word in caught.value.message
        assert "control flow" in str(caught.value.hint)


def test_the_branch_not_taken_may_hold_anything() -> None:
    other = branch(make("Frobnicate", ["x"], ["e"]))
    taken = branch(make("Relu", ["x"], ["t"]))
    node = make("If", ["no"], ["y"], then_branch=other, else_branch=taken)
    proto = graph_model([node], {"x": X}, {"y": X}, {"no": np.array(False)})
    network = network_of(proto)
    assert [source.op for source in network.model.sources.values()] == ["Relu"]


def test_attention_is_its_definition() -> None:
    nodes = [make("Attention", ["q", "k", "v"], ["y"], q_num_heads=2, kv_num_heads=2, is_causal=1)]
    shape = (1, 5, 8)
    proto = graph_model(nodes, {"q": shape, "k": shape, "v": shape}, {"y": shape}, opset=23)
    check(proto, noise(*shape), noise(*shape)[:, ::-1].copy(), noise(*shape) * 2)


def test_a_large_constant_is_left_to_the_compiler(tmp_path: Path) -> None:
    """What exceeds the bound is not worked out while the file is checked."""
    nodes = [make("ConstantOfShape", ["s"], ["c"]), make("Slice", ["c", "a", "b"], ["d"]),
             make("Add", ["x", "d"], ["y"])]  # fmt: skip
    weights = {"s": np.array([1 << 40]), "a": np.array([0]), "b": np.array([4])}
    proto = graph_model(nodes, {"x": (4,)}, {"y": (4,)}, weights)
    with pytest.raises(ModelError):
        load_model(save(proto, tmp_path))


@pytest.mark.parametrize("indices", [[0, 3], [-4], [1 << 40]])
def test_indices_outside_are_refused(tmp_path: Path, indices: list[int]) -> None:
    for kind, at in (("Gather", indices), ("GatherElements", [[i] for i in indices][:1]),
                     ("GatherND", [[i] for i in indices])):  # fmt: skip
        node = make(kind, ["x", "i"], ["y"], name="pick")
        proto = graph_model([node], {"x": (3, 1)}, {"y": None}, {"i": np.array(at)})
        if kind == "GatherElements" and indices[0] == 0:
            continue
        with pytest.raises(ModelError, match=r"'pick'.*an index is outside"):
            load_model(save(proto, tmp_path))


def test_indices_from_the_network_stay_inside() -> None:
    """Embeddings of any number: those outside give the first or the last row."""
    proto = graph_model([make("Gather", ["w", "i"], ["y"])], {"i": (4,)}, {"y": (4, 2)},
                        {"w": np.arange(6, dtype=np.float32).reshape(3, 2)})  # fmt: skip
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    network = network_of(proto)
    lowered = lower(network, plan_of(network, host()), registry(), host())
    (got,) = execute(lowered.mod, host(), [np.array([1, -1, 9, -(1 << 40)])])
    np.testing.assert_array_equal(got, [[2, 3], [4, 5], [4, 5], [0, 1]])
