"""Calibration: the range of every value of the float network, as int8 scales and zero points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tvmx.accuracy._batches import calls_at_once, chunks, spread
from tvmx.accuracy._observers import PERCENTILE, Method, observer
from tvmx.accuracy._samples import InputSpec, Samples
from tvmx.errors import DataError

if TYPE_CHECKING:
    from tvmx.numerics import QuantParams
    from tvmx.passes import Network
    from tvmx.passes._simulate import Simulator

Array = npt.NDArray[Any]

MOST_SAMPLES = 128
_COUNTED = 2**16  # elements of one sample's value that are counted: the tails need no more


def calibrate(
    simulator: Simulator, samples: Samples, specs: Mapping[str, InputSpec],
    method: Method = "percentile", *, percentile: float = PERCENTILE,
    most_samples: int | None = MOST_SAMPLES,
) -> dict[int, QuantParams]:  # fmt: skip
    """Parameters of every float32 value of the network, by its number.

    ``specs`` are the model's inputs by name, in its order. At most ``most_samples`` samples,
    evenly spread over all, are run. ``method`` is one of :mod:`tvmx.accuracy._observers`;
    ``percentile`` keeps [100 - percentile, percentile] of a value's elements. Outputs of operators
    that keep their input's parameters have those (see :func:`tvmx.passes._quantise.tie`).
    Deterministic.

    Raises:
        DataError: a value is NaN or infinite (its layer is named), or there is no sample.
    """
    from tvmx.numerics import QuantParams
    from tvmx.passes._quantise import tie

    if not len(samples):
        raise DataError("there is no calibration sample")
    network = simulator.network
    watched = [v for v, var in enumerate(network.values) if _is_float(var)]
    seen = {v: observer(method, percentile) for v in watched}
    used = spread(samples, most_samples)
    for chunk in chunks(used, specs, calls_at_once(network)):
        values = simulator.run(chunk.inputs)
        for value in watched:
            found = chunk.valid(values[value])
            _check_finite(network, value, found)
            # Odd, so that it does not keep to the same columns of an image.
            seen[value].add(found, found[0].size // _COUNTED | 1)
    params = {v: QuantParams.from_range(*s.range()) for v, s in seen.items()}
    return tie(network.graph, params)


def _is_float(var: Any) -> bool:
    return str(getattr(var.ty, "dtype", "")) == "float32"


def _check_finite(network: Network, value: int, found: Array) -> None:
    if np.isfinite(found).all():
        return
    kind = "NaN" if np.isnan(found).any() else "infinity"
    raise DataError(
        f"the float model computes {kind} in {_name(network, value)} on the calibration data",
        hint="leave out the samples the model cannot compute, or scale the data as it expects",
    )


def _name(network: Network, value: int) -> str:
    """The layer or operator that computes a value."""
    node = next((n for n in network.graph.nodes if n.output == value), None)
    if node is None:
        return f"input {network.model.inputs[value].name!r}"
    if node.layer is not None:
        return f"layer {network.graph.layers[node.layer].name!r}"
    source = network.model.sources.get(network.values[value].name)
    return f"operator {source.name!r}" if source else f"operator {node.op}"
