"""What no template covers: right in every layout, and vectorised and parallel where it counts."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.network_plans import assert_same, execute, host, inputs_of, narrow, network_of
from tvmx._tvm import te, tirx
from tvmx.passes import convert, finish_relax
from tvmx.passes._default_schedule import default_schedule
from tvmx.testing.models import graph_model, onnx_reference

make = helper.make_node
X = (2, 12, 9, 11)


def run(proto: onnx.ModelProto, target: Any) -> Any:
    """The imported model through legalisation and the default schedule alone, checked."""
    mod = finish_relax(network_of(proto).model.mod, target)
    feeds = inputs_of(proto)
    got = execute(mod, target, list(feeds.values()))
    assert_same(got, onnx_reference(proto, feeds))
    return mod


def one(op: str, shape: tuple[int, ...] = X, *, weights: dict[str, Any] | None = None,
        inputs: int = 1, **attributes: Any) -> onnx.ModelProto:  # fmt: skip
    """A network of one operator; ``inputs`` of ``shape`` and then the weights are its operands."""
    names = [f"x{i}" for i in range(inputs)]
    node = make(op, [*names, *(weights or {})], ["y"], **attributes)
    return graph_model([node], dict.fromkeys(names, shape), {"y": None}, weights)


def floats(*values: float) -> Any:
    return np.array(values, np.float32)


OPERATORS = {
    "max pool": one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 0, 1]),
    "max pool ceil": one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "average pool": one("AveragePool", kernel_shape=[3, 2], strides=[1, 2], pads=[1, 1, 0, 0]),
    "average pool with padding": one(
        "AveragePool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1
    ),
    "global average": one("GlobalAveragePool"),
    "global max": one("GlobalMaxPool"),
    "softmax": one("Softmax", (3, 17), axis=1),
    "softmax over channels": one("Softmax", axis=1),
    "softmax of rows": one("Softmax", (2, 3, 5, 64), axis=-1),
    "softmax of rows, half vectors": one("Softmax", (3, 1000), axis=-1),
    "mean of long rows": one("ReduceMean", (2, 3, 5, 96), axes=[3], keepdims=0),
    "largest of planes": one("ReduceMax", (2, 3, 5, 32), axes=[2, 3], keepdims=0),
    "mean of all": one("ReduceMean", keepdims=0),
    "mean of rows": one("ReduceMean", axes=[3], keepdims=1),
    "sum of channels": one("ReduceSum", weights={"axes": np.array([1])}, keepdims=0),
    "lrn": one("LRN", size=5, alpha=0.1, beta=0.75, bias=1.0),
    "resize nearest": one(
        "Resize", weights={"roi": floats(), "scales": floats(1, 1, 2, 2)}, mode="nearest",
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    ),
    "resize linear": one(
        "Resize", weights={"roi": floats(), "scales": floats(1, 1, 2, 2)}, mode="linear",
        coordinate_transformation_mode="half_pixel",
    ),
    "product of activations": one("MatMul", (8, 8), inputs=2),
    "product of stacks": one("MatMul", (2, 3, 16, 16), inputs=2),
    "product by constant, rank 3": one(
        "MatMul", (2, 7, 9), weights={"w": np.ones((9, 13), np.float32)}
    ),
    "transpose": one("Transpose", perm=[0, 2, 3, 1]),
    "broadcast": one("Mul", weights={"w": np.arange(11, dtype=np.float32)}),
    "elementwise": one("Max", inputs=3),
    "scalar result of nothing to vectorise": one("ReduceMax", (1, 1, 1, 1), keepdims=0),
    "concat rows": one("Concat", inputs=3, axis=2),
    "slice": one(
        "Slice", weights={"a": np.array([1]), "b": np.array([8]), "c": np.array([2])}
    ),
    "pad": one("Pad", weights={"p": np.array([0, 0, 1, 2, 0, 0, 3, 0]), "v": floats(0.5)[0]}),
    "depth to space": one("DepthToSpace", blocksize=2),
    "erf": one("Erf"),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_operator(name: str) -> None:
    run(OPERATORS[name], host())


def test_chain_of_operators_on_narrow_vectors() -> None:
    nodes = [
        make("Sigmoid", ["x"], ["a"]), make("Mul", ["a", "x"], ["b"]),
        make("MaxPool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
        make("ReduceMean", ["c"], ["d"], axes=[2, 3], keepdims=0),
        make("Softmax", ["d"], ["y"], axis=1),
    ]  # fmt: skip
    run(graph_model(nodes, {"x": X}, {"y": None, "b": None}), narrow())


@pytest.mark.parametrize(
    ("source", "destination", "shape"),
    [("NCHW", "NCHW8c", (2, 11, 3, 5)), ("NCHW8c", "NCHW", (2, 11, 3, 5)),
     ("NCHW4c", "NCHW8c", (1, 20, 4, 4)), ("NCHW16c", "NCHW4c", (1, 21, 4, 7))],
)  # fmt: skip
def test_layout_conversion(source: str, destination: str, shape: tuple[int, ...]) -> None:
    from tvmx._tvm import build_module, tvm
    from tvmx.ir import physical_shape, to_logical, to_physical

    logical = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    data = te.placeholder(physical_shape(shape, source), name="data")
    out = convert(data, shape, source, destination, None)
    func = default_schedule(te.create_prim_func([data, out]), 4).with_attr("global_symbol", "f")
    compiled = build_module(tvm.IRModule({"f": func}), narrow())
    # Lanes of the padding may hold anything finite, and must come out finite.
    physical = to_physical(logical + 100, source) - np.float32(100)
    got = tvm.runtime.tensor(np.full(physical_shape(shape, destination), np.nan, np.float32))
    compiled["f"](tvm.runtime.tensor(physical), got)
    assert np.isfinite(got.numpy()).all()
    result = to_logical(got.numpy(), destination, shape[1])
    np.testing.assert_allclose(result, logical, atol=1e-4)


# the loops


LOOP = re.compile(r"T\.(parallel|vectorized)\((?:T\.int64\()?(\d+)")


def loops(mod: Any) -> dict[str, list[tuple[str, int]]]:
    """(kind, extent) of every parallel and vectorised loop, by function."""
    return {
        var.name_hint: [(kind, int(extent)) for kind, extent in LOOP.findall(func.script())]
        for var, func in mod.functions.items()
        if isinstance(func, tirx.PrimFunc)
    }


TYPICAL = {
    "relu": one("Relu", (1, 16, 8, 16)),
    "add": one("Add", (1, 16, 8, 16), inputs=2),
    "max pool": one("MaxPool", (1, 16, 16, 32), kernel_shape=[2, 2], strides=[2, 2]),
    "average pool": one("AveragePool", (1, 16, 16, 32), kernel_shape=[2, 2], strides=[2, 2]),
    "concat": one("Concat", (1, 16, 8, 16), inputs=2, axis=1),
    "matmul": one("MatMul", (32, 32), inputs=2),
    "resize": one(
        "Resize", (1, 4, 8, 8), weights={"roi": floats(), "scales": floats(1, 1, 2, 2)},
        mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TYPICAL)
def test_typical_operators_are_parallel_and_vectorised(name: str) -> None:
    found = loops(run(TYPICAL[name], narrow()))
    assert found
    for kernel, kinds in found.items():
        assert any(kind == "parallel" for kind, _ in kinds), kernel
        assert any((kind, extent) == ("vectorized", 4) for kind, extent in kinds), kernel


def test_blocked_pools_are_parallel_and_vectorised() -> None:
    from tests.network_plans import check_plan

    nodes = [
        make("Conv", ["x", "w"], ["c"], name="conv", pads=[1] * 4),
        make("MaxPool", ["c"], ["m"], kernel_shape=[3, 3], strides=[2, 2]),
        make("AveragePool", ["m"], ["y"], kernel_shape=[2, 2]),
    ]
    weights = {"w": np.random.default_rng(0).standard_normal((10, 6, 3, 3)).astype(np.float32)}
    proto = graph_model(nodes, {"x": (1, 6, 13, 15)}, {"y": None}, weights)
    found = loops(check_plan(proto, {}, narrow()).mod)
    pools = {name: kinds for name, kinds in found.items() if "pool" in name}
    assert len(pools) == 2
    for name, kinds in pools.items():
        assert any(kind == "parallel" for kind, _ in kinds), name
        assert any((kind, extent) == ("vectorized", 4) for kind, extent in kinds), name


# exponential functions


def special(function: Any) -> dict[str, Any]:
    """Inputs, and what a kernel of 4 lanes makes of them."""
    from tvmx._tvm import build_module, tvm

    x = np.concatenate([
        np.linspace(-110, 95, 20_000), np.linspace(-5, 5, 20_000), np.logspace(-30, 2, 500),
        [-np.inf, np.inf, np.nan, 0.0, -0.0, 88.72, 88.73, -87.3, -103.0, -104.0, 3e38, -3e38],
    ]).astype(np.float32)  # fmt: skip
    x = np.resize(x, (1, 4 * (len(x) // 4)))
    data = te.placeholder(x.shape, name="x")
    out = te.compute(x.shape, lambda *i: function(data[i]), name="y")
    func = default_schedule(te.create_prim_func([data, out]), 4).with_attr("global_symbol", "f")
    got = tvm.runtime.tensor(np.zeros_like(x))
    build_module(tvm.IRModule({"f": func}), narrow())["f"](tvm.runtime.tensor(x), got)
    return {"x": x, "got": got.numpy()}


@pytest.mark.parametrize("name", ["exp", "sigmoid", "tanh", "erf"])
def test_exponential_functions_are_accurate(name: str) -> None:
    import torch

    from tvmx.passes import _vector_math

    found = special(getattr(_vector_math, name))
    want = getattr(torch, name)(torch.from_numpy(found["x"].astype(np.float64))).numpy()
    with np.errstate(over="ignore"):
        rounded = want.astype(np.float32)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(found["got"][~finite], rounded[~finite])
    tiny = float(np.finfo(np.float32).tiny)
    np.testing.assert_allclose(found["got"][finite], want[finite], rtol=2e-6, atol=tiny)


EXPONENTIAL = {
    "exp": one("Exp", (1, 16, 8, 16)),
    "sigmoid": one("Sigmoid", (1, 16, 8, 16)),
    "tanh": one("Tanh", (1, 16, 8, 16)),
    "erf": one("Erf", (1, 16, 8, 16)),
    "softmax over channels": one("Softmax", (1, 16, 8, 16), axis=1),
    "softmax of rows": one("Softmax", (16, 64), axis=-1),
    "mean of rows": one("ReduceMean", (16, 64), axes=[1]),
    "elu": one("Elu", (1, 16, 8, 16)),
    "hard swish": one("HardSwish", (1, 16, 8, 16)),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_arm_code_is_vectors_without_library_calls(name: str) -> None:
    from tvmx._tvm import build_module, tvm
    from tvmx.targets import load_target

    target = load_target("rpi4")
    mod = finish_relax(network_of(EXPONENTIAL[name]).model.mod, target)
    kernels = {
        var.name_hint: func.with_attr("global_symbol", var.name_hint)
        for var, func in mod.functions.items()
        if isinstance(func, tirx.PrimFunc)
    }
    text = str(build_module(tvm.IRModule(kernels), target).inspect_source("asm"))
    called = set(re.findall(r"\bbl\s+(\w+)", text))
    assert not {c for c in called if "tvm" not in c.lower()} - {"memset", "memcpy"}
    vectors = len(re.findall(r"\bf\w+\s+v\d+\.4s", text))
    scalars = len(re.findall(r"\bf(?:add|mul|madd|msub|sub|div)\s+s\d+", text))
    # What is left of a reduction adds up four lanes, and divides once.
    assert vectors >= (3 if name == "mean of rows" else 4)
    assert scalars <= 8


def test_softmax_computes_each_power_once() -> None:
    mod = finish_relax(network_of(EXPONENTIAL["softmax of rows"]).model.mod, narrow())
    (kernel,) = (f for f in mod.functions.values() if isinstance(f, tirx.PrimFunc))
    assert kernel.script().count("1.4426950") == 1


def test_scheduled_functions_are_left_alone() -> None:
    mod = finish_relax(network_of(TYPICAL["relu"]).model.mod, narrow())
    again = finish_relax(mod, narrow())
    for var in mod.get_global_vars():
        assert again[var.name_hint].same_as(mod[var.name_hint]) or str(again[var.name_hint]) == str(
            mod[var.name_hint]
        )
