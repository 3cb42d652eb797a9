"""Resize and Upsample, exactly as ONNX says: each axis a sum of a few gathered neighbours.

TVM's own resizing takes the scale from the sizes, which ONNX does not, and knows neither
antialiasing nor axes, aspect ratios and symmetric pixels. Positions and weights are constants here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx._tvm import relax
from tvmx.frontends._onnx_attributes import array, ints, text
from tvmx.frontends._reason import RuleError

Array = npt.NDArray[Any]
_MOST_TAPS = 64
_MOST_ELEMENTS = 1 << 28


@dataclass(frozen=True)
class Sampling:
    """How positions of the result become positions of the input, and those values."""

    mode: str = "nearest"
    coordinates: str = "half_pixel"
    rounding: str = "round_prefer_floor"
    cubic: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False

    def positions(
        self, size: int, out: int, scale: float, roi: tuple[float, float]
    ) -> npt.NDArray[np.float64]:
        """Where each element of an axis comes from. Raises RuleError for an unknown mode."""
        i, width = np.arange(out, dtype=np.float64), scale * size
        half = (i + 0.5) / scale - 0.5
        match self.coordinates:
            case "half_pixel":
                return half
            case "half_pixel_symmetric":
                return half + size / 2 * (1 - out / width)
            case "pytorch_half_pixel":
                return half if width != 1 else np.full(out, -0.5)
            case "asymmetric":
                return i / scale
            case "align_corners":
                return i * (size - 1) / (width - 1) if width != 1 else np.zeros(out)
            case "tf_crop_and_resize":
                start, span = roi[0] * (size - 1), (roi[1] - roi[0]) * (size - 1)
                steps = i * span / (width - 1) if width != 1 else np.full(out, span / 2)
                return start + steps
        raise RuleError(f"coordinate_transformation_mode {self.coordinates!r}")

    def taps(
        self, positions: npt.NDArray[np.float64], size: int, scale: float
    ) -> tuple[Array, Array]:
        """Indices and weights, each (taps, elements)."""
        left = np.ceil(positions) - 1  # of an integral position, the neighbour before it
        first, count = self._footprint(scale)
        steps = np.arange(first, first + count, dtype=np.float64)[:, None]
        weights = self._weights(steps - (positions - left), scale)
        indices = left + steps
        if self.exclude_outside and self.mode != "nearest":
            weights = np.where((indices < 0) | (indices >= size), 0.0, weights)
        weights = weights / weights.sum(axis=0)
        return np.clip(indices, 0, size - 1).astype(np.int64), weights

    def _footprint(self, scale: float) -> tuple[int, int]:
        reach = {"nearest": 1, "linear": 1, "cubic": 2}.get(self.mode)
        if reach is None:
            raise RuleError(f"mode {self.mode!r}")
        if self.antialias and self.mode != "nearest":
            first = math.floor(-reach / min(scale, 1.0)) + 1
            if 2 - 2 * first > _MOST_TAPS:
                raise RuleError(f"an antialiasing filter over {2 - 2 * first} elements")
            return first, 2 - 2 * first
        return 1 - reach, 2 * reach

    def _weights(self, distance: Array, scale: float) -> Array:
        """Weight of each neighbour by its distance from the position, neighbour - position."""
        if self.mode == "nearest":
            return self._nearest(distance)
        x = np.abs(distance * (min(scale, 1.0) if self.antialias else 1.0))
        if self.mode == "linear":
            return np.asarray(np.maximum(1 - x, 0))
        a = self.cubic
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        return np.where(x <= 1, near, np.where(x < 2, far, 0.0))

    def _nearest(self, distance: Array) -> Array:
        ratio = -distance[0]  # of the position between its neighbours, in (0, 1]
        match self.rounding:
            case "round_prefer_floor":
                right = ratio > 0.5
            case "round_prefer_ceil":
                right = ratio >= 0.5
            case "floor":
                right = ratio == 1
            case "ceil":
                right = ratio > 0
            case _:
                raise RuleError(f"nearest_mode {self.rounding!r}")
        return np.stack([~right, right]).astype(np.float64)


def resize(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    """Resize of opset 10 and later; every shape-giving input must be a constant."""
    data = inputs[0]
    shape = ints(data.ty.shape)
    if opset < 11:
        sampling = Sampling(text(attrs, "mode", "nearest"), "asymmetric", "floor")
        return _resized(data, sampling, list(range(len(shape))), _constant(inputs[1]), None, None)
    sampling = Sampling(
        text(attrs, "mode", "nearest"),
        text(attrs, "coordinate_transformation_mode", "half_pixel"),
        text(attrs, "nearest_mode", "round_prefer_floor"),
        attrs.get("cubic_coeff_a", -0.75),
        bool(attrs.get("exclude_outside", 0)),
        bool(attrs.get("antialias", 0)),
    )
    axes = [axis % len(shape) for axis in attrs.get("axes", range(len(shape)))]
    scales, sizes = _constant(inputs[2]), _constant(inputs[3])
    if sizes is not None and sizes.size:
        scales, sizes = _aspect(shape, axes, sizes, text(attrs, "keep_aspect_ratio_policy", ""))
    else:
        sizes = None
    roi = _constant(inputs[1]) if sampling.coordinates == "tf_crop_and_resize" else None
    outside = attrs.get("extrapolation_value", 0.0)
    return _resized(data, sampling, axes, scales, sizes, roi, outside)


def upsample(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    """Upsample of opsets 7 and 9."""
    data = inputs[0]
    scales = np.array(attrs["scales"]) if opset < 9 else _constant(inputs[1])
    sampling = Sampling(text(attrs, "mode", "nearest"), "asymmetric", "floor")
    return _resized(data, sampling, list(range(len(data.ty.shape))), scales, None, None)


def _constant(expr: Any) -> Array | None:
    if expr is None:
        return None
    value = array(expr)
    if value is None:
        raise RuleError("its sizes, scales or region are computed from the network's inputs")
    return np.asarray(value, np.float64)


def _aspect(
    shape: tuple[int, ...], axes: list[int], sizes: Array, policy: str
) -> tuple[Array, Array]:
    scales = sizes / np.array([shape[axis] for axis in axes], np.float64)
    if policy in ("", "stretch"):
        return scales, sizes
    if policy not in ("not_larger", "not_smaller"):
        raise RuleError(f"keep_aspect_ratio_policy {policy!r}")
    scale = scales.min() if policy == "not_larger" else scales.max()
    kept = np.floor(np.array([shape[axis] for axis in axes]) * scale + 0.5)
    return np.full(len(axes), scale), kept


def _resized(
    data: Any, sampling: Sampling, axes: list[int], scales: Array | None, sizes: Array | None,
    roi: Array | None, outside_value: float = 0.0,
) -> Any:  # fmt: skip
    shape = list(ints(data.ty.shape))
    if scales is None or len(scales) != len(axes):
        raise RuleError(f"it needs one scale or size for each of {len(axes)} axes")
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        raise RuleError(f"it scales by {scales.tolist()}")
    rank, result, outside = len(shape), data, np.zeros((1,) * len(shape), bool)
    for index, axis in enumerate(axes):
        scale = float(scales[index])
        size = shape[axis]
        out = math.floor(size * scale) if sizes is None else int(sizes[index])
        region = (float(roi[index]), float(roi[index + len(axes)])) if roi is not None else (0, 1)
        if not out > 0 or math.prod(shape) // size * out > _MOST_ELEMENTS:
            raise RuleError(f"it scales {size} elements to {out}")
        if out == size and scale == 1 and roi is None:
            continue
        positions = sampling.positions(size, out, scale, region)
        if roi is not None:
            beyond = (positions < 0) | (positions > size - 1)
            outside = outside | _along(beyond, axis, rank)
        indices, weights = sampling.taps(positions, size, scale)
        result = _weighted(result, str(data.ty.dtype), axis, rank, indices, weights)
        shape[axis] = out
    if outside.any():
        mask = relax.const(np.broadcast_to(outside, [*_spread(outside, shape)]).copy())
        result = relax.op.where(mask, relax.const(outside_value, data.ty.dtype), result)
    return result


def _spread(mask: Array, shape: list[int]) -> list[int]:
    return [n if m > 1 else 1 for m, n in zip(mask.shape, shape, strict=True)]


def _weighted(data: Any, dtype: str, axis: int, rank: int, indices: Array, weights: Array) -> Any:
    """The sum of neighbours along one axis; those without weight are left out."""
    if ((weights == 0) | (weights == 1)).all():
        chosen = indices[weights.argmax(axis=0), np.arange(indices.shape[1])]
        return relax.op.take(data, relax.const(chosen), axis, mode="clip")
    if not dtype.startswith("float"):
        raise RuleError(f"it interpolates elements of type {dtype}")
    terms = [
        relax.op.multiply(
            relax.op.take(data, relax.const(at), axis, mode="clip"),
            relax.const(_along(weight, axis, rank).astype(dtype)),
        )
        for at, weight in zip(indices, weights, strict=True)
        if weight.any()
    ]
    total = terms[0]
    for term in terms[1:]:
        total = relax.op.add(total, term)
    return total


def _along(values: Array, axis: int, rank: int) -> Array:
    """A vector, shaped to broadcast along one of ``rank`` axes."""
    return values.reshape([-1 if at == axis else 1 for at in range(rank)])
