"""Models of ONNX operators on int8 tensors, and the two ways to run what they are imported as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tvmx.frontends import load_model
from tvmx.frontends._onnx_prepare import prepare
from tvmx.testing.models import onnx_reference

Array = np.ndarray
MS = "com.microsoft"
TYPES = {"u8": np.uint8, "s8": np.int8}
ANY = Path("m.onnx")


def node(op: str, inputs: Sequence[str], name: str = "quantised", **attributes: Any) -> Any:
    """A node whose output is y, of ONNX Runtime's domain unless only the standard has it."""
    standard = op in ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")
    domain = attributes.pop("domain", "" if standard else MS)
    return helper.make_node(op, list(inputs), ["y"], name=name, domain=domain, **attributes)


def model(
    nodes: Sequence[Any], inputs: Mapping[str, Array], constants: Mapping[str, Any],
    outputs: Mapping[str, Any], opset: int = 17,
) -> onnx.ModelProto:  # fmt: skip
    """A model with inputs like the arrays, and outputs of these numpy types."""

    def value(name: str, dtype: Any, shape: Sequence[int] | None) -> Any:
        code = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return helper.make_tensor_value_info(name, code, shape)

    graph = helper.make_graph(
        list(nodes), "test",
        [value(name, array.dtype, array.shape) for name, array in inputs.items()],
        [value(name, dtype, None) for name, dtype in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MS, 1)]
    return helper.make_model(graph, ir_version=8, opset_imports=opsets)


def rewritten(proto: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    prepare(copy, ANY)
    assert not any(n.domain or n.op_type.startswith("QLinear") for n in copy.graph.node)
    return copy


def ints(dtype: Any, *shape: int, seed: int = 0) -> Array:
    info = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(info.min, info.max + 1, shape).astype(dtype)


def zero(dtype: Any, value: int = 4) -> Array:
    """A zero point, at the same place in the range for both types."""
    return np.array(value + (128 if dtype == np.uint8 else 0), dtype)


def close(got: Array, want: Array, equal: float = 0.9) -> None:
    """The same type and shape, at most one step apart, and equal at most elements."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    steps = np.abs(got.astype(np.int32) - want.astype(np.int32))
    assert steps.max() <= 1
    assert (steps == 0).mean() >= equal
    assert np.ptp(want.astype(np.int32)) > 10, "a constant output would prove nothing"


def same(proto: onnx.ModelProto, inputs: Mapping[str, Array], equal: float = 0.9) -> Any:
    """Original and rewritten model agree in ONNX Runtime; the latter's graph is returned."""
    new = rewritten(proto)
    for got, want in zip(onnx_reference(new, inputs), onnx_reference(proto, inputs), strict=True):
        close(got, want, equal)
    return new.graph


def kinds(graph: Any) -> list[str]:
    return [n.op_type for n in graph.node]


def conv(
    x: Any = np.uint8, w: Any = np.int8, per_channel: bool = True, bias: bool = True,
    opset: int = 17, groups: int = 1, **attributes: Any,
) -> tuple[onnx.ModelProto, dict[str, Array]]:  # fmt: skip
    channels = 4
    inputs = {"x": ints(x, 2, 6, 7, 9)}
    scales = np.linspace(0.002, 0.02, channels, dtype=np.float32)
    constants = {
        "xs": np.float32(0.03), "xz": zero(x),
        "w": np.clip(ints(w, channels, 6 // groups, 3, 2, seed=1), -127, 127),
        "ws": scales if per_channel else scales[1],
        "wz": np.full(channels, zero(w, 0)) if per_channel else zero(w, 5),
        "ys": np.float32(0.4), "yz": zero(x, -7),
        "b": np.random.default_rng(2).integers(-4000, 4000, channels).astype(np.int32),
    }  # fmt: skip
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", *(["b"] if bias else [])]
    conv_node = node("QLinearConv", names, "conv1_quant", group=groups, **attributes)
    return model([conv_node], inputs, constants, {"y": x}, opset), inputs


def two(dtype: Any, ys: float) -> tuple[dict[str, Array], dict[str, Any]]:
    inputs = {"x": ints(dtype, 2, 3, 5, 7), "v": ints(dtype, 3, 1, 7, seed=1)}
    constants = {
        "xs": np.float32(0.02), "xz": zero(dtype), "vs": np.float32(0.031),
        "vz": zero(dtype, -11), "ys": np.float32(ys), "yz": zero(dtype, 3), "zero": dtype(0),
    }  # fmt: skip
    return inputs, constants


UNARY: dict[str, tuple[dict[str, Any], float]] = {
    "QLinearAveragePool": ({"kernel_shape": [3, 2], "strides": [2, 1]}, 0.012),
    "QLinearGlobalAveragePool": ({"channels_last": 0}, 0.002),
    "QLinearLeakyRelu": ({"alpha": 0.15}, 0.015),
    "QLinearSigmoid": ({}, 1 / 256),
    "QLinearSoftmax": ({"opset": 13, "axis": 1}, 1 / 256),
}


def unary(
    op: str, dtype: Any, model_opset: int = 17, **attributes: Any
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    inputs, constants = two(dtype, UNARY[op][1])
    del inputs["v"]
    low = np.array(np.iinfo(dtype).min, dtype)  # where what is never negative starts
    constants["yz"] = low if op in ("QLinearSigmoid", "QLinearSoftmax") else constants["yz"]
    name = node(op, ["x", "xs", "xz", "ys", "yz"], **(UNARY[op][0] | attributes))
    return model([name], inputs, constants, {"y": dtype}, model_opset), inputs


def imported(
    proto: onnx.ModelProto, folder: Path, inputs: Mapping[str, Array]
) -> tuple[Any, list[Array]]:
    import tvm
    from tvm import relax

    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    loaded = load_model(path)
    machine = relax.VirtualMachine(tvm.compile(loaded.mod, "llvm"), tvm.cpu())
    result = machine["main"](*(tvm.runtime.tensor(inputs[i.name]) for i in loaded.inputs))
    parts = list(result) if len(loaded.outputs) > 1 else [result]
    return loaded, [part.numpy() for part in parts]
