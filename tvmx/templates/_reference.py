"""Random operands of a workload and the right answer, computed by PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.ir import BlockSparsity, Conv2dWorkload, DenseWorkload
from tvmx.numerics import (
    LayerConstants,
    LayerParams,
    QuantParams,
    layer_constants,
    prune,
    requantise,
)
from tvmx.templates._base import Array

AnyArray = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Operands:
    """Logical arrays (NCHW, OIHW; or (n, in), (out, in)). ``expected`` is the output.

    float32, or s8 data, residual and output for int8 workloads (residual and output float32 where
    the workload says so); sparse workloads have a
    pruned weight.
    """

    data: AnyArray
    constants: LayerConstants
    residual: AnyArray | None
    expected: AnyArray


def make_operands(workload: Conv2dWorkload | DenseWorkload) -> Operands:
    """Operands seeded by the workload itself, scaled so that outputs are of order one.

    An int8 output covers the s8 range, saturating here and there.
    """
    rng = _generator(workload)
    data, weight = _data_and_weight(workload, rng)
    bias = _normal(rng, workload.weight_shape[0]) if workload.epilogue.bias else None
    residual = _normal(rng, *workload.out_shape) if workload.epilogue.residual else None
    if workload.dtype == "int8":
        return _int8_operands(workload, rng, weight, bias)
    constants = LayerConstants(weight, bias)
    return Operands(data, constants, residual, reference(workload, data, constants, residual))


def random_weight(workload: Conv2dWorkload | DenseWorkload) -> Array:
    """The weight of :func:`make_operands`, float32, alone."""
    return _data_and_weight(workload, _generator(workload))[1]


def _generator(workload: Conv2dWorkload | DenseWorkload) -> np.random.Generator:
    return np.random.default_rng(int(workload.digest, 16))


def _normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, dtype=np.float32)


def _data_and_weight(
    workload: Conv2dWorkload | DenseWorkload, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Float data, and a weight that is pruned where the workload is sparse."""
    data, fan_in = _normal(rng, *workload.data_shape), int(np.prod(workload.weight_shape[1:]))
    weight = _normal(rng, *workload.weight_shape) * np.float32(fan_in**-0.5)
    sparsity = BlockSparsity.parse(workload.sparsity)
    return data, weight if sparsity is None else prune(weight, sparsity)


def _int8_operands(
    workload: Conv2dWorkload | DenseWorkload, rng: np.random.Generator, weight: Array,
    bias: Array | None,
) -> Operands:  # fmt: skip
    data_params, epilogue = QuantParams.from_range(-2.5, 3.5), workload.epilogue
    params = LayerParams(data_params, None)
    if not epilogue.float_out:
        other = QuantParams.from_range(-4.0, 2.5) if epilogue.residual else None
        params = LayerParams(data_params, QuantParams.from_range(-3.0, 2.0), other)
    constants = layer_constants(workload, weight, bias, params)

    def any_int8(shape: tuple[int, ...]) -> AnyArray:
        return rng.integers(-128, 128, shape, dtype=np.int8)

    data, residual = any_int8(workload.data_shape), None
    if epilogue.residual and epilogue.float_out:
        residual = rng.standard_normal(workload.out_shape, dtype=np.float32)
    elif epilogue.residual:
        residual = any_int8(workload.out_shape)
    return Operands(data, constants, residual, reference(workload, data, constants, residual))


def reference(
    workload: Conv2dWorkload | DenseWorkload, data: AnyArray, constants: LayerConstants,
    residual: AnyArray | None,
) -> AnyArray:  # fmt: skip
    """The workload's output on logical operands, by PyTorch.

    The accumulators of int8 layers are computed in float64, where every integer up to 2**53 is
    exact. Any batch size will do.
    """
    if constants.requantise is None:
        return _float_reference(workload, data, constants, residual)
    how = constants.requantise
    sums = linear(workload, data.astype(np.float64), constants.weight.astype(np.float64),
                  None, float(how.data_zero_point))  # fmt: skip
    assert constants.bias is not None
    bias = constants.bias.reshape((1, -1) + (1,) * (sums.ndim - 2))
    return requantise(sums.astype(np.int64) + bias, how, residual)


def _float_reference(
    workload: Conv2dWorkload | DenseWorkload, data: AnyArray, constants: LayerConstants,
    residual: AnyArray | None,
) -> AnyArray:  # fmt: skip
    out = linear(workload, data, constants.weight, constants.bias)
    if residual is not None:
        out = out + residual
    low, high = workload.epilogue.clip_min, workload.epilogue.clip_max
    if low is not None or high is not None:
        out = np.clip(out, low, high)
    return np.ascontiguousarray(out)


def linear(
    workload: Conv2dWorkload | DenseWorkload, data: AnyArray, weight: AnyArray,
    bias: AnyArray | None, padding: float = 0.0,
) -> AnyArray:  # fmt: skip
    """Convolution or matrix product plus bias, ``padding`` around the image; by PyTorch."""
    import torch
    from torch.nn import functional

    def tensor(array: AnyArray | None) -> Any:
        # Constants of a model are read-only, which torch warns about: those are copied.
        return None if array is None else torch.from_numpy(np.require(array, None, ["C", "W"]))

    with torch.inference_mode():
        if isinstance(workload, DenseWorkload):
            out = functional.linear(tensor(data), tensor(weight), tensor(bias))
        else:
            top, left, bottom, right = workload.padding
            image = tensor(data)
            if any(workload.padding):
                image = functional.pad(image, (left, right, top, bottom), value=padding)
            out = functional.conv2d(
                image, tensor(weight), tensor(bias), workload.strides, 0, workload.dilation,
                workload.groups,
            )  # fmt: skip
        result: AnyArray = out.contiguous().numpy()
        return result
