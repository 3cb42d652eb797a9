"""Where evaluation data came from, as runs and bundles record it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Pixels = Annotated[int, Field(ge=1, le=16384)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Preprocess(BaseModel):
    """How an image file becomes a sample: ``((pixel * scale) - mean) / std``.

    ``size`` is what images are resized to (bilinear): the shorter side, or (height, width);
    ``crop`` what is then cut out of the middle, a square or (height, width). ``mean`` and ``std``
    are per channel in the order of ``channels``, or one number for all. ``layout`` is that of
    the model's input. At most ``limit`` images are read, evenly spread over all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Pixels | tuple[Pixels, Pixels] | None = None
    crop: Pixels | tuple[Pixels, Pixels] | None = None
    scale: Finite = 1 / 255
    mean: tuple[Finite, ...] = (0.0,)
    std: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = (1.0,)
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    channels: Literal["RGB", "BGR", "GRAY"] = "RGB"
    limit: int | None = Field(default=None, ge=1)


class DataSource(BaseModel):
    """Evaluation data: what kind, which, how images were prepared, digest of the arrays.

    ``name`` is the file's or folder's name, or ``module:function``; never a whole path.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["npz", "images", "callable"]
    name: str
    digest: str
    preprocess: Preprocess | None = None
