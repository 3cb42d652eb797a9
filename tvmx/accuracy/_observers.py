"""Observers: take a stream of a value's elements, give the range that int8 is to represent.

Sources of the methods:

* ``minmax``, ``average``: Krishnamoorthi, "Quantizing deep convolutional networks for efficient
  inference: a whitepaper" (2018), section 3.2, and Jacob et al., "Quantization and training of
  neural networks for efficient integer-arithmetic-only inference" (CVPR 2018), section 3.1. They
  smooth batch by batch; here every sample counts the same, so that their order does not matter.
* ``percentile``: Wu et al., "Integer quantization for deep learning inference" (2020), section
  5.2.1; here both ends have their own.
* ``kl`` and ``mse``: :mod:`tvmx.accuracy._entropy` and :mod:`tvmx.accuracy._squared_error`.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from tvmx.accuracy._entropy import entropy_range
from tvmx.accuracy._histogram import Histogram
from tvmx.accuracy._squared_error import squared_error_range

Array = npt.NDArray[Any]
Method = Literal["percentile", "minmax", "average", "kl", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)
PERCENTILE = 99.99


class Observer(Protocol):
    """Sees all elements of one value, part by part, in bounded memory."""

    def add(self, values: Array, step: int = 1) -> None:
        """Take in finite floats (samples, ...).

        Where single elements are counted, of each sample every ``step``-th is.
        """

    def range(self) -> tuple[float, float]:
        """(low, high) of what was seen; at least one element was."""


class MinMax:
    """The lowest and the highest element."""

    def __init__(self) -> None:
        self._low, self._high = np.inf, -np.inf

    def add(self, values: Array, step: int = 1) -> None:
        """See :class:`Observer`."""
        self._low = min(self._low, float(values.min()))
        self._high = max(self._high, float(values.max()))

    def range(self) -> tuple[float, float]:
        """See :class:`Observer`."""
        return self._low, self._high


class Average:
    """The mean over samples of each sample's lowest and highest element."""

    def __init__(self) -> None:
        self._sums = np.zeros(2)
        self._samples = 0

    def add(self, values: Array, step: int = 1) -> None:
        """See :class:`Observer`."""
        rows = values.reshape(len(values), -1)
        self._sums += rows.min(axis=1).sum(dtype=np.float64), rows.max(axis=1).sum(dtype=np.float64)
        self._samples += len(rows)

    def range(self) -> tuple[float, float]:
        """See :class:`Observer`."""
        low, high = self._sums / self._samples
        return float(low), float(high)


class Percentile(Histogram):
    """The elements at ``100 - percent`` and ``percent`` percent."""

    def __init__(self, percent: float) -> None:
        super().__init__()
        self._percent = percent

    def range(self) -> tuple[float, float]:
        """See :class:`Observer`."""
        return self.percentile(100 - self._percent), self.percentile(self._percent)


class Entropy(Histogram):
    """See :func:`entropy_range`."""

    def range(self) -> tuple[float, float]:
        """See :class:`Observer`."""
        return entropy_range(self)


class SquaredError(Histogram):
    """See :func:`squared_error_range`."""

    def range(self) -> tuple[float, float]:
        """See :class:`Observer`."""
        return squared_error_range(self)


def observer(method: Method, percent: float = PERCENTILE) -> Observer:
    """A new observer; ``percent`` is for ``percentile``."""
    match method:
        case "minmax":
            return MinMax()
        case "average":
            return Average()
        case "percentile":
            return Percentile(percent)
        case "kl":
            return Entropy()
        case "mse":
            return SquaredError()
