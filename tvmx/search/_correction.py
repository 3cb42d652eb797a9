"""What cost tables leave out of whole networks, learnt from plans that were measured whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tvmx.ir import CostTable, is_int8, value_bytes
from tvmx.search._graph_walk import ConversionKey, parse_transition

Vector = npt.NDArray[np.float64]

TERMS = (
    "kernels", "conversions", "conversion_kib", "switches", "adds", "others_kib", "cold_kib",
)  # fmt: skip
"""What a plan has of each; one learnt price in us goes with each.

``kernels``: calls, conversions included; ``conversions`` of layout or type, ``conversion_kib`` what
they read and write, ``switches`` those that change the type; ``adds``: residuals added within a
layer; ``others_kib``: read and written by operators that are no layers (pooling, concatenation),
which the table does not have; ``cold_kib``: constants and activations beyond what the L2 holds,
which were warm when kernels were measured alone.
"""

_PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0, math.inf)
_FEWEST = 4  # plans; with fewer nothing but the common factor is learnt
_LEAST, _MOST = 0.2, 5.0  # of the prediction: what a correction may make of it


class Sample(NamedTuple):
    """A plan that was measured whole: what the table said, us, what it took, us, its terms."""

    predicted_us: float
    measured_us: float
    terms: Mapping[str, float]

    @property
    def residual(self) -> float:
        """Relative: 0.1 means that it took 10 % longer than the table said."""
        return self.measured_us / self.predicted_us - 1


@dataclass(frozen=True)
class Correction:
    """measured = predicted x factor + sum of terms x prices; the identity where nothing is known.

    Fitted as a ridge regression of the relative residual on terms / predicted, each scaled to unit
    deviation, the intercept free. So the prices are us per kernel, per KiB ..., and what one
    network taught can be applied to another on the same device.
    """

    factor: float = 1.0
    prices: Mapping[str, float] = field(default_factory=dict)
    samples: int = 0

    @classmethod
    def fit(cls, samples: Sequence[Sample]) -> Correction:
        """Learn from these; the penalty is the one of least error leaving one out."""
        if not samples:
            return cls()
        x, y = _rows(samples), np.array([s.residual for s in samples])
        scale = x.std(axis=0)
        used = scale > 1e-9 * np.abs(x).max(axis=0)
        middle = x.mean(axis=0)
        z = (x[:, used] - middle[used]) / scale[used]
        weights = _weights(z, y, _best_penalty(z, y))
        prices = np.zeros(len(TERMS))
        prices[used] = weights / scale[used]
        intercept = float(y.mean() - prices @ middle)
        told = {name: float(p) for name, p in zip(TERMS, prices, strict=True) if p}
        return cls(1 + intercept, told, len(samples))

    def us(self, predicted_us: float, terms: Mapping[str, float]) -> float:
        """The latency expected of a whole plan, us."""
        found = predicted_us * self.factor
        found += sum(price * terms.get(name, 0.0) for name, price in self.prices.items())
        return min(_MOST * predicted_us, max(_LEAST * predicted_us, found))

    def applied(self, table: CostTable, *, cold: bool) -> CostTable:
        """The table with what adds up over layers and conversions put into its figures.

        ``cold``: plans are larger than the L2, so every KiB of constants costs. What all plans of a
        network share does not choose between them and is left out.
        """
        scale = 1 / max(self.factor, _LEAST)
        kib = self.prices.get("cold_kib", 0.0) * scale / 1024 if cold else 0.0
        layers = [
            costs.model_copy(
                update={
                    "latency_us": tuple(
                        None if us is None else max(_LEAST * us, us + kib * size)
                        for us, size in zip(costs.latency_us, costs.weights_bytes, strict=True)
                    )
                }
            )
            for costs in table.layers
        ]
        transitions = {
            key: max(0.0, us + scale * self._conversion_us(parse_transition(key)))
            for key, us in table.transitions.items()
        }
        return table.model_copy(update={"layers": tuple(layers), "transitions": transitions})

    def _conversion_us(self, conversion: ConversionKey) -> float:
        terms = conversion_terms(conversion)
        return sum(self.prices.get(name, 0.0) * value for name, value in terms.items())

    def describe(self) -> str:
        """Such as ``x 1.05; conversions +1.2 us``: the factor and the largest prices."""
        told = [f"{name} {price:+.3g} us" for name, price in self.prices.items()]
        return "; ".join([f"x {self.factor:.3f}", *told])


def conversion_terms(conversion: ConversionKey) -> dict[str, float]:
    """What one conversion (shape, source, destination) adds to a plan's terms."""
    shape, source, destination = conversion
    moved = value_bytes(shape, source) + value_bytes(shape, destination)
    return {
        "kernels": 1.0, "conversions": 1.0, "conversion_kib": moved / 1024,
        "switches": float(is_int8(source) != is_int8(destination)),
    }  # fmt: skip


def held_out(samples: Sequence[Sample], groups: Sequence[object] | None = None) -> list[float]:
    """What is predicted for each sample, us, by a correction that has not seen it.

    Nor any other sample of its group; without ``groups`` each is one of its own.
    """
    names = list(range(len(samples))) if groups is None else list(groups)
    fits = {
        name: Correction.fit([s for s, other in zip(samples, names, strict=True) if other != name])
        for name in dict.fromkeys(names)
    }
    pairs = zip(samples, names, strict=True)
    return [fits[name].us(s.predicted_us, s.terms) for s, name in pairs]


def _rows(samples: Sequence[Sample]) -> Vector:
    return np.array([[s.terms.get(t, 0.0) / s.predicted_us for t in TERMS] for s in samples])


def _best_penalty(z: Vector, y: Vector) -> float:
    if len(y) < _FEWEST or not z.shape[1]:
        return math.inf
    # The simplest one of equals: exact data would take the smallest penalty all the same.
    return min(reversed(_PENALTIES), key=lambda penalty: _left_out_error(z, y, penalty))


def _left_out_error(z: Vector, y: Vector, penalty: float) -> float:
    """Mean square of the errors leaving one out, in closed form."""
    count = len(y)
    hat: Any = np.full((count, count), 1 / count)
    if math.isfinite(penalty):
        inner = np.linalg.inv(z.T @ z + penalty * np.eye(z.shape[1]))
        hat = hat + z @ inner @ z.T
    errors = (y - hat @ y) / np.maximum(1 - np.diag(hat), 1e-9)
    return float(np.mean(errors**2))


def _weights(z: Vector, y: Vector, penalty: float) -> Vector:
    if math.isinf(penalty):
        return np.zeros(z.shape[1])
    inner = z.T @ z + penalty * np.eye(z.shape[1])
    found: Vector = np.linalg.solve(inner, z.T @ (y - y.mean()))
    return found
