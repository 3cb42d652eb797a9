"""Damaged ONNX files, and what becomes of them.

As a script: ``python -m tests.onnx_mutations --count 2000`` imports each in a worker of 2 GB that
is killed when it hangs, builds and runs what was imported, and compares with ONNX Runtime.
"""

from __future__ import annotations

import functools
import math
import random
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.mutated_bytes import Mutation, flipped, flipped_head, moved, truncated
from tests.mutation_runs import judge_many, wind_clock
from tests.qdq_models import QdqModel
from tvmx.errors import TvmxError
from tvmx.testing.models import conv_model, graph_model, onnx_reference, residual_model

make = helper.make_node


def quantised() -> onnx.ModelProto:
    """Two convolutions and a pool between QuantizeLinear and DequantizeLinear."""
    m = QdqModel()
    x = m.pair(m.input(1, 3, 9, 9), 0.03, 3)
    a = m.pair(m.op("Relu", m.conv(x, (8, 3, 3, 3), strides=[2, 2])), 0.04, -128)
    b = m.pair(m.op("MaxPool", a, kernel_shape=[2, 2]), 0.04, -128)
    m.output(m.pair(m.conv(b, (5, 8, 1, 1)), 0.05, 10))
    return m.proto()


def transformer() -> onnx.ModelProto:
    """Attention as exporters write it: shapes computed, reshaped to heads, softmax, norm, GELU."""
    rng = np.random.default_rng(0)
    size, heads, tokens = 16, 2, 6
    weights: dict[str, Any] = {
        name: rng.standard_normal((size, size), dtype=np.float32) for name in ("q", "k", "v", "o")
    }
    weights |= {"one": np.ones(size, np.float32), "zero": np.zeros(size, np.float32),
                "final": np.array([-1]), "first": np.array([0]), "middle": np.array([heads, -1]),
                "scale": np.array(0.35, np.float32), "second": np.array([1])}  # fmt: skip
    nodes = [make("Shape", ["x"], ["s"]), make("Gather", ["s", "first"], ["batch"]),
             make("Gather", ["s", "second"], ["tokens"]),
             make("Concat", ["batch", "tokens", "middle"], ["split"], axis=0),
             make("LayerNormalization", ["x", "one", "zero"], ["n"])]  # fmt: skip
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [make("MatMul", ["n", name], [f"{name}1"]),
                  make("Reshape", [f"{name}1", "split"], [f"{name}2"]),
                  make("Transpose", [f"{name}2"], [f"{name}3"], perm=order)]  # fmt: skip
    nodes += [
        make("MatMul", ["q3", "k3"], ["a"]), make("Mul", ["a", "scale"], ["b"]),
        make("Softmax", ["b"], ["c"]), make("MatMul", ["c", "v3"], ["d"]),
        make("Transpose", ["d"], ["e"], perm=[0, 2, 1, 3]), make("Reshape", ["e", "s"], ["f"]),
        make("MatMul", ["f", "o"], ["g"]), make("Add", ["g", "x"], ["h"]),
        make("Gelu", ["h"], ["i"]), make("ReduceMean", ["i", "final"], ["y"], keepdims=0),
    ]  # fmt: skip
    shape = (1, tokens, size)
    return graph_model(nodes, {"x": shape}, {"y": (1, tokens)}, weights, opset=20)


