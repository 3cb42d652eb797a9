"""Builds the nodes of a graph anew, with quantising and dequantising around float operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tvmx.errors import CorruptModelError, ModelError
from tvmx.frontends._onnx_check import opset_of
from tvmx.frontends._onnx_types import element_types
from tvmx.frontends._reason import quoted

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Params:
    """Scale and zero point of a tensor: names of tensors of one value, or one per channel.

    ``zero`` is "" where there is none (0); ``axis`` is that of the channels, None per tensor;
    ``values`` are the scales, None where the network computes them.
    """

    scale: str
    zero: str
    axis: int | None = None
    values: Array | None = None


class QdqWriter:
    """The graph of ``proto``, whose nodes are given in order: kept, or written anew."""

    def __init__(self, proto: onnx.ModelProto, path: Path) -> None:
        graph = proto.graph
        self.opset = opset_of(proto)
        self.types = element_types(graph)
        self.params: dict[str, Params] = {}
        """Constant scale and zero point, of one value, of tensors that were quantised."""
        self._graph, self._path = graph, path
        self._tensors = {i.name: i for i in graph.initializer}
        self._arrays: dict[str, Array] = {}
        self._known = {"", *self._tensors, *(i.name for i in graph.input)}
        self._known |= {i.values.name for i in graph.sparse_initializer}
        self._taken = self._known | {o for node in graph.node for o in node.output}
        self._taken |= {i for node in graph.node for i in node.input}
        self._node_names = {node.name for node in graph.node}
        self._dequantised: dict[tuple[str, str, str, int | None], str] = {}
        self._nodes: list[onnx.NodeProto] = []

    def finish(self) -> None:
        """Put the new nodes into the graph."""
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)

    def keep(self, node: onnx.NodeProto) -> None:
        """Take a node over as it is."""
        if node.op_type == "Constant" and node.output:
            for attribute in node.attribute:
                if attribute.name == "value":
                    self._tensors[node.output[0]] = attribute.t
        self._add(node)

    def emit(
        self, op: str, inputs: Sequence[str], output: str, name: str,
        copied: Sequence[onnx.AttributeProto] = (), **attributes: Any,
    ) -> str:  # fmt: skip
        """Add a standard node; attributes that are None are left out. Returns ``output``."""
        from onnx import helper

        node = helper.make_node(op, list(inputs), [output], name=name, **attributes)
        node.attribute.extend(copied)
        self._add(node)
        return output

    def emit_like(
        self, node: onnx.NodeProto, inputs: Sequence[str], outputs: Sequence[str]
    ) -> None:
        """Add a copy of ``node`` with other inputs and outputs."""
        copy = type(node)()
        copy.CopyFrom(node)
        del copy.input[:], copy.output[:]
        copy.input.extend(inputs)
        copy.output.extend(outputs)
        self._add(copy)

    def _add(self, node: onnx.NodeProto) -> None:
        self._node_names.add(node.name)
        self._known.update(node.output)
        self._nodes.append(node)

    def constant(self, base: str, array: Array) -> str:
        """A new weight, called after ``base``."""
        from onnx import numpy_helper

        name = self.fresh(base)
        tensor = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        self._graph.initializer.append(tensor)
        self._tensors[name] = self._graph.initializer[-1]
        self.types[name] = tensor.data_type
        self._known.add(name)
        return name

    def fresh(self, base: str) -> str:
        """A name no tensor has yet."""
        return _unique(base, self._taken)

    def derived(self, base: str) -> str:
        """A name no node has yet."""
        return _unique(base, self._node_names)

    def check_inputs(
        self, node: onnx.NodeProto, required: Sequence[int], least: int, most: int | None
    ) -> tuple[str, ...]:
        """Input names, padded with "" up to ``most``, after a look at what they are.

        Raises:
            CorruptModelError: too few or too many, a required one missing, one not made before
                the node, or not one output.
        """
        count = len(node.input)
        if count < least or (most is not None and count > most):
            wanted = f"{least} to {most}" if most is not None else f"at least {least}"
            raise self.corrupt(node, f"has {count} inputs, not {wanted}")
        for index in required:
            if not node.input[index]:
                raise self.corrupt(node, f"has no input {index}")
        for name in node.input:
            if name not in self._known:
                raise self.corrupt(node, f"reads {name!r}, which nothing before it makes")
        if len(node.output) != 1 or not node.output[0]:
            raise self.corrupt(node, f"has {len(node.output)} outputs, not one with a name")
        return (*node.input, *[""] * (0 if most is None else most - count))

    def array(self, node: onnx.NodeProto, name: str) -> Array | None:
        """A constant's value; None for what the network computes.

        Raises:
            CorruptModelError: the constant is damaged.
        """
        from onnx import numpy_helper

        if name in self._tensors and name not in self._arrays:
            try:
                self._arrays[name] = numpy_helper.to_array(self._tensors[name])
            except Exception as err:  # numpy and onnx raise many kinds for damaged bytes
                raise self.corrupt(
                    node, f"reads {name!r}, which is damaged ({quoted(err)})"
                ) from err
        return self._arrays.get(name)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """A constant's shape; None for what the network computes."""
        return tuple(self._tensors[name].dims) if name in self._tensors else None

    def dequantise(self, tensor: str, params: Params) -> str:
        """The float value of a quantised tensor; made once."""
        key = (tensor, params.scale, params.zero, params.axis)
        if key not in self._dequantised:
            inputs = [tensor, params.scale, *filter(None, [params.zero])]
            self._dequantised[key] = self.emit(
                "DequantizeLinear", inputs, self.fresh(f"{tensor}_dequantized"),
                self.derived(f"{tensor}_DequantizeLinear"), axis=params.axis,
            )  # fmt: skip
        return self._dequantised[key]

    def note_dequantised(self, tensor: str, params: Params, value: str) -> None:
        """The graph has made ``value`` from a quantised tensor itself."""
        key = (tensor, params.scale, params.zero, params.axis)
        self._dequantised.setdefault(key, value)

    def quantise_dynamically(self, tensor: str) -> tuple[str, Params]:
        """A float tensor as uint8 of the range it has in each run, and its parameters."""
        from onnx import TensorProto, helper

        names = [self.fresh(f"{tensor}_{part}") for part in ("quantized", "scale", "zero_point")]
        name = self.derived(f"{tensor}_DynamicQuantizeLinear")
        self._add(helper.make_node("DynamicQuantizeLinear", [tensor], names, name=name))
        self.types[names[0]] = self.types[names[2]] = TensorProto.UINT8
        return names[0], Params(names[1], names[2])

    def quantise(self, node: onnx.NodeProto, value: str, params: Params, like: str) -> None:
        """Make ``node``'s output from its float value; see :meth:`quantise_to`."""
        self.quantise_to(node, node.output[0], value, params, like)

    def quantise_to(
        self, node: onnx.NodeProto, output: str, value: str, params: Params, like: str
    ) -> None:
        """Quantise ``value``; without a zero point the type is that of the tensor ``like``."""
        zero = params.zero or self.constant(f"{output}_zero_point", self._no_zero(node, like))
        full = Params(params.scale, zero, None, params.values)
        name = self.derived(f"{node.name}_QuantizeLinear")
        self.emit("QuantizeLinear", [value, full.scale, zero], output, name)
        self.types[output] = self.types[zero]
        self.params[output] = full

    def _no_zero(self, node: onnx.NodeProto, like: str) -> Array:
        from onnx import TensorProto, helper

        code = self.types.get(like)
        if code not in (TensorProto.INT8, TensorProto.UINT8):
            raise self.refused(
                node, "has no zero point for its output, whose type is not known without",
                hint="give the zero point as a constant, 0, of type int8 or uint8",
            )  # fmt: skip
        return np.zeros((), helper.tensor_dtype_to_np_dtype(code))

    def corrupt(self, node: onnx.NodeProto, what: str) -> CorruptModelError:
        """The error about a node that is not what its operator asks for."""
        return CorruptModelError(
            f"{self._path}: node {node.name!r} ({node.op_type}) {what}",
            hint="quantise or export the model again",
        )

    def refused(self, node: onnx.NodeProto, what: str, hint: str) -> ModelError:
        """The error about a valid node that cannot be imported."""
        return ModelError(f"{self._path}: node {node.name!r} ({node.op_type}) {what}", hint=hint)


def _unique(base: str, taken: set[str]) -> str:
    name, count = base, 1
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    taken.add(name)
    return name
