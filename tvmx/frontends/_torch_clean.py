"""The description of a network written anew: only what was checked, every size a number.

What torch's reader would execute has no place in it: symbolic expressions, guards, pytree
contexts, subgraphs, operators given as values, names that are no identifiers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tvmx.errors import ModelError
from tvmx.frontends._torch_archive import Payload, TorchArchive, damage
from tvmx.frontends._torch_check import (
    is_symbolic,
    name_of,
    node_name,
    source_of,
    stored_name,
)
from tvmx.frontends._torch_shapes import Sizes
from tvmx.ir import SourceNode

Json = dict[str, Any]
_CPU = {"type": "cpu", "index": None}
_LEAF: Json = {"type": None, "context": None, "children_spec": []}


def clean_document(archive: TorchArchive, sizes: Sizes) -> tuple[Json, dict[str, SourceNode]]:
    """The program at these sizes, in torch's schema, and the source of each of its nodes.

    A node's module stack holds one entry, the node's name: it survives decomposition.

    Raises:
        CorruptModelError: the description is not what torch writes.
        ModelShapeError: a size depends on values.
        ModelError: something that cannot be expressed without running code from the file.
    """
    with damage(archive.path):
        cleaner = _Cleaner(archive, sizes)
        graph = cleaner.graph()
        document = {
            "graph_module": {
                "graph": graph,
                "signature": cleaner.signature(),
                "module_call_graph": [_call(cleaner.users, len(graph["outputs"]))],
                "metadata": {},
                "treespec_namedtuple_fields": {},
            },
            "opset_version": {str(k): int(v) for k, v in archive.document["opset_version"].items()},
            "range_constraints": {},
            "schema_version": {
                key: int(archive.document["schema_version"][key]) for key in ("major", "minor")
            },
            "verifiers": ["TRAINING"],
            "torch_version": str(archive.document.get("torch_version", "")),
            "guards_code": [],
        }
        return document, cleaner.sources


def clean_payloads(stored: dict[str, Payload], sizes: Sizes) -> Json:
    """The table of stored tensors: plain bytes on the CPU."""
    return {
        "config": {
            stored_name(name): {
                "path_name": stored_name(payload.record),
                "is_param": payload.is_param,
                "use_pickle": False,
                "tensor_meta": _meta(payload.meta, sizes) | {"requires_grad": False},
            }
            for name, payload in stored.items()
        }
    }


def _meta(meta: Json, sizes: Sizes) -> Json:
    return {
        "dtype": int(meta["dtype"]),
        "sizes": [{"as_int": sizes.of(size)} for size in meta["sizes"]],
        "requires_grad": False,
        "device": _CPU,
        "strides": [{"as_int": sizes.of(size)} for size in meta["strides"]],
        "storage_offset": {"as_int": sizes.of(meta["storage_offset"])},
        "layout": int(meta["layout"]),
    }


def _call(users: list[str], outputs: int) -> Json:
    """The call of the whole module: flat tensors in, a flat tuple out."""
    arguments = {"type": "builtins.tuple", "context": "null", "children_spec": [_LEAF] * len(users)}
    none = {"type": "builtins.dict", "context": "[]", "children_spec": []}
    into = {"type": "builtins.tuple", "context": "null", "children_spec": [arguments, none]}
    out = {"type": "builtins.tuple", "context": "null", "children_spec": [_LEAF] * outputs}
    signature = {
        "inputs": [],
        "outputs": [],
        "in_spec": json.dumps([1, into]),
        "out_spec": json.dumps([1, out]),
        "forward_arg_names": users,
    }
    return {"fqn": "", "signature": signature}


class _Cleaner:
    def __init__(self, archive: TorchArchive, sizes: Sizes) -> None:
        self._archive = archive
        self._sizes = sizes
        self._raw = archive.graph
        self.sources: dict[str, SourceNode] = {}
        self.users: list[str] = []

    def graph(self) -> Json:
        if self._raw.get("custom_obj_values"):
            raise ModelError(
                f"{self._archive.path} uses objects of custom classes, which only code can read",
                hint="export a model of plain tensors",
            )
        return {
            "inputs": [_tensor(value) for value in self._raw["inputs"]],
            "outputs": [_tensor(value) for value in self._raw["outputs"]],
            "nodes": [self._node(n) for n in self._raw["nodes"] if not is_symbolic(n)],
            "tensor_values": {
                name_of(name): _meta(meta, self._sizes)
                for name, meta in self._raw["tensor_values"].items()
            },
            "sym_int_values": {},
            "sym_bool_values": {},
            "sym_float_values": {},
            "custom_obj_values": {},
            "is_single_tensor_return": bool(self._raw.get("is_single_tensor_return", False)),
        }

    def signature(self) -> Json:
        inputs = []
        for spec in self._archive.signature["input_specs"]:
            ((kind, body),) = spec.items()
            if kind == "user_input":
                arg = _tensor(body["arg"])
                self.users.append(arg["as_tensor"]["name"])
                inputs.append({kind: {"arg": arg}})
                continue
            key = f"{kind}_name"
            arg = {"name": name_of(body["arg"]["name"])}
            clean: Json = {"arg": arg, key: stored_name(body[key])}
            if kind == "buffer":
                clean["persistent"] = bool(body["persistent"])
            inputs.append({kind: clean})
        outputs = [
            {"user_output": {"arg": _tensor(spec["user_output"]["arg"])}}
            for spec in self._archive.signature["output_specs"]
        ]
        return {"input_specs": inputs, "output_specs": outputs}

    def _node(self, node: Json) -> Json:
        name = node_name(node)
        self.sources[name] = source_of(node)
        return {
            "target": node["target"],
            "inputs": [
                {"name": name_of_argument(i["name"]), "arg": self._argument(i["arg"]),
                 "kind": int(i.get("kind") or 0)}
                for i in node["inputs"]
            ],
            "outputs": [self._output(output) for output in node["outputs"]],
            "metadata": {"nn_module_stack": f"{name},{name},torch.nn.Module"},
            "is_hop_single_tensor_return": None,
            "name": name,
        }  # fmt: skip

    def _output(self, output: Json) -> Json:
        ((kind, value),) = output.items()
        if kind == "as_tensors":
            return {kind: [{"name": name_of(item["name"])} for item in value]}
        return {"as_none": True} if kind == "as_none" else _tensor(output)

    def _argument(self, argument: Json) -> Json:
        ((kind, value),) = argument.items()
        if kind == "as_device":
            return {kind: _CPU}
        if kind == "as_sym_int":
            return {"as_int": self._symbolic(value)}
        if kind == "as_sym_ints":
            return {"as_ints": [self._symbolic(item) for item in value]}
        clean = _ARGUMENTS.get(kind)
        if clean is None:
            raise ModelError(
                f"{self._archive.path}: an operator is given a value of kind {kind[3:]!r}, which "
                "cannot be imported",
                hint="export with static shapes and a forward without control flow",
            )
        return {kind: clean(value)}

    def _symbolic(self, value: Json) -> int:
        if "as_int" in value:
            return int(value["as_int"])
        return self._sizes.of(self._raw["sym_int_values"][value["as_name"]])


def name_of_argument(text: Any) -> str:
    """The name of an operator's parameter (``self``, ``from``); may be empty."""
    if not isinstance(text, str) or (text and not text.isidentifier()):
        raise ValueError(f"{text!r} is no name of an argument")
    return text


def _tensor(value: Json) -> Json:
    return {"as_tensor": {"name": name_of(value["as_tensor"]["name"])}}


def _named(value: Json) -> Json:
    return {"name": name_of(value["name"])}


def _list(clean: Callable[[Any], Any]) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [clean(value) for value in values]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text expected")
    return value


def _optional(value: Json) -> Json:
    return {"as_none": True} if "as_none" in value else _tensor(value)


_ARGUMENTS: dict[str, Callable[[Any], Any]] = {
    "as_none": lambda value: True,
    "as_tensor": _named,
    "as_tensors": _list(_named),
    "as_optional_tensors": _list(_optional),
    "as_int": int,
    "as_ints": _list(int),
    "as_float": float,  # JSON has no infinity: torch writes it as text
    "as_floats": _list(float),
    "as_bool": bool,
    "as_bools": _list(bool),
    "as_string": _text,
    "as_strings": _list(_text),
    "as_scalar_type": int,
    "as_memory_format": int,
    "as_layout": int,
}
"""Arguments that are plain data."""
