"""Static shapes for the inputs of an ONNX model, from the file and from the user."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from tvmx.errors import ModelError, ModelShapeError
from tvmx.ir import TensorSpec

if TYPE_CHECKING:
    import onnx

_DTYPES = ("float32", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "bool")
Dim = int | str
"""A dimension in the file: a size, or the name of an unknown (``?`` where it has none)."""


def resolve_inputs(
    proto: onnx.ModelProto, shapes: dict[str, tuple[int, ...]], path: Path
) -> tuple[TensorSpec, ...]:
    """Shapes and dtypes of the network inputs (graph inputs that are no weights).

    Raises:
        ModelShapeError: ``shapes`` names no input, contradicts a static dimension, or
            leaves an input dynamic. All inputs that are dynamic are named at once.
        ModelError: an input is no tensor, or of a dtype that cannot be fed.
    """
    weights = {init.name for init in proto.graph.initializer}
    values = [value for value in proto.graph.input if value.name not in weights]
    names = [value.name for value in values]
    for name in shapes:
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            raise ModelShapeError(
                f"{path}: the model has no input {name!r}; its inputs are {', '.join(names)}",
                hint=f"did you mean --shape {close[0]}=...?" if close else None,
            )
    declared = {value.name: _declared(value) for value in values}
    _reject_dynamic(declared, shapes, path)
    return tuple(
        TensorSpec(
            value.name,
            _resolve(value.name, declared[value.name], shapes.get(value.name), path),
            _dtype(value, path),
        )
        for value in values
    )


def _declared(value: onnx.ValueInfoProto) -> tuple[Dim, ...] | None:
    """Dimensions as the file has them; None where not even the rank is known."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else dim.dim_param or "?"
        for dim in tensor.shape.dim
    )


def _reject_dynamic(
    declared: dict[str, tuple[Dim, ...] | None], shapes: dict[str, tuple[int, ...]], path: Path
) -> None:
    problems, hints = [], []
    for name, dims in declared.items():
        if name in shapes:
            continue
        if dims is None:
            problems.append(f"input {name!r} has no shape")
            hints.append(f"--shape {name}=1,3,224,224")
        elif any(isinstance(dim, str) for dim in dims):
            text = ", ".join(map(str, dims))
            problems.append(f"input {name!r} has the dynamic shape ({text})")
            hints.append(f"--shape {name}={_example(dims)}")
    if problems:
        raise ModelShapeError(f"{path}: {'; '.join(problems)}", hint=f"add {' '.join(hints)}")


def _example(dims: tuple[Dim, ...]) -> str:
    """A shape to type: batch 1, colour images of 224 x 224, 1 for any other unknown."""
    usual = (1, 3, 224, 224) if len(dims) == 4 else (1,) * len(dims)
    return ",".join(
        str(dim if isinstance(dim, int) else usual[axis]) for axis, dim in enumerate(dims)
    )


def _resolve(
    name: str, dims: tuple[Dim, ...] | None, wanted: tuple[int, ...] | None, path: Path
) -> tuple[int, ...]:
    if wanted is None:
        return tuple(dim for dim in dims or () if isinstance(dim, int))
    given = ",".join(map(str, wanted))
    if any(size < 1 for size in wanted):
        raise ModelShapeError(f"{path}: shape {name}={given}: every dimension must be at least 1")
    if dims is None:
        return tuple(wanted)
    text = ", ".join(map(str, dims))
    hint = f"--shape {name}={_example(dims)}"
    if len(wanted) != len(dims):
        raise ModelShapeError(
            f"{path}: shape {name}={given} has {len(wanted)} dimensions, "
            f"the model's input ({text}) has {len(dims)}",
            hint=hint,
        )
    for axis, (size, dim) in enumerate(zip(wanted, dims, strict=True)):
        if isinstance(dim, int) and dim != size:
            raise ModelShapeError(
                f"{path}: shape {name}={given} contradicts the model's input ({text}): "
                f"dimension {axis} is fixed to {dim}",
                hint=hint,
            )
    return tuple(wanted)


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
    if dtype not in _DTYPES:
        raise ModelError(
            f"{path}: input {value.name!r} is of type {dtype}; tvmx takes float32 and integers",
            hint="export the model in float32",
        )
    return dtype
