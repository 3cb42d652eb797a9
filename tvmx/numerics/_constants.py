"""What a kernel's constants are made from: logical weights, bias, requantisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.ir import Rounding


@dataclass(frozen=True, eq=False)
class Requantise:
    """How one int8 layer's int32 accumulators become s8. Runtime data: kernels are shared.

    ``multiplier`` is float32 (out_channels,): data scale * weight scale / output scale.
    ``residual_factor`` and ``residual_offset`` are the float32 numbers of
    :func:`tvmx.numerics.requantise` for a residual (both zero points are in the offset). ``low``
    and ``high`` are the clip bounds on the s8 output. In a ``rounding`` other than ``even``
    ``multiplier`` and ``shift`` are int32 (out_channels,) as
    :func:`tvmx.numerics.multiply_fixed` takes them; then there is no residual.

    ``offset`` float32 (out_channels,), where there is one, is the bias in steps of the output, zero
    point aside. With ``float_out`` the output is float32 (and so is a residual): multiplier, offset
    and bounds are in real units then, and only the data's zero point counts.
    """

    multiplier: npt.NDArray[Any]
    data_zero_point: int
    out_zero_point: int
    low: float
    high: float
    residual_factor: float = 0.0
    residual_offset: float = 0.0
    rounding: Rounding = "even"
    shift: npt.NDArray[np.int32] | None = None
    offset: npt.NDArray[np.float32] | None = None
    float_out: bool = False


@dataclass(frozen=True, eq=False)
class LayerConstants:
    """One layer's logical constants.

    Float layers: ``weight`` float32 OIHW or (out, in), already pruned where the
    implementation is block-sparse; ``bias`` float32 (out,) or None; ``requantise`` None.

    int8 layers: ``weight`` s8 in [-127, 127]; ``bias`` int32 (out,), always there, with
    ``-data_zero_point * sum(weight)`` folded in: then accumulators of raw s8 data (padding is
    the zero point) plus bias are those of the real numbers; ``requantise`` is set. A bias that is
    added in float is ``requantise.offset`` instead.
    """

    weight: npt.NDArray[Any]
    bias: npt.NDArray[Any] | None
    requantise: Requantise | None = None
