"""Refusing what cannot be imported from a ``torch.export`` archive, before torch is involved."""

from __future__ import annotations

import keyword
import re
from typing import Any

from tvmx.errors import CorruptModelError, ModelError
from tvmx.frontends._refused import refuse_operators
from tvmx.frontends._torch_archive import DTYPES, EXPORT_HINT, TorchArchive, damage
from tvmx.frontends._torch_ops import DROPOUTS, NORMS, SHAPE_OPS, SUPPORTED, refusal
from tvmx.frontends._torch_quantised import check_quantised, is_quantising
from tvmx.ir import SourceNode

_ATEN = "torch.ops.aten."
_SYMBOLIC = {"as_sym_int", "as_sym_float", "as_sym_bool"}
_SYMBOLIC_TARGETS = ("_operator.", "math.", "torch.sym_")
_STORED = ("parameter", "buffer", "tensor_constant")
_CONTAINERS = ("torch.nn.modules.container.",)


def name_of(text: Any) -> str:
    """``text`` if it is an identifier: torch writes names into source code it then runs."""
    if not isinstance(text, str) or not text.isidentifier() or keyword.iskeyword(text):
        raise ValueError(f"{text!r} is no name of a value")
    return text


def stored_name(text: Any) -> str:
    """``text`` if it is the dotted path of a parameter or buffer (``features.0.weight``)."""
    if not isinstance(text, str) or not re.fullmatch(r"\w+(\.\w+)*", text):
        raise ValueError(f"{text!r} is no name of a parameter")
    return text


def is_symbolic(node: dict[str, Any]) -> bool:
    """Whether a node only computes or asserts sizes."""
    target = str(node["target"])
    if target.removeprefix(_ATEN) in SHAPE_OPS:
        return True
    kinds = {kind for output in node["outputs"] for kind in output}
    return bool(kinds) and kinds <= _SYMBOLIC and target.startswith(_SYMBOLIC_TARGETS)


def operator_name(node: dict[str, Any]) -> str:
    """The operator as people know it: ``conv2d.default``, ``mylib.op.default``, ``torch.cond``."""
    target = str(node["target"])
    if target.startswith("torch.ops.higher_order."):
        return target
    return target.removeprefix(_ATEN).removeprefix("torch.ops.")


def node_name(node: dict[str, Any]) -> str:
    """The node's name; archives of older schemas only name its first result."""
    if node.get("name"):
        return name_of(node["name"])
    first = node["outputs"][0]
    value = first.get("as_tensor") or first["as_tensors"][0]
    return name_of(value["name"])


def source_of(node: dict[str, Any]) -> SourceNode:
    """The layer as the module's author named it.

    A module of torch.nn that is one operator goes by its path, ``features.3.conv``; anything
    computed in a forward method by that module's path and the node: ``block1.add_2``.
    """
    name = node_name(node)
    op = operator_name(node).removeprefix("quantized_decomposed.").split(".")[0].rstrip("_")
    stack = str(node.get("metadata", {}).get("nn_module_stack", ""))
    _, path, kind = ["", "", *stack.split(";")[-1].split(",", 2)][-3:] if stack else ("", "", "")
    path = path if re.fullmatch(r"[\w.]+", path, re.ASCII) else ""
    leaf = kind.startswith("torch.nn.modules.") and not kind.startswith(_CONTAINERS)
    if path and leaf:
        return SourceNode(path, op)
    return SourceNode(f"{path}.{name}" if path else name, op)


def output_names(archive: TorchArchive) -> tuple[str, ...]:
    """Names of the program's results in order; a result given twice is numbered."""
    names: list[str] = []
    for spec in archive.signature["output_specs"]:
        name = name_of(spec["user_output"]["arg"]["as_tensor"]["name"])
        again = sum(other.split("#")[0] == name for other in names)
        names.append(f"{name}#{again + 1}" if again else name)
    return tuple(names)


def check_operators(archive: TorchArchive) -> None:
    """Refuse every operator that cannot be imported, all at once, then training mode.

    Raises:
        UnsupportedOpError: ``ops`` maps operators to the names of their nodes.
        ModelError: exported in training mode, from lower or higher precision than float32, or
            quantised in a way that cannot be imported.
        CorruptModelError: the description is not what torch writes.
    """
    with damage(archive.path):
        ops: dict[str, list[str]] = {}
        nodes = [node for node in archive.graph["nodes"] if not is_symbolic(node)]
        for node in nodes:
            target = str(node["target"])
            op = operator_name(node)
            if target == "_operator.getitem" or is_quantising(node):
                continue
            if not target.startswith(_ATEN) or op not in SUPPORTED:
                ops.setdefault(op, []).append(_label(node))
        refuse_operators(archive.path, ops, refusal)
        _check_training(archive, nodes)
        _check_signature(archive)
        check_quantised(archive, nodes)


def _label(node: dict[str, Any]) -> str:
    try:
        return source_of(node).name
    except (LookupError, TypeError, ValueError, AttributeError):
        return str(node.get("name") or "unnamed")


def _check_training(archive: TorchArchive, nodes: list[dict[str, Any]]) -> None:
    flags = {**dict.fromkeys(NORMS, ("training", "use_input_stats")),
             **dict.fromkeys(DROPOUTS, ("train",))}  # fmt: skip
    for node in nodes:
        op = operator_name(node)
        for given in node["inputs"] if op in flags else ():
            # An instance norm always uses the statistics of its input.
            if op == "instance_norm.default":
                continue
            if given["name"] in flags[op] and given["arg"].get("as_bool"):
                raise ModelError(
                    f"{archive.path}: node {source_of(node).name!r} ({op}) is in training mode",
                    hint="export the network in evaluation mode: "
                    "torch.export.export(model.eval(), ...)",
                )


def _check_signature(archive: TorchArchive) -> None:
    for spec in archive.signature["input_specs"]:
        ((kind, body),) = spec.items()
        if kind == "user_input" and "as_tensor" in body["arg"]:
            continue
        if kind not in _STORED:
            name = body.get("name") or next(iter(body.get("arg", {"?": ""})), "?")
            raise ModelError(
                f"{archive.path}: input {name!r} ({kind.replace('_', ' ')}) is not a tensor",
                hint="export a module whose forward takes tensors only",
            )
        _check_stored(archive, kind, body)
    for spec in archive.signature["output_specs"]:
        ((kind, body),) = spec.items()
        if kind != "user_output" or "as_tensor" not in body["arg"]:
            what = kind.replace("_", " ") if kind != "user_output" else "no tensor"
            raise ModelError(
                f"{archive.path}: one of the outputs is {what}: the network changes its own state "
                "or returns something else than tensors",
                hint="export model.eval(), and return tensors only",
            )


def _check_stored(archive: TorchArchive, kind: str, body: dict[str, Any]) -> None:
    name = body[f"{kind}_name"]
    payload = archive.weights.get(name) or archive.constants.get(name)
    if payload is None:
        raise CorruptModelError(f"{archive.path}: weight {name!r} is missing", hint=EXPORT_HINT)
    dtype = DTYPES.get(payload.meta["dtype"], f"number {payload.meta['dtype']}")
    if "float" in dtype and dtype != "float32":
        raise ModelError(
            f"{archive.path}: weight {name!r} is of type {dtype}; tvmx takes float32",
            hint="export model.float().eval()",
        )
