"""The best cut: which layers stay float so that the rest may be int8."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvmx.accuracy import Effect
from tvmx.ir import Implementation, Plan
from tvmx.passes import choose, versions

if TYPE_CHECKING:
    from tvmx.explore._context import Context


@dataclass(frozen=True)
class Cut:
    """``kept`` of the most sensitive layers stay float; ``curve`` are the effects by their number.

    The last point of the curve is the float network.
    """

    kept: int
    curve: dict[int, Effect]


def find_cut(layers: int, simulate: Callable[[int], Effect], limit: float) -> Cut:
    """The fewest of the most sensitive layers that must stay float for a drop within ``limit``.

    ``simulate(k)`` tells the joint effect with the first ``k`` of ``layers`` float. The curve is
    taken at steps that grow with ``k``; between the first step within the limit and the one
    before, it is halved. Drops need not fall with every layer, so "fewest" is among what was
    simulated. With every layer float nothing is lost: there is always a cut.
    """
    curve = {kept: simulate(kept) for kept in _steps(layers)}
    within = min(kept for kept, effect in curve.items() if effect.drop <= limit or kept == layers)
    past = max((kept for kept in curve if kept < within), default=within)
    while within - past > 1:
        middle = (past + within) // 2
        curve[middle] = simulate(middle)
        if curve[middle].drop <= limit:
            within = middle
        else:
            past = middle
    return Cut(within, dict(sorted(curve.items())))


def curve_length(layers: int) -> int:
    """How many simulations :func:`find_cut` makes, about."""
    return len(_steps(layers)) + 3


def _steps(layers: int) -> list[int]:
    """0, 1, 2, 3, 4, 6, 8, 12, 16, ... and all."""
    powers = [2**n for n in range(max(1, layers).bit_length())]
    steps = {0, *powers, *(3 * power for power in powers)}
    return [*sorted(step for step in steps if step < layers), layers]


def cut_plan(
    context: Context, options: Mapping[int, Sequence[Implementation]],
    int8: Collection[int], seed: int,
) -> Plan:  # fmt: skip
    """The layers of the indices ``int8`` in their first int8 template, others as in the baseline.

    All at template defaults; the activations are still to be filled in.
    """
    choices = []
    for layer in context.covered:
        legal = options[layer.index]
        made = int8_of(legal) if layer.index in int8 else None
        how = legal[0] if made is None else made
        entry = context.registry.get(how.template)
        choices.append(choose(entry, layer, context.target, implementation=how))
    return Plan(
        model=context.model.digest, target=context.target.name, choices=tuple(choices), seed=seed,
        versions=versions(),
        note=f"cut by tvmx quantise: {len(int8)} of {len(context.network.graph.layers)} layers "
        "int8, template defaults",
    )  # fmt: skip


def int8_of(options: Sequence[Implementation]) -> Implementation | None:
    """The first int8 implementation of a layer that the model states in float."""
    return next((i for i in options if i.precision == "int8" and not i.exact), None)
