"""Read npz files that come from outside: nothing is unpickled, damage is one clear error."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.accuracy._samples import InputSpec
from tvmx.errors import DataError, UsageError

Array = npt.NDArray[Any]

_DAMAGE = (ValueError, zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError)


def read_npz(path: Path, wanted: str) -> dict[str, Array]:
    """All arrays of an npz file. ``wanted`` says in hints what the file should hold.

    Raises:
        UsageError: there is no such file.
        DataError: it is damaged, no npz file, or holds Python objects.
    """
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise UsageError(f"data file {path} {what}", hint=f"give {wanted}")
    try:
        # np.load takes anything that is no archive for a pickle, and says so confusingly.
        if not zipfile.is_zipfile(path):
            raise DataError(f"{path} is not an npz file, or is cut short", hint=f"give {wanted}")
        loaded = np.load(path, allow_pickle=False)
    except _DAMAGE as err:
        raise DataError(f"{path} cannot be read: {err}", hint=f"give {wanted}") from err
    arrays = {}
    with loaded:
        for name in loaded.files:
            try:
                arrays[name] = loaded[name]
            except _DAMAGE as err:
                raise DataError(f"{path}: array {name!r} cannot be read: {err}") from err
            if not isinstance(arrays[name], np.ndarray):
                raise DataError(f"{path}: {name!r} is no array")
    return arrays


def check_names(path: Path, arrays: dict[str, Array], wanted: Sequence[str], extra: str) -> None:
    """Exactly the arrays ``wanted``, and ``extra`` where it is not empty.

    Raises:
        DataError: naming what is missing or unknown.
    """
    expected = f"expected: {', '.join(wanted)}" + (f" and optionally {extra}" if extra else "")
    missing = [name for name in wanted if name not in arrays]
    if missing:
        held = ", ".join(arrays) or "no arrays"
        raise DataError(
            f"{path}: missing {', '.join(missing)}; the file holds {held}", hint=expected
        )
    unknown = [name for name in arrays if name not in (*wanted, extra)]
    if unknown:
        raise DataError(f"{path}: unknown arrays {', '.join(unknown)}", hint=expected)


def check_array(
    path: Path, name: str, array: Array, spec: InputSpec, shape: Sequence[int | str]
) -> None:
    """The input's dtype, ``shape`` (a word stands for any size) and finite values.

    Raises:
        DataError: naming the array and, for NaN and infinity, the first index.
    """
    if array.dtype != np.dtype(spec.dtype):
        raise DataError(
            f"{path}: {name} is {array.dtype}, the model's input {spec.name!r} is {spec.dtype}",
            hint=f"save {name}.astype({str(spec.dtype)!r})",
        )
    fits = array.ndim == len(shape) and all(
        isinstance(want, str) or have == want for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        raise DataError(
            f"{path}: {name} has shape {list(array.shape)}, the model's input {spec.name!r} "
            f"needs {_text(shape)}"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise DataError(
            f"{path}: {name}{_text(index)} is {array[index]}; every value must be finite"
        )


def load_inputs(path: Path, specs: Sequence[InputSpec]) -> dict[str, Array]:
    """One set of inputs: an npz with one array per input, under its name, in its exact shape.

    Raises:
        UsageError: there is no such file.
        DataError: damaged, or an array is missing, unknown, of another dtype or shape, or
            not finite.
    """
    arrays = read_npz(path, "an .npz with one array per input, under the input's name")
    check_names(path, arrays, [spec.name for spec in specs], "")
    for spec in specs:
        check_array(path, spec.name, arrays[spec.name], spec, spec.shape)
    return {spec.name: arrays[spec.name] for spec in specs}


def _text(dims: Sequence[object]) -> str:
    return "[" + ", ".join(map(str, dims)) + "]"
