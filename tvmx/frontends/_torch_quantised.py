"""What a program quantised by PT2E says of its values, checked before torch is involved.

A value that depends on the inputs may be quantised per tensor, by constants, to int8 or uint8.
Constants (weights, biases) may be quantised in any way: torch computes them on import.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tvmx.errors import ModelError
from tvmx.frontends._torch_archive import DTYPES, TorchArchive
from tvmx.frontends._torch_ops import DEQUANTISE, QUANTISE

_TARGET = "torch.ops."
RANGES = {"int8": (-128, 127), "uint8": (0, 255)}
"""Types that a value may be quantised to, with what they hold."""

_TYPES = "quantise to 8 bits: dtype torch.int8 or torch.uint8 in the quantiser's QuantizationSpec"
_PER_TENSOR = "quantise activations per tensor; weights alone may be per channel"
_STATIC = "calibrate for static scales (is_dynamic=False in the quantiser's configuration)"
_AGAIN = "convert and export the model again; the calibration data may hold infinities or NaNs"


def is_quantising(node: dict[str, Any]) -> bool:
    """Whether a node quantises or dequantises."""
    target = str(node["target"])
    return target.startswith(_TARGET) and target[len(_TARGET) :] in QUANTISE | DEQUANTISE


def check_quantised(archive: TorchArchive, nodes: list[dict[str, Any]]) -> None:
    """Refuse the first quantising or dequantising node that cannot be imported as it is meant.

    ``nodes`` are those of the program, in order.

    Raises:
        ModelError: scales that are computed from the inputs, values quantised per channel or to
            other types than int8 and uint8, or numbers that make no sense; the node is named.
    """
    fed = {spec["user_input"]["arg"]["as_tensor"]["name"]
           for spec in archive.signature["input_specs"] if "user_input" in spec}  # fmt: skip
    for node in nodes:
        inputs = {given["name"]: given["arg"] for given in node["inputs"]}
        read = {key: fed.intersection(_tensors(arg)) for key, arg in inputs.items()}
        if is_quantising(node):
            found = _fault(_Quantising(str(node["target"]), inputs, read))
            if found is not None:
                why, hint = found
                name, op = node["outputs"][0]["as_tensor"]["name"], str(node["target"])
                op = op.split(".")[-2]
                raise ModelError(f"{archive.path}: node {name!r} ({op}) {why}", hint=hint)
        if any(read.values()):
            fed.update(name for output in node["outputs"] for name in _tensors(output))


def _tensors(value: Any) -> Iterator[str]:
    """Names of the tensors in an argument or a result."""
    ((kind, body),) = value.items()
    if kind == "as_tensor":
        yield body["name"]
    elif kind == "as_tensors":
        yield from (item["name"] for item in body)
    elif kind == "as_optional_tensors":
        yield from (item["as_tensor"]["name"] for item in body if "as_tensor" in item)


@dataclass(frozen=True)
class _Quantising:
    """A node: its arguments by name, and the values among them that depend on the inputs."""

    target: str
    inputs: dict[str, Any]
    read: dict[str, set[str]]

    def number(self, name: str) -> Any:
        """The value of an argument given as a number or type, else None."""
        ((kind, body),) = self.inputs.get(name, {"as_none": True}).items()
        if kind == "as_scalar_type":
            return DTYPES.get(body, f"number {body}")
        return float(body) if kind == "as_float" else int(body) if kind == "as_int" else None


def _fault(node: _Quantising) -> tuple[str, str] | None:
    """Why a node cannot be imported, and what to do about it."""
    low, high = node.number("quant_min"), node.number("quant_max")
    scale, zero = node.number("scale"), node.number("zero_point")
    dtype, made = node.number("dtype"), node.number("out_dtype")
    if any(names for key, names in node.read.items() if key != "input"):
        return "has a scale or zero point that depends on the inputs", _STATIC
    if made not in (None, "float32"):
        return f"makes {made}; tvmx takes float32", "export model.float().eval()"
    if scale is not None and not is_scale(scale):
        return f"has the scale {scale!r}, which is no positive finite number", _AGAIN
    if low >= high or not (zero is None or low <= zero <= high):
        return f"has the zero point {zero} and the range {low} to {high}", _AGAIN
    if not node.read["input"]:
        return None
    if "per_channel" in node.target:
        return "quantises a value per channel that depends on the inputs", _PER_TENSOR
    if dtype not in RANGES:
        return f"quantises to {dtype}; int8 and uint8 can be imported", _TYPES
    least, most = RANGES[dtype]
    if low < least or high > most:
        return f"has the range {low} to {high}, which {dtype} does not hold", _AGAIN
    return None


def is_scale(value: float) -> bool:
    """Whether a float32 scale can have this value."""
    return math.isfinite(value) and 2.0**-149 <= value < 2.0**128
