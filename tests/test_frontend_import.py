"""Importing ONNX files: names, shapes, digests, and one clear message for each mistake."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tvmx.errors import (
    CorruptModelError,
    ModelError,
    ModelShapeError,
    UnsupportedOpError,
    UsageError,
)
from tvmx.frontends import load_model
from tvmx.frontends._onnx_import import identifier
from tvmx.frontends._onnx_ops import SUPPORTED
from tvmx.testing.models import conv_model, graph_model, residual_model

make = helper.make_node


def save(proto: onnx.ModelProto, tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def names(path: Path) -> dict[str, str]:
    """Variable name -> source node name of an imported model."""
    return {name: source.name for name, source in load_model(path).sources.items()}


def relus(*node_names: str) -> onnx.ModelProto:
    """A chain x -> t0 -> t1 ... of sigmoids with these node names."""
    values = ["x", *(f"t{i}" for i in range(len(node_names)))]
    nodes = [
        make("Sigmoid", [a], [b], name=name)
        for a, b, name in zip(values, values[1:], node_names, strict=False)
    ]
    return graph_model(nodes, {"x": (1, 4)}, {values[-1]: (1, 4)})


# names


def test_nodes_keep_their_names(tmp_path: Path) -> None:
    proto = relus("block.0/act", "block_0_act", "1", "")
    found = names(save(proto, tmp_path))
    assert list(found.values()) == ["block.0/act", "block_0_act", "1", "Sigmoid_t3"]
    assert next(iter(found)) == "block_0_act"
    assert len(set(found)) == 4


def test_repeated_node_names_are_told_apart(tmp_path: Path) -> None:
    assert list(names(save(relus("act", "act", "act"), tmp_path)).values()) == [
        "act", "act#2", "act#3",
    ]  # fmt: skip


def test_input_names_are_kept_and_parameters_are_identifiers(tmp_path: Path) -> None:
    nodes = [make("Add", ["gpu_0/in:0", "gpu_0.in:0"], ["out/0"])]
    shape = (1, 4)
    path = save(
        graph_model(nodes, {"gpu_0/in:0": shape, "gpu_0.in:0": shape}, {"out/0": shape}), tmp_path
    )
    model = load_model(path)
    assert [i.name for i in model.inputs] == ["gpu_0/in:0", "gpu_0.in:0"]
    assert [p.name for p in model.mod["main"].params] == ["gpu_0_in_0", "gpu_0_in_0_2"]
    assert model.outputs[0].name == "out/0"


def test_identifier() -> None:
    assert [identifier(n) for n in ("a/b.c", "0", "", "größe")] == ["a_b_c", "_0", "_", "gr__e"]


def test_residual_network_names_every_operator(tmp_path: Path) -> None:
    model = load_model(save(residual_model(), tmp_path))
    block = model.mod["main"].body.blocks[0]
    assert {b.var.name for b in block.bindings} == set(model.sources)
    assert model.frontend == "onnx"


# digest


def test_digest_depends_on_content_and_shapes_only(tmp_path: Path) -> None:
    path = save(conv_model(batch="n"), tmp_path)
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(path.read_bytes())
    one = load_model(path, {"x": (1, 3, 9, 11)}).digest
    assert one == load_model(copy, {"x": (1, 3, 9, 11)}).digest
    assert one != load_model(path, {"x": (2, 3, 9, 11)}).digest
    assert (
        one
        != load_model(save(conv_model(batch="n", seed=1), tmp_path), {"x": (1, 3, 9, 11)}).digest
    )
    assert len(one) == 16
    int(one, 16)


# shapes


def test_dynamic_batch_asks_for_shape(tmp_path: Path) -> None:
    path = save(conv_model(batch="batch"), tmp_path)
    with pytest.raises(
        ModelShapeError, match=r"'x' has the dynamic shape \(batch, 3, 9, 11\)"
    ) as e:
        load_model(path)
    assert e.value.hint == "add --shape x=1,3,9,11"
    assert load_model(path, {"x": (4, 3, 9, 11)}).outputs[0].shape == (4, 8, 7, 9)


def test_every_dynamic_input_is_named_at_once(tmp_path: Path) -> None:
    nodes = [make("Add", ["a", "b"], ["c"])]
    proto = graph_model(nodes, {"a": ("n", "ch", "h", "w"), "b": (1, "ch", "?", "w")}, {"c": None})
    with pytest.raises(ModelShapeError) as caught:
        load_model(save(proto, tmp_path))
    assert caught.value.hint == "add --shape a=1,3,224,224 --shape b=1,3,224,224"


def test_input_without_shape(tmp_path: Path) -> None:
    proto = relus("act")
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    path = save(proto, tmp_path)
    with pytest.raises(ModelShapeError, match="'x' has no shape"):
        load_model(path)
    assert load_model(path, {"x": (2, 5)}).inputs[0].shape == (2, 5)


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("y", (1, 4), "no input 'y'"),
        ("x", (1, 4, 1), r"has 3 dimensions, .* has 2"),
        ("x", (2, 4), "dimension 0 is fixed to 1"),
        ("x", (0, 4), "at least 1"),
    ],
)
def test_shapes_that_do_not_fit(
    tmp_path: Path, name: str, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ModelShapeError, match=message):
        load_model(save(relus("act"), tmp_path), {name: shape})


def test_close_input_name_is_suggested(tmp_path: Path) -> None:
    proto = graph_model([make("Relu", ["image"], ["y"])], {"image": ("n", 4)}, {"y": None})
    with pytest.raises(ModelShapeError) as caught:
        load_model(save(proto, tmp_path), {"imgae": (1, 4)})
    assert "--shape image=" in str(caught.value.hint)


def test_shape_that_depends_on_values(tmp_path: Path) -> None:
    nodes = [
        make("Relu", ["x"], ["r"]), make("Cast", ["s"], ["t"], to=TensorProto.INT64),
        make("Reshape", ["r", "t"], ["y"], name="reshape"),
    ]  # fmt: skip
    proto = graph_model(nodes, {"x": (2, 6), "s": (2,)}, {"y": ("a", "b")})
    with pytest.raises(ModelError, match=r"reshape|shape"):
        load_model(save(proto, tmp_path))


def test_inputs_of_other_types(tmp_path: Path) -> None:
    proto = relus("act")
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    with pytest.raises(ModelError, match="'x' is of type float64"):
        load_model(save(proto, tmp_path))
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    with pytest.raises(ModelError, match="'x' is of type STRING"):
        load_model(save(proto, tmp_path))


def test_integer_input(tmp_path: Path) -> None:
    nodes = [make("Cast", ["x"], ["f"], to=TensorProto.FLOAT), make("Relu", ["f"], ["y"])]
    proto = graph_model(nodes, {"x": (1, 4)}, {"y": (1, 4)})
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    assert load_model(save(proto, tmp_path)).inputs[0].dtype == "uint8"


# operators


def test_supported_operators_are_in_tvms_table() -> None:
    from tvm.relax.frontend.onnx import onnx_frontend

    assert set(onnx_frontend._get_convert_map()) >= SUPPORTED
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert known >= SUPPORTED - {"Upsample", "Scatter", "Mish"}


def test_all_unsupported_operators_at_once(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [make("StringNormalizer", ["x"], ["i"], name="inner")], "b", [],
        [helper.make_tensor_value_info("i", TensorProto.FLOAT, [1])],
    )  # fmt: skip
    nodes = [
        make("Relu", ["x"], ["a"], name="fine"), make("Frobnicate", ["a"], ["b"], name="first"),
        make("Frobnicate", ["b"], ["c"], name="second"),
        make("Gelu", ["c"], ["d"], domain="com.microsoft"),
        make("QAttention", ["d"] * 9, ["e"], name="quantised", domain="com.microsoft"),
        make("If", ["e"], ["y"], name="branch", then_branch=branch, else_branch=branch),
    ]  # fmt: skip
    started = time.monotonic()
    with pytest.raises(UnsupportedOpError) as caught:
        load_model(save(graph_model(nodes, {"x": (1, 4)}, {"y": (1, 4)}), tmp_path))
    assert time.monotonic() - started < 5
    assert caught.value.ops == {
        "Frobnicate": ["first", "second"], "com.microsoft::Gelu": ["Gelu_d"],
        "com.microsoft::QAttention": ["quantised"], "If": ["branch"],
        "StringNormalizer": ["inner", "inner"],
    }  # fmt: skip
    for word in ("first", "second", "com.microsoft::Gelu", "quantised", "branch"):
        assert word in str(caught.value)
    assert "QDQ" in str(caught.value.hint)


def test_node_that_cannot_be_converted_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    nodes = [
        make("Relu", ["x"], ["a"]),
        make("MaxPool", ["a"], ["y", "where"], name="pool", kernel_shape=[2, 2]),
    ]
    proto = graph_model(nodes, {"x": (1, 2, 4, 4)}, {"y": (1, 2, 3, 3)})
    with pytest.raises(ModelError, match=r"node 'pool' \(MaxPool\)"):
        load_model(save(proto, tmp_path))
    gc.collect()
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize("kind", ["BatchNormalization", "Dropout"])
def test_training_mode_is_refused(tmp_path: Path, kind: str) -> None:
    weights = {n: np.ones(4, np.float32) for n in "sbmv"}
    if kind == "Dropout":
        weights = {"ratio": np.array(0.5, np.float32), "train": np.array(True)}
        node = make("Dropout", ["x", "ratio", "train"], ["y"], name="odd")
    else:
        node = make(kind, ["x", *"sbmv"], ["y", "m2", "v2"], name="odd", training_mode=1)
    proto = graph_model([node], {"x": (1, 4)}, {"y": (1, 4)}, weights)
    with pytest.raises(ModelError, match=r"'odd'.*training mode"):
        load_model(save(proto, tmp_path))


# files


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load_model(tmp_path / "none.onnx")
    with pytest.raises(UsageError, match="is a folder"):
        load_model(tmp_path)


def test_other_formats_name_the_supported_ones(tmp_path: Path) -> None:
    for name, content in (
        ("m.tflite", b"\x1c\0\0\0TFL3"),
        ("m", b"hello"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ModelError) as caught:
            load_model(path)
        assert ".onnx" in str(caught.value.hint)


def test_onnx_file_of_another_name(tmp_path: Path) -> None:
    path = save(relus("act"), tmp_path).rename(tmp_path / "weights.bin")
    assert load_model(path).inputs[0].name == "x"


def damaged() -> dict[str, bytes]:
    whole = residual_model().SerializeToString()
    noise = np.random.default_rng(0).bytes(5000)
    return {
        "empty": b"", "text": b"not a model at all\n" * 50, "noise": noise,
        "half": whole[: len(whole) // 2], "all but a byte": whole[:-1], "first": whole[:1],
        "tail": whole[7:], "no graph": onnx.ModelProto(ir_version=8).SerializeToString(),
        "zeros": bytes(4096),
    }  # fmt: skip


@pytest.mark.parametrize("what", list(damaged()))
def test_damaged_files(tmp_path: Path, what: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(damaged()[what])
    started = time.monotonic()
    with pytest.raises(CorruptModelError, match=r"model\.onnx"):
        load_model(path)
    assert time.monotonic() - started < 5


def test_any_prefix_is_refused_or_imports(tmp_path: Path) -> None:
    """A file cut off anywhere gives a ModelError, never another exception."""
    whole = conv_model().SerializeToString()
    path = tmp_path / "model.onnx"
    for length in range(1, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            load_model(path)


def test_flipped_bytes_never_escape_as_other_errors(tmp_path: Path) -> None:
    whole = bytearray(conv_model(batch_norm=True).SerializeToString())
    rng = np.random.default_rng(3)
    path = tmp_path / "model.onnx"
    for _ in range(60):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            load_model(path)
        except (ModelError, UsageError):
            continue


def test_invalid_graph(tmp_path: Path) -> None:
    proto = graph_model([make("Relu", ["nowhere"], ["y"])], {"x": (1, 4)}, {"y": (1, 4)})
    with pytest.raises(CorruptModelError, match="nowhere"):
        load_model(save(proto, tmp_path))


def test_weight_with_missing_bytes(tmp_path: Path) -> None:
    proto = conv_model(16, 32)
    weight = proto.graph.initializer[0]
    weight.raw_data = weight.raw_data[:-4]
    with pytest.raises(CorruptModelError, match="'w'"):
        load_model(save(proto, tmp_path))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"ir_version": 99}, "IR version 99"), ({"ir_version": 2}, "older than 3"),
        ({"opset": 999}, "opset 999"), ({"opset": 6}, "oldest that can be imported is 7"),
        ({"opset": 0}, "no version"),
    ],
)  # fmt: skip
def test_versions(tmp_path: Path, change: dict[str, int], message: str) -> None:
    proto = relus("act")
    proto.ir_version = change.get("ir_version", proto.ir_version)
    if "opset" in change:
        proto.opset_import[0].version = change["opset"]
    with pytest.raises(ModelError, match=message):
        load_model(save(proto, tmp_path))


def external(tmp_path: Path, location: str) -> Path:
    """A convolution whose weights are in another file."""
    proto = conv_model(16, 32)
    weight = proto.graph.initializer[0]
    data = weight.raw_data
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(data)))):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    folder = tmp_path / "folder"
    folder.mkdir(exist_ok=True)
    for target in (folder, tmp_path):
        (target / "weights.bin").write_bytes(data)
    return save(proto, folder)


def test_external_weights(tmp_path: Path) -> None:
    path = external(tmp_path, "weights.bin")
    before = load_model(path).digest
    array = bytearray((path.parent / "weights.bin").read_bytes())
    array[0] ^= 1
    (path.parent / "weights.bin").write_bytes(array)
    assert load_model(path).digest != before


def test_external_weights_stay_in_the_models_folder(tmp_path: Path) -> None:
    for location in ("../weights.bin", str(tmp_path / "weights.bin")):
        with pytest.raises(ModelError, match="outside the model's folder"):
            load_model(external(tmp_path, location))
    link = tmp_path / "folder" / "link.bin"
    link.symlink_to(tmp_path / "weights.bin")
    with pytest.raises(ModelError, match="outside the model's folder"):
        load_model(external(tmp_path, "link.bin"))


def test_external_weights_missing_or_short(tmp_path: Path) -> None:
    with pytest.raises(CorruptModelError, match="is missing"):
        load_model(external(tmp_path, "gone.bin"))
    path = external(tmp_path, "weights.bin")
    (path.parent / "weights.bin").write_bytes(b"1234")
    with pytest.raises(CorruptModelError, match="'w'"):
        load_model(path)


def test_model_functions_are_inlined(tmp_path: Path) -> None:
    proto = graph_model(
        [make("Twice", ["x"], ["y"], name="call", domain="mine")], {"x": (1, 4)}, {"y": (1, 4)}
    )
    body = [make("Sigmoid", ["a"], ["t"]), make("Sigmoid", ["t"], ["b"])]
    opsets = [helper.make_opsetid("", 17)]
    proto.functions.append(helper.make_function("mine", "Twice", ["a"], ["b"], body, opsets))
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    model = load_model(save(proto, tmp_path))
    assert len(model.mod["main"].body.blocks[0].bindings) == 2
