"""Packed constant sizes of tuned kernels, without packing anything."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvmx.explore._tuning import Tuned
from tvmx.targets import Target


def packed_sizes(tuned: Sequence[Tuned], target: Target) -> dict[tuple[str, str], int]:
    """(workload digest, template) -> bytes of weight and bias at the best config found."""
    return {(t.task.workload.digest, t.task.entry.name): _packed_bytes(t, target) for t in tuned}


def _packed_bytes(tuned: Tuned, target: Target) -> int:
    """From the kernel's own buffers: data, weight, [bias], [residual], out."""
    task = tuned.task
    config = tuned.best or tuned.tuner.space.default
    func = task.entry.template.build(task.workload, config, target).func
    buffers = list(func.params)
    constants = buffers[1 : 3 if task.workload.epilogue.bias else 2]
    return sum(4 * math.prod(int(extent) for extent in b.shape) for b in constants)
