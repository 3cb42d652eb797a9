"""A metric of the user's: ``--metric module:function`` or ``--metric path/to/file.py:function``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.accuracy._metric import Score
from tvmx.accuracy._user_function import load_function
from tvmx.errors import DataError

Array = npt.NDArray[Any]
Function = Callable[[Array, Array | None], Any]

_CONTRACT = (
    "it is called as function(outputs, labels) with NumPy arrays (labels None where the data "
    "has none) and returns percent, more is better"
)


@dataclass(frozen=True)
class UserMetric:
    """A function ``(outputs (samples, ...), labels (samples,) or None) -> percent``.

    ``name`` is what the user typed; scores are of that kind.
    """

    name: str
    function: Function
    fingerprint: str = ""

    def score(self, outputs: Array, *, labels: Array | None, reference: Array) -> Score:
        """What the function returns for copies of the arrays.

        Raises:
            DataError: it raised, or returned something that is no finite number.
        """
        if len(outputs) == 0:
            raise DataError("there is no sample to score")
        try:
            found = self.function(outputs.copy(), None if labels is None else labels.copy())
        except Exception as err:
            raise DataError(
                f"metric {self.name} raised {type(err).__name__}: {err}", hint=_CONTRACT
            ) from err
        return Score(self.name, self._number(found), len(outputs))

    def margins(self, outputs: Array, *, labels: Array | None, reference: Array) -> None:
        """None: nothing is known about its decisions."""

    def _number(self, found: Any) -> float:
        try:
            array = np.asarray(found)
            number = float(array.reshape(())) if array.dtype.kind in "iuf" else None
        except (TypeError, ValueError):
            number = None
        if number is None:
            raise DataError(
                f"metric {self.name} returned {type(found).__name__}, not a number",
                hint=_CONTRACT,
            )
        if not math.isfinite(number):
            raise DataError(f"metric {self.name} returned {number}", hint=_CONTRACT)
        return number


def load_metric(text: str) -> UserMetric:
    """The metric ``module:function`` or ``file.py:function``, see :func:`load_function`.

    Raises UsageError where it cannot be imported.
    """
    function, fingerprint = load_function(text, "metric", "--metric")
    return UserMetric(text, function, fingerprint)
