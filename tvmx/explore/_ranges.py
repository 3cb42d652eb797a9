"""The calibrated ranges of the values that are int8, for people: by name, with what they clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from tvmx.accuracy import Samples, clipped_shares
from tvmx.explore._quantise_request import ValueRange
from tvmx.ir import Implementation, LayoutWalk, is_int8
from tvmx.numerics import QMAX, QMIN

if TYPE_CHECKING:
    from tvmx.explore._compress import Compression
    from tvmx.passes import Network

Kind = Literal["input", "layer", "operator"]


def value_ranges(
    compression: Compression, samples: Samples, options: Mapping[int, Sequence[Implementation]],
    int8: Mapping[int, Implementation],
) -> list[ValueRange]:  # fmt: skip
    """Of every value that is int8 where the layers ``int8`` are, in the network's order.

    Outputs of operators that keep their input's range (pooling, clip, reshape) are left out.
    """
    context, params = compression.context, compression.params
    network = compression.simulator.network
    chosen = {index: int8.get(index, legal[0]) for index, legal in options.items()}
    specs = {spec.name: spec for spec in context.model.inputs}
    used = {v: params[v] for v in _int8_values(network, chosen) if v in params}
    shares = clipped_shares(compression.simulator, samples, specs, used)
    found = []
    for value, how in used.items():
        kind, name = _named(network, value)
        low, high = ((q - how.zero_point) * how.scale for q in (QMIN, QMAX))
        found.append(
            ValueRange(
                value=value, kind=kind, name=name, scale=how.scale, zero_point=how.zero_point,
                low=low, high=high, clipped=shares[value],
            )
        )  # fmt: skip
    return found


def _int8_values(network: Network, chosen: Mapping[int, Implementation]) -> list[int]:
    graph, walk = network.graph, LayoutWalk(network.graph)
    tied = {node.output for node in graph.nodes if node.tied}
    found: dict[int, None] = {}
    for node in graph.nodes:
        placed = walk.step(node, chosen.get(node.layer) if node.layer is not None else None)
        forms = zip((*node.inputs, node.output), (*placed.reads, placed.writes), strict=True)
        found.update(dict.fromkeys(v for v, form in forms if is_int8(form) and v not in tied))
    return list(found)


def _named(network: Network, value: int) -> tuple[Kind, str]:
    """What makes a value."""
    node = next((n for n in network.graph.nodes if n.output == value), None)
    if node is None:
        return "input", network.model.inputs[network.graph.inputs.index(value)].name
    if node.layer is not None:
        return "layer", network.graph.layers[node.layer].name
    source = network.model.sources.get(network.values[value].name)
    return "operator", source.name if source else node.op
