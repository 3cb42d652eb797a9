"""Arrays as TVM stores them: single ones in JSON, named ones in parameter files.

Every size is checked against the bytes that are there before an array is made; arrays are views
of those bytes.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.errors import CorruptModelError

Array = npt.NDArray[Any]
_ARRAY_MAGIC = 0xDD5E40F096B4A13F
_PARAMS_MAGIC = 0xF7E58D4F05049CB7
_MOST_DIMENSIONS = 32
_DTYPES = {
    (0, 8): "int8", (0, 16): "int16", (0, 32): "int32", (0, 64): "int64",
    (1, 1): "bool", (1, 8): "uint8", (1, 16): "uint16", (1, 32): "uint32", (1, 64): "uint64",
    (2, 16): "float16", (2, 32): "float32", (2, 64): "float64",
    (6, 8): "bool",
}  # fmt: skip
"""DLPack's type code and width -> NumPy's name."""


class _Reader:
    def __init__(self, data: bytes, where: str) -> None:
        self.data, self.offset, self.where = data, 0, where

    def take(self, layout: str) -> tuple[Any, ...]:
        size = struct.calcsize(f"<{layout}")
        if self.offset + size > len(self.data):
            raise self.error(f"it is cut off after {len(self.data)} bytes")
        values = struct.unpack_from(f"<{layout}", self.data, self.offset)
        self.offset += size
        return values

    def text(self) -> str:
        (length,) = self.take("Q")
        if length > len(self.data) - self.offset:
            raise self.error(f"a name of {length} bytes is longer than the file")
        raw = self.data[self.offset : self.offset + length]
        self.offset += length
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.error("a name is not text") from None

    def error(self, what: str) -> CorruptModelError:
        return CorruptModelError(
            f"{self.where} is damaged: {what}", hint="save or copy the file again"
        )

    def array(self) -> Array:
        magic, _ = self.take("QQ")
        if magic != _ARRAY_MAGIC:
            raise self.error("an array does not begin as one")
        _, _, rank, code, bits, lanes = self.take("iiiBBH")
        if not 0 <= rank <= _MOST_DIMENSIONS:
            raise self.error(f"an array of {rank} dimensions")
        dtype = _DTYPES.get((code, bits))
        if dtype is None or lanes != 1:
            raise self.error(f"an array of an unknown type (code {code}, {bits} bits x {lanes})")
        shape = self.take(f"{rank}q")
        (size,) = self.take("q")
        item, count = np.dtype(dtype).itemsize, 1
        for dim in shape:
            if dim < 0:
                raise self.error(f"an array of shape {shape}")
            count *= dim
        if size != count * item:
            raise self.error(f"an array of shape {shape} and type {dtype} in {size} bytes")
        if size > len(self.data) - self.offset:
            raise self.error(f"it is cut off after {len(self.data)} bytes")
        if dtype == "bool" and max(self.data[self.offset : self.offset + size], default=0) > 1:
            raise self.error("a truth value that is neither 0 nor 1")
        array: Array = np.frombuffer(self.data, dtype, count, self.offset).reshape(shape)
        self.offset += size
        return array


def parse_array(data: bytes, where: str) -> Array:
    """The one array in ``data``. Raises CorruptModelError; ``where`` names it."""
    reader = _Reader(data, where)
    array = reader.array()
    if reader.offset != len(data):
        raise reader.error("bytes are left over")
    return array


def read_params(path: Path) -> dict[str, Array]:
    """The arrays of a file by ``relay.save_param_dict``, by name. Raises CorruptModelError."""
    data = path.read_bytes()
    reader = _Reader(data, f"parameter file {path}")
    if data[:8] != struct.pack("<Q", _PARAMS_MAGIC):
        raise CorruptModelError(
            f"{path} is no parameter file",
            hint="--params takes what relay.save_param_dict wrote",
        )
    reader.take("QQ")
    (count,) = reader.take("Q")
    if count > len(data) // 8:
        raise reader.error(f"{count} names in {len(data)} bytes")
    names = [reader.text() for _ in range(count)]
    (arrays,) = reader.take("Q")
    if arrays != count:
        raise reader.error(f"{count} names and {arrays} arrays")
    if len(set(names)) != count:
        raise reader.error("a name is there twice")
    values = {name: reader.array() for name in names}
    if reader.offset != len(data):
        raise reader.error("bytes are left over")
    return values
