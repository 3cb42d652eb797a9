"""Calibration and evaluation data, the metric accuracy drops are told in, and their simulation."""

from typing import TYPE_CHECKING, Any

from tvmx.accuracy._data import kind_of, load_data
from tvmx.accuracy._metric import DEFAULT_METRIC, Metric, Score, agreement, drop, score, top1
from tvmx.accuracy._npz import load_inputs, read_npz
from tvmx.accuracy._samples import Dataset, Feed, InputSpec, Samples
from tvmx.accuracy._user_metric import UserMetric, load_metric

if TYPE_CHECKING:
    from tvmx.accuracy._batches import spread
    from tvmx.accuracy._calibrate import calibrate
    from tvmx.accuracy._clipping import clipped_shares
    from tvmx.accuracy._correct_bias import correct_biases
    from tvmx.accuracy._layer_inputs import prunable
    from tvmx.accuracy._prune_layers import PrunedLayer, prune_layers
    from tvmx.accuracy._sensitivity import (
        Judge,
        Sensitivities,
        joint_drop,
        sensitivities,
        sensitivity_key,
    )
    from tvmx.accuracy._sqnr import Effect, layer_effects, plan_effects, sqnr

__all__ = [
    "DEFAULT_METRIC", "Dataset", "Effect", "Feed", "InputSpec", "Judge", "Metric", "PrunedLayer",
    "Samples", "Score", "Sensitivities", "UserMetric", "agreement", "calibrate", "clipped_shares",
    "correct_biases", "drop", "joint_drop", "kind_of", "layer_effects", "load_data", "load_inputs",
    "load_metric", "plan_effects", "prunable", "prune_layers", "read_npz", "score", "sensitivities",
    "sensitivity_key", "spread", "sqnr", "top1",
]  # fmt: skip

_LAZY = {
    "spread": "_batches", "calibrate": "_calibrate", "clipped_shares": "_clipping",
    "correct_biases": "_correct_bias", "prunable": "_layer_inputs",
    "PrunedLayer": "_prune_layers", "prune_layers": "_prune_layers", "Judge": "_sensitivity",
    "Sensitivities": "_sensitivity", "joint_drop": "_sensitivity",
    "sensitivities": "_sensitivity", "sensitivity_key": "_sensitivity",
    "Effect": "_sqnr", "layer_effects": "_sqnr", "plan_effects": "_sqnr", "sqnr": "_sqnr",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import what needs the simulator's packages on first use."""
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"tvmx.accuracy.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
