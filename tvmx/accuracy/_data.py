"""Read what is given as ``--data``: check every array, then split by the seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from tvmx.accuracy._images import load_images
from tvmx.accuracy._npz import check_array, check_names, read_npz
from tvmx.accuracy._preprocess import load_preprocess
from tvmx.accuracy._samples import Array, Dataset, InputSpec, Samples, batch_size, sample_shape
from tvmx.accuracy._user_function import load_function
from tvmx.errors import DataError, UsageError
from tvmx.ir import DataSource

_FORMAT = "an .npz with `calibration`, `inputs` and, if there are any, `labels`"


_CONTRACT = (
    "it is called without arguments and returns a dict of NumPy arrays: `calibration`, `inputs` "
    "and, if there are any, `labels`"
)


def load_data(
    path: Path, model_inputs: Sequence[InputSpec], seed: int, preprocess: Path | None = None
) -> Dataset:
    """Read, check and split evaluation data for a model.

    ``path`` is an npz file, a folder of images (:mod:`tvmx.accuracy._images`), prepared as the
    file ``preprocess`` says, or ``module:function`` (:func:`load_function`) of a function that
    returns the arrays.

    A model with one input has the arrays ``calibration`` and ``inputs``; one with several
    has ``calibration_<name>`` and ``inputs_<name>`` for each. Their rows are samples: shape
    ``(samples, *model input shape without its batch)`` in the model's dtype. ``labels`` is
    ``(samples,)``, integers from 0. Inputs and labels are split into two halves by ``seed``.
    Nothing in the file is unpickled.

    Raises:
        UsageError: there is no such file or function; ``preprocess`` is damaged, or there is
            nothing to prepare; Pillow is missing.
        DataError: the file or an image is damaged; an array is missing, unknown, empty, of
            another shape or dtype, or holds NaN or infinity (array and first index are named);
            labels do not fit; there are fewer than two samples; the function raises.
    """
    kind = kind_of(path)
    if preprocess is not None and kind != "images":
        raise UsageError(
            f"--preprocess is for images, --data {path} is no folder of them",
            hint="leave out --preprocess",
        )
    how = None
    if kind == "images":
        asked = None if preprocess is None else load_preprocess(preprocess)
        arrays, how = load_images(path, model_inputs, asked, seed)
    else:
        arrays = _called(str(path)) if kind == "callable" else read_npz(path, _FORMAT)
    calibration, samples = _checked(path, arrays, model_inputs)
    visible, held_out = _split(path, samples, seed)
    digest = _digest(arrays)
    name = path.name if kind == "callable" else path.resolve().name
    source = DataSource(kind=kind, name=name, digest=digest, preprocess=how)
    return Dataset(calibration, visible, held_out, digest, source)


def kind_of(path: Path) -> Literal["npz", "images", "callable"]:
    """What ``--data`` names, going by what is there."""
    if path.is_dir():
        return "images"
    return "callable" if ":" in path.name and not path.exists() else "npz"


def _called(text: str) -> dict[str, Array]:
    function, _ = load_function(text, "data", "--data")
    try:
        found = function()
    except Exception as err:
        raise DataError(f"data {text} raised {type(err).__name__}: {err}", hint=_CONTRACT) from err
    if not isinstance(found, Mapping):
        raise DataError(f"data {text} returned {type(found).__name__}, no dict", hint=_CONTRACT)
    for name, array in found.items():
        if not isinstance(array, np.ndarray):
            raise DataError(
                f"data {text}: {name!r} is {type(array).__name__}, no NumPy array", hint=_CONTRACT
            )
    return {str(name): array for name, array in found.items()}


def _checked(
    path: Path, arrays: dict[str, Array], model_inputs: Sequence[InputSpec]
) -> tuple[Samples, Samples]:
    """Calibration and evaluation samples."""
    names = _array_names(model_inputs)
    check_names(path, arrays, [n for pair in names.values() for n in pair], "labels")
    batch_size(list(model_inputs))
    for spec in model_inputs:
        for array_name in names[spec.name]:
            shape: tuple[int | str, ...] = ("samples", *sample_shape(spec))
            check_array(path, array_name, arrays[array_name], spec, shape)
            if len(arrays[array_name]) == 0:
                raise DataError(f"{path}: {array_name} is empty")
    calibration = Samples({name: arrays[pair[0]] for name, pair in names.items()})
    inputs = {name: arrays[pair[1]] for name, pair in names.items()}
    _check_lengths(path, {names[n][0]: a for n, a in calibration.inputs.items()})
    _check_lengths(path, {names[n][1]: a for n, a in inputs.items()})
    labels = _labels(path, arrays, len(next(iter(inputs.values()))))
    return calibration, Samples(inputs, labels)


def _array_names(specs: Sequence[InputSpec]) -> dict[str, tuple[str, str]]:
    """Input name -> names of its calibration and evaluation arrays."""
    if len(specs) == 1:
        return {specs[0].name: ("calibration", "inputs")}
    return {spec.name: (f"calibration_{spec.name}", f"inputs_{spec.name}") for spec in specs}


def _check_lengths(path: Path, arrays: dict[str, Array]) -> None:
    if len({len(array) for array in arrays.values()}) > 1:
        told = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
        raise DataError(f"{path}: arrays differ in their number of samples: {told}")


def _labels(path: Path, arrays: dict[str, Array], samples: int) -> Array | None:
    labels = arrays.get("labels")
    if labels is None:
        return None
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"{path}: labels are {labels.dtype}, they must be integers",
            hint="save the index of the right class for every sample",
        )
    if labels.shape != (samples,):
        raise DataError(
            f"{path}: labels have shape {list(labels.shape)}, {samples} inputs need [{samples}]"
        )
    if labels.min() < 0:
        first = int(np.argmax(labels < 0))
        raise DataError(f"{path}: labels[{first}] is {labels[first]}; classes count from 0")
    return labels.astype(np.int64)


def _split(path: Path, samples: Samples, seed: int) -> tuple[Samples, Samples]:
    count = len(samples)
    if count < 2:
        raise DataError(f"{path}: inputs hold {count} sample, two halves need at least 2")
    order = np.random.default_rng(seed).permutation(count)
    half = count // 2
    return samples.take(np.sort(order[:half])), samples.take(np.sort(order[half:]))


def _digest(arrays: dict[str, Array]) -> str:
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()[:16]
