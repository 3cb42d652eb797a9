"""Checked archive -> ``torch.export.ExportedProgram``, by an archive written anew."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import warnings
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from tvmx.errors import CorruptModelError
from tvmx.frontends._reason import quoted
from tvmx.frontends._torch_archive import TorchArchive
from tvmx.frontends._torch_clean import clean_document, clean_payloads
from tvmx.frontends._torch_quantised import is_quantising
from tvmx.frontends._torch_shapes import Sizes
from tvmx.ir import SourceNode

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]


def load_program(
    archive: TorchArchive, sizes: Sizes
) -> tuple[torch.export.ExportedProgram, dict[str, SourceNode]]:
    """The program at these sizes, and the source of each node by the node's name.

    The operators must have been checked (:func:`tvmx.frontends._torch_check.check_operators`).
    Every node's ``nn_module_stack`` ends in the name of the node it was exported as.

    Raises:
        CorruptModelError: torch cannot read the program.
        ModelError: the description holds what cannot be imported.
    """
    document, sources = clean_document(archive, sizes)
    data = io.BytesIO(_written_anew(archive, document, sizes))
    import torch

    with quiet():
        if any(map(is_quantising, archive.graph["nodes"])):
            # Registers the operators.
            importlib.import_module("torch.ao.quantization.fx._decomposed")
        try:
            return torch.export.load(data), sources
        except Exception as err:  # the reader's own errors have no common base
            raise CorruptModelError(
                f"{archive.path} cannot be read by torch {torch.__version__}: {quoted(err)}",
                hint="export the model with this version of torch",
            ) from err


def _written_anew(archive: TorchArchive, document: dict[str, Any], sizes: Sizes) -> bytes:
    """The bytes of an archive that holds the checked description and plain tensors.

    No sample inputs (they are pickled), no compiled libraries, no custom objects.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as out:
        for name, stored in (("weights", archive.weights), ("constants", archive.constants)):
            folder = f"data/{name}/"
            for record, content in archive.payloads(folder, stored):
                out.writestr(f"model/{folder}{record}", content)
            table = clean_payloads(stored, sizes)
            out.writestr(f"model/{folder}model_{name}_config.json", json.dumps(table))
        out.writestr("model/models/model.json", json.dumps(document))
        out.writestr("model/data/sample_inputs/model.pt", b"")
        out.writestr("model/archive_format", "pt2")
        out.writestr("model/archive_version", "0")
        out.writestr("model/byteorder", "little")
        out.writestr("model/.data/version", "6\n")
    return buffer.getvalue()


def run_program(program: torch.export.ExportedProgram, inputs: list[Array]) -> tuple[Array, ...]:
    """Outputs of the program for its inputs in order (NumPy arrays), by torch, node by node.

    Nothing is compiled and no source code is generated from the program.
    """
    import torch

    values: list[Any] = []
    given = iter(inputs)
    for spec in program.graph_signature.input_specs:
        kind = spec.kind.name
        if kind == "USER_INPUT":
            values.append(torch.from_numpy(next(given)))
        else:
            stored = program.state_dict.get(str(spec.target))
            values.append(program.constants[str(spec.target)] if stored is None else stored)
    with torch.inference_mode(), quiet():
        outputs = torch.fx.Interpreter(program.graph_module).run(*values)
    return tuple(out.detach().numpy() for out in outputs)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch from warning and logging: what matters is in the exception."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
