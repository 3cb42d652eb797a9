"""Bias correction: what quantisation adds to a channel's mean is taken off its bias.

Nagel et al., "Data-free quantization through weight equalization and bias correction" (ICCV 2019),
section 4.2, in its empirical form (appendix D): layer by layer in order, the layers before already
corrected, the mean over samples and pixels of every output channel before its activation is
compared with the float network's, and the difference goes into the bias. Of a layer that is also
pruned it is the mean of what is left that is compared, so that what pruning did to it is made up
for, too.

Before its activation a layer is linear: the mean of its outputs is its output of the mean input,
so that one image for each layer is enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tvmx.accuracy._batches import Chunk, calls_at_once, chunks, spread
from tvmx.accuracy._calibrate import MOST_SAMPLES
from tvmx.accuracy._samples import InputSpec, Samples
from tvmx.errors import DataError
from tvmx.numerics import QuantParams, quantise_weight
from tvmx.passes import LayerStep, Simulator, Values, float_constants
from tvmx.templates import linear

if TYPE_CHECKING:
    from tvmx.ir import Implementation, Node

Array = npt.NDArray[Any]


def correct_biases(
    simulator: Simulator, samples: Samples, specs: Mapping[str, InputSpec],
    params: Mapping[int, QuantParams], choices: Mapping[int, Implementation], *,
    most_samples: int | None = MOST_SAMPLES,
) -> dict[int, Array]:  # fmt: skip
    """By layer index what to add to the bias (channels,), for every int8 layer of ``choices``.

    At most ``most_samples`` samples, evenly spread, are run. Those that are in memory together
    are gone through layer by layer; the corrections of such parts are averaged.

    Raises:
        DataError: there is no sample.
    """
    if not len(samples):
        raise DataError("there is no calibration sample")
    used = spread(samples, most_samples)
    totals: dict[int, Array] = {}
    for chunk in chunks(used, specs, calls_at_once(simulator.network)):
        values = simulator.run(chunk.inputs)
        walk = _Correcting(simulator, values, chunk)
        walk.rerun(values, choices, params)
        for layer, correction in walk.corrections.items():
            part = correction.astype(np.float64) * chunk.rows / len(used)
            totals[layer] = totals.get(layer, 0.0) + part
    return {layer: total.astype(np.float32) for layer, total in totals.items()}


class _Correcting(Simulator):
    """Corrects each int8 layer as the walk comes to it."""

    def __init__(self, simulator: Simulator, values: Values, chunk: Chunk) -> None:
        super().__init__(simulator.network, simulator.host)
        self._values, self._chunk = values, chunk

    def layer(
        self, node: Node, step: LayerStep, implementation: Implementation | None,
        operands: list[Array], params: Mapping[int, QuantParams],
    ) -> Array:  # fmt: skip
        """As the simulator's, but int8 layers are corrected first."""
        if implementation is not None and implementation.precision == "int8":
            data = params[node.inputs[0]]
            before = self._mean(self._values[node.inputs[0]])
            after = (self._mean(operands[0]) - data.zero_point) * data.scale
            trained = float_constants(step, implementation)
            quantised, scale = quantise_weight(trained.weight)
            shape = (-1,) + (1,) * (quantised.ndim - 1)
            weight = quantised * scale.astype(np.float64).reshape(shape)
            wanted = _channel_means(step, before, step.weight.astype(np.float64), step.bias)
            found = _channel_means(step, after, weight, trained.bias)
            self.corrections[step.layer.index] = (wanted - found).astype(np.float32)
        return super().layer(node, step, implementation, operands, params)

    def _mean(self, values: Array) -> Array:
        """The mean over samples, as a batch of one."""
        valid = self._chunk.valid(values)
        if valid.ndim == values.ndim:  # the batch is not in front: everything counts
            valid = valid.reshape(-1, *valid.shape[2:])
        mean: Array = valid.mean(axis=0, keepdims=True, dtype=np.float64)
        return mean


def _channel_means(step: LayerStep, data: Array, weight: Array, bias: Array | None) -> Array:
    """Mean of each output channel (channels,) of a layer, of its epilogue only the bias added."""
    out = linear(step.layer.workload, data, weight, None)
    means: Array = out.reshape(*out.shape[:2], -1).mean(axis=(0, 2))
    return means if bias is None else means + bias
