"""Layers pruned with calibration data: reconstructed where that is better than magnitude alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from tvmx.accuracy._calibrate import MOST_SAMPLES
from tvmx.accuracy._layer_inputs import LayerInputs, few_at_a_time, layer_inputs, prunable
from tvmx.ir import BlockSparsity
from tvmx.numerics import LayerConstants, Reconstructed, prune, reconstruct
from tvmx.passes import LayerStep, Simulator

if TYPE_CHECKING:
    from tvmx.accuracy._samples import InputSpec, Samples

Array = npt.NDArray[Any]
Method = Literal["magnitude", "reconstruction"]


@dataclass(frozen=True)
class PrunedLayer:
    """A layer at one sparsity, by the better ``method``.

    ``magnitude`` and ``reconstruction`` are squared errors of the layer's output before its
    activation, over its square, on calibration samples that nothing was fitted to.
    """

    constants: LayerConstants
    method: Method
    magnitude: float
    reconstruction: float


def prune_layers(
    simulator: Simulator, samples: Samples, specs: Mapping[str, InputSpec],
    wanted: Mapping[int, Sequence[BlockSparsity]], *, most_samples: int | None = MOST_SAMPLES,
    on_layer: Callable[[int], None] = lambda index: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[int, dict[str, PrunedLayer]]:  # fmt: skip
    """By layer index and sparsity (as text); layers with groups or stated in int8 are left out.

    Each layer is pruned for itself, on what it reads in the float network; those with the most
    operations first. ``on_layer`` is told each one that is done. ``stop`` is asked now and then:
    once it says yes, what is done so far is returned. Raises DataError where there is no sample.
    """
    steps = sorted(
        (
            step for step in simulator.network.steps
            if isinstance(step, LayerStep) and wanted.get(step.layer.index) and prunable(step)
        ),
        key=lambda step: -step.layer.workload.macs,
    )  # fmt: skip
    found: dict[int, dict[str, PrunedLayer]] = {}
    for part in few_at_a_time(steps):
        widths = {s.layer.index: _common_width(wanted[s.layer.index]) for s in part}
        inputs = layer_inputs(
            simulator, samples, specs, widths, most_samples=most_samples, stop=stop
        )
        if inputs is None:
            return found
        for step in part:
            at = step.layer.index
            made = _prune(step, inputs.pop(at), wanted[at], stop)
            if made is None:
                return found
            found[at] = made
            on_layer(at)
    return found


def _common_width(sparsities: Sequence[BlockSparsity]) -> int:
    return int(np.lcm.reduce([s.columns for s in sparsities]))


def _prune(
    step: LayerStep, inputs: LayerInputs, wanted: Sequence[BlockSparsity],
    stop: Callable[[], bool],
) -> dict[str, PrunedLayer] | None:  # fmt: skip
    """None if stopped."""
    shapes: dict[tuple[int, int], list[BlockSparsity]] = {}
    for sparsity in wanted:
        shapes.setdefault((sparsity.rows, sparsity.columns), []).append(sparsity)
    found = {}
    for levels in shapes.values():
        made = reconstruct(
            step.weight, inputs.moments, levels, bias=step.bias is not None, stop=stop
        )
        if made is None:
            return None
        found.update({str(s): _better(step, inputs.judged, s, made[s]) for s in levels})
    return found


def _better(
    step: LayerStep, judged: Array, sparsity: BlockSparsity, made: Reconstructed
) -> PrunedLayer:
    plain = prune(step.weight, sparsity)
    power = _squares(judged, step.weight)
    errors = (
        _squares(judged, plain - step.weight) / power,
        _squares(judged, made.weight - step.weight, made.bias) / power,
    )
    if errors[0] <= errors[1]:
        return PrunedLayer(LayerConstants(plain, step.bias), "magnitude", *errors)
    bias = None if step.bias is None else step.bias + made.bias
    return PrunedLayer(LayerConstants(made.weight, bias), "reconstruction", *errors)


def _squares(rows: Array, weight: Array, bias: Array | None = None) -> float:
    """Mean square of a layer's output, a little more than nothing."""
    out = rows @ weight.reshape(len(weight), -1).T
    if bias is not None:
        out = out + bias
    return float(np.mean(np.square(out, dtype=np.float64))) + 1e-30
