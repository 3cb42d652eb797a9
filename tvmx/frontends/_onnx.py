"""ONNX file -> Model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tvmx.errors import ModelError, TvmxError
from tvmx.frontends._digest import content_digest
from tvmx.frontends._onnx_check import read_model
from tvmx.frontends._onnx_prepare import prepare
from tvmx.frontends._onnx_shapes import resolve_inputs
from tvmx.frontends._reason import quoted
from tvmx.ir import Model, TensorSpec

if TYPE_CHECKING:
    import onnx


def load_onnx(path: Path, shapes: dict[str, tuple[int, ...]]) -> Model:
    """Import an ONNX file; see :func:`tvmx.frontends.load_model` for what it raises.

    Everything that can be wrong with the file is checked before TVM is imported, so that
    mistakes are answered at once.
    """
    proto, files = read_model(path)
    inputs = resolve_inputs(proto, shapes, path)
    prepare(proto, path, inputs)
    digest = content_digest(files, inputs)
    return _import(proto, inputs, path, digest)


def onnx_digest(path: Path, shapes: dict[str, tuple[int, ...]]) -> str:
    """Digest of an ONNX file at these input shapes; see :class:`tvmx.ir.Model`."""
    proto, files = read_model(path)
    return content_digest(files, resolve_inputs(proto, shapes, path))


def _import(
    proto: onnx.ModelProto, inputs: tuple[TensorSpec, ...], path: Path, digest: str
) -> Model:
    from tvmx.frontends._onnx_import import import_graph
    from tvmx.passes._canonicalise import canonicalise

    mod, outputs, sources = import_graph(proto, inputs, path)
    try:
        mod = canonicalise(mod)
    except TvmxError:
        raise
    except Exception as err:  # constants that do not fit each other
        raise ModelError(f"{path}: its operators do not fit together ({quoted(err)})") from err
    names = {binding.var.name for block in mod["main"].body.blocks for binding in block.bindings}
    return Model(
        mod=mod,
        inputs=inputs,
        outputs=outputs,
        sources={name: source for name, source in sources.items() if name in names},
        digest=digest,
        path=path,
        frontend="onnx",
    )
