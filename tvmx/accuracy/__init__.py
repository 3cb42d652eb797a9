"""Calibration and evaluation data, and the metric accuracy drops are told in."""

from tvmx.accuracy._data import load_data
from tvmx.accuracy._metric import Score, agreement, drop, score, top1
from tvmx.accuracy._npz import load_inputs, read_npz
from tvmx.accuracy._samples import Dataset, Feed, InputSpec, Samples

__all__ = [
    "Dataset",
    "Feed",
    "InputSpec",
    "Samples",
    "Score",
    "agreement",
    "drop",
    "load_data",
    "load_inputs",
    "read_npz",
    "score",
    "top1",
]
