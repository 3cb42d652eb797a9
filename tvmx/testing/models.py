"""Networks for tests and benchmarks: the onnx package's light models, and small ones.

As shipped, every weight of a light model has one value and every output is 0.001: comparing
results would prove nothing. :func:`light_model` puts random weights in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tvmx.errors import UsageError

if TYPE_CHECKING:
    import onnx

__all__ = [
    "LIGHT_MODELS", "conv_model", "graph_model", "light_model", "multi_io_model",
    "onnx_reference", "residual_model", "save_light_model",
]  # fmt: skip

LIGHT_MODELS = (
    "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet",
    "squeezenet", "vgg19", "zfnet512",
)  # fmt: skip

Array = npt.NDArray[Any]


def light_model(name: str, seed: int = 0) -> onnx.ModelProto:
    """A light model of the onnx package with random weights and without its last softmax.

    Weights are drawn so that every layer's output has mean square near 1 for inputs from a
    standard normal distribution (He initialisation, with the mean square carried through
    the graph where poolings and sums change it); batch norms hold statistics that fit.
    The same seed gives the same bytes. Input: float32 (1, 3, 224, 224), named as in the file;
    output: float32, 1000 logits.

    Raises:
        UsageError: no light model of that name.
    """
    import onnx

    if name not in LIGHT_MODELS:
        raise UsageError(f"no light model {name!r}; there are {', '.join(LIGHT_MODELS)}")
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    model = onnx.load(folder / f"light_{name}.onnx")
    _drop_softmax(model.graph)
    _randomise(model.graph, np.random.default_rng(seed))
    model.ir_version = 8  # from 4 on, weights need not be graph inputs
    onnx.checker.check_model(_without_weights(model))
    return model


def save_light_model(name: str, folder: Path, seed: int = 0) -> Path:
    """Write :func:`light_model` to ``folder/<name>.onnx`` and return that path."""
    import onnx

    path = folder / f"{name}.onnx"
    onnx.save(light_model(name, seed), path)
    return path


def _drop_softmax(graph: onnx.GraphProto) -> None:
    last = graph.node[-1]
    if last.op_type == "Softmax":
        graph.output[0].name = last.input[0]
        del graph.node[-1]


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """For the checker, which copies what it checks: weights as inputs."""
    import onnx
    from onnx import helper

    graph = onnx.GraphProto(name=model.graph.name)
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.input.extend(
        helper.make_tensor_value_info(i.name, i.data_type, list(i.dims))
        for i in model.graph.initializer
    )
    graph.output.extend(model.graph.output)
    return helper.make_model(
        graph, ir_version=model.ir_version, opset_imports=list(model.opset_import)
    )


class _Weights:
    """The constants of a light model, replaced while the graph is walked."""

    def __init__(self, graph: onnx.GraphProto, rng: np.random.Generator) -> None:
        from onnx import TensorProto, numpy_helper

        self.rng = rng
        self.arrays: dict[str, Array] = {
            i.name: numpy_helper.to_array(i) for i in graph.initializer
        }
        self.shapes: dict[str, tuple[int, ...]] = {
            i.name: tuple(i.dims) for i in graph.initializer if i.data_type == TensorProto.FLOAT
        }
        self.view_of: dict[str, str] = {}
        self.views: dict[str, tuple[int, ...]] = {}
        for node in graph.node:
            if node.op_type == "ConstantOfShape":
                self.shapes[node.output[0]] = tuple(int(d) for d in self.arrays[node.input[0]])
            elif node.op_type in ("Unsqueeze", "Reshape") and node.input[0] in self.shapes:
                self.view_of[node.output[0]] = node.input[0]
                self.views[node.output[0]] = self._view(node)

    def _view(self, node: onnx.NodeProto) -> tuple[int, ...]:
        shape = self.shapes[node.input[0]]
        if node.op_type == "Unsqueeze":
            return shape  # read for fan-in only, which ones do not change
        return np.broadcast_to(np.float32(0), shape).reshape(self.arrays[node.input[1]]).shape

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Shape of a weight as its reader sees it."""
        return self.views.get(tensor) or self.shapes[tensor]

    def name(self, tensor: str) -> str | None:
        """The weight behind a tensor (seen through reshapes); None for an activation."""
        tensor = self.view_of.get(tensor, tensor)
        return tensor if tensor in self.shapes else None

    def normal(self, tensor: str, deviation: float, mean: float = 0.0) -> None:
        """Fill a weight from a normal distribution."""
        values = self.rng.standard_normal(self.shapes[tensor], dtype=np.float32)
        values *= np.float32(deviation)
        self.arrays[tensor] = values + np.float32(mean) if mean else values

    def around(self, tensor: str, centre: float) -> None:
        """Fill a weight with positive values within 20 % of ``centre``."""
        low, high = 0.8 * centre, 1.2 * centre
        self.arrays[tensor] = self.rng.uniform(low, high, self.shapes[tensor]).astype(np.float32)


