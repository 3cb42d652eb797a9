"""Whether outputs are those of a plan, where float values at rounding borders are quantised.

The compiled network and the simulation add floats up in different orders. Where such a value is
quantised, its last bit may decide between two steps, and later layers may make any distance of
that. No tolerance is right for it; but outputs that come of the other step can be told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from tvmx.ir import Plan
from tvmx.numerics import QMAX, QMIN, QuantParams, quantise
from tvmx.passes import Simulator, _simulate

Array = npt.NDArray[Any]
Place = tuple[int, int]
"""An element that the simulation quantises: number of the call, index in the flat array."""

_NEAR = 0.005
"""Steps from a border: 2e-5 of a value's range, some times what float sums differ by."""
_MOST_TRIES = 64
"""Elements at a border, the nearest first, that are tried at a time: one simulation each."""
_MOST_MOVES = 6
"""Elements that are moved: one in hundreds of plans is, and several together hardly ever."""


def error_of(got: Array, want: Array) -> Array:
    """How far each element is off, 1 being the most allowed.

    The range alone would not do: that of a single value is nothing, its last bit is not. Operands
    are taken to be of order one, so that their last bits are 1e-7 where a sum cancels to less.
    """
    wide = want.astype(np.float64)
    allowed = 1e-4 * float(np.ptp(wide)) + 2e-6 * max(1.0, float(np.abs(wide).max()))
    return np.abs(got - wide) / allowed


def simulated(
    simulator: Simulator, plan: Plan, inputs: Sequence[Array], moved: Iterable[Place] = ()
) -> tuple[tuple[Array, ...], list[Place]]:
    """Outputs with the elements ``moved`` to the other side; all at a border, nearest first."""
    borders = _Borders(inputs, moved)
    with patch.object(_simulate, "quantise", borders):
        outputs = simulator.expected(plan, inputs)
    return outputs, [place for _, place in sorted(borders.near)]


def other_sides(
    simulator: Simulator, plan: Plan, inputs: Sequence[Array], got: Sequence[Array],
    want: tuple[Array, ...], near: list[Place],
) -> tuple[Array, ...]:  # fmt: skip
    """The simulation nearest to ``got``: elements at borders are moved one by one while it helps.

    ``want`` and ``near`` are what :func:`simulated` returned.
    """
    moved: frozenset[Place] = frozenset()

    def off(outputs: Sequence[Array]) -> float:
        errors = [error_of(a, b) for a, b in zip(got, outputs, strict=True)]
        return sum(float(np.maximum(error - 1, 0).sum()) for error in errors)

    for _ in range(_MOST_MOVES):
        if not near or not off(want):
            break
        tries = [moved ^ {place} for place in near[:_MOST_TRIES]]
        results = [simulated(simulator, plan, inputs, places) for places in tries]
        best = min(range(len(tries)), key=lambda i: off(results[i][0]))
        if off(results[best][0]) >= off(want):
            break
        moved, (want, near) = tries[best], results[best]
    return want


class _Borders:
    """Quantises as the simulation does, but for elements at rounding borders that are moved."""

    def __init__(self, inputs: Sequence[Array], moved: Iterable[Place]) -> None:
        self.near: list[tuple[float, Place]] = []
        self._inputs, self._moved, self._calls = inputs, set(moved), 0

    def __call__(self, values: Array, params: QuantParams) -> Array:
        found = quantise(values, params)
        call, self._calls = self._calls, self._calls + 1
        if any(np.shares_memory(values, x) for x in self._inputs):
            return found  # nothing was computed before, and so nothing was rounded
        steps = values.astype(np.float64) / params.scale
        below = np.floor(steps)
        distance = np.abs(steps - below - 0.5)
        other = 2 * (below + params.zero_point) + 1 - found
        fits = (np.abs(other - found) == 1) & (other >= QMIN) & (other <= QMAX)
        for index in np.flatnonzero(fits & (distance < _NEAR)):
            place = (call, int(index))
            self.near.append((float(distance.flat[index]), place))
            if place in self._moved:
                found.flat[index] = other.flat[index]
        return found
