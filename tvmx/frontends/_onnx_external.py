"""Weights an ONNX model keeps in other files: inside its own folder, whole, and no more of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tvmx.errors import CorruptModelError, ModelError

if TYPE_CHECKING:
    import onnx


def load_external(proto: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """Read weights kept beside the model into it; returns their files, each once.

    Raises:
        ModelError: a weight's file is outside the model's folder, links followed.
        CorruptModelError: a file is missing or too short, or its place in it makes no sense.
    """
    from onnx import external_data_helper as helper

    files: dict[Path, None] = {}
    for tensor in tensors(proto.graph):
        if helper.uses_external_data(tensor):
            file = _file(tensor, path)
            tensor.raw_data = _read(tensor, file, path)
            tensor.data_location = tensor.DEFAULT
            del tensor.external_data[:]
            files[file] = None
    return tuple(files)


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every weight and constant, those of branches too."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            inner = [attribute.g] if attribute.HasField("g") else []
            for branch in (*inner, *attribute.graphs):
                yield from tensors(branch)


def _entries(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _file(tensor: onnx.TensorProto, path: Path) -> Path:
    folder, location = path.resolve().parent, _entries(tensor).get("location", "")
    try:
        file = (folder / location).resolve()
        inside, there = file.is_relative_to(folder), file.is_file()
    except (ValueError, OSError, RuntimeError) as err:  # a NUL, too long, links in a circle
        raise CorruptModelError(
            f"{path}: weight {tensor.name!r} is in a file of an impossible name: {location[:80]!r}"
        ) from err
    if not location or Path(location).is_absolute() or not inside:
        raise ModelError(
            f"{path}: weight {tensor.name!r} points outside the model's folder: {location!r}",
            hint="put the model and its weights into one folder",
        )
    if not there:
        raise CorruptModelError(
            f"{path}: weight {tensor.name!r} is missing: there is no file {file}",
            hint="copy the weights file next to the model",
        )
    return file


def _read(tensor: onnx.TensorProto, file: Path, path: Path) -> bytes:
    """The bytes of one weight, as many as its shape asks for."""
    where = f"{path}: weight {tensor.name!r} cannot be read from {file}"
    entries = _entries(tensor)
    offset, stated = (_number(entries, key, where) for key in ("offset", "length"))
    needed = _bytes_of(tensor, where)
    if stated and stated != needed:
        raise CorruptModelError(f"{where}: its shape takes {needed} bytes, it states {stated}")
    try:
        held = file.stat().st_size
        if offset < 0 or offset + needed > held:
            raise CorruptModelError(
                f"{where}: {needed} bytes from {offset} on are more than the file's {held}",
                hint="copy the weights file again",
            )
        with file.open("rb") as stream:
            stream.seek(offset)
            return stream.read(needed)
    except OSError as err:
        raise CorruptModelError(f"{where}: {err.strerror}") from err


def _number(entries: dict[str, str], key: str, where: str) -> int:
    text = entries.get(key) or "0"
    if not re.fullmatch(r"-?[0-9]{1,20}", text):
        raise CorruptModelError(f"{where}: its {key} is {text[:80]!r}, not a number of bytes")
    return int(text)


def _bytes_of(tensor: onnx.TensorProto, where: str) -> int:
    from onnx import TensorProto, helper

    four_bits = (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1)
    count = int(math.prod(tensor.dims))
    if min(tensor.dims, default=0) < 0:
        raise CorruptModelError(f"{where}: its shape is {tuple(tensor.dims)}")
    if tensor.data_type in four_bits:
        return (count + 1) // 2
    try:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        raise CorruptModelError(f"{where}: its element type is number {tensor.data_type}") from None
    if dtype.hasobject:
        raise CorruptModelError(f"{where}: texts are not kept in other files")
    return count * int(dtype.itemsize)
