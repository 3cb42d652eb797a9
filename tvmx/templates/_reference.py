"""Random operands of a workload and the right answer, computed by PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tvmx.ir import Conv2dWorkload, DenseWorkload
from tvmx.templates._base import Array


@dataclass(frozen=True, eq=False)
class Operands:
    """Logical arrays (NCHW, OIHW; or (n, in), (out, in)), float32. ``expected`` is the output."""

    data: Array
    weight: Array
    bias: Array | None
    residual: Array | None
    expected: Array


def make_operands(workload: Conv2dWorkload | DenseWorkload) -> Operands:
    """Operands seeded by the workload itself, scaled so that outputs are of order one."""
    rng = np.random.default_rng(int(workload.digest, 16))

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32)

    fan_in = int(np.prod(workload.weight_shape[1:]))
    data = normal(*workload.data_shape)
    weight = normal(*workload.weight_shape) * np.float32(fan_in**-0.5)
    bias = normal(workload.weight_shape[0]) if workload.epilogue.bias else None
    residual = normal(*workload.out_shape) if workload.epilogue.residual else None
    expected = reference(workload, data, weight, bias, residual)
    return Operands(data, weight, bias, residual, expected)


def reference(
    workload: Conv2dWorkload | DenseWorkload, data: Array, weight: Array,
    bias: Array | None, residual: Array | None,
) -> Array:  # fmt: skip
    """The workload's output on logical float32 operands, by PyTorch."""
    import torch
    from torch.nn import functional

    def tensor(array: Array | None) -> Any:
        return None if array is None else torch.from_numpy(np.ascontiguousarray(array))

    with torch.inference_mode():
        if isinstance(workload, DenseWorkload):
            out = functional.linear(tensor(data), tensor(weight), tensor(bias))
        else:
            top, left, bottom, right = workload.padding
            out = functional.conv2d(
                functional.pad(tensor(data), (left, right, top, bottom)), tensor(weight),
                tensor(bias), workload.strides, 0, workload.dilation, workload.groups,
            )  # fmt: skip
        if residual is not None:
            out = out + tensor(residual)
        low, high = workload.epilogue.clip_min, workload.epilogue.clip_max
        if low is not None or high is not None:
            out = out.clamp(low, high)
        result: Array = out.contiguous().numpy()
        return result
