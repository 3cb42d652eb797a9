"""ONNX graph -> Relax, on top of TVM's importer, every result named after its node."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

from tvmx._tvm import relax, tvm
from tvmx.errors import CorruptModelError, ModelError, ModelShapeError, TvmxError
from tvmx.frontends._names import identifier
from tvmx.frontends._onnx_check import opset_of
from tvmx.frontends._onnx_rules import RULES
from tvmx.frontends._onnx_shapes import MOST_ELEMENTS
from tvmx.frontends._reason import quoted, reason_of
from tvmx.ir import SourceNode, TensorSpec

if TYPE_CHECKING:
    import onnx

_ANCHORS = {"relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d", "relax.matmul",
            "relax.nn.conv1d_transpose", "relax.nn.conv2d_transpose"}  # fmt: skip
_INTEGER_PRODUCTS = ("ConvInteger", "MatMulInteger")


def import_graph(
    proto: onnx.ModelProto, inputs: tuple[TensorSpec, ...], path: Path
) -> tuple[Any, tuple[TensorSpec, ...], dict[str, SourceNode]]:
    """Convert a checked model whose nodes have unique names.

    Returns the module, the output specs and the source node of each Relax variable.

    Raises:
        ModelError: a node cannot be converted; it is named with its operator.
        ModelShapeError: a shape is not static although the inputs are.
    """
    importer = _Importer(proto, inputs, path)
    with _quiet():
        mod = importer.run(proto)
    _require_static(mod, importer.sources, path)
    return mod, _outputs(proto, mod, path), importer.sources


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TVM's importer prints and warns; what matters is in the exception."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


class _Importer(ONNXGraphImporter):  # type: ignore[misc]
    """TVM's importer with names, typed errors and the converters of :mod:`_onnx_rules`."""

    def __init__(self, proto: onnx.ModelProto, inputs: tuple[TensorSpec, ...], path: Path) -> None:
        super().__init__({i.name: list(i.shape) for i in inputs}, {i.name: i.dtype for i in inputs})
        self._nodes_by_name = {node.name: node for node in proto.graph.node}
        self._path = path
        self._current: Any = None
        self.sources: dict[str, SourceNode] = {}
        self._identifiers: set[str] = set()

    def _sanitize_name(self, name: str) -> str:
        base = identifier(name)
        unique, count = base, 1
        while unique in self._identifiers:
            count += 1
            unique = f"{base}_{count}"
        self._identifiers.add(unique)
        return unique

    def _parse_array(self, tensor_proto: onnx.TensorProto) -> Any:
        try:
            return super()._parse_array(tensor_proto)
        except Exception as err:
            raise CorruptModelError(
                f"{self._path}: weight {tensor_proto.name!r} is damaged ({quoted(err)})",
                hint="export or copy the file again",
            ) from err

    def run(self, proto: onnx.ModelProto) -> Any:
        """The whole graph as an IRModule; errors name the node they came up at."""
        try:
            return self.from_onnx(proto.graph, opset_of(proto))
        except TvmxError:
            self._close()
            raise
        except Exception as err:  # whatever a converter runs into
            self._close()
            node = self._current
            where = f"node {node.name!r} ({node.op_type})" if node else "the graph"
            raise ModelError(
                f"{self._path}: {where} cannot be imported: {reason_of(err)}",
                hint="re-export the model, or report this node",
            ) from err

    def _close(self) -> None:
        # An exception leaves one block open, about which TVM complains on stderr.
        if self._current is not None:
            self.bb._end_block()

    def _parse_value_proto(self, value_proto: Any) -> Any:
        if hasattr(value_proto, "op_type"):
            self._current = value_proto
        return super()._parse_value_proto(value_proto)

    def _check_for_unsupported_ops(self, graph: onnx.GraphProto) -> None:
        """Nothing: they were refused before, and TVM's table lacks those of ``_onnx_ops.OWN``."""

    def _convert_operator(
        self, op_name: str, inputs: list[Any], attrs: dict[str, Any], opset: int
    ) -> Any:
        custom = attrs["tvm_custom"]
        node = self._nodes_by_name[custom["name"]]
        if "keepdims" in attrs:  # TVM keeps them for any number but 0
            attrs["keepdims"] = int(attrs["keepdims"] == 1)
        rule = RULES.get(op_name)
        result = rule(inputs, attrs, opset) if rule else None
        if result is None:
            converter = _converter(op_name, opset)
            result = converter(self.bb, inputs, attrs, [self._nodes, self._params])
        if isinstance(result, relax.Tuple):
            # Unused results (a batch norm's running statistics) would only be dead code.
            fields = list(result.fields)[: custom["num_outputs"]]
            result = fields[0] if len(fields) == 1 else relax.Tuple(fields)
        if not isinstance(result, relax.Expr):
            return result
        return self.bb.normalize(_Namer(self, node).emit(result))


def _converter(op_name: str, opset: int) -> Any:
    from tvm.relax.frontend.onnx import onnx_frontend

    return onnx_frontend._get_convert_map()[op_name].get_converter(opset)


