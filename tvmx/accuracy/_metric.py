"""Accuracy in percent: top-1 on labels, else agreement with the float reference.

A metric of the user's takes the place of both, see :mod:`tvmx.accuracy._user_metric`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tvmx.errors import DataError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Score:
    """An accuracy in percent and what it means.

    ``kind`` is ``top-1``, ``agreement`` or the user's ``module:function``.
    """

    kind: str
    percent: float
    samples: int


class Metric(Protocol):
    """How outputs are scored.

    ``labels`` is (samples,), or None; ``reference`` are the float network's outputs.
    """

    @property
    def fingerprint(self) -> str:
        """Changes when what the metric computes may have changed: cached figures go by it."""

    def score(self, outputs: Array, *, labels: Array | None, reference: Array) -> Score:
        """Accuracy of ``outputs`` (samples, ...); more is better. Raises DataError."""

    def margins(self, outputs: Array, *, labels: Array | None, reference: Array) -> Array | None:
        """Per decision, how far it is from changing: positive where right, as the score counts.

        None where the score is not a share of right decisions. Raises DataError as ``score``.
        """


def top1(outputs: Array, labels: Array) -> float:
    """Percent of samples whose largest output is the label's.

    ``outputs`` is (samples, classes), trailing dimensions of 1 allowed; ``labels`` integer
    (samples,). A sample with a NaN among its outputs is wrong.

    Raises:
        DataError: shapes do not fit, or a label is no class of the model.
    """
    scores = outputs.reshape(outputs.shape[:2]) if _is_classes(outputs) else outputs
    if scores.ndim != 2:
        raise DataError(
            f"the model's output {list(outputs.shape)} is not (samples, classes), "
            "so labels have no meaning",
            hint="leave `labels` out of the data file to compare with the float reference",
        )
    if labels.shape != (len(scores),):
        raise DataError(f"{len(scores)} outputs, but labels of shape {list(labels.shape)}")
    if len(labels) and int(labels.max()) >= scores.shape[1]:
        raise DataError(
            f"label {int(labels.max())} is none of the model's {scores.shape[1]} classes (from 0)"
        )
    right = (scores.argmax(1) == labels) & ~np.isnan(scores).any(1)
    return _percent(right)


def agreement(outputs: Array, reference: Array) -> float:
    """Percent of decisions that equal the float reference's.

    Both are (samples, classes, ...): the decision is the largest entry along axis 1, at every
    position of the trailing dimensions. A decision over values with a NaN never agrees.

    Raises:
        DataError: shapes differ, or there are no classes to decide between.
    """
    if outputs.shape != reference.shape:
        raise DataError(f"outputs {list(outputs.shape)}, but reference {list(reference.shape)}")
    if outputs.ndim < 2 or outputs.shape[1] < 2:
        raise DataError(
            f"the model's output {list(outputs.shape)} has no classes to decide between, "
            "so agreement has no meaning",
            hint="leave out --data",
        )
    broken = np.isnan(outputs).any(1) | np.isnan(reference).any(1)
    return _percent((outputs.argmax(1) == reference.argmax(1)) & ~broken)


@dataclass(frozen=True)
class DecisionMetric:
    """The default: top-1 where there are labels, else agreement with the float outputs."""

    @property
    def fingerprint(self) -> str:
        """Nothing of the user's is in it."""
        return ""

    def score(self, outputs: Array, *, labels: Array | None, reference: Array) -> Score:
        """See :func:`top1` and :func:`agreement`, which raise DataError."""
        if labels is not None:
            return Score("top-1", top1(outputs, labels), len(outputs))
        return Score("agreement", agreement(outputs, reference), len(outputs))

    def margins(self, outputs: Array, *, labels: Array | None, reference: Array) -> Array:
        """The right class's output less the largest other one; -inf where there is a NaN."""
        self.score(outputs, labels=labels, reference=reference)  # for its errors
        if labels is None:
            right = np.expand_dims(reference.argmax(1), 1)
        else:
            right = labels.reshape((-1,) + (1,) * (outputs.ndim - 1))
        own = np.take_along_axis(outputs, right, 1)
        others = outputs.copy()
        np.put_along_axis(others, right, -np.inf, 1)
        with np.errstate(invalid="ignore"):
            margins: Array = own[:, 0] - others.max(axis=1)
        margins[np.isnan(outputs).any(1) | np.isnan(margins)] = -np.inf
        return margins


DEFAULT_METRIC: Metric = DecisionMetric()


def score(
    outputs: Array, *, labels: Array | None, reference: Array, metric: Metric = DEFAULT_METRIC
) -> Score:
    """Score of ``outputs`` by a metric, see :class:`Metric`. Raises DataError."""
    return metric.score(outputs, labels=labels, reference=reference)


def drop(reference: Score, candidate: Score) -> float:
    """How much accuracy ``candidate`` loses, in percentage points (negative: it gains).

    Raises:
        DataError: they are of different metrics, or the numbers of samples differ.
    """
    if (reference.kind, reference.samples) != (candidate.kind, candidate.samples):
        raise DataError(
            f"{reference.kind} on {reference.samples} samples cannot be compared with "
            f"{candidate.kind} on {candidate.samples}"
        )
    return reference.percent - candidate.percent


def _is_classes(outputs: Array) -> bool:
    return outputs.ndim >= 2 and all(size == 1 for size in outputs.shape[2:])


def _percent(right: npt.NDArray[np.bool_]) -> float:
    if right.size == 0:
        raise DataError("there is no sample to score")
    return 100.0 * float(np.count_nonzero(right)) / right.size
