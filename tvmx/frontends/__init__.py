"""Network files to models: ONNX, archives of ``torch.export``, Relay as JSON or text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmx.errors import CorruptModelError, ModelError, UsageError
from tvmx.ir import Model, TensorSpec

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["SUPPORTED_SUFFIXES", "check_model", "load_model", "model_digest", "torch_runner"]

SUPPORTED_SUFFIXES = (".onnx", ".pt2", ".relay", ".relay.json", ".relay.txt")
_RELAY_SUFFIXES = (".relay", ".relay.json", ".relay.txt", ".json")
_RELAY_JSON = (b"{", b'{"', b"{\n", b"{\r", b"{ ")
_PICKLED_SUFFIXES = (".pt", ".pth")
_NAMES = ", ".join(SUPPORTED_SUFFIXES)
_HINT = f"supported: {_NAMES}"


def load_model(
    path: str | Path,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    params: str | Path | None = None,
) -> Model:
    """Read a network file and bring it into canonical form.

    ``shapes`` fixes the dynamic dimensions of inputs, by their name in the file; static
    dimensions may be repeated but not changed. ``params`` are the weights of a Relay file, as
    ``relay.save_param_dict`` wrote them. Files of an unknown suffix are taken for what
    their first bytes say. No code from a file is run: ``.pt2`` archives are read as data, and
    pickles are refused.

    Raises:
        UsageError: there is no such file, or ``params`` for a format that has none.
        CorruptModelError: the file is empty, truncated or no valid model.
        UnsupportedOpError: operators that cannot be imported, all of them at once.
        ModelShapeError: an input shape is dynamic, unknown or contradicts the model.
        ModelError: anything else the file's content stands in the way of.
    """
    file, wanted = _model_file(path), dict(shapes or {})
    weights = _params_file(file, params)
    if _is_torch(file):
        from tvmx.frontends._torch import load_torch

        return load_torch(file, wanted)
    if _is_relay(file):
        from tvmx.frontends.relay import load_relay

        return load_relay(file, wanted, weights)
    from tvmx.frontends._onnx import load_onnx

    return load_onnx(file, wanted)


def check_model(
    path: str | Path,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    params: str | Path | None = None,
) -> tuple[TensorSpec, ...]:
    """Look at a network file without importing TVM or torch, and return its inputs.

    Raises what :func:`load_model` raises for the file, its inputs and its operators.
    """
    file, wanted = _model_file(path), dict(shapes or {})
    weights = _params_file(file, params)
    if _is_torch(file):
        from tvmx.frontends._torch import check_torch

        return check_torch(file, wanted)
    if _is_relay(file):
        from tvmx.frontends.relay import check_relay

        return check_relay(file, wanted, weights)
    from tvmx.frontends._onnx_check import read_model
    from tvmx.frontends._onnx_prepare import prepare
    from tvmx.frontends._onnx_shapes import resolve_inputs

    proto, _ = read_model(file)
    inputs = resolve_inputs(proto, wanted, file)
    prepare(proto, file, inputs)
    return inputs


def model_digest(
    path: str | Path,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    params: str | Path | None = None,
) -> str:
    """The digest :func:`load_model` would give the model, without importing TVM.

    Raises what :func:`load_model` raises for the file and its inputs.
    """
    file, wanted = _model_file(path), dict(shapes or {})
    weights = _params_file(file, params)
    if _is_torch(file):
        from tvmx.frontends._torch import torch_digest

        return torch_digest(file, wanted)
    if _is_relay(file):
        from tvmx.frontends.relay import relay_digest

        return relay_digest(file, wanted, weights)
    from tvmx.frontends._onnx import onnx_digest

    return onnx_digest(file, wanted)


def torch_runner(
    path: str | Path, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Callable[[Mapping[str, npt.NDArray[Any]]], tuple[npt.NDArray[Any], ...]]:
    """The program in a ``.pt2`` file, run by torch: inputs by name to outputs in order.

    Raises what :func:`load_model` raises for the file, its inputs and its operators.
    """
    from tvmx.frontends._torch import torch_runner as runner

    return runner(_model_file(path), dict(shapes or {}))


def _model_file(path: str | Path) -> Path:
    file = Path(path)
    if not file.is_file():
        what = "is a folder, not a model file" if file.is_dir() else "does not exist"
        raise UsageError(f"model {file} {what}", hint=f"give the path of a file: {_NAMES}")
    _check_kind(file)
    return file


def _params_file(file: Path, params: str | Path | None) -> Path | None:
    if params is None:
        return None
    if not _is_relay(file):
        raise UsageError(
            f"{file} is no Relay file: its weights are in it, not in {params}",
            hint="leave --params out",
        )
    if not Path(params).is_file():
        raise UsageError(
            f"parameter file {params} does not exist",
            hint="--params takes what relay.save_param_dict wrote",
        )
    return Path(params)


def _check_kind(file: Path) -> None:
    if file.name.lower().endswith((*SUPPORTED_SUFFIXES, *_RELAY_SUFFIXES)):
        _check_name(file)
    # An ONNX file starts with field 1 (ir_version), a small varint.
    elif not _is_torch(file) and not _is_relay(file) and _head(file)[:1] != b"\x08":
        raise ModelError(f"{file}: not a model format tvmx knows", hint=_HINT)


def _check_name(file: Path) -> None:
    """Refuse a file whose first bytes are another format's than its name is."""
    head = _head(file)
    relay = head[:2] in _RELAY_JSON or head[:2] == b"#["
    kinds = (
        ("an ONNX model", head[:1] == b"\x08", (".onnx",)),
        ("a torch.export archive", head == b"PK\x03\x04", (".pt2",)),
        ("a Relay file", relay, (".relay.txt" if head[:1] == b"#" else ".relay.json",
                                 *_RELAY_SUFFIXES)),
    )  # fmt: skip
    for kind, found, names in kinds:
        if found and not file.name.lower().endswith(names):
            raise CorruptModelError(
                f"{file} is {kind} by its first bytes, and no {file.suffix} file",
                hint=f"mv {file} {file.with_suffix(names[0])}",
            )


def _is_torch(file: Path) -> bool:
    """Whether torch wrote the file, as far as its name and first bytes tell."""
    suffix = file.suffix.lower()
    if suffix in (".pt2", *_PICKLED_SUFFIXES):
        return True
    # A zip archive, or a pickle of protocol 2 to 5.
    head = _head(file)
    zipped = head == b"PK\x03\x04"
    return suffix != ".onnx" and (zipped or (head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5"))


def _is_relay(file: Path) -> bool:
    """Whether TVM wrote the file: by its name, else ``{`` or ``#[version``."""
    if file.name.lower().endswith(_RELAY_SUFFIXES):
        return True
    head = _head(file).lstrip()[:2]
    return file.suffix.lower() not in SUPPORTED_SUFFIXES and (head in _RELAY_JSON or head == b"#[")


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(4)
    except OSError as err:
        raise UsageError(f"cannot read model {file}: {err.strerror}") from err
