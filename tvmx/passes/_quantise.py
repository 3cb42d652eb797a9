"""The int8 pass's bookkeeping: whose scale and zero point each value has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tvmx.errors import BuildError
from tvmx.ir import Activation, NetworkGraph, Node
from tvmx.numerics import LayerParams, QuantParams

if TYPE_CHECKING:
    from tvmx.ir import Plan


def tie(graph: NetworkGraph, params: Mapping[int, QuantParams]) -> dict[int, QuantParams]:
    """Parameters by value, outputs of tied operators (pooling, clip, reshape) taking their input's.

    A tied operator is then exact on int8, and needs no requantisation. What the model states
    overrides ``params``.
    """
    stated = {s.value: QuantParams(s.scale, s.zero_point, s.unsigned) for s in graph.stated}
    tied = dict(params) | stated
    for node in graph.nodes:
        if node.tied and node.inputs[0] in tied:
            tied[node.output] = tied[node.inputs[0]]
    return tied


def params_of(graph: NetworkGraph, activations: Iterable[Activation]) -> dict[int, QuantParams]:
    """A plan's activations as parameters by value."""
    return tie(graph, {a.value: QuantParams(a.scale, a.zero_point) for a in activations})


def activations_of(params: Mapping[int, QuantParams]) -> tuple[Activation, ...]:
    """Parameters by value as a plan records them."""
    return tuple(
        Activation(value=value, scale=p.scale, zero_point=p.zero_point)
        for value, p in sorted(params.items())
    )


def corrections_of(plan: Plan, graph: NetworkGraph) -> dict[int, npt.NDArray[np.float32]]:
    """A plan's bias corrections by layer index. Raises BuildError where they do not fit."""
    layers = {layer.name: layer for layer in graph.layers}
    found = {}
    for correction in plan.corrections:
        layer, values = layers.get(correction.layer), correction.array
        if layer is None or layer.workload.out_shape[1] != len(values):
            raise BuildError(
                f"the plan corrects {len(values)} channels of layer {correction.layer!r}, the "
                f"network has {layer.workload.out_shape[1] if layer else 'no such layer'}",
                hint="replay a plan only on the model it was made for",
            )
        found[layer.index] = values
    return found


def layer_params(
    node: Node, params: Mapping[int, QuantParams], name: str, float_out: bool = False
) -> LayerParams:
    """The parameters an int8 layer needs, of its data alone with ``float_out``.

    Raises BuildError where calibration left a gap.
    """
    touched = node.inputs[:1] if float_out else (*node.inputs, node.output)
    missing = [v for v in touched if v not in params]
    if missing:
        raise BuildError(
            f"layer {name!r} is int8, but value {missing[0]} has no scale and zero point",
            hint="int8 plans are made by `tvmx explore --data FILE.npz`, which calibrates them",
        )
    data, *residual = node.inputs
    if float_out:
        return LayerParams(params[data], None)
    return LayerParams(params[data], params[node.output], params[residual[0]] if residual else None)


def check_activations(plan: Plan, graph: NetworkGraph) -> None:
    """Raise BuildError when the plan's activations name values the network does not have."""
    for activation in plan.activations:
        if activation.value >= len(graph.shapes):
            raise BuildError(
                f"the plan has a scale for value {activation.value}, the network has "
                f"{len(graph.shapes)} values",
                hint="replay a plan only on the model it was made for",
            )
