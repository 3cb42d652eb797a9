"""What an ONNX graph computes of its weights and of the shapes of its tensors, worked out.

With static inputs every ``Shape`` is a constant, and so is what exporters compute of it. Nodes that
can be worked out become weights; an ``If`` whose condition is one becomes its branch; operators
that only have a definition in terms of others (see :mod:`_onnx_functions`) become those.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tvmx.frontends._onnx_functions import expand, inline_branch, is_expanded
from tvmx.frontends._onnx_ops import DEFAULT_DOMAINS

if TYPE_CHECKING:
    import onnx

    from tvmx.ir import TensorSpec

Array = npt.NDArray[Any]

_MOST_ELEMENTS = 1 << 16
"""Of every input and output of a node that is worked out; larger ones are left to TVM."""

_MOST_NODES = 200_000
_FOLDED = frozenset(
    """
    Abs Add And Cast CastLike Ceil Clip Concat ConstantOfShape Cos CumSum Div Equal Exp Expand
    Flatten Floor Gather GatherElements GatherND Greater GreaterOrEqual Identity Less LessOrEqual
    Max Min Mod Mul Neg NonZero Not Or Pow Range Reciprocal ReduceMax ReduceMin ReduceProd
    ReduceSum Reshape Sin Slice Split Sqrt Squeeze Sub Tile Transpose Trilu Unsqueeze Where Xor
    """.split()  # noqa: SIM905
)


class GraphTooLargeError(ValueError):
    """More nodes than any network has, once functions are replaced by what they do."""


def fold(proto: onnx.ModelProto, inputs: Iterable[TensorSpec]) -> None:
    """Rewrite the main graph in place; nodes it cannot judge stay as they are.

    A graph in which a name is made twice is left alone: onnx.checker refuses it later.

    Raises:
        GraphTooLargeError: replacing operators by their definitions does not end.
    """
    graph = proto.graph
    made = [output for node in graph.node for output in node.output if output]
    weights = [init.name for init in graph.initializer]
    given = {*weights, *(value.name for value in graph.input)}
    if len(set(weights)) != len(weights) or len({*made, *given}) != len(made) + len(given):
        return
    folding = _Folding(proto, inputs)
    folding.run()


class _Folding:
    def __init__(self, proto: onnx.ModelProto, inputs: Iterable[TensorSpec]) -> None:
        from onnx import helper

        self.proto, self.graph = proto, proto.graph
        self.opset = max((o.version for o in proto.opset_import if o.domain in DEFAULT_DOMAINS),
                         default=0)  # fmt: skip
        self.types: dict[str, onnx.TypeProto] = {}
        self.tensors: dict[str, onnx.TensorProto] = {}
        self.values: dict[str, Array] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.new: dict[str, onnx.TensorProto] = {}
        for spec in inputs:
            code = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
            self.types[spec.name] = helper.make_tensor_type_proto(code, spec.shape)
        for tensor in self.graph.initializer:
            self._know(tensor)

    def run(self) -> None:
        for node in list(self.graph.node):
            self._visit(node)
            if len(self.nodes) > _MOST_NODES:
                raise GraphTooLargeError(f"more than {_MOST_NODES} operators")
        used = {name for node in _all_nodes(self.nodes) for name in node.input}
        used |= {value.name for value in self.graph.output}
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        added = [tensor for name, tensor in self.new.items() if name in used]
        self.graph.initializer.extend(added)
        if added:  # before version 4, weights are graph inputs too
            self.proto.ir_version = max(self.proto.ir_version, 4)

    def _visit(self, node: onnx.NodeProto) -> None:
        if node.domain in DEFAULT_DOMAINS and self._replace(node):
            return
        self.nodes.append(node)

    def _replace(self, node: onnx.NodeProto) -> bool:
        """Replace a node by a weight or by other nodes; False where it stays."""
        if node.op_type == "Constant":
            return self._constant(node)
        if node.op_type == "If":
            condition = self.values.get("".join(node.input[:1]))
            if condition is None or condition.size != 1:
                return False
            body = inline_branch(node, bool(condition.reshape(())), self._keep)
        else:
            if self._shape_alone(node):
                return True
            types = [self.types.get(name) for name in node.input]
            expanded = is_expanded(node, self.opset)
            body = expand(node, types, self.opset) if expanded else None
            if body is None:
                self._infer(node)
                return node.op_type in _FOLDED and self._evaluate(node)
        for inner in body or ():
            self._visit(inner)
        return body is not None

    def _know(self, tensor: onnx.TensorProto) -> None:
        """Remember a weight's type, and its values if they are few."""
        from onnx import helper, numpy_helper

        self.types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        dims = tuple(tensor.dims)
        if min(dims, default=0) < 0 or math.prod(dims) > _MOST_ELEMENTS:
            return
        # A damaged weight is refused with its name when the graph is imported.
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, OverflowError):
            array = numpy_helper.to_array(tensor)
            if array.shape == dims:
                self.values[tensor.name] = array
                self.tensors[tensor.name] = tensor

    def _keep(self, tensor: onnx.TensorProto) -> None:
        """A new weight; it goes into the graph if a node that stays reads it."""
        self.new[tensor.name] = tensor
        self._know(tensor)

    def _constant(self, node: onnx.NodeProto) -> bool:
        import onnx
        from onnx import helper, numpy_helper

        if len(node.attribute) != 1 or len(node.output) != 1:
            return False
        attribute, tensor = node.attribute[0], onnx.TensorProto()
        plain = {"value_float": "float32", "value_floats": "float32", "value_int": "int64",
                 "value_ints": "int64"}.get(attribute.name)  # fmt: skip
        if plain is not None:
            try:
                given = np.array(helper.get_attribute_value(attribute), plain)
            except (ValueError, TypeError, OverflowError):
                return False
            tensor.CopyFrom(numpy_helper.from_array(given))
        elif attribute.name == "value" and attribute.HasField("t"):
            tensor.CopyFrom(attribute.t)
        else:
            return False
        tensor.name = node.output[0]
        self._keep(tensor)
        return True

    def _shape_alone(self, node: onnx.NodeProto) -> bool:
        """Work out what depends on the shape of the input only."""
        shape = _static_shape(self.types.get("".join(node.input[:1])))
        if shape is None or len(node.output) != 1:
            return False
        ints = {a.name: a.i for a in node.attribute}
        if node.op_type == "Shape":
            value = np.array(shape[ints.get("start", 0) : ints.get("end", len(shape))], np.int64)
        elif node.op_type == "Size":
            if math.prod(shape) >= 1 << 63:
                return False
            value = np.array(math.prod(shape), np.int64)
        elif node.op_type == "EyeLike" and len(shape) == 2 and math.prod(shape) <= _MOST_ELEMENTS:
            dtype = _np_dtype(ints.get("dtype") or self.types[node.input[0]].tensor_type.elem_type)
            if dtype is None:
                return False
            value = np.eye(*shape, k=max(-shape[0], min(ints.get("k", 0), shape[1])), dtype=dtype)
        else:
            return False
        self._keep_value(node.output[0], value)
        return True

    def _keep_value(self, name: str, value: Array) -> None:
        from onnx import numpy_helper

        self._keep(numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name))

    def _infer(self, node: onnx.NodeProto) -> None:
        import onnx
        from onnx import shape_inference

        types = {name: self.types[name] for name in node.input if name in self.types}
        known = {name: self.tensors[name] for name in node.input if name in self.tensors}
        data = {name: t for name, t in known.items() if math.prod(t.dims) <= 1024}
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opset, "")
            found = shape_inference.infer_node_outputs(
                schema, node, types, data, opset_imports=list(self.proto.opset_import),
                ir_version=self.proto.ir_version,
            )  # fmt: skip
        except Exception:  # C++ types of its own; a node it does not like has no known type
            return
        self.types.update(found)

    def _evaluate(self, node: onnx.NodeProto) -> bool:
        """Work out a node of known inputs by onnx's reference implementation."""
        if not all(name in self.values for name in node.input if name):
            return False
        sizes = [_static_shape(self.types.get(name)) for name in node.output if name]
        bounded = all(s is not None and math.prod(s) <= _MOST_ELEMENTS for s in sizes)
        if not bounded and node.op_type != "NonZero":  # its result is no larger than its input
            return False
        try:
            results = _reference(node, self.opset, self.values)
        except Exception:  # whatever a node that makes no sense runs into: it is reported later
            return False
        for name, value in zip(node.output, results, strict=False):
            if name:
                self._keep_value(name, np.asarray(value))
        return True


def _reference(node: onnx.NodeProto, opset: int, values: dict[str, Array]) -> list[Array]:
    from onnx import ValueInfoProto, helper
    from onnx.reference import ReferenceEvaluator

    names = dict.fromkeys(name for name in node.input if name)
    graph = helper.make_graph(
        [node], "node", [ValueInfoProto(name=name) for name in names],
        [ValueInfoProto(name=name) for name in node.output if name],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = ReferenceEvaluator(model).run(None, {name: values[name] for name in names})
    results = iter(found)
    return [np.asarray(next(results)) if name else np.empty(0) for name in node.output]


def _static_shape(kind: onnx.TypeProto | None) -> tuple[int, ...] | None:
    if kind is None or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    if not all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in dims):
        return None
    return tuple(dim.dim_value for dim in dims)


def _np_dtype(code: int) -> np.dtype[Any] | None:
    from onnx import TensorProto, helper

    plain = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64,
             TensorProto.INT8, TensorProto.UINT8, TensorProto.BOOL)  # fmt: skip
    return helper.tensor_dtype_to_np_dtype(code) if code in plain else None


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _all_nodes(attribute.g.node)
            for graph in attribute.graphs:
                yield from _all_nodes(graph.node)
