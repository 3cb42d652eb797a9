"""Relay modules of TVM 0.8 to 0.19: JSON or text, with their parameters, read as data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tvmx.frontends._digest import content_digest
from tvmx.frontends.relay._check import check_operators, read_source

if TYPE_CHECKING:
    from tvmx.ir import Model, TensorSpec

__all__ = ["check_relay", "load_relay", "relay_digest"]

Shapes = dict[str, tuple[int, ...]]


def load_relay(path: Path, shapes: Shapes, params: Path | None = None) -> Model:
    """Import a Relay file; see :func:`tvmx.frontends.load_model` for what it raises."""
    source = read_source(path, params, shapes)
    check_operators(source.program, path)
    digest = content_digest(source.files, source.inputs)

    from tvmx.frontends.relay._import import import_program
    from tvmx.ir import Model
    from tvmx.passes._canonicalise import canonicalise

    mod, outputs, sources = import_program(source.program, source.inputs, path)
    mod = canonicalise(mod)
    names = {binding.var.name for block in mod["main"].body.blocks for binding in block.bindings}
    return Model(
        mod=mod,
        inputs=source.inputs,
        outputs=outputs,
        sources={name: node for name, node in sources.items() if name in names},
        digest=digest,
        path=path,
        frontend="relay",
    )


def check_relay(path: Path, shapes: Shapes, params: Path | None = None) -> tuple[TensorSpec, ...]:
    """The inputs of a Relay file that can be imported, without loading TVM."""
    source = read_source(path, params, shapes)
    check_operators(source.program, path)
    return source.inputs


def relay_digest(path: Path, shapes: Shapes, params: Path | None = None) -> str:
    """Digest of a Relay file and its parameters; see :class:`tvmx.ir.Model`."""
    source = read_source(path, params, shapes)
    return content_digest(source.files, source.inputs)
