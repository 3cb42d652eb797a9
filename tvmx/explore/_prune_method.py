"""How an exploration prunes: by magnitude, or reconstructed on the calibration samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tvmx.accuracy import PrunedLayer, Samples, prune_layers
from tvmx.ir import BlockSparsity, Implementation
from tvmx.passes import Simulator, with_pruned
from tvmx.targets import load_target

if TYPE_CHECKING:
    from tvmx.explore._context import Context
    from tvmx.passes import Network

Pruned = Mapping[int, Mapping[str, PrunedLayer]]


def reconstructed(
    context: Context, samples: Samples, options: Mapping[int, Sequence[Implementation]]
) -> tuple[Context, list[str]]:
    """The context whose network prunes as is best for each layer, and what to tell.

    Reconstruction is taken where it errs less than magnitude on samples it was not fitted to.
    """
    wanted = {
        index: [s for text in _sparsities(legal) if (s := BlockSparsity.parse(text)) is not None]
        for index, legal in options.items()
    }
    if not any(wanted.values()):
        return context, []
    specs = {spec.name: spec for spec in context.model.inputs}
    simulator = Simulator(context.network, load_target("host"))
    found = prune_layers(simulator, samples, specs, wanted)
    methods = [made.method for levels in found.values() for made in levels.values()]
    better = methods.count("reconstruction")
    told = f"{better} of {len(methods)} pruned variants of {len(found)} layers reconstructed on "
    notes = [f"{told}calibration samples, the others are by magnitude"]
    return replace(context, network=network_with(context.network, found)), notes


def network_with(network: Network, pruned: Pruned) -> Network:
    """The network with the layers that were reconstructed; magnitude needs no constants."""
    return with_pruned(
        network,
        {
            index: {
                sparsity: made.constants for sparsity, made in levels.items()
                if made.method == "reconstruction"
            }
            for index, levels in pruned.items()
        },
    )  # fmt: skip


def _sparsities(legal: Sequence[Implementation]) -> list[str]:
    """Of the implementations that change a layer by pruning it."""
    return list(dict.fromkeys(how.sparsity for how in legal if not how.exact))
