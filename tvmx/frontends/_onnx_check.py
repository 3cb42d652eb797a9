"""Reading an ONNX file and refusing what cannot be imported, before TVM is involved."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tvmx.errors import CorruptModelError, ModelError, UsageError
from tvmx.frontends._onnx_external import load_external, tensors
from tvmx.frontends._onnx_ops import (
    DEFAULT_DOMAINS,
    OLDEST_OPSET,
    OWN,
    QOPERATOR,
    SUPPORTED,
    operator_key,
    refusal,
)
from tvmx.frontends._reason import quoted
from tvmx.frontends._refused import refuse_operators

if TYPE_CHECKING:
    import onnx

_SMALL = 256  # elements; larger weights are left out of what onnx.checker copies


def read_model(path: Path) -> tuple[onnx.ModelProto, tuple[Path, ...]]:
    """Parse an ONNX file with its external weights; every node gets a unique name.

    Returns the model and the files it came from (the model file, then external data).

    Raises:
        CorruptModelError: empty, truncated or no ONNX model; weights missing or cut off.
        ModelError: made for a version of ONNX that cannot be read.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        data = path.read_bytes()
    except OSError as err:
        raise UsageError(f"cannot read model {path}: {err.strerror}") from err
    if not data:
        raise CorruptModelError(f"{path} is empty")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except (DecodeError, RuntimeError, ValueError) as err:
        raise CorruptModelError(
            f"{path} is no ONNX model, or it is cut off after {len(data)} bytes",
            hint="export or copy the file again",
        ) from err
    if not proto.HasField("graph") or not proto.graph.output:
        raise CorruptModelError(f"{path} is no ONNX model: it holds no graph with an output")
    if not all(isinstance(text, str) for text in _texts(proto)):
        raise CorruptModelError(f"{path} is damaged: a name in it is not text")
    _check_versions(proto, path)
    if proto.functions:
        import onnx.inliner

        proto = onnx.inliner.inline_local_functions(proto)
    external = load_external(proto, path)
    name_nodes(proto.graph)
    return proto, (path, *external)


def _texts(proto: onnx.ModelProto) -> Iterator[object]:
    """Names in the model; protobuf hands out bytes where one is not UTF-8."""
    graph = proto.graph
    yield from (opset.domain for opset in proto.opset_import)
    for node in _nodes(graph):
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)
    for tensor in tensors(graph):
        yield tensor.name
        yield from (part for entry in tensor.external_data for part in (entry.key, entry.value))
    for value in (*graph.input, *graph.output):
        yield value.name
        yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)


def opset_of(proto: onnx.ModelProto) -> int:
    """Version of the standard operator set the model uses; 0 where it declares none."""
    versions = [o.version for o in proto.opset_import if o.domain in DEFAULT_DOMAINS]
    return max(versions, default=0)


def _check_versions(proto: onnx.ModelProto, path: Path) -> None:
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if proto.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"{path} has ONNX IR version {proto.ir_version}; onnx {onnx.__version__} reads up to "
            f"{onnx.IR_VERSION}",
            hint="pip install --upgrade onnx, or export with an older ir_version",
        )
    if proto.ir_version < 3:
        raise CorruptModelError(f"{path} declares ONNX IR version {proto.ir_version}, older than 3")
    opset = opset_of(proto)
    if opset > newest:
        raise ModelError(
            f"{path} uses ONNX opset {opset}; onnx {onnx.__version__} knows up to {newest}",
            hint=f"export with opset {min(newest, 20)}",
        )
    if 0 < opset < OLDEST_OPSET:
        raise ModelError(
            f"{path} uses ONNX opset {opset}; the oldest that can be imported is {OLDEST_OPSET}",
            hint="upgrade the file with onnx.version_converter.convert_version(model, 13)",
        )
    if opset == 0 and any(node.domain in DEFAULT_DOMAINS for node in proto.graph.node):
        raise CorruptModelError(f"{path} declares no version of the standard ONNX operator set")


def name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a name of its own.

    Unnamed nodes are called operator + first output; repeated names are numbered.
    """
    seen: Counter[str] = Counter()
    for index, node in enumerate(graph.node):
        name = node.name or f"{node.op_type}_{next((o for o in node.output if o), index)}"
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}#{seen[name]}"


def check_operators(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse every operator that cannot be imported, all at once.

    Raises:
        UnsupportedOpError: ``ops`` maps operator types to the names of their nodes.
        ModelError: a node is in training mode.
    """
    ops: dict[str, list[str]] = {}
    for node in _nodes(proto.graph):
        key = operator_key(node)
        if key not in SUPPORTED | OWN | QOPERATOR:
            ops.setdefault(key, []).append(node.name)
    refuse_operators(path, ops, refusal)
    _check_training(proto, path)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
            for inner in attribute.graphs:
                yield from _nodes(inner)


def _check_training(proto: onnx.ModelProto, path: Path) -> None:
    flag = {"training_mode": 1, "is_test": 0, "spatial": 0}
    for node in proto.graph.node:
        if node.op_type not in ("BatchNormalization", "Dropout"):
            continue
        bad = any(flag.get(a.name) == a.i for a in node.attribute)
        outputs = sum(bool(output) for output in node.output)
        if bad or (node.op_type == "BatchNormalization" and outputs > 1):
            raise ModelError(
                f"{path}: node {node.name!r} ({node.op_type}) is in training mode",
                hint="export the network in evaluation mode, such as model.eval() in PyTorch",
            )


def check_graph(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse a graph of standard operators that onnx.checker refuses.

    Raises:
        CorruptModelError: with what the checker says.
    """
    import onnx

    try:
        onnx.checker.check_model(skeleton(proto))
    except Exception as err:  # the checker's C++ exceptions have no common base
        raise CorruptModelError(
            f"{path} is no valid ONNX model: {_said(err)}",
            hint="onnx.checker.check_model shows the details; export the model again",
        ) from err


def skeleton(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with large weights as inputs: the checker would copy hundreds of megabytes.

    Outputs without a shape get one: exporters leave it out, and nothing depends on it.
    """
    import onnx
    from onnx import helper

    graph, given = proto.graph, {value.name for value in proto.graph.input}
    large = [i for i in graph.initializer if math.prod(i.dims) > _SMALL]
    names = {i.name for i in large}
    inputs = list(graph.input)
    inputs += [
        helper.make_tensor_value_info(i.name, i.data_type, list(i.dims))
        for i in large
        if i.name not in given
    ]
    slim = onnx.GraphProto(name=graph.name or "graph")
    slim.node.extend(graph.node)
    slim.input.extend(_shaped(value) for value in inputs)
    slim.output.extend(_shaped(value) for value in graph.output)
    slim.initializer.extend(i for i in graph.initializer if i.name not in names)
    slim.sparse_initializer.extend(graph.sparse_initializer)
    model = onnx.ModelProto(ir_version=proto.ir_version, graph=slim)
    model.opset_import.extend(proto.opset_import)
    return model


def _shaped(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    import onnx

    if not value.type.HasField("tensor_type") or value.type.tensor_type.HasField("shape"):
        return value
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    copy.type.tensor_type.shape.SetInParent()
    return copy


def _said(err: BaseException) -> str:
    """The checker's sentence; of any other error its kind too."""
    import onnx

    _, _, sentence = quoted(err).partition(": ")
    checkers = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError)
    return sentence if isinstance(err, checkers) and sentence else quoted(err)
