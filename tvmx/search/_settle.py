"""settle: a layer that neither int8 nor sparsity makes faster stays float and dense."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvmx.errors import UsageError
from tvmx.ir._cost_table import CostTable
from tvmx.search._border import BorderWalk
from tvmx.search._budgets import NO_BUDGETS, Budgets
from tvmx.search._memo import TableBorder
from tvmx.search._objective import check_objective

ArenaBytes = Callable[[tuple[int, ...]], int]
_NOISE = 1e-9
"""Relative rounding of a sum of latencies: less than that is a tie."""


def settle(
    table: CostTable,
    walk: BorderWalk,
    assignment: Sequence[int],
    budgets: Budgets = NO_BUDGETS,
    *,
    objective: str = "latency",
    arena_bytes: ArenaBytes | None = None,
    least_gain: float = 0.0,
) -> tuple[int, ...]:
    """Give layers their trained arithmetic back where that costs nothing.

    Coordinate descent: layer after layer, an implementation that is not ``exact`` is replaced
    by the exact one with which the whole plan (borders included) is fastest, if the plan then
    takes no longer than before; a tie goes to the exact one. Repeated until nothing changes.
    With ``least_gain`` it may take that share of the plan's latency longer: what gains less is
    within the noise and not worth any accuracy.
    A plan that keeps the budgets still keeps them afterwards. With objective ``weights`` the
    weights must not rise either, with ``arena`` the arena must not; that objective, and a
    limit on the arena, need ``arena_bytes`` (assignment to bytes) and raise UsageError without.
    """
    check_objective(objective)
    if (objective == "arena" or budgets.max_arena_bytes is not None) and arena_bytes is None:
        raise UsageError("objective 'arena' and an arena budget need arena_bytes")
    settler = _Settler(table, walk, budgets, objective, arena_bytes, least_gain)
    return settler.settle(tuple(assignment))


class _Settler:
    def __init__(
        self, table: CostTable, walk: BorderWalk, budgets: Budgets, objective: str,
        arena_bytes: ArenaBytes | None, least_gain: float,
    ) -> None:  # fmt: skip
        self._table, self._budgets, self._objective = table, budgets, objective
        self._tie = 1 + max(_NOISE, least_gain)
        self._arena_bytes = arena_bytes or (lambda assignment: 0)
        self._border = TableBorder(walk, [costs.implementations for costs in table.layers])
        self._exact = [
            tuple(i for i in costs.legal if costs.implementations[i].exact)
            for costs in table.layers
        ]

    def settle(self, assignment: tuple[int, ...]) -> tuple[int, ...]:
        changed = True
        while changed:  # each round makes at least one more layer exact, for good
            changed = False
            for layer in range(len(assignment)):
                better = self._replaced(assignment, layer)
                if better is not None:
                    assignment, changed = better, True
        return assignment

    def _replaced(self, assignment: tuple[int, ...], layer: int) -> tuple[int, ...] | None:
        if self._table.layers[layer].implementations[assignment[layer]].exact:
            return None
        limit = self._us(assignment) * self._tie
        options = [(*assignment[:layer], i, *assignment[layer + 1 :]) for i in self._exact[layer]]
        priced = sorted((self._us(option), option) for option in options)
        for us, option in priced:
            if us <= limit and self._permitted(option, assignment):
                return option
        return None

    def _us(self, assignment: tuple[int, ...]) -> float:
        self._border.reset()
        return self._table.layers_us(assignment) + sum(
            self._border.place(layer, index) for layer, index in enumerate(assignment)
        )

    def _permitted(self, new: tuple[int, ...], old: tuple[int, ...]) -> bool:
        """No limit is broken that was kept, and the objective's bytes do not rise."""
        size, arena = self._table.weights_bytes, self._arena_bytes
        if self._objective == "weights" and size(new) > size(old):
            return False
        if self._objective == "arena" and arena(new) > arena(old):
            return False
        return self._within(new) or not self._within(old)

    def _within(self, plan: tuple[int, ...]) -> bool:
        table = self._table
        return self._budgets.allow(
            table.accuracy_drop(plan), table.weights_bytes(plan), self._arena_bytes(plan)
        )