def mixed() -> onnx.ModelProto:
    """Operators of many attributes and constants: slices, pads, a resize, a split, a branch."""
    branch = helper.make_graph(
        [make("Relu", ["p"], ["t"])], "then", [], [helper.make_empty_tensor_value_info("t")]
    )
    other = helper.make_graph(
        [make("Neg", ["p"], ["e"])], "else", [], [helper.make_empty_tensor_value_info("e")]
    )
    weights: dict[str, Any] = {
        "starts": np.array([0, 1]), "ends": np.array([9, -1]), "axes": np.array([2, 3]),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 0]), "scales": np.array([1, 1, 2, 1.5], np.float32),
        "parts": np.array([1, 3]), "rows": np.array([[0, 3], [1, 1]]), "k": np.array([2]),
        "two": np.array(2),
    }  # fmt: skip
    nodes = [
        make("Slice", ["x", "starts", "ends", "axes"], ["s"]), make("Pad", ["s", "pads"], ["p"]),
        make("Size", ["x"], ["n"]), make("Greater", ["n", "two"], ["many"]),
        make("If", ["many"], ["i"], then_branch=branch, else_branch=other),
        make("Resize", ["i", "", "scales"], ["r"], mode="linear"),
        make("Split", ["r", "parts"], ["u", "v"], axis=1),
        make("Gather", ["v", "rows"], ["g"], axis=1), make("TopK", ["u", "k"], ["t", "at"], axis=2),
        make("ReduceMax", ["g"], ["m"], axes=[1, 2], keepdims=0),
        make("MaxPool", ["u"], ["w"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        make("ConvTranspose", ["w", "kernel"], ["z"], strides=[2, 2], group=1),
    ]  # fmt: skip
    weights["kernel"] = np.ones((1, 2, 3, 3), np.float32)
    weights["rows"] = np.array([[0, 2], [1, 1]])
    outputs = {"z": None, "m": None, "t": None}
    return graph_model(nodes, {"x": (1, 4, 6, 8)}, outputs, weights, opset=13)


@functools.cache
def seeds() -> tuple[bytes, ...]:
    """The files that are damaged."""
    protos = (
        conv_model(batch_norm=True, relu=True), residual_model(), quantised(), transformer(),
        mixed(),
    )  # fmt: skip
    return tuple(proto.SerializeToString() for proto in protos)


def structured(change: Callable[[onnx.GraphProto, random.Random], None]) -> Mutation:
    """A mutation of the parsed graph."""

    def mutation(data: bytes, rng: random.Random) -> bytes:
        proto = onnx.ModelProto.FromString(data)
        change(proto.graph, rng)
        return bytes(proto.SerializeToString())

    return mutation


_NUMBERS = (0, -1, 1, 2, 3, 7, -7, 100, 1 << 20, 1 << 31, (1 << 31) - 1, 1 << 40, (1 << 63) - 1,
            -(1 << 63))  # fmt: skip


def swapped_edges(graph: onnx.GraphProto, rng: random.Random) -> None:
    """A node reads another tensor, made before or after it: cycles too."""
    names = [n for node in graph.node for n in (*node.input, *node.output)]
    node = rng.choice(graph.node)
    node.input[rng.randrange(len(node.input))] = rng.choice(names)


def renamed_output(graph: onnx.GraphProto, rng: random.Random) -> None:
    """A node makes a tensor of another name, perhaps one that exists."""
    node = rng.choice(graph.node)
    others = [n for other in graph.node for n in other.output]
    node.output[rng.randrange(len(node.output))] = rng.choice([*others, "nothing", ""])


_OTHERS = ("Loop", "TopK", "Resize", "Einsum", "Attention", "Tile", "Expand", "ConstantOfShape",
           "ReduceMax", "ScatterND", "NonZero", "Shape")  # fmt: skip


def other_operator(graph: onnx.GraphProto, rng: random.Random) -> None:
    """A node becomes one of the type of another, or of any."""
    kinds = [node.op_type for node in graph.node]
    rng.choice(graph.node).op_type = rng.choice([*kinds, *_OTHERS])


def another_order(graph: onnx.GraphProto, rng: random.Random) -> None:
    """Nodes are dropped, repeated or moved."""
    nodes = list(graph.node)
    at = rng.randrange(len(nodes))
    kind = rng.randrange(3)
    moved_node = nodes[at]
    if kind != 1:
        del nodes[at]
    if kind:
        nodes.insert(rng.randrange(len(nodes) + 1), moved_node)
    kept = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def other_attribute(graph: onnx.GraphProto, rng: random.Random) -> None:
    """A number of an attribute, its type or its name."""
    attributes = [a for node in graph.node for a in node.attribute]
    a = rng.choice(attributes)
    if a.ints and rng.random() < 0.7:
        a.ints[rng.randrange(len(a.ints))] = rng.choice(_NUMBERS)
    elif a.ints:
        a.ints.extend([rng.choice(_NUMBERS)] * rng.randint(1, 4))
    elif a.type == a.INT:
        a.i = rng.choice(_NUMBERS)
    elif a.type == a.FLOAT:
        a.f = rng.choice([0.0, -1.0, 1e30, float("nan"), float("inf")])
    else:
        a.name = rng.choice(attributes).name


def other_shape(graph: onnx.GraphProto, rng: random.Random) -> None:
    """A size of a weight or of an input."""
    init = rng.choice(graph.initializer)
    dims = graph.input[0].type.tensor_type.shape.dim
    kind = rng.randrange(3)
    if kind == 0 and init.dims:
        init.dims[rng.randrange(len(init.dims))] = rng.choice(_NUMBERS)
    elif kind == 1:
        init.dims.append(rng.choice(_NUMBERS))
    else:
        rng.choice(dims).dim_value = rng.choice(_NUMBERS)


def other_type(graph: onnx.GraphProto, rng: random.Random) -> None:
    """The element type of a weight, an input or an output."""
    code = rng.choice([*range(25), 999])
    kind = rng.randrange(4)
    if kind == 0:
        graph.input[0].type.tensor_type.elem_type = code
    elif kind == 1:
        graph.output[0].type.tensor_type.elem_type = code
    else:
        rng.choice(graph.initializer).data_type = code


def other_constant(graph: onnx.GraphProto, rng: random.Random) -> None:
    """Numbers that tell shapes, axes and indices, or the scale of a quantisation."""
    small = [i for i in graph.initializer if np.prod(i.dims) <= 8] or list(graph.initializer)
    init = rng.choice(small)
    array = numpy_helper.to_array(init).copy().reshape(-1)
    if array.size == 0:
        return
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        number = np.array(rng.choice(_NUMBERS)).astype(array.dtype)
    array[rng.randrange(array.size)] = number
    init.CopyFrom(numpy_helper.from_array(array.reshape(tuple(init.dims)), init.name))


def external(graph: onnx.GraphProto, rng: random.Random) -> None:
    """A weight moves to a file that is not there, or elsewhere."""
    init = rng.choice(graph.initializer)
    init.data_location = TensorProto.EXTERNAL
    for key, value in (
        ("location", rng.choice(["w.bin", "../w.bin", "/etc/passwd", "", "a\0b", "w" * 5000])),
        ("offset", rng.choice(["0", "-4", "x", str(1 << 62)])),
    ):
        init.external_data.add(key=key, value=value)


BYTES: tuple[Mutation, ...] = (flipped, flipped_head, truncated, moved)
GRAPHS: tuple[Mutation, ...] = tuple(map(structured, (
    swapped_edges, swapped_edges, renamed_output, other_operator, another_order, other_attribute,
    other_attribute, other_shape, other_type, other_constant, other_constant, external,
)))  # fmt: skip


def mutant(number: int, seed: int) -> bytes:
    """The damaged file of this number; a third is damaged as bytes, the others as graphs."""
    rng = random.Random(f"{seed}/{number}")
    data = seeds()[number % len(seeds())]
    for _ in range(rng.choice((1, 1, 1, 2))):
        try:
            data = rng.choice(BYTES if rng.random() < 0.33 else GRAPHS)(data, rng)
        except Exception:  # the mutation before left nothing to change, or nothing that parses
            continue
    return data


def imported(data: bytes, folder: Path) -> tuple[str, Any]:
    """The kind of error, or "" with the model. Raises what is no error of tvmx."""
    from tvmx.frontends import load_model

    path = folder / "net.onnx"
    path.write_bytes(data)
    try:
        return "", load_model(path)
    except TvmxError as err:
        assert err.message, "an error without a message"
        return type(err).__name__, None


_LARGE = 1 << 24  # elements
_BEYOND = 1e6  # sums in another order come out otherwise


def judge(data: bytes, whole: bool = True) -> str:
    """What became of one file: an error's kind, "right", or another word where it cannot be told.

    ``whole``: what imports is built, run and compared. Raises whatever is no error of tvmx, and
    AssertionError for wrong figures.
    """
    with tempfile.TemporaryDirectory() as name:
        kind, model = imported(data, Path(name))
        if model is None or not whole:
            return kind or "imported"
        wind_clock()
        if any(math.prod(spec.shape) > _LARGE for spec in (*model.inputs, *model.outputs)):
            return "imported, too large to run"
        feeds = {
            spec.name: np.random.default_rng(0).standard_normal(spec.shape).astype(spec.dtype)
            for spec in model.inputs
        }
        try:
            want = onnx_reference(Path(name) / "net.onnx", feeds)
        except Exception as err:  # ONNX Runtime's own types
            want, reason = None, type(err).__name__
        got = _run(model, list(feeds.values()))
        if isinstance(got, str):
            return f"imported, {got}"
        if want is None:
            return f"imported, ONNX Runtime: {reason}"
        if any(map(_beyond, (*want, *_weights(data)))):
            return "imported, figures beyond floats"
        return "right" if _same(got, want) else _wrong(got, want)


def _run(model: Any, feeds: list[Any]) -> Any:
    from tests.network_plans import execute, host, plan_of, registry
    from tvmx.passes import extract_layers, lower

    try:
        network = extract_layers(model)
        lowered = lower(network, plan_of(network, host()), registry(), host())
        return execute(lowered.mod, host(), feeds)
    except TvmxError as err:
        return type(err).__name__


def _same(got: list[Any], want: list[Any]) -> bool:
    for a, b in zip(got, want, strict=True):
        finite = np.isfinite(b)
        scale = max(float(np.abs(b[finite]).max(initial=0)), 1e-6)
        if a.shape != b.shape or not np.allclose(
            a, b, rtol=1e-3, atol=2e-3 * scale, equal_nan=True
        ):
            return False
    return True


def _beyond(array: Any) -> bool:
    return bool(np.abs(np.nan_to_num(array, nan=np.inf)).max(initial=0) > _BEYOND)


def _weights(data: bytes) -> list[Any]:
    held = onnx.ModelProto.FromString(data).graph.initializer
    return [numpy_helper.to_array(i) for i in held if i.data_type == TensorProto.FLOAT]


def _wrong(got: list[Any], want: list[Any]) -> str:
    pairs = [f"{a.shape}{a.reshape(-1)[:4]} for {b.shape}{b.reshape(-1)[:4]}"
             for a, b in zip(got, want, strict=True)]  # fmt: skip
    raise AssertionError(f"wrong figures: {'; '.join(pairs)}")


@dataclass(frozen=True)
class DamagedOnnx:
    """A damaged file."""

    data: bytes

    def save(self, folder: Path, name: str) -> None:
        """Keep it."""
        (folder / f"{name}.onnx").write_bytes(self.data)

    def judge(self, whole: bool) -> str:
        """What became of it; see :func:`judge`."""
        return judge(self.data, whole)


def damaged(number: int, seed: int) -> DamagedOnnx:
    """The damaged file of this number."""
    return DamagedOnnx(mutant(number, seed))


if __name__ == "__main__":
    sys.exit(judge_many(damaged, len(seeds())))
