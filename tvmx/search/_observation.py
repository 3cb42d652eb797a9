"""The static part of the observation: layer features and implementation slots."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tvmx.ir._cost_table import CostTable
from tvmx.ir._implementation import Implementation
from tvmx.ir._workload import Conv2dWorkload, DenseWorkload

Vector = npt.NDArray[np.float32]

FEATURES = (
    "position", "macs", "in_channels", "out_channels", "out_height", "out_width",
    "kernel", "stride", "depthwise", "dense", "baseline_share", "decided", "relative",
    "accuracy_left", "weights_left",
)  # fmt: skip
"""Names of the columns before the one-hot slots; the last four change within an episode."""

DECIDED = FEATURES.index("decided")
RELATIVE = FEATURES.index("relative")
DROP_LEFT = FEATURES.index("accuracy_left")
WEIGHTS_LEFT = FEATURES.index("weights_left")


def slot_of(implementation: Implementation) -> str:
    """The one-hot slot of an implementation: its label and the layout it reads."""
    return f"{implementation.label()} <{implementation.data_layout}"


def slots_of(table: CostTable) -> tuple[str, ...]:
    """All slots of a table in order of first appearance."""
    every = (slot_of(i) for costs in table.layers for i in costs.implementations)
    return tuple(dict.fromkeys(every))


def static_rows(table: CostTable, shares: list[float], slots: int) -> Vector:
    """One row per layer and one for the end, (layers + 1, FEATURES + 1 + slots) in [0, 1].

    ``shares`` are the layers' shares of the baseline's latency. The one-hot columns
    ("no previous layer", then the slots) are zero here, the columns of the budgets one.
    """
    count = len(table.layers)
    rows = np.zeros((count + 1, len(FEATURES) + 1 + slots), np.float32)
    for i, costs in enumerate(table.layers):
        workload = table.workloads.get(costs.workload)
        if workload is not None:
            rows[i, 1:10] = _shape_features(workload)
        rows[i, 10] = min(1.0, shares[i])
    rows[:, [DROP_LEFT, WEIGHTS_LEFT]] = 1.0
    rows[:, 0] = np.arange(count + 1) / count
    return rows


def _shape_features(workload: Conv2dWorkload | DenseWorkload) -> list[float]:
    if isinstance(workload, DenseWorkload):
        channels = (workload.in_features, workload.out_features)
        spatial, kernel, stride, depthwise = (1, 1), 1, 1, False
    else:
        channels = (workload.in_channels, workload.out_channels)
        spatial = (workload.out_height, workload.out_width)
        kernel = workload.kernel[0] * workload.kernel[1]
        stride = workload.strides[0] * workload.strides[1]
        depthwise = workload.is_depthwise
    return [
        _log(workload.macs, 40),
        _log(channels[0], 16),
        _log(channels[1], 16),
        _log(spatial[0], 12),
        _log(spatial[1], 12),
        _log(kernel, 8),
        _log(stride, 6),
        float(depthwise),
        float(isinstance(workload, DenseWorkload)),
    ]


def _log(value: int, bits: int) -> float:
    return min(1.0, math.log2(max(1, value)) / bits)
