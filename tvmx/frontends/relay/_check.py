"""Reading a Relay file and refusing what cannot be imported, before TVM is involved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tvmx.errors import (
    CorruptModelError,
    ModelError,
    ModelShapeError,
    UsageError,
)
from tvmx.frontends._refused import refuse_operators
from tvmx.frontends._shapes import check_dtype, check_names, reject_dynamic, resolve_shape
from tvmx.frontends.relay._flatten import Program, Step, flatten, leaves, main_function
from tvmx.frontends.relay._graph import Array, Module, Var
from tvmx.frontends.relay._json import read_module
from tvmx.frontends.relay._ndarray import read_params
from tvmx.frontends.relay._ops import (
    ARGUMENTS,
    MOST_ELEMENTS,
    NEEDS_WEIGHTS,
    TAKES_TUPLES,
    refusal,
)
from tvmx.frontends.relay._text import read_text
from tvmx.ir import TensorSpec

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Source:
    """A Relay program, its inputs with static shapes, and the files it came from."""

    program: Program
    inputs: tuple[TensorSpec, ...]
    files: tuple[Path, ...]


def read_source(path: Path, params: Path | None, shapes: Shapes) -> Source:
    """Read a file and its parameters; operators are not looked at yet.

    Raises:
        CorruptModelError: one of the files is damaged or something else.
        ModelError: weights without values, functions that call themselves.
        ModelShapeError: inputs are dynamic, or parameters do not fit.
    """
    module = _read(path)
    values = {} if params is None else read_params(params)
    program = flatten(module, values, path)
    _check_params(module, values, path, params)
    _require_weights(program, path, params)
    files = (path,) if params is None else (path, params)
    return Source(program, _inputs(program, shapes, path), files)


def _read(path: Path) -> Module:
    try:
        text = path.read_bytes().decode()
    except OSError as err:
        raise UsageError(f"cannot read model {path}: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise CorruptModelError(
            f"{path} is no Relay file: it is not text", hint="save or copy the file again"
        ) from err
    if not text.strip():
        raise CorruptModelError(f"{path} is empty", hint="save or copy the file again")
    read = read_module if text.lstrip()[0] == "{" else read_text
    return read(text, str(path))


def _check_params(
    module: Module, values: Mapping[str, Array], path: Path, params: Path | None
) -> None:
    main = main_function(module, path)
    declared = {var.name: var.type for var in main.params}
    if values and not set(values) & set(declared):
        raise ModelError(
            f"{params} has no parameter of {path}: {', '.join(sorted(values)[:3])}",
            hint="give the parameters that were saved with this model",
        )
    for name, array in values.items():
        kind = declared.get(name)
        if kind is None:
            continue
        same = len(kind.shape) == array.ndim and all(
            dim in ("?", size) for dim, size in zip(kind.shape, array.shape, strict=True)
        )
        if not same or kind.dtype != array.dtype.name:
            raise ModelShapeError(
                f"{params}: parameter {name!r} is {array.dtype.name}{list(array.shape)}, "
                f"{path} declares {kind.dtype}[{', '.join(map(str, kind.shape))}]",
                hint="give the parameters that were saved with this model",
            )


def _require_weights(program: Program, path: Path, params: Path | None) -> None:
    for step in program.steps:
        weight = step.args[1] if step.op in NEEDS_WEIGHTS and len(step.args) > 1 else None
        if isinstance(weight, Var):
            raise ModelError(
                f"{path}: {weight.name!r}, the weights of {step.op}, has no value",
                hint="give --params FILE, what relay.save_param_dict wrote beside the model"
                if params is None
                else f"{params} does not have it: give the parameters saved with this model",
            )


def _inputs(program: Program, shapes: Shapes, path: Path) -> tuple[TensorSpec, ...]:
    for var in program.inputs:
        if var.type is None:
            raise ModelError(f"{path}: input {var.name!r} is no tensor")
    declared = {var.name: var.type.shape for var in program.inputs if var.type is not None}
    if len(declared) != len(program.inputs):
        raise CorruptModelError(f"{path} is damaged: two inputs have one name")
    check_names(declared, shapes, path)
    reject_dynamic(declared, shapes, path)
    specs = []
    for var in program.inputs:
        if var.type is not None:
            shape = resolve_shape(var.name, var.type.shape, shapes.get(var.name), path)
            if 0 in shape:
                raise ModelShapeError(f"{path}: input {var.name!r} is empty: {list(shape)}")
            if math.prod(shape) > MOST_ELEMENTS:
                raise ModelShapeError(f"{path}: input {var.name!r} is too large: {list(shape)}")
            specs.append(TensorSpec(var.name, shape, check_dtype(var.name, var.type.dtype, path)))
    return tuple(specs)


def check_operators(program: Program, path: Path) -> None:
    """Refuse every operator that cannot be imported, all at once, then wrong arguments.

    Raises:
        UnsupportedOpError: ``ops`` maps operators to the names of their calls.
        CorruptModelError: a call without the arguments its operator takes.
    """
    ops: dict[str, list[str]] = {}
    for step in program.steps:
        if step.op not in ARGUMENTS:
            ops.setdefault(step.op, []).append(step.name)
    refuse_operators(path, ops, refusal)
    for step in program.steps:
        _check_arguments(step, path)


def _check_arguments(step: Step, path: Path) -> None:
    wanted = ARGUMENTS[step.op]
    tuples = any(isinstance(arg, tuple) for arg in step.args)
    if len(step.args) < wanted or (tuples and step.op not in TAKES_TUPLES):
        raise CorruptModelError(
            f"{path} is damaged: {step.op} ({step.name}) has the wrong arguments: "
            f"{len(step.args)} of {wanted}, {sum(1 for a in step.args for _ in leaves(a))} tensors"
        )
