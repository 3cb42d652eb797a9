"""Accuracy in percent: top-1 on labels, else agreement with the float reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tvmx.errors import DataError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Score:
    """An accuracy in percent and what it means: ``top-1`` or ``agreement``."""

    kind: Literal["top-1", "agreement"]
    percent: float
    samples: int


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


def score(outputs: Array, *, labels: Array | None, reference: Array) -> Score:
    """Top-1 where there are labels, else agreement with ``reference`` outputs.

    Raises DataError as :func:`top1` and :func:`agreement` do.
    """
    if labels is not None:
        return Score("top-1", top1(outputs, labels), len(outputs))
    return Score("agreement", agreement(outputs, reference), len(outputs))


def drop(reference: Score, candidate: Score) -> float:
    """How much accuracy ``candidate`` loses, in percentage points (negative: it gains).

    Raises:
        DataError: one is top-1, the other agreement, or the numbers of samples differ.
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
