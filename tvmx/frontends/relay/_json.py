"""Relay JSON -> graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tvmx.frontends.relay._fields import ATTRS, FIELDS, WITHOUT, unknown_attributes
from tvmx.frontends.relay._graph import (
    Array,
    Call,
    Constant,
    Expr,
    Function,
    GlobalVar,
    Let,
    Module,
    Op,
    Tuple,
    TupleGetItem,
    Unknown,
    Var,
)
from tvmx.frontends.relay._nodes import Nodes


def read_module(text: str, where: str) -> Module:
    """The functions of a module, or of a function saved alone (as ``main``).

    Raises CorruptModelError for anything TVM would not have written.
    """
    nodes = Nodes(text, where)
    kind = nodes.kind(nodes.root)
    if kind == "relay.Function":
        roots = {"main": nodes.root}
    elif kind == "IRModule":
        roots = _functions(nodes)
    else:
        raise nodes.error(f"it holds {kind or 'nothing'}, no Relay module")
    builder = _Builder(nodes)
    functions = {}
    for name, index in roots.items():
        function = builder.build(index)
        if isinstance(function, Function):
            functions[name] = function
    return Module(functions)


def read_constants(text: str, where: str) -> list[Array]:
    """The arrays of a text file's metadata section, in the order the text counts them."""
    nodes = Nodes(text, where)
    constants = nodes.keyed(nodes.root).get("relay.Constant", 0)
    return [nodes.array(nodes.number(i, "data")) for i in nodes.items(constants)]


def _functions(nodes: Nodes) -> dict[str, int]:
    items = nodes.items(nodes.ref(nodes.root, "functions"))
    if len(items) % 2:
        raise nodes.error("a function has no name")
    pairs = zip(items[::2], items[1::2], strict=True)
    return {nodes.text(nodes.ref(key, "name_hint")): value for key, value in pairs}


