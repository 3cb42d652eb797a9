"""Relay's text format -> graph."""

from __future__ import annotations

import re
from typing import Any, NoReturn

import numpy as np

from tvmx.errors import CorruptModelError, ModelError
from tvmx.frontends.relay._fields import ATTRS, unknown_attributes
from tvmx.frontends.relay._graph import (
    Array,
    Call,
    Constant,
    Dim,
    Expr,
    Function,
    GlobalVar,
    Let,
    Module,
    Op,
    TensorType,
    Tuple,
    TupleGetItem,
    Var,
)
from tvmx.frontends.relay._json import read_constants
from tvmx.frontends.relay._tokens import Token, tokenize

_METADATA = "#[metadata]"
_MOST_DEPTH = 100  # of brackets in brackets
_NUMBER = re.compile(r"(-?(?:inf|nan|[\d.]+(?:[eE][+-]?\d+)?))([a-z]\d*)?")
_DTYPES = {
    "f": "float32", "f32": "float32", "f64": "float64", "f16": "float16", "h": "float16",
    "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64",
    "u8": "uint8", "u16": "uint16", "u32": "uint32", "u64": "uint64",
}  # fmt: skip


def read_text(text: str, where: str) -> Module:
    """The functions of a text by ``astext``, with the arrays of its metadata section.

    Raises CorruptModelError with the line for what is not Relay's text format.
    """
    program, found, metadata = text.partition(_METADATA)
    arrays = read_constants(metadata, f"{where}, metadata section,") if found else []
    return _Parser(tokenize(program, where), arrays, where).module()