class _Namer:
    """Emits the calls one node became: the anchor, or else the last, gets the node's name.

    Only float and 8 bit tensors are bound, and integer products: TVM's converters look into the
    expressions of integer shape computations.
    """

    def __init__(self, importer: _Importer, node: onnx.NodeProto) -> None:
        self._importer = importer
        self._source = SourceNode(node.name, node.op_type)
        self._base = identifier(node.name)
        self._integers = node.op_type in _INTEGER_PRODUCTS
        self._done: dict[Any, Any] = {}
        self._root: Any = None
        self._anchor: Any = None

    def emit(self, expr: Any) -> Any:
        self._root = expr
        self._anchor = _find_anchor(expr)
        return self._visit(expr)

    def _visit(self, expr: Any) -> Any:
        if isinstance(expr, relax.Var):
            self._record(expr)
            return expr
        if expr not in self._done:
            self._done[expr] = self._compound(expr)
        return self._done[expr]

    def _compound(self, expr: Any) -> Any:
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self._visit(field) for field in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            return self._bind(relax.TupleGetItem(self._visit(expr.tuple_value), expr.index), expr)
        if not isinstance(expr, relax.Call):
            return expr
        args = [self._visit(arg) for arg in expr.args]
        same = all(new.same_as(old) for new, old in zip(args, expr.args, strict=True))
        call = expr if same else relax.Call(expr.op, args, expr.attrs, expr.ty_args)
        return self._bind(call, expr)

    def _bind(self, expr: Any, original: Any) -> Any:
        builder = self._importer.bb
        expr = builder.normalize(expr)
        if isinstance(expr, relax.Var) or not (self._integers or _is_value(expr.ty)):
            return expr
        var = builder.emit(expr, name_hint=self._name(original))
        self._record(var)
        return var

    def _name(self, expr: Any) -> str:
        if expr.same_as(self._root if self._anchor is None else self._anchor):
            return self._base
        op = getattr(getattr(expr, "op", None), "name", "item")
        return f"{self._base}_{str(op).rsplit('.', 1)[-1]}"

    def _record(self, var: Any) -> None:
        if isinstance(var, relax.DataflowVar):
            self._importer.sources.setdefault(var.name, self._source)


def _find_anchor(expr: Any) -> Any:
    """The convolution or matrix product among nested calls."""
    if isinstance(expr, relax.Tuple | relax.TupleGetItem):
        return None
    if not isinstance(expr, relax.Call):
        return None
    if getattr(expr.op, "name", "") in _ANCHORS:
        return expr
    return next((found for arg in expr.args if (found := _find_anchor(arg)) is not None), None)


def _is_value(ty: Any) -> bool:
    """Whether of a type that shapes are never computed in."""
    if isinstance(ty, relax.TupleType):
        return any(_is_value(field) for field in ty.fields)
    return isinstance(ty, relax.TensorType) and str(ty.dtype).startswith(("float", "int8", "uint8"))


def _static(ty: Any) -> tuple[int, ...] | None:
    values = getattr(getattr(ty, "shape", None), "values", None)
    if values is None or not all(isinstance(v, tvm.tirx.IntImm) for v in values):
        return None
    return tuple(int(v) for v in values)


def _require_static(mod: Any, sources: dict[str, SourceNode], path: Path) -> None:
    source: SourceNode | None = None
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            source = sources.get(binding.var.name, source)
            for ty in _tensor_types(binding.var.ty):
                shape = _static(ty)
                where = f" near node {source.name!r} ({source.op})" if source else ""
                if shape is not None and not _usable(shape, binding.value):
                    raise ModelShapeError(
                        f"{path}: a tensor{where} is of shape {shape}; tensors have at least one "
                        f"element and at most {MOST_ELEMENTS}",
                        hint="give larger or smaller inputs, such as --shape input=1,3,224,224",
                    )
                if shape is None:
                    raise ModelShapeError(
                        f"{path}: a shape{where} depends on values of the input; "
                        "every shape must be known before",
                        hint="simplify the model for one fixed input shape (onnxsim), or re-export",
                    )


def _usable(shape: tuple[int, ...], value: Any) -> bool:
    """Whether of a size that can be computed; nothing may be moved around, but not convolved."""
    smallest = min(shape, default=1)
    if smallest == 0:
        return not getattr(getattr(value, "op", None), "name", "").startswith("relax.nn.")
    return smallest > 0 and math.prod(shape) <= MOST_ELEMENTS


def _tensor_types(ty: Any) -> Iterator[Any]:
    if isinstance(ty, relax.TupleType):
        for field in ty.fields:
            yield from _tensor_types(field)
    elif isinstance(ty, relax.TensorType):
        yield ty


def _outputs(proto: onnx.ModelProto, mod: Any, path: Path) -> tuple[TensorSpec, ...]:
    types = list(_tensor_types(mod["main"].ret_ty))
    values = list(proto.graph.output)
    if len(types) != len(values):
        raise ModelError(f"{path}: the model has {len(values)} outputs, {len(types)} are tensors")
    specs = []
    for value, ty in zip(values, types, strict=True):
        shape = _static(ty)
        if shape is None:
            raise ModelShapeError(f"{path}: output {value.name!r} has no static shape")
        if 0 in shape:
            raise ModelShapeError(f"{path}: output {value.name!r} is empty: its shape is {shape}")
        specs.append(TensorSpec(value.name, shape, str(ty.dtype)))
    return tuple(specs)
