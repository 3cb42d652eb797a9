"""What a layer can be pruned to, and which levels a whole network takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvmx.accuracy import Effect, prunable
from tvmx.explore._prune_request import Work
from tvmx.ir import BlockSparsity, Implementation
from tvmx.numerics import ZeroPattern, matrix_shape, own_level, zero_pattern

if TYPE_CHECKING:
    from tvmx.explore._context import Context
    from tvmx.explore._prune_request import PruneRequest
    from tvmx.passes import LayerStep

MIN_BLOCKS = 4
_INDEX_BYTES = 2
_POINTER_BYTES = 4


@dataclass(frozen=True)
class Prunable:
    """A layer and the levels it may be pruned to, the lowest first.

    ``levels`` are implementations whose sparsity says the level; ``kernel`` is their template
    where that is a sparse one, else they are the dense one's, which computes zeros like other
    numbers. ``resting`` is what the layer is when it is not pruned: dense, or sparse as it arrived.
    """

    step: LayerStep
    zeros: ZeroPattern
    kernel: str
    resting: Implementation
    levels: tuple[Implementation, ...]


def prunable_layer(
    step: LayerStep, legal: Sequence[Implementation], context: Context, request: PruneRequest
) -> Prunable:
    """A layer with its levels; none where it cannot be pruned, or is not to be."""
    zeros = zero_pattern(step.weight)
    own = [how for how in legal if how.stated and BlockSparsity.parse(how.sparsity)]
    resting = own[0] if own else legal[0]
    sparse = _sparse(step, legal, context, request.pattern)
    none = Prunable(step, zeros, "", resting, ())
    if not prunable(step) or step.layer.name in context.skipped:
        return none
    if sparse is not None:
        blocks = BlockSparsity.parse(sparse.sparsity)
        assert blocks is not None
        rows, columns = blocks.rows, blocks.columns
    elif request.pattern is not None:
        rows, columns = request.pattern
    else:
        return none
    down, across = BlockSparsity(rows, columns, 50).blocks(*matrix_shape(step.weight))
    if down * across < MIN_BLOCKS:
        return none
    least = own_level(step.weight, rows, columns)
    how = legal[0] if sparse is None else sparse
    levels = tuple(
        how.model_copy(update={"sparsity": str(BlockSparsity(rows, columns, level))})
        for level in sorted(request.levels) if level > least
    )  # fmt: skip
    return Prunable(step, zeros, "" if sparse is None else sparse.template, resting, levels)


def _sparse(
    step: LayerStep, legal: Sequence[Implementation], context: Context,
    pattern: tuple[int, int] | None,
) -> Implementation | None:  # fmt: skip
    """The first float sparse implementation there is for the pattern (None: for any)."""
    every = context.registry.implementations(step.layer.workload, context.target)
    for how in (*legal, *(how for _, how in every)):
        blocks = BlockSparsity.parse(how.sparsity)
        if blocks is None or how.precision != "f32" or how.stated:
            continue
        if pattern is None or (blocks.rows, blocks.columns) == pattern:
            return how
    return None


def dense_work(step: LayerStep) -> Work:
    """Of a layer whose zeros are not skipped."""
    return Work(flops=2 * step.layer.workload.macs, bytes=4 * step.weight.size)


def work_of(step: LayerStep, how: Implementation, kernel: bool) -> Work:
    """What a layer takes in an implementation; ``kernel``: of a template that skips blocks."""
    dense, blocks = dense_work(step), BlockSparsity.parse(how.sparsity)
    if blocks is None or not kernel:
        return dense
    shape = matrix_shape(step.weight)
    down, across = blocks.blocks(*shape)
    kept = blocks.kept(*shape)
    size = kept * (4 * blocks.rows * blocks.columns + _INDEX_BYTES) + _POINTER_BYTES * (down + 1)
    return Work(flops=round(dense.flops * kept / (down * across)), bytes=size)


@dataclass(frozen=True)
class Move:
    """Pruning a layer to one level rather than the next lower one."""

    layer: int
    how: Implementation
    points: float


def moves(
    layers: Mapping[int, Prunable], effects: Mapping[tuple[int, str], Effect]
) -> list[Move]:  # fmt: skip
    """All levels of all layers, the most costly first, a layer's higher levels before its lower.

    A level is taken to cost no less than those below it.
    """
    found = []
    for index, layer in layers.items():
        points = 0.0
        for how in layer.levels:
            points = max(points, effects[index, how.sparsity].points)
            found.append(Move(index, how, points))
    return sorted(found, key=lambda m: (-m.points, -_level(m.how), m.layer))


def choices_of(moved: Sequence[Move]) -> dict[int, Implementation]:
    """Each layer at its highest level among ``moved``."""
    chosen: dict[int, Implementation] = {}
    for move in moved:
        if move.layer not in chosen or _level(chosen[move.layer]) < _level(move.how):
            chosen[move.layer] = move.how
    return chosen


def _level(how: Implementation) -> int:
    sparsity = BlockSparsity.parse(how.sparsity)
    return sparsity.level if sparsity else 0
