"""How many of a value's elements its calibrated range cannot represent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tvmx.accuracy._batches import calls_at_once, chunks
from tvmx.accuracy._samples import InputSpec, Samples

if TYPE_CHECKING:
    from tvmx.numerics import QuantParams
    from tvmx.passes._simulate import Simulator

Array = npt.NDArray[Any]


def clipped_shares(
    simulator: Simulator, samples: Samples, specs: Mapping[str, InputSpec],
    params: Mapping[int, QuantParams],
) -> dict[int, float]:  # fmt: skip
    """By value, the share (0 to 1) of the float network's elements that saturate in int8.

    An element saturates where it is more than half a step outside the range, so that int8 is
    further off than rounding would be.
    """
    clipped, seen = dict.fromkeys(params, 0), dict.fromkeys(params, 0)
    for chunk in chunks(samples, specs, calls_at_once(simulator.network)):
        values = simulator.run(chunk.inputs)
        for value, how in params.items():
            found = chunk.valid(values[value])
            clipped[value] += _outside(found, how)
            seen[value] += found.size
    return {value: clipped[value] / max(1, seen[value]) for value in params}


def _outside(values: Array, params: QuantParams) -> int:
    from tvmx.numerics import QMAX, QMIN

    low, high = ((q - params.zero_point) * params.scale for q in (QMIN - 0.5, QMAX + 0.5))
    return int(np.count_nonzero((values < low) | (values > high)))
