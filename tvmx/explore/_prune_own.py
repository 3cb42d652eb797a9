"""Layers that arrive sparse: their own sparsity is one more way to compute them exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tvmx.ir import DENSE, BlockSparsity, Implementation
from tvmx.numerics import own_level
from tvmx.passes import LayerStep

if TYPE_CHECKING:
    from tvmx.passes import Network
    from tvmx.targets import Target
    from tvmx.templates import Registry

LEAST = 30
"""Percent of zero blocks below which no sparse kernel has ever been faster."""


def layer_steps(network: Network) -> dict[int, LayerStep]:
    """Layer index -> its step."""
    return {step.layer.index: step for step in network.steps if isinstance(step, LayerStep)}


def with_own(
    step: LayerStep, legal: Sequence[Implementation], registry: Registry, target: Target
) -> list[Implementation]:
    """``legal`` with the sparse kernels at the layer's own sparsity, behind the other exact ones.

    They skip nothing but zeros, so that they count as ``stated``: they need no data, and lose
    nothing. Levels up to the layer's own, which would do the same work or more, are left out.
    """
    if step.stated is not None or _zeros(step) < LEAST:
        return list(legal)
    own: dict[tuple[str, str], int] = {}
    found = []
    for _, how in registry.implementations(step.layer.workload, target):
        blocks = _blocks(how)
        if blocks is None or how.exact or (how.template, how.layout) in own:
            continue
        level = own_level(step.weight, blocks.rows, blocks.columns)
        own[how.template, how.layout] = level
        if level >= LEAST:
            sparsity = str(BlockSparsity(blocks.rows, blocks.columns, level))
            found.append(how.model_copy(update={"sparsity": sparsity, "stated": True}))
    exact = [how for how in legal if how.exact]
    others = [how for how in legal if not how.exact and not _covered(how, own)]
    return [*exact, *found, *others]


def _covered(how: Implementation, own: dict[tuple[str, str], int]) -> bool:
    """Whether the layer's own sparsity does the same, with fewer blocks."""
    blocks = _blocks(how)
    return blocks is not None and blocks.level <= own.get((how.template, how.layout), 0)


def _blocks(how: Implementation) -> BlockSparsity | None:
    """Of a float sparse implementation."""
    if how.precision != "f32" or how.sparsity == DENSE:
        return None
    return BlockSparsity.parse(how.sparsity)


def _zeros(step: LayerStep) -> float:
    """Percent of the weight's elements."""
    return 100.0 * (1.0 - np.count_nonzero(step.weight) / step.weight.size)
