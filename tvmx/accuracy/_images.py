"""A folder of images as evaluation data: one subfolder a class, or flat and without labels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.accuracy._preprocess import apply, resolved
from tvmx.accuracy._samples import InputSpec
from tvmx.errors import DataError, UsageError
from tvmx.ir import Preprocess

Array = npt.NDArray[Any]

ENDINGS = (".png", ".jpg", ".jpeg")
MOST_BYTES = 4 * 2**30
"""What all samples together may take."""
_CALIBRATION_SHARE, _MOST_CALIBRATION = 0.2, 512


def load_images(
    folder: Path, specs: Sequence[InputSpec], preprocess: Preprocess | None, seed: int
) -> tuple[dict[str, Array], Preprocess]:
    """The arrays an npz file would hold, and the preprocessing with nothing left open.

    A fifth of the images, at most 512, drawn by ``seed``, is for calibration, the rest for
    evaluation. With subfolders, a sample's label is the number of its subfolder by name.

    Raises:
        UsageError: Pillow is not installed.
        DataError: the model takes something else, there are no images or too many, files are
            neither flat nor all in subfolders, or a file is no image (it is named).
    """
    if len(specs) != 1:
        raise DataError(
            f"the model has {len(specs)} inputs: a folder of images is for one",
            hint="give the arrays as an .npz, or a function that returns them",
        )
    (spec,) = specs
    how = resolved(preprocess, spec)
    files, labels = _files(folder)
    if how.limit is not None and len(files) > how.limit:
        kept = np.arange(how.limit) * len(files) // how.limit
        files = [files[i] for i in kept]
        labels = None if labels is None else labels[kept]
    _check_count(folder, len(files), spec)
    samples = np.stack([_read(file, how, spec) for file in files])
    order = np.random.default_rng(seed).permutation(len(files))
    count = min(max(1, int(len(files) * _CALIBRATION_SHARE)), _MOST_CALIBRATION)
    calibration, rest = np.sort(order[:count]), np.sort(order[count:])
    arrays = {"calibration": samples[calibration], "inputs": samples[rest]}
    if labels is not None:
        arrays["labels"] = labels[rest]
    return arrays, how


def _files(folder: Path) -> tuple[list[Path], Array | None]:
    """Image files in order, and their labels where they are in subfolders."""
    flat = _images_in(folder)
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    held = [_images_in(sub) for sub in classes]
    if flat and any(held):
        raise DataError(
            f"{folder} holds images ({flat[0].name}) and subfolders with images "
            f"({next(c for c, h in zip(classes, held, strict=True) if h).name})",
            hint="one subfolder for each class, or all images in the folder itself",
        )
    if flat:
        return flat, None
    if not any(held):
        raise DataError(f"{folder} holds no images", hint=f"images end in {', '.join(ENDINGS)}")
    if empty := [sub.name for sub, files in zip(classes, held, strict=True) if not files]:
        raise DataError(
            f"{folder}: subfolder {empty[0]} holds no images, but each subfolder is a class",
            hint="remove it, or put its images in",
        )
    labels = np.repeat(np.arange(len(held)), [len(files) for files in held])
    return [file for files in held for file in files], labels.astype(np.int64)


def _images_in(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.iterdir()
        if p.suffix.lower() in ENDINGS and p.is_file() and not p.name.startswith(".")
    )  # fmt: skip


def _check_count(folder: Path, count: int, spec: InputSpec) -> None:
    if count < 3:
        raise DataError(
            f"{folder} holds {count} images: calibration and two halves for evaluation need "
            "at least 3"
        )
    each = 4 * int(np.prod(spec.shape[1:]))
    if count * each > MOST_BYTES:
        raise DataError(
            f"{count} images in {folder} take {count * each / 2**30:.1f} GiB as samples, at most "
            f"{MOST_BYTES / 2**30:.0f} are allowed",
            hint=f"set limit = {MOST_BYTES // each} or less in --preprocess",
        )


def _read(file: Path, how: Preprocess, spec: InputSpec) -> Array:
    try:
        from PIL import Image
    except ImportError as err:
        raise UsageError(
            "--data with a folder of images needs Pillow, which is not installed",
            hint="pip install pillow, or give the arrays as an .npz",
        ) from err
    try:
        with warnings.catch_warnings(), Image.open(file) as image:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image.load()
            return apply(image, how, file, spec)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError,
            Image.DecompressionBombWarning) as err:  # fmt: skip
        raise DataError(
            f"image {file} cannot be read: {err}", hint="replace the file, or remove it"
        ) from err
