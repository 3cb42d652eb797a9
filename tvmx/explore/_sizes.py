"""Packed constant sizes of tuned kernels, without packing anything."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tvmx.explore._evaluate import Task
from tvmx.explore._tuning import Tuned
from tvmx.targets import Target


def packed_sizes(tuned: Sequence[Tuned], target: Target) -> dict[Task, int]:
    """Task -> bytes of its constants (weights, indices, bias) at the best config found."""
    return {t.task: _packed_bytes(t, target) for t in tuned}


def _packed_bytes(tuned: Tuned, target: Target) -> int:
    """From the kernel's own buffers: data, constants, [residual], out."""
    task = tuned.task
    config = tuned.best or tuned.tuner.space.default
    func = task.entry.template.build(task.variant, config, target).func
    buffers = list(func.params)
    constants = buffers[1 : -2 if task.workload.epilogue.residual else -1]
    return sum(
        np.dtype(str(b.dtype)).itemsize * math.prod(int(extent) for extent in b.shape)
        for b in constants
    )