def _randomise(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    from onnx import numpy_helper

    weights = _Weights(graph, rng)
    square: dict[str, float] = {}  # estimated mean square of each activation
    positive: set[str] = set()  # those that are mostly positive: a relu halves nothing there
    for node in graph.node:
        if node.op_type == "ConstantOfShape" or node.output[0] in weights.view_of:
            continue
        estimate = _fill(node, weights, square)
        if node.op_type == "Relu" and node.input[0] in positive:
            estimate *= 1.8
        square[node.output[0]] = estimate
        keeps = node.op_type not in ("Conv", "Gemm", "BatchNormalization")
        if node.op_type == "Relu" or (keeps and positive.intersection(node.input)):
            positive.add(node.output[0])
    nodes = [node for node in graph.node if node.op_type != "ConstantOfShape"]
    used = {name for node in nodes for name in node.input}
    inputs = [v for v in graph.input if v.name in used and v.name not in weights.arrays]
    for field, kept in (("node", nodes), ("input", inputs)):
        graph.ClearField(field)
        getattr(graph, field).extend(kept)
    graph.ClearField("initializer")
    for name, array in weights.arrays.items():
        if name in used:
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))


def _fill(node: onnx.NodeProto, weights: _Weights, square: Mapping[str, float]) -> float:
    """Draw the weights of a node; returns the mean square of its output."""
    kind = node.op_type
    inputs = [weights.name(i) for i in node.input]
    before = [square.get(i, 1.0) for i, w in zip(node.input, inputs, strict=True) if w is None]
    data = before[0] if before else 1.0
    if kind in ("Conv", "Gemm"):
        assert inputs[1] is not None
        shape = weights.shape(node.input[1])
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        rows = shape[1] if kind == "Gemm" and transposed else shape[0]
        fan_in = math.prod(shape[1:]) if kind == "Conv" else rows
        weights.normal(inputs[1], 1 / math.sqrt(fan_in * data))
        if len(inputs) > 2 and inputs[2] is not None:
            weights.normal(inputs[2], 0.1)
        return 1.0
    if kind == "BatchNormalization":
        _, scale, shift, mean, variance = inputs
        assert scale is not None and shift is not None
        assert mean is not None and variance is not None
        weights.around(scale, 1.0)
        weights.normal(shift, 0.1)
        weights.normal(mean, 0.1 * math.sqrt(data))
        weights.around(variance, data)
        return 1.0
    constant = next((w for w in inputs if w is not None), None)
    if kind == "Mul" and constant is not None:
        weights.around(constant, 1.0)
    elif kind == "Add" and constant is not None:
        weights.normal(constant, 0.1)
    return _activation(kind, before or [1.0])


def _activation(kind: str, before: list[float]) -> float:
    """Mean square behind an operator without weights, for inputs like rectified normals."""
    if kind in ("Sum", "Add"):
        return sum(before)
    mean = sum(before) / len(before)
    factor = {"Relu": 0.5, "MaxPool": 2.0, "AveragePool": 0.5, "GlobalAveragePool": 0.35}
    return mean * factor.get(kind, 1.0)


def graph_model(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int | str, ...]],
    outputs: Mapping[str, tuple[int | str, ...] | None],
    weights: Mapping[str, Array] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """A float32 model from nodes, input and output shapes (None: undeclared) and weights."""
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in inputs.items()],
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, None if s is None else list(s))
            for n, s in outputs.items()
        ],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (weights or {}).items()],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])


def conv_model(
    in_channels: int = 3,
    out_channels: int = 8,
    size: tuple[int, int] = (9, 11),
    kernel: tuple[int, int] = (3, 3),
    *,
    bias: bool = True,
    batch_norm: bool = False,
    relu: bool = False,
    batch: int | str = 1,
    seed: int = 0,
    **attributes: Any,
) -> onnx.ModelProto:
    """One convolution ``conv`` (+ batch norm ``bn``) (+ ``relu``), input ``x``, output ``y``.

    ``attributes`` go to the Conv node: ``pads``, ``strides``, ``group``, ``auto_pad`` ...
    """
    from onnx import helper

    rng = np.random.default_rng(seed)
    fan_in = in_channels // attributes.get("group", 1)
    weights: dict[str, Array] = {"w": _normal(rng, out_channels, fan_in, *kernel)}
    conv_inputs = ["x", "w"]
    if bias:
        weights["b"] = _normal(rng, out_channels)
        conv_inputs.append("b")
    nodes = [helper.make_node("Conv", conv_inputs, ["c"], name="conv", **attributes)]
    if batch_norm:
        nodes.append(_batch_norm("bn", "c", "n", out_channels, weights, rng))
    if relu:
        nodes.append(helper.make_node("Relu", [nodes[-1].output[0]], ["r"], name="relu"))
    nodes[-1].output[0] = "y"
    return graph_model(
        nodes, {"x": (batch, in_channels, *size)}, {"y": ("n", "c", "h", "w")}, weights
    )


