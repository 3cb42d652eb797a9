"""Network files to models. ONNX so far; ``torch.export`` archives and Relay text follow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tvmx.errors import ModelError, UsageError
from tvmx.ir import Model, TensorSpec

__all__ = ["SUPPORTED_SUFFIXES", "check_model", "load_model", "model_digest"]

SUPPORTED_SUFFIXES = (".onnx",)
_PLANNED = {".pt2": "torch.export archives", ".relay": "Relay text", ".json": "Relay JSON"}


def load_model(path: str | Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Model:
    """Read a network file and bring it into canonical form.

    ``shapes`` fixes the dynamic dimensions of inputs, by ONNX input name; static dimensions
    may be repeated but not changed. Files of an unknown suffix are tried as ONNX when they
    do not look like text or a zip archive.

    Raises:
        UsageError: there is no such file.
        CorruptModelError: the file is empty, truncated or no valid model.
        UnsupportedOpError: operators that cannot be imported, all of them at once.
        ModelShapeError: an input shape is dynamic, unknown or contradicts the model.
        ModelError: anything else the file's content stands in the way of.
    """
    file = _model_file(path)
    from tvmx.frontends._onnx import load_onnx

    return load_onnx(file, dict(shapes or {}))


def check_model(
    path: str | Path, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[TensorSpec, ...]:
    """Look at a network file without importing TVM, and return its inputs.

    Raises what :func:`load_model` raises for the file, its inputs and its operators.
    """
    file = _model_file(path)
    from tvmx.frontends._onnx_check import check_operators, read_model
    from tvmx.frontends._onnx_shapes import resolve_inputs

    proto, _ = read_model(file)
    inputs = resolve_inputs(proto, dict(shapes or {}), file)
    check_operators(proto, file)
    return inputs


def model_digest(path: str | Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> str:
    """The digest :func:`load_model` would give the model, without importing TVM.

    Raises what :func:`load_model` raises for the file and its inputs.
    """
    file = _model_file(path)
    from tvmx.frontends._onnx import onnx_digest

    return onnx_digest(file, dict(shapes or {}))


def _model_file(path: str | Path) -> Path:
    file = Path(path)
    if not file.is_file():
        what = "is a folder, not a model file" if file.is_dir() else "does not exist"
        raise UsageError(f"model {file} {what}", hint="give the path of an .onnx file")
    _check_kind(file)
    return file


def _check_kind(file: Path) -> None:
    suffix = file.suffix.lower()
    if suffix in SUPPORTED_SUFFIXES:
        return
    hint = f"supported: {', '.join(SUPPORTED_SUFFIXES)}"
    if suffix in _PLANNED:
        raise ModelError(f"{file}: {_PLANNED[suffix]} cannot be imported yet", hint=hint)
    try:
        with file.open("rb") as stream:
            head = stream.read(8)
    except OSError as err:
        raise UsageError(f"cannot read model {file}: {err.strerror}") from err
    # An ONNX file starts with field 1 (ir_version), a small varint.
    if head[:1] != b"\x08":
        raise ModelError(f"{file}: not a model format tvmx knows", hint=hint)
