"""The table of nodes that ``tvm.ir.save_json`` writes: checked look-ups, nothing built yet."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from tvmx.errors import CorruptModelError
from tvmx.frontends.relay._graph import Array, TensorType
from tvmx.frontends.relay._ndarray import parse_array

_MOST_DEPTH = 8  # of lists in lists


class Nodes:
    """Nodes by index; node 0 stands for nothing.

    Everything raises CorruptModelError where the file is not what TVM writes.
    """

    def __init__(self, text: str, where: str) -> None:
        self.where = where
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            raise self.error("it is no JSON, or cut off") from None
        data = data if _is(data) else {}
        nodes, blobs = data.get("nodes"), data.get("b64ndarrays")
        if not isinstance(nodes, list) or not all(_is(node) for node in nodes):
            raise self.error("it has no list of nodes")
        if not isinstance(blobs, list | None) or not all(isinstance(b, str) for b in blobs or ()):
            raise self.error("its arrays are no list of texts")
        self._nodes: list[dict[str, Any]] = nodes
        self._blobs: list[str] = blobs or []
        self._arrays: dict[int, Array] = {}
        self.root = self._index(data.get("root"))

    def error(self, what: str) -> CorruptModelError:
        """An error about the file."""
        return CorruptModelError(
            f"{self.where} is damaged: {what}", hint="save or copy the file again"
        )

    def __len__(self) -> int:
        return len(self._nodes)

    def kind(self, index: int) -> str:
        """Type key of a node, such as ``relay.Call``; "" for nothing."""
        kind = self._nodes[index].get("type_key")
        if not isinstance(kind, str):
            raise self.error(f"node {index} has no type")
        return kind

    def raw(self, index: int, name: str) -> str:
        """An attribute as it is written."""
        attrs = self._nodes[index].get("attrs")
        value = attrs.get(name) if isinstance(attrs, dict) else None
        if not isinstance(value, str):
            raise self.error(f"node {index} ({self.kind(index)}) has no attribute {name!r}")
        return value

    def names(self, index: int) -> tuple[str, ...]:
        """Names of a node's attributes."""
        attrs = self._nodes[index].get("attrs", {})
        return tuple(attrs) if _is(attrs) else ()

    def ref(self, index: int, name: str) -> int:
        """The node an attribute refers to; 0 for nothing."""
        return self._index(self.number(index, name))

    def number(self, index: int, name: str) -> int:
        """An attribute that is an integer."""
        text = self.raw(index, name)
        if len(text) > 20 or not text.removeprefix("-").isdecimal() or not text.isascii():
            raise self.error(f"node {index}: attribute {name!r} is {text[:40]!r}, no integer")
        return int(text)

    def items(self, index: int) -> list[int]:
        """Nodes in a list or in the values of a map."""
        data = self._nodes[index].get("data", [])
        if self.kind(index) not in ("Array", "Map") or not isinstance(data, list):
            raise self.error(f"node {index} ({self.kind(index)}) is no list")
        return [self._index(item) for item in data]

    def keyed(self, index: int) -> dict[str, int]:
        """A map from texts to nodes."""
        values = self.items(index)
        keys = self._nodes[index].get("keys")
        if not isinstance(keys, list) or len(keys) != len(values):
            raise self.error(f"node {index} is no map from names")
        if not all(isinstance(key, str) for key in keys):
            raise self.error(f"node {index}: a key is no text")
        return dict(zip(keys, values, strict=True))

    def text(self, index: int) -> str:
        """A node that is a text (or an operator's name)."""
        node = self._nodes[index]
        if node.get("type_key") not in ("runtime.String", "Op", "SourceName", "relay.Id"):
            raise self.error(f"node {index} ({self.kind(index)}) is no text")
        if "repr_b64" in node:
            return self._decode(node["repr_b64"]).decode(errors="replace")
        text = node.get("repr_str", "")
        if not isinstance(text, str):
            raise self.error(f"node {index} is no text")
        return text

    def value(self, index: int, depth: int = 0) -> Any:
        """A node as an attribute's value: None, an int, a float, a text or a tuple of those."""
        kind = self.kind(index)
        if kind == "":
            return None
        if kind == "Array" and depth < _MOST_DEPTH:
            return tuple(self.value(item, depth + 1) for item in self.items(index))
        if kind == "IntImm":
            return self.number(index, "value")
        if kind == "FloatImm":
            return self.real(index, "value")
        if kind == "runtime.String":
            return self.text(index)
        if kind in ("tir.Any", "relay.Any"):
            return "?"
        if kind in ("runtime.BoxInt", "runtime.BoxBool", "runtime.BoxFloat"):
            if "repr_str" not in self._nodes[index]:
                return self.real(index, "value") if "Float" in kind else self.number(index, "value")
            return self._boxed(index, kind)
        raise self.error(f"node {index} ({kind}) is no value of an attribute")

    def _boxed(self, index: int, kind: str) -> int | float:
        text = self._nodes[index]["repr_str"]
        try:
            return float(text) if "Float" in kind else int(text)
        except (ValueError, TypeError):
            raise self.error(f"node {index} ({kind}) is no number") from None

    def real(self, index: int, name: str) -> float:
        """An attribute that is a floating-point number."""
        text = self.raw(index, name)
        try:
            return float(text)
        except ValueError:
            raise self.error(f"node {index}: attribute {name!r} is no number") from None

    def tensor_type(self, index: int) -> TensorType | None:
        """A tensor's type; None for anything else."""
        if self.kind(index) not in ("relay.TensorType", "TensorType"):
            return None
        shape = self.value(self.ref(index, "shape"))
        if not isinstance(shape, tuple) or not all(
            dim == "?" or (isinstance(dim, int) and dim >= 0) for dim in shape
        ):
            raise self.error(f"node {index} has the shape {shape!r}")
        return TensorType(shape, self.raw(index, "dtype"))

    def array(self, number: int) -> Array:
        """Array ``number`` of the file."""
        if not 0 <= number < len(self._blobs):
            raise self.error(f"there is no array {number}")
        if number not in self._arrays:
            data = self._decode(self._blobs[number])
            self._arrays[number] = parse_array(data, f"{self.where}, array {number},")
        return self._arrays[number]

    def _decode(self, text: object) -> bytes:
        try:
            return base64.b64decode(text, validate=True)  # type: ignore[arg-type]
        except (binascii.Error, ValueError, TypeError):
            raise self.error("an array is no base64") from None

    def _index(self, value: object) -> int:
        if type(value) is not int or not 0 <= value < len(self._nodes):
            raise self.error(f"a node {value!r} is referred to, there are {len(self._nodes)}")
        return value


def _is(value: object) -> bool:
    return isinstance(value, dict)