class _Builder:
    """Builds expressions bottom-up with a stack of its own: graphs are deep."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._done: dict[int, Expr] = {}

    def build(self, root: int) -> Expr:
        """The expression of a node."""
        open_nodes: set[int] = set()
        stack = [root]
        while stack:
            index = stack[-1]
            if index in self._done:
                open_nodes.discard(stack.pop())
                continue
            if index in open_nodes:
                self._done[index] = self._make(index)
                continue
            open_nodes.add(index)
            for child in self._children(index):
                if child in open_nodes and child not in self._done:
                    raise self._nodes.error(f"node {child} contains itself")
                stack.append(child)
        return self._done[root]

    def _children(self, index: int) -> list[int]:
        nodes, kind = self._nodes, self._nodes.kind(index)
        if kind == "relay.Call":
            return [nodes.ref(index, "op"), *nodes.items(nodes.ref(index, "args"))]
        if kind == "relay.Tuple":
            return nodes.items(nodes.ref(index, "fields"))
        if kind == "relay.TupleGetItem":
            return [nodes.ref(index, "tuple_value")]
        if kind == "relay.Let":
            return [nodes.ref(index, name) for name in ("var", "value", "body")]
        if kind == "relay.Function":
            return [*nodes.items(nodes.ref(index, "params")), nodes.ref(index, "body")]
        return []

    def _make(self, index: int) -> Expr:
        kind = self._nodes.kind(index)
        maker = _MAKERS.get(kind)
        if maker is not None:
            return maker(self, index)
        if kind.startswith("relay.") and not kind.startswith("relay.attrs."):
            return Unknown(kind)
        raise self._nodes.error(f"node {index} ({kind or 'nothing'}) is no expression")

    def _get(self, index: int, name: str) -> Expr:
        return self._done[self._nodes.ref(index, name)]

    def _list(self, index: int, name: str) -> tuple[Expr, ...]:
        nodes = self._nodes
        return tuple(self._done[item] for item in nodes.items(nodes.ref(index, name)))

    def _var(self, index: int) -> Var:
        nodes = self._nodes
        for name in ("type_annotation", "_checked_type_"):
            found = nodes.tensor_type(nodes.ref(index, name))
            if found is not None:
                break
        vid = nodes.ref(index, "vid")
        return Var(nodes.text(nodes.ref(vid, "name_hint")), found)

    def _constant(self, index: int) -> Constant:
        return Constant(self._nodes.array(self._nodes.number(index, "data")))

    def _global(self, index: int) -> GlobalVar:
        return GlobalVar(self._nodes.text(self._nodes.ref(index, "name_hint")))

    def _op(self, index: int) -> Op:
        return Op(self._nodes.text(index))

    def _call(self, index: int) -> Call:
        op, attrs_index = self._get(index, "op"), self._nodes.ref(index, "attrs")
        if isinstance(op, Op):
            self._check_kind(op.name, self._nodes.kind(attrs_index), index)
        attrs = self._attrs(attrs_index)
        return Call(op, self._list(index, "args"), attrs, self._span(index))

    def _tuple(self, index: int) -> Tuple:
        return Tuple(self._list(index, "fields"))

    def _item(self, index: int) -> TupleGetItem:
        return TupleGetItem(self._get(index, "tuple_value"), self._nodes.number(index, "index"))

    def _let(self, index: int) -> Let:
        var = self._get(index, "var")
        if not isinstance(var, Var):
            raise self._nodes.error(f"node {index} binds no variable")
        return Let(var, self._get(index, "value"), self._get(index, "body"))

    def _function(self, index: int) -> Function:
        params = self._list(index, "params")
        if not all(isinstance(param, Var) for param in params):
            raise self._nodes.error(f"node {index}: a parameter is no variable")
        variables = tuple(param for param in params if isinstance(param, Var))
        return Function(variables, self._get(index, "body"))

    def _check_kind(self, op: str, kind: str, index: int) -> None:
        """Attributes of another operator would leave this one with its defaults."""
        wanted = f"relay.attrs.{ATTRS[op]}Attrs" if op in ATTRS else kind
        if kind != wanted and (kind or op not in WITHOUT):
            raise self._nodes.error(f"node {index}: {op} has {kind or 'no attributes'}")

    def _attrs(self, index: int) -> Mapping[str, Any]:
        nodes = self._nodes
        kind = nodes.kind(index)
        fields = FIELDS.get(kind.removeprefix("relay.attrs."))
        if fields is None:
            return {}
        unknown = unknown_attributes(kind.removeprefix("relay.attrs."), nodes.names(index))
        if unknown:
            raise nodes.error(f"node {index} ({kind}) has an attribute {unknown[0][:80]!r}")
        found: dict[str, Any] = {}
        for name in nodes.names(index):
            how = fields.get(name)
            if how == "int":
                found[name] = nodes.number(index, name)
            elif how == "float":
                found[name] = nodes.real(index, name)
            elif how == "node":
                found[name] = nodes.value(nodes.ref(index, name))
            elif how == "str":
                text = nodes.raw(index, name)
                found[name] = nodes.text(nodes.ref(index, name)) if text.isdecimal() else text
        return found

    def _span(self, index: int) -> str:
        nodes = self._nodes
        span = nodes.ref(index, "span")
        if nodes.kind(span) == "SequentialSpan":
            span = next(iter(nodes.items(nodes.ref(span, "spans"))), 0)
        if nodes.kind(span) != "Span":
            return ""
        source = nodes.ref(span, "source_name")
        if nodes.kind(source) == "SourceName" and "name" in nodes.names(source):
            return nodes.text(nodes.ref(source, "name"))
        return nodes.text(source) if source else ""


_MAKERS: dict[str, Callable[[_Builder, int], Expr]] = {
    "relay.Var": _Builder._var,
    "relay.Constant": _Builder._constant,
    "GlobalVar": _Builder._global,
    "relay.GlobalVar": _Builder._global,
    "Op": _Builder._op,
    "relay.Op": _Builder._op,
    "relay.Call": _Builder._call,
    "relay.Tuple": _Builder._tuple,
    "relay.TupleGetItem": _Builder._item,
    "relay.Let": _Builder._let,
    "relay.Function": _Builder._function,
}
