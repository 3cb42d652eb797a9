"""Operators that ONNX defines in terms of others, and branches, as nodes of the main graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tvmx.frontends._onnx_ops import EXPANDED

if TYPE_CHECKING:
    import onnx


def is_expanded(node: onnx.NodeProto, opset: int) -> bool:
    """Whether the standard operator is imported as what ONNX says it consists of."""
    if node.op_type == "LayerNormalization":  # its converter knows the first result only
        return sum(bool(name) for name in node.output) > 1
    if node.op_type == "GroupNormalization":  # before opset 21 deprecated, the checker refuses it
        return opset < 21
    return node.op_type in EXPANDED


def expand(
    node: onnx.NodeProto, types: Sequence[onnx.TypeProto | None], opset: int
) -> list[onnx.NodeProto] | None:
    """The nodes a standard operator consists of, under names of their own.

    ``types`` are those of its inputs. None: ONNX gives no definition for this opset, or for
    inputs of these types.
    """
    import onnx

    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    function = _definition(schema, node, types, opset)
    if function is None:
        return None
    attributes = {name: a.default_value for name, a in schema.attributes.items()
                  if a.default_value.name}  # fmt: skip
    attributes.update({a.name: a for a in node.attribute})
    names = {"": ""}
    names.update(_paired(function.input, node.input))
    names.update({inner: name for inner, name in _paired(function.output, node.output).items()
                  if name})  # fmt: skip
    body = []
    for index, inner in enumerate(function.node):
        new = _renamed(inner, names, f"{node.name}/")
        new.name = f"{node.name}/{inner.op_type}_{index}"
        _bind(new, attributes)
        body.append(new)
    return body


def _paired(inner: Sequence[str], outer: Sequence[str]) -> dict[str, str]:
    given = [*outer, *[""] * len(inner)]
    return dict(zip(inner, given, strict=False))


def _definition(
    schema: Any, node: onnx.NodeProto, types: Sequence[onnx.TypeProto | None], opset: int
) -> onnx.FunctionProto | None:
    import onnx

    fixed = [v for v in schema.function_opset_versions if v <= opset]
    function = onnx.FunctionProto()
    if fixed:
        function.ParseFromString(schema.get_function_with_opset_version(max(fixed)))
        return function
    depending = [v for v in schema.context_dependent_function_opset_versions if v <= opset]
    if not depending or any(t is None for t, n in zip(types, node.input, strict=True) if n):
        return None
    known = [(t or onnx.TypeProto()).SerializeToString() for t in types]
    made = schema.get_context_dependent_function_with_opset_version(
        max(depending), node.SerializeToString(), known
    )
    function.ParseFromString(made)
    return function if made else None


def _bind(node: onnx.NodeProto, attributes: Mapping[str, onnx.AttributeProto]) -> None:
    """Put the operator's attributes where the definition refers to them."""
    bound = []
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            bound.append(attribute)
        elif attribute.ref_attr_name in attributes:
            value = type(attribute)()
            value.CopyFrom(attributes[attribute.ref_attr_name])
            value.name = attribute.name
            bound.append(value)
    del node.attribute[:]
    node.attribute.extend(bound)


def inline_branch(
    node: onnx.NodeProto, condition: bool, keep: Callable[[onnx.TensorProto], None]
) -> list[onnx.NodeProto] | None:
    """The nodes of an If's branch, under names of their own; None if it has no such branch.

    ``keep`` is given the branch's weights.
    """
    import onnx
    from onnx import helper

    wanted = "then_branch" if condition else "else_branch"
    graph = next((a.g for a in node.attribute if a.name == wanted), None)
    if graph is None or len(graph.output) != len(node.output):
        return None
    inner = [init.name for init in graph.initializer]
    inner += [name for made in graph.node for name in made.output if name]
    if len(set(inner)) != len(inner):
        return None
    names = {name: f"{node.name}/{name}" for name in inner}
    for init in graph.initializer:
        weight = onnx.TensorProto()
        weight.CopyFrom(init)
        weight.name = names[init.name]
        keep(weight)
    body = [_renamed(made, names) for made in graph.node]
    for index, new in enumerate(body):
        new.name = f"{node.name}/{new.name or f'{new.op_type}_{index}'}"
    body += [
        helper.make_node("Identity", [names.get(value.name, value.name)], [name],
                         name=f"{node.name}/{name}")
        for value, name in zip(graph.output, node.output, strict=True) if name
    ]  # fmt: skip
    return body


def _renamed(
    node: onnx.NodeProto, names: Mapping[str, str], prefix: str | None = None
) -> onnx.NodeProto:
    """A copy with other tensor names; those not in ``names`` get ``prefix`` if there is one."""

    def new(name: str) -> str:
        return names.get(name, name if prefix is None or not name else prefix + name)

    copy = type(node)()
    copy.CopyFrom(node)
    copy.input[:] = [new(name) for name in node.input]
    copy.output[:] = [new(name) for name in node.output]
    for attribute in copy.attribute:
        graphs = [attribute.g] if attribute.HasField("g") else []
        for graph in (*graphs, *attribute.graphs):
            _rename_inside(graph, names, prefix)
    return copy


def _rename_inside(graph: onnx.GraphProto, names: Mapping[str, str], prefix: str | None) -> None:
    nodes = [_renamed(node, names, prefix) for node in graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = names.get(value.name, value.name if prefix is None else prefix + value.name)
