"""The ``--preprocess`` file, and what it does to one image."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from tvmx.errors import DataError, UsageError
from tvmx.ir import Preprocess

if TYPE_CHECKING:
    from PIL.Image import Image

    from tvmx.accuracy._samples import InputSpec

Array = npt.NDArray[Any]

_KEYS = "size, crop, scale, mean, std, layout, channels, limit"


def load_preprocess(path: Path) -> Preprocess:
    """Read a TOML file, or JSON where it is named so.

    Raises:
        UsageError: there is no such file, it is damaged, or a key is unknown or wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise UsageError(
            f"preprocessing file {path} cannot be read: {err}", hint=f"a TOML file with {_KEYS}"
        ) from err
    try:
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        return Preprocess.model_validate(found)
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise UsageError(
            f"preprocessing file {path}: {where}: {first['msg']}", hint=f"keys are {_KEYS}"
        ) from err
    except ValueError as err:  # TOML or JSON that is none
        raise UsageError(f"preprocessing file {path} is damaged: {err}") from err


def resolved(asked: Preprocess | None, spec: InputSpec) -> Preprocess:
    """The preprocessing for a model's input; without any, images are resized to the input.

    Raises:
        DataError: the input takes no images, or those of other channels or another size.
    """
    if len(spec.shape) != 4 or spec.dtype != "float32":
        raise DataError(
            f"the model's input {spec.name!r} is {spec.dtype} {list(spec.shape)}: a folder of "
            "images needs a float32 input of four dimensions",
            hint="give the arrays as an .npz, or a function that returns them",
        )
    how = asked or Preprocess(channels="GRAY" if spec.shape[1] == 1 else "RGB")
    channels, height, width = _parts(spec.shape, how.layout)
    if how.size is None and how.crop is None:
        how = how.model_copy(update={"size": (height, width)})
    wanted = 1 if how.channels == "GRAY" else 3
    if channels != wanted:
        raise DataError(
            f"the model's input {spec.name!r} {list(spec.shape)} has {channels} channels in "
            f"layout {how.layout}, {how.channels} images have {wanted}",
            hint='set channels = "GRAY"|"RGB"|"BGR" and layout = "NCHW"|"NHWC" in --preprocess',
        )
    for name in ("mean", "std"):
        if len(getattr(how, name)) not in (1, channels):
            raise DataError(
                f"--preprocess has {len(getattr(how, name))} numbers in {name}, "
                f"{how.channels} images have {channels} channels"
            )
    made = how.crop if how.crop is not None else how.size
    both = isinstance(made, tuple) or how.crop is not None
    if both and _pair(made) != (height, width):
        raise DataError(
            f"--preprocess makes images of {_told(_pair(made))} pixels (height x width), the "
            f"model's input {spec.name!r} takes {_told((height, width))}",
            hint=f"set crop = [{height}, {width}], or leave out size and crop",
        )
    return how


def apply(image: Image, how: Preprocess, name: Path, spec: InputSpec) -> Array:
    """A sample of the model's shape. Raises DataError where the image does not come out so."""
    from PIL.Image import Resampling

    image = image.convert("L" if how.channels == "GRAY" else "RGB")
    if how.size is not None:
        image = image.resize(_resized(image.size, how.size), Resampling.BILINEAR)
    if how.crop is not None:
        image = _cropped(image, _pair(how.crop), name)
    _, *wanted = _parts(spec.shape, how.layout)
    if (image.height, image.width) != tuple(wanted):
        raise DataError(
            f"{name} is {_told((image.height, image.width))} pixels after --preprocess, the "
            f"model's input {spec.name!r} takes {_told((wanted[0], wanted[1]))}",
            hint=f"set crop = [{wanted[0]}, {wanted[1]}]: size alone keeps the aspect ratio",
        )
    pixels = np.asarray(image, np.float64).reshape(image.height, image.width, -1)
    if how.channels == "BGR":
        pixels = pixels[..., ::-1]
    sample = ((pixels * how.scale - np.array(how.mean)) / np.array(how.std)).astype(np.float32)
    return sample if how.layout == "NHWC" else np.ascontiguousarray(sample.transpose(2, 0, 1))


def _parts(shape: tuple[int, ...], layout: str) -> tuple[int, int, int]:
    """Channels, height, width."""
    _, a, b, c = shape
    return (a, b, c) if layout == "NCHW" else (c, a, b)


def _pair(size: Any) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def _told(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _resized(size: tuple[int, int], wanted: int | tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the resized image."""
    if isinstance(wanted, tuple):
        return wanted[1], wanted[0]
    width, height = size
    shorter = min(width, height)
    # Rounded down, as torchvision does.
    return max(1, width * wanted // shorter), max(1, height * wanted // shorter)


def _cropped(image: Image, size: tuple[int, int], name: Path) -> Image:
    height, width = size
    if image.height < height or image.width < width:
        raise DataError(
            f"{name} is {_told((image.height, image.width))} pixels, {_told(size)} are cut out",
            hint="set size in --preprocess to at least crop",
        )
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
