"""Pruned constants that were not found by magnitude alone: a network's, and those a plan names.

``LayerStep.pruned`` holds a layer's constants by sparsity (``16x1@80``); where it has none,
magnitude decides. A plan names them by digest (``LayerChoice.weights``), so that it can only be
rebuilt with the very same ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from tvmx.errors import BuildError
from tvmx.ir import DENSE, BlockSparsity
from tvmx.numerics import LayerConstants, own_level, prune
from tvmx.passes._equalise import equalised
from tvmx.passes._layers import LayerStep, Network

if TYPE_CHECKING:
    from tvmx.ir import Implementation, LayerChoice, Plan

Pruned = Mapping[str, LayerConstants]
"""A layer's pruned constants, by sparsity."""


def with_pruned(network: Network, pruned: Mapping[int, Pruned]) -> Network:
    """The network with these constants (by layer index) for its pruned layers, and no others.

    They are those of the network as it was before any equalisation.
    """
    source = network.original or network
    steps = tuple(
        replace(step, pruned=dict(pruned.get(step.layer.index, {})))
        if isinstance(step, LayerStep) else step
        for step in source.steps
    )  # fmt: skip
    return equalised(replace(source, steps=steps), network.equalised)


def float_constants(step: LayerStep, implementation: Implementation | None) -> LayerConstants:
    """A float layer's constants: as trained, or pruned as its implementation says."""
    if implementation is None or implementation.exact or implementation.sparsity == DENSE:
        return LayerConstants(step.weight, step.bias)
    if implementation.sparsity in step.pruned:
        return step.pruned[implementation.sparsity]
    sparsity = BlockSparsity.parse(implementation.sparsity)
    assert sparsity is not None
    return LayerConstants(prune(step.weight, sparsity), step.bias)


def digest_of(constants: LayerConstants) -> str:
    """16 hex digits over a pruned layer's constants."""
    arrays = [constants.weight] + ([] if constants.bias is None else [constants.bias])
    text = hashlib.sha256()
    for array in arrays:
        text.update(f"{array.dtype.str}{array.shape}".encode())
        text.update(array.tobytes())
    return text.hexdigest()[:16]


def named(choice: LayerChoice, network: Network) -> LayerChoice:
    """The choice with the digest of the pruned constants that ``network`` has for it."""
    constants = _of(network, choice.layer).get(choice.implementation.sparsity)
    if constants is None or choice.implementation.exact:
        return choice
    return choice.model_copy(update={"weights": digest_of(constants)})


def constants_named(network: Network, plan: Plan) -> dict[str, LayerConstants]:
    """What a plan names, by digest. Raises BuildError as :func:`planned` does."""
    found = {}
    for choice in plan.choices:
        if choice.weights:
            every = _of(network, choice.layer).values()
            match = next((c for c in every if digest_of(c) == choice.weights), None)
            if match is None:
                raise BuildError(
                    f"layer {choice.layer!r}: the plan's pruned weights {choice.weights} are not "
                    "there",
                    hint="keep the folder `weights` that was written beside the plan, or make the "
                    "plan again",
                )
            found[choice.weights] = match
    return found


def planned(network: Network, plan: Plan) -> Network:
    """The network with the plan's pruned constants and equalisation, whatever it had before.

    Raises:
        BuildError: the plan names constants that the network does not have, or they are not of
            the sparsity they are named for.
    """
    constants = constants_named(network, plan)
    if not constants and not any(isinstance(s, LayerStep) and s.pruned for s in network.steps):
        return equalised(network, plan.equalisation)
    layers = {layer.name: layer.index for layer in network.graph.layers}
    pruned = {}
    for choice in plan.choices:
        if choice.weights:
            sparsity = choice.implementation.sparsity
            if not fits(constants[choice.weights], sparsity):
                raise BuildError(
                    f"layer {choice.layer!r}: the plan's pruned weights {choice.weights} are not "
                    f"{sparsity}",
                    hint="make the plan again",
                )
            pruned[layers[choice.layer]] = {sparsity: constants[choice.weights]}
    return equalised(with_pruned(network.original or network, pruned), plan.equalisation)


def fits(constants: LayerConstants, sparsity: str) -> bool:
    """Whether pruning to ``sparsity`` would leave the weight as it is."""
    blocks = BlockSparsity.parse(sparsity)
    if blocks is None:
        return True
    return own_level(constants.weight, blocks.rows, blocks.columns) >= blocks.level


def _of(network: Network, layer: str) -> Pruned:
    """A layer's pruned constants, as they were before equalisation."""
    for step in (network.original or network).steps:
        if isinstance(step, LayerStep) and step.layer.name == layer:
            return step.pruned
    return {}
