"""``torch.export`` archive -> Model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tvmx.frontends._digest import content_digest
from tvmx.frontends._torch_archive import read_archive
from tvmx.frontends._torch_check import check_operators, output_names
from tvmx.frontends._torch_shapes import resolve_inputs
from tvmx.ir import Model, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tvmx.frontends._torch_program import Array

Shapes = dict[str, tuple[int, ...]]


def load_torch(path: Path, shapes: Shapes) -> Model:
    """Import a ``.pt2`` file; see :func:`tvmx.frontends.load_model` for what it raises.

    What can be wrong with the file is checked before torch and TVM are imported.
    """
    archive = read_archive(path)
    inputs, sizes = resolve_inputs(archive, shapes)
    check_operators(archive)
    digest = content_digest((path,), inputs)

    from tvmx.frontends._torch_program import load_program

    program, nodes = load_program(archive, sizes)

    from tvmx.frontends._torch_import import import_program
    from tvmx.passes._canonicalise import canonicalise

    mod, outputs, sources = import_program(program, nodes, output_names(archive), path)
    mod = canonicalise(mod)
    names = {binding.var.name for block in mod["main"].body.blocks for binding in block.bindings}
    return Model(
        mod=mod,
        inputs=inputs,
        outputs=outputs,
        sources={name: source for name, source in sources.items() if name in names},
        digest=digest,
        path=path,
        frontend="torch",
    )


def check_torch(path: Path, shapes: Shapes) -> tuple[TensorSpec, ...]:
    """The inputs of a ``.pt2`` file that can be imported, without loading torch or TVM."""
    archive = read_archive(path)
    inputs, _ = resolve_inputs(archive, shapes)
    check_operators(archive)
    return inputs


def torch_digest(path: Path, shapes: Shapes) -> str:
    """Digest of a ``.pt2`` file at these input shapes; see :class:`tvmx.ir.Model`."""
    inputs, _ = resolve_inputs(read_archive(path), shapes)
    return content_digest((path,), inputs)


def torch_runner(path: Path, shapes: Shapes) -> Callable[[Mapping[str, Array]], tuple[Array, ...]]:
    """The exported program as a function of its inputs by name, run by torch."""
    from tvmx.frontends._torch_program import load_program, run_program

    archive = read_archive(path)
    inputs, sizes = resolve_inputs(archive, shapes)
    check_operators(archive)
    program, _ = load_program(archive, sizes)
    return lambda feeds: run_program(program, [feeds[spec.name] for spec in inputs])
