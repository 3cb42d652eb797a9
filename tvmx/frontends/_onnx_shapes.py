"""Static shapes for the inputs of an ONNX model, from the file and from the user."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from tvmx.errors import ModelError, ModelShapeError
from tvmx.frontends._shapes import (
    Dim,
    check_dtype,
    check_names,
    reject_dynamic,
    resolve_shape,
)
from tvmx.ir import TensorSpec

if TYPE_CHECKING:
    import onnx

MOST_ELEMENTS = 1 << 28
"""Of any tensor of a network; 1 GB of floats."""


def resolve_inputs(
    proto: onnx.ModelProto, shapes: dict[str, tuple[int, ...]], path: Path
) -> tuple[TensorSpec, ...]:
    """Shapes and dtypes of the network inputs (graph inputs that are no weights).

    Raises:
        ModelShapeError: ``shapes`` names no input, contradicts a static dimension, or
            leaves an input dynamic (all of those are named at once), or makes it too large.
        ModelError: an input is no tensor, or of a dtype that cannot be fed.
    """
    weights = {init.name for init in proto.graph.initializer}
    values = [value for value in proto.graph.input if value.name not in weights]
    names = [value.name for value in values]
    check_names(names, shapes, path)
    declared = {value.name: _declared(value) for value in values}
    reject_dynamic(declared, shapes, path)
    specs = tuple(
        TensorSpec(
            value.name,
            resolve_shape(value.name, declared[value.name], shapes.get(value.name), path),
            _dtype(value, path),
        )
        for value in values
    )
    for spec in specs:
        if math.prod(spec.shape) > MOST_ELEMENTS:
            raise ModelShapeError(
                f"{path}: input {spec.name!r} has the shape {spec.shape}; a tensor has at most "
                f"{MOST_ELEMENTS} elements"
            )
    return specs


def _declared(value: onnx.ValueInfoProto) -> tuple[Dim, ...] | None:
    """Dimensions as the file has them; None where not even the rank is known."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else dim.dim_param or "?"
        for dim in tensor.shape.dim
    )


def _dtype(value: onnx.ValueInfoProto, path: Path) -> str:
    from onnx import TensorProto, helper

    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        what = kind or "value without type"
        raise ModelError(f"{path}: input {value.name!r} is a {what}, not a tensor")
    code = value.type.tensor_type.elem_type
    if code not in TensorProto.DataType.values():
        dtype = f"number {code}"
    elif code in (TensorProto.UNDEFINED, TensorProto.STRING):
        dtype = TensorProto.DataType.Name(code)
    else:
        dtype = str(helper.tensor_dtype_to_np_dtype(code))
    return check_dtype(value.name, dtype, path)