def residual_model(
    channels: int = 8, size: int = 12, classes: int = 10, seed: int = 0
) -> onnx.ModelProto:
    """A small residual network: stem, one block with batch norms, pool, global mean, dense.

    Input ``x`` float32 (1, 3, size, size), output ``y`` (1, classes). Nodes: stem, stem_bn,
    stem_relu, a, a_bn, a_relu, b, b_bn, join, join_relu, depthwise, clip6, pool, mean, flat, fc.
    """
    from onnx import helper

    make, rng, c = helper.make_node, np.random.default_rng(seed), channels
    weights: dict[str, Array] = {
        "stem_w": _normal(rng, c, 3, 3, 3), "a_w": _normal(rng, c, c, 3, 3),
        "b_w": _normal(rng, c, c, 3, 3), "b_b": _normal(rng, c), "d_w": _normal(rng, c, 1, 3, 3),
        "fc_w": _normal(rng, classes, c), "fc_b": _normal(rng, classes),
        "low": np.array(0, np.float32), "high": np.array(6, np.float32),
    }  # fmt: skip
    pads = [1, 1, 1, 1]
    nodes = [
        make("Conv", ["x", "stem_w"], ["s0"], name="stem", pads=pads, strides=[2, 2]),
        _batch_norm("stem_bn", "s0", "s1", c, weights, rng),
        make("Relu", ["s1"], ["s2"], name="stem_relu"),
        make("Conv", ["s2", "a_w"], ["a0"], name="a", pads=pads),
        _batch_norm("a_bn", "a0", "a1", c, weights, rng),
        make("Relu", ["a1"], ["a2"], name="a_relu"),
        make("Conv", ["a2", "b_w", "b_b"], ["b0"], name="b", pads=pads),
        _batch_norm("b_bn", "b0", "b1", c, weights, rng),
        make("Add", ["b1", "s2"], ["j0"], name="join"),
        make("Relu", ["j0"], ["j1"], name="join_relu"),
        make("Conv", ["j1", "d_w"], ["d0"], name="depthwise", pads=pads, group=c),
        make("Clip", ["d0", "low", "high"], ["d1"], name="clip6"),
        make("MaxPool", ["d1"], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        make("GlobalAveragePool", ["p"], ["g"], name="mean"),
        make("Flatten", ["g"], ["f"], name="flat"),
        make("Gemm", ["f", "fc_w", "fc_b"], ["y"], name="fc", transB=1),
    ]
    return graph_model(nodes, {"x": (1, 3, size, size)}, {"y": (1, classes)}, weights)


def multi_io_model(seed: int = 0) -> onnx.ModelProto:
    """Two inputs and three outputs, float32.

    ``left`` and ``right`` (1, 4, 8, 8) go through a convolution each to ``sum`` (1, 6, 8, 8)
    and ``cat`` (1, 12, 8, 8); ``left`` also to ``mean`` (1, 4).
    """
    from onnx import helper

    make, rng = helper.make_node, np.random.default_rng(seed)
    weights = {"w1": _normal(rng, 6, 4, 3, 3), "w2": _normal(rng, 6, 4, 1, 1)}
    nodes = [
        make("Conv", ["left", "w1"], ["l"], name="conv_left", pads=[1, 1, 1, 1]),
        make("Conv", ["right", "w2"], ["r"], name="conv_right"),
        make("Add", ["l", "r"], ["sum"], name="add"),
        make("Concat", ["l", "r"], ["cat"], name="concat", axis=1),
        make("ReduceMean", ["left"], ["mean"], name="reduce", axes=[2, 3], keepdims=0),
    ]
    shape = (1, 4, 8, 8)
    outputs = {"sum": (1, 6, 8, 8), "cat": (1, 12, 8, 8), "mean": (1, 4)}
    return graph_model(nodes, {"left": shape, "right": shape}, outputs, weights)


def _normal(rng: np.random.Generator, *shape: int) -> Array:
    values = rng.standard_normal(shape, dtype=np.float32)
    return values / np.float32(math.sqrt(math.prod(shape[1:]))) if len(shape) > 1 else values


def _batch_norm(
    name: str, source: str, result: str, channels: int, weights: dict[str, Array],
    rng: np.random.Generator,
) -> onnx.NodeProto:  # fmt: skip
    from onnx import helper

    weights[f"{name}_s"] = rng.uniform(0.5, 1.5, channels).astype(np.float32)
    weights[f"{name}_b"] = _normal(rng, channels)
    weights[f"{name}_m"] = _normal(rng, channels)
    weights[f"{name}_v"] = rng.uniform(0.5, 1.5, channels).astype(np.float32)
    parameters = [f"{name}_{part}" for part in "sbmv"]
    return helper.make_node("BatchNormalization", [source, *parameters], [result], name=name)


def onnx_reference(model: onnx.ModelProto | Path, inputs: Mapping[str, Array]) -> list[Array]:
    """Outputs of ONNX Runtime on the CPU, one thread, graph optimisations off.

    Raises:
        UsageError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as err:
        raise UsageError(
            "onnxruntime is needed as the reference", hint="pip install 'tvmx[dev]'"
        ) from err
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return [np.asarray(out) for out in session.run(None, dict(inputs))]
