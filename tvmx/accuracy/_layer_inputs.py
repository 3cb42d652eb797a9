"""What layers read on calibration samples, as rows: their second moments, and rows to judge by.

A convolution's rows are the patches under its kernel (im2col), at pixels that are drawn anew for
every sample: all of them would be many times more than the moments need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tvmx.accuracy._batches import Chunk, calls_at_once, chunks, spread
from tvmx.accuracy._calibrate import MOST_SAMPLES
from tvmx.accuracy._samples import InputSpec, Samples
from tvmx.errors import DataError
from tvmx.ir import Conv2dWorkload, DenseWorkload
from tvmx.numerics import Moments, matrix_shape, segment_starts
from tvmx.passes import LayerStep, Simulator

if TYPE_CHECKING:
    from tvmx.ir import Node

Array = npt.NDArray[Any]

_LEAST_ROWS = 4096
_ROWS_PER_COLUMN = 4  # what second moments need to be settled, about
_JUDGED_ROWS = 1024
_JUDGED_EVERY = 4  # one of so many samples is for judging; the others are for the moments
_MOMENT_BYTES = 256 * 2**20  # of layers that share one pass over the samples


@dataclass(frozen=True)
class LayerInputs:
    """What a layer reads: moments of most samples, and rows (count, columns) of the others.

    The rows are float32, and of samples that the moments have not seen wherever there are enough.
    """

    moments: Moments
    judged: Array


def prunable(step: LayerStep) -> bool:
    """Whether a layer's weight is one matrix of floats: no groups, nothing stated in int8."""
    workload = step.layer.workload
    groups = workload.groups if isinstance(workload, Conv2dWorkload) else 1
    return groups == 1 and step.stated is None


def layer_inputs(
    simulator: Simulator, samples: Samples, specs: Mapping[str, InputSpec],
    widths: Mapping[int, int], *, most_samples: int | None = MOST_SAMPLES, seed: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> dict[int, LayerInputs] | None:  # fmt: skip
    """By layer index, for the :func:`prunable` layers of ``widths`` (columns of their blocks).

    At most ``most_samples`` samples, evenly spread, are run. Deterministic for a ``seed``, whatever
    other layers are asked for. ``stop`` is asked before every run: None where it said yes. What is
    returned has 8 bytes for each pair of a layer's columns: ask for few layers at a time.

    Raises:
        DataError: there is no sample.
    """
    if not len(samples):
        raise DataError("there is no calibration sample")
    used = spread(samples, most_samples)
    network = simulator.network
    readers = {
        at: _Reader(node, step, widths[at], len(used), np.random.default_rng((seed, at)))
        for node, step in zip(network.graph.nodes, network.steps, strict=True)
        if isinstance(step, LayerStep) and (at := step.layer.index) in widths
    }
    for chunk in chunks(used, specs, calls_at_once(network)):
        if stop():
            return None
        values = simulator.run(chunk.inputs)
        for reader in readers.values():
            reader.add(chunk, values[reader.source])
    return {at: reader.inputs() for at, reader in readers.items()}


def few_at_a_time(steps: Sequence[LayerStep]) -> list[list[LayerStep]]:
    """Layers in parts whose moments fit into memory together."""
    parts: list[list[LayerStep]] = [[]]
    held = 0
    for step in steps:
        starts = segment_starts(matrix_shape(step.weight)[1])
        widest = min(matrix_shape(step.weight)[1], starts[1] if len(starts) > 1 else 1 << 30)
        needed = 8 * len(starts) * (widest + 1) ** 2
        if parts[-1] and held + needed > _MOMENT_BYTES:
            parts.append([])
            held = 0
        parts[-1].append(step)
        held += needed
    return parts


class _Reader:
    """Collects one layer's rows."""

    def __init__(
        self, node: Node, step: LayerStep, width: int, samples: int, rng: np.random.Generator
    ) -> None:
        self.source, self._rng = node.inputs[0], rng
        self._workload = step.layer.workload
        _, columns = matrix_shape(step.weight)
        self._moments = Moments.zeros(columns, segment_starts(columns, width))
        self._judged: list[Array] = []
        self._seen = 0
        rows = max(_LEAST_ROWS, _ROWS_PER_COLUMN * columns)
        self._per_sample = max(1, -(-rows // samples))
        self._per_judged = max(1, -(-_JUDGED_ROWS * _JUDGED_EVERY // samples))

    def add(self, chunk: Chunk, values: Array) -> None:
        """A chunk's values of what the layer reads."""
        valid = chunk.valid(values)
        data = valid.reshape(-1, *self._workload.data_shape[1:])
        mine = (self._seen + np.arange(len(data))) % _JUDGED_EVERY != _JUDGED_EVERY - 1
        self._seen += len(data)
        if mine.any():
            rows = layer_rows(self._workload, data[mine], self._per_sample, self._rng)
            self._moments = self._moments.plus(rows)
        if not mine.all():
            rows = layer_rows(self._workload, data[~mine], self._per_judged, self._rng)
            self._judged.append(rows)
        elif not self._judged:
            self._spare = rows[:_JUDGED_ROWS]

    def inputs(self) -> LayerInputs:
        """All that was collected."""
        judged = np.concatenate(self._judged) if self._judged else self._spare
        return LayerInputs(self._moments, judged)


def layer_rows(
    workload: Conv2dWorkload | DenseWorkload, data: Array, pixels: int, rng: np.random.Generator
) -> Array:  # fmt: skip
    """(rows, columns) that a layer's weight matrix is multiplied with, for data (samples, ...).

    Of a convolution at most ``pixels`` places of each sample, drawn without repetition.
    """
    if isinstance(workload, DenseWorkload):
        return data.reshape(-1, workload.in_features)
    top, left, bottom, right = workload.padding
    padded = np.pad(data, ((0, 0), (0, 0), (top, bottom), (left, right)))
    places = workload.out_height * workload.out_width
    if pixels >= places:
        at = np.broadcast_to(np.arange(places), (len(data), places))
    else:
        at = rng.random((len(data), places)).argpartition(pixels, axis=1)[:, :pixels]
    (stride_y, stride_x), (step_y, step_x) = workload.strides, workload.dilation
    y = (at // workload.out_width * stride_y)[:, :, None, None]
    x = (at % workload.out_width * stride_x)[:, :, None, None]
    y = y + (np.arange(workload.kernel[0]) * step_y)[:, None]
    x = x + (np.arange(workload.kernel[1]) * step_x)[None, :]
    sample = np.arange(len(data))[:, None, None, None]
    patches = padded[sample, :, y, x]  # (samples, places, height, width, channels)
    return patches.transpose(0, 1, 4, 2, 3).reshape(at.size, -1)
