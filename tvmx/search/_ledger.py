"""Ledger: what an episode has left of its budgets, and which actions that still permits."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import numpy.typing as npt

from tvmx.ir._cost_table import CostTable
from tvmx.ir._layout import ceil_div
from tvmx.search._budgets import Budgets
from tvmx.search._reach import NEVER, Ints, Reach

LEVELS = 4
"""More are nearer to a Markov state and learn worse, because each is visited more rarely: 4
were better than 8, 16 and 32 on tables of 12 to 54 layers."""


class Ledger:
    """Follows one episode. An action is legal if a completion within the budgets exists.

    For each layer, ``needs`` tabulates what each action and the least that must follow it
    weigh, row by row of the accuracy that is left: a mask is one look-up and one comparison.
    """

    def __init__(self, table: CostTable, budgets: Budgets, width: int) -> None:
        reach = Reach(table, budgets)
        self._count = len(table.layers)
        self._limits = (reach.drop_limit, reach.weights_limit)
        self._bounded = (
            budgets.max_accuracy_drop is not None,
            budgets.max_weights_bytes is not None,
        )
        self._legal = [tuple(int(a) for a in legal) for legal in reach.legal]
        self._drops = [d.tolist() for d in reach.drops]
        self._weights = [w.tolist() for w in reach.weights]
        tables = [_needs(reach, layer, width) for layer in range(self._count)]
        self._breaks = [breaks.tolist() for breaks, _ in tables]
        self._needs = [needs for _, needs in tables]
        self._breaks.append([])
        self._needs.append(np.full((1, width), NEVER, np.int64))
        self._marks = [_marks(rows, reach) for rows in (reach.drops, reach.weights)]
        self.reset()

    def reset(self) -> None:
        """A new episode: nothing is spent."""
        self._layer = 0
        self._drop_left, self._weights_left = self._limits
        self._look_up()

    def spend(self, action: int) -> None:
        """Charge the current layer's action and go on to the next layer."""
        self._drop_left -= self._drops[self._layer][action]
        self._weights_left -= self._weights[self._layer][action]
        self._layer += 1
        self._look_up()

    def allows(self, action: int) -> bool:
        """Whether the action, which the layer must have, leaves a way to the end."""
        return bool(self._row[action] <= self._weights_left)

    def mask(self) -> npt.NDArray[np.bool_]:
        """Which actions are legal now, bool of shape (width,), the caller's to keep."""
        legal: npt.NDArray[np.bool_] = self._row <= self._weights_left
        return legal

    def possible(self, layer: int) -> tuple[int, ...]:
        """The actions of a layer that fit in some episode, whatever this one has spent."""
        return self._legal[layer]

    def shares(self) -> tuple[float, float]:
        """What is left of the accuracy and of the weights budget, 0 to 1; 1 if not set."""
        drop, weights = self._limits
        return (
            self._drop_left / max(1, drop) if self._bounded[0] else 1.0,
            self._weights_left / max(1, weights) if self._bounded[1] else 1.0,
        )

    def levels(self) -> tuple[int, int]:
        """Both rests as levels 0 to ``LEVELS``, for tabular keys.

        Level 0 begins at the least that the remaining layers need; the last one at the most
        they can use, where the budget no longer restricts anything. Levels are narrower where
        less is left. A budget that is not set is always at the last level.
        """
        return (
            bisect_right(self._marks[0][self._layer], self._drop_left),
            bisect_right(self._marks[1][self._layer], self._weights_left),
        )

    def _look_up(self) -> None:
        step = bisect_right(self._breaks[self._layer], self._drop_left)
        self._row = self._needs[self._layer][step]


def _needs(reach: Reach, layer: int, width: int) -> tuple[Ints, Ints]:
    """Drops left at which something changes, and the bytes per action before and after each."""
    legal, drops = reach.legal[layer], reach.drops[layer]
    breaks = np.unique(drops[legal][:, None] + reach.steps(layer + 1))
    breaks = breaks[breaks <= reach.drop_limit]
    needs = np.full((len(breaks) + 1, width), NEVER, np.int64)
    for action in legal:
        later = reach.least_weights(layer + 1, breaks - drops[action])
        needs[1:, action] = reach.weights[layer][action] + later
    return breaks, needs


def _marks(rows: list[Ints], reach: Reach) -> list[list[int]]:
    """Per layer, what must be left for levels 1, 2, ..., :data:`LEVELS`."""
    least = most = 0
    marks = [[0] * LEVELS]
    for row, legal in zip(reversed(rows), reversed(reach.legal), strict=True):
        least, most = least + int(row[legal].min()), most + int(row[legal].max())
        steps = range(1, LEVELS + 1)
        marks.append([least + ceil_div((most - least) * k * k, LEVELS**2) for k in steps])
    return marks[::-1]
