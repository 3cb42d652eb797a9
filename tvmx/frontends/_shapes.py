"""Static input shapes, whatever the file format: what was declared against what was asked for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path

from tvmx.errors import ModelError, ModelShapeError

_DTYPES = ("float32", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "bool")
Dim = int | str
"""A dimension in the file: a size, or the name of an unknown (``?`` where it has none)."""

Shapes = Mapping[str, tuple[int, ...]]


def check_names(names: Iterable[str], shapes: Shapes, path: Path) -> None:
    """Refuse shapes for inputs that the model does not have (ModelShapeError)."""
    known = list(names)
    for name in shapes:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            raise ModelShapeError(
                f"{path}: the model has no input {name!r}; its inputs are {', '.join(known)}",
                hint=f"did you mean --shape {close[0]}=...?" if close else None,
            )


def check_dtype(name: str, dtype: str, path: Path) -> str:
    """``dtype`` if it can be fed (float32, integers, bool), else ModelError."""
    if dtype not in _DTYPES:
        raise ModelError(
            f"{path}: input {name!r} is of type {dtype}; tvmx takes float32 and integers",
            hint="export the model in float32",
        )
    return dtype


def reject_dynamic(
    declared: Mapping[str, tuple[Dim, ...] | None], shapes: Shapes, path: Path
) -> None:
    """Refuse inputs that stay dynamic, all of them at once (ModelShapeError)."""
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


def resolve_shape(
    name: str, dims: tuple[Dim, ...] | None, wanted: tuple[int, ...] | None, path: Path
) -> tuple[int, ...]:
    """The static shape: as declared, or as wanted where that does not contradict it.

    Raises:
        ModelShapeError: another rank, another size of a static dimension, or a size below 1.
    """
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