class _Parser:
    def __init__(self, tokens: list[Token], arrays: list[Array], where: str) -> None:
        self._tokens, self._position = tokens, 0
        self._arrays, self._where = arrays, where
        self._constants: dict[int, Constant] = {}
        self._names: dict[str, Expr] = {}
        self._depth = 0

    # tokens

    @property
    def _next(self) -> Token:
        return self._tokens[self._position]

    def _fail(self, what: str) -> NoReturn:
        raise CorruptModelError(
            f"{self._where}, line {self._next.line}: {what}",
            hint="the text is what mod.astext() returns; docs/relay.md has what is read",
        )

    def _take(self) -> Token:
        token = self._next
        if token.kind == "end":
            self._fail("the text is cut off")
        self._position += 1
        return token

    def _is(self, text: str) -> bool:
        return self._next.text == text and self._next.kind != "string"

    def _accept(self, text: str) -> bool:
        if self._is(text):
            self._position += 1
            return True
        return False

    def _expect(self, text: str) -> Token:
        if not self._is(text):
            self._fail(f"{text!r} expected, there is {self._next.text[:40]!r}")
        return self._take()

    def _of(self, kind: str) -> Token:
        if self._next.kind != kind:
            self._fail(f"a {kind} expected, there is {self._next.text[:40]!r}")
        return self._take()

    # module

    def module(self) -> Module:
        """The whole text: ``def``s, or one function or expression as ``main``."""
        while self._accept("#"):
            while not self._accept("]"):
                self._take()
        functions: dict[str, Function] = {}
        while self._accept("def"):
            name = self._of("global").text[1:]
            functions[name] = self._function()
        if not functions:
            body = self._expr()
            functions["main"] = body if isinstance(body, Function) else Function((), body)
        if self._next.kind != "end":
            self._fail(f"{self._next.text[:40]!r} is not expected here")
        return Module(functions)

    def _function(self) -> Function:
        before = dict(self._names)
        self._expect("(")
        params = []
        while not self._accept(")"):
            if self._next.kind == "name":  # an attribute of the function
                self._take()
                self._expect("=")
                self._value()
            else:
                params.append(self._binder())
            if not self._is(")"):
                self._expect(",")
        if self._accept("->"):
            self._type()
        body = self._block()
        self._names = before
        return Function(tuple(params), body)

    def _binder(self) -> Var:
        name = self._of("local").text
        kind = self._type() if self._accept(":") else None
        var = Var(name[1:], kind)
        self._names[name] = var
        return var

    # types

    def _type(self) -> TensorType | None:
        """A type; None for those that are no tensor's."""
        self._enter()
        found: TensorType | None = None
        if self._accept("Tensor"):
            self._expect("[")
            shape = self._shape()
            self._expect(",")
            found = TensorType(shape, self._of("name").text)
            self._expect("]")
        elif self._accept("("):
            self._types(")")
        elif self._accept("fn"):
            self._expect("(")
            self._types(")")
            if self._accept("->"):
                self._type()
        elif self._next.kind == "name":
            name = self._take().text
            if self._accept("["):
                self._types("]")
            else:
                found = TensorType((), name)
        else:
            self._fail(f"a type expected, there is {self._next.text[:40]!r}")
        self._depth -= 1
        return found

    def _types(self, close: str) -> None:
        while not self._accept(close):
            self._type()
            if not self._is(close):
                self._expect(",")

    def _shape(self) -> tuple[Dim, ...]:
        dims: list[Dim] = []
        self._expect("(")
        while not self._accept(")"):
            if self._accept("?"):
                dims.append("?")
            else:
                size = self._number()
                if not isinstance(size, int) or size < 0:
                    self._fail(f"{size!r} is no size")
                dims.append(size)
            if not self._is(")"):
                self._expect(",")
        return tuple(dims)

    # expressions

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            self._fail("brackets are nested too deep")

    def _block(self) -> Expr:
        self._expect("{")
        body = self._statements()
        self._expect("}")
        return body

    def _statements(self) -> Expr:
        """``let``s and numbered values, then the result."""
        lets: list[tuple[Var, Expr]] = []
        while True:
            if self._accept("let"):
                var = self._binder()
                self._expect("=")
                # A let-bound function may call itself; everything else sees it afterwards.
                value = self._expr()
                lets.append((var, value))
                self._expect(";")
            elif self._next.kind == "graph" and self._tokens[self._position + 1].text == "=":
                name = self._take().text
                self._expect("=")
                self._names[name] = self._expr()
                self._expect(";")
            else:
                break
        body = self._expr()
        for var, value in reversed(lets):
            body = Let(var, value, body)
        return body

    def _expr(self) -> Expr:
        self._enter()
        expr = self._atom()
        while True:
            if self._is("("):
                expr = self._call(expr)
            elif self._is(".") and self._tokens[self._position + 1].kind == "number":
                self._take()
                expr = TupleGetItem(expr, self._index())
            else:
                self._depth -= 1
                return expr

    def _index(self) -> int:
        index = self._number()
        if not isinstance(index, int):
            self._fail(f"{index!r} is no index")
        return index

    def _atom(self) -> Expr:
        token = self._next
        if token.kind in ("local", "graph"):
            return self._named(self._take().text)
        if token.kind == "global":
            return GlobalVar(self._take().text[1:])
        if token.kind == "number" or token.text in ("True", "False"):
            return self._scalar()
        if self._accept("("):
            return self._tuple()
        if self._is("{"):
            return self._block()
        if self._accept("fn"):
            return self._function()
        if token.text in ("if", "match", "ref", "ref_read", "ref_write"):
            raise ModelError(
                f"{self._where}, line {token.line}: {token.text!r}: control flow and references "
                "cannot be imported",
                hint="rewrite the network without them in the TVM that wrote it",
            )
        if self._is("meta"):
            return self._meta()
        if token.kind != "name":
            self._fail(f"{token.text[:40]!r} is no expression" if token.text else "it is cut off")
        return Op(self._take().text)

    def _named(self, name: str) -> Expr:
        if name in self._names:
            return self._names[name]
        base, _, index = name.rpartition(".")
        if base not in self._names or not index.isdecimal() or len(index) > 6:
            self._fail(f"{name[:80]} is not defined before")
        return TupleGetItem(self._names[base], int(index))

    def _tuple(self) -> Expr:
        fields: list[Expr] = []
        comma = False
        while not self._accept(")"):
            fields.append(self._expr())
            comma = self._accept(",")
            if not comma and not self._is(")"):
                self._fail(f"',' expected, there is {self._next.text[:40]!r}")
        return fields[0] if len(fields) == 1 and not comma else Tuple(tuple(fields))

    def _meta(self) -> Constant:
        self._expect("meta")
        self._expect("[")
        kind = self._of("name").text
        self._expect("]")
        self._expect("[")
        index = self._index()
        self._expect("]")
        if kind != "relay.Constant" or not 0 <= index < len(self._arrays):
            self._fail(f"the metadata section has no {kind} {index}")
        if index not in self._constants:
            self._constants[index] = Constant(self._arrays[index])
        return self._constants[index]

    def _call(self, op: Expr) -> Call:
        self._expect("(")
        args: list[Expr] = []
        attrs: dict[str, Any] = {}
        while not self._is(")"):
            if self._next.kind == "name" and self._tokens[self._position + 1].text == "=":
                name = self._take().text
                self._expect("=")
                attrs[name] = self._value()
            else:
                args.append(self._expr())
            if not self._is(")"):
                self._expect(",")
        if isinstance(op, Op) and op.name in ATTRS:
            unknown = unknown_attributes(f"{ATTRS[op.name]}Attrs", attrs)
            if unknown:
                self._fail(f"{op.name} has no attribute {unknown[0][:80]!r}")
        return Call(op, tuple(args), attrs, self._expect(")").span)

    # literals

    def _number(self) -> int | float:
        return self._literal()[0]

    def _literal(self) -> tuple[int | float, str]:
        text = self._of("number").text
        match = _NUMBER.fullmatch(text)
        if match is None or len(text) > 40:
            self._fail(f"{text[:40]!r} is no number")
        digits, suffix = match.groups()
        whole = digits.removeprefix("-").isdecimal()
        dtype = _DTYPES.get(suffix or ("i32" if whole else "f"))
        if dtype is None:
            self._fail(f"{text!r} has an unknown type")
        try:
            return (int(digits) if whole and "float" not in dtype else float(digits)), dtype
        except ValueError:
            self._fail(f"{text!r} is no number")

    def _scalar(self) -> Constant:
        if self._next.kind == "name":
            return Constant(np.array(self._take().text == "True"))
        value, dtype = self._literal()
        try:
            return Constant(np.array(value).astype(dtype) if "float" in dtype
                            else np.array(value, dtype))  # fmt: skip
        except (OverflowError, ValueError):
            self._fail(f"{value} is no {dtype}")

    def _value(self) -> Any:
        """An attribute's value: a number, a text, None or a tuple of those."""
        self._enter()
        token = self._next
        value: Any
        if token.kind == "number":
            value = self._number()
        elif token.kind == "string":
            value = re.sub(r"\\(.)", r"\1", self._take().text[1:-1])
        elif token.text in ("[", "("):
            close = "]" if self._take().text == "[" else ")"
            items = []
            while not self._accept(close):
                items.append(self._value())
                if not self._is(close):
                    self._expect(",")
            value = tuple(items)
        elif token.kind == "name" and token.text in _WORDS:
            value = _WORDS[self._take().text]
        else:
            self._fail(f"{token.text[:40]!r} is no value of an attribute")
        self._depth -= 1
        return value


_WORDS: dict[str, object] = {
    "True": 1, "False": 0, "true": 1, "false": 0, "None": None, "nullptr": None, "bool": "bool",
}  # fmt: skip
