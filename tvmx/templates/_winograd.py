"""Winograd's minimal filtering F(m, 3): matrices for any m, and the transforms as statements.

The matrices are Cook and Toom's for the points 0, +-p, +-q, .. and infinity (Winograd, "Arithmetic
Complexity of Computations", 1980; Lavin and Gray, 2015): ``y = A' [(G g) * (B' d)]``. Points come
in pairs of opposite sign, so a transform computes an even and an odd part and adds and subtracts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_TAPS = 3
POINTS: dict[int, tuple[float, ...]] = {
    2: (1.0,),
    4: (2**-0.5, 2**0.5),
    6: (1.0, 2.0, 0.5),
}
"""Positive points by m. Those of m = 4 err less than 1 and 2 (Barabasz et al., 2020)."""

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Winograd:
    """F(m, 3) in one dimension; two apply it to columns, then rows.

    ``m`` outputs come from ``m + 2`` inputs and as many multiplications.
    """

    m: int
    points: tuple[float, ...]

    @classmethod
    def of(cls, m: int) -> Winograd:
        """F(m, 3) with the points that err least of those tried. ``m`` is 2, 4 or 6."""
        return cls(m, POINTS[m])

    @property
    def all_points(self) -> tuple[float, ...]:
        """The finite points: 0, p, -p, q, -q .."""
        return (0.0, *(sign * p for p in self.points for sign in (1, -1)))

    @property
    def a(self) -> Matrix:
        """A', (m, m + 2): the outputs from the products."""
        powers = np.array([[p**k for p in self.all_points] for k in range(self.m)])
        last = np.zeros((self.m, 1))
        last[-1] = 1
        return np.hstack([powers, last])

    @property
    def b(self) -> Matrix:
        """B', (m + 2, m + 2): of the inputs."""
        points, rows = self.all_points, []
        for i in range(len(points)):
            others = points[:i] + points[i + 1 :]
            rows.append(np.append(np.poly(others)[::-1], 0))
        rows.append(np.poly(points)[::-1])
        return np.array(rows)

    @property
    def g(self) -> Matrix:
        """G, (m + 2, 3): of the filter."""
        points = self.all_points
        rows = [
            np.array([p**k for k in range(_TAPS)])
            / np.prod([p - other for other in points if other != p])
            for p in points
        ]
        return np.array([*rows, [0, 0, 1]])

    def weights(self, weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Filters (O, I, 3, 3) to (O, I, m + 2, m + 2), computed in float64."""
        return (self.g @ weight.astype(np.float64) @ self.g.T).astype(np.float32)

    def forward(self, values: Sequence[Any], lanes: int) -> list[Any]:
        """B' of ``m + 2`` vectors, as expressions; parts that two share are bound."""
        out: list[Any] = [self._row(values, self.b[0], lanes)]
        for pair in range(len(self.points)):
            row = self.b[1 + 2 * pair]
            even = self._row(values, np.where(np.arange(row.size) % 2 == 0, row, 0), lanes)
            odd = self._row(values, np.where(np.arange(row.size) % 2 == 1, row, 0), lanes)
            out += _both(even, odd)
        return [*out, self._row(values, self.b[-1], lanes)]

    def inverse(self, values: Sequence[Any], lanes: int) -> list[Any]:
        """A' of ``m + 2`` vectors, as expressions; parts that several share are bound."""
        first, last = values[0], values[-1]
        sums, differences = [], []
        for pair in range(len(self.points)):
            plus, minus = values[1 + 2 * pair], values[2 + 2 * pair]
            total, difference = _both(plus, minus)
            sums.append(total)
            differences.append(difference)
        out = []
        for k in range(self.m):
            parts = sums if k % 2 == 0 else differences
            total = self._row(parts, np.array([p**k for p in self.points]), lanes)
            if k == 0:
                total = first + total
            if k == self.m - 1:
                total = total + last
            out.append(total)
        return out

    def _row(self, values: Sequence[Any], factors: Matrix, lanes: int) -> Any:
        """The sum of ``values`` times ``factors``, those of 0 left out."""
        from tvmx._tvm import tirx
        from tvmx.templates._block_sparse import spread

        total = None
        # Those of factor 1 first: the others are then fused multiply-adds onto them.
        terms = sorted((i for i, f in enumerate(factors) if f), key=lambda i: abs(factors[i]) != 1)
        for i in terms:
            factor = float(factors[i])
            if total is None:
                total = (
                    values[i]
                    if factor == 1
                    else values[i] * spread(tirx.const(factor, "float32"), lanes)
                )
            elif factor == 1:
                total = total + values[i]
            elif factor == -1:
                total = total - values[i]
            else:
                total = total + values[i] * spread(tirx.const(factor, "float32"), lanes)
        return total


def _both(plus: Any, minus: Any) -> tuple[Any, Any]:
    """Emit two values; their sum and difference."""
    from tvmx._tvm import builder

    plus, minus = builder.Bind(plus), builder.Bind(minus)
    return builder.Bind(plus + minus), builder.Bind(plus - minus)
