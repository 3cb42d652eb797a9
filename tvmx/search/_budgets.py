"""Budgets: the hard limits of a plan."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal

from tvmx.errors import UsageError

UNITS = 10**6
"""Accuracy is counted in whole millionths of a percentage point: sums of whole numbers do not
depend on their order, so masks, solver and final check cannot disagree by a rounding."""


@dataclass(frozen=True)
class Budgets:
    """What a plan may lose and occupy at most; None is no limit.

    ``max_accuracy_drop`` is in percentage points, by the cost table's additive model;
    ``max_weights_bytes`` counts packed constants; ``max_arena_bytes`` counts activations alive
    together, known only for whole plans. Raises UsageError for a negative limit.
    """

    max_accuracy_drop: float | None = None
    max_weights_bytes: int | None = None
    max_arena_bytes: int | None = None

    def __post_init__(self) -> None:
        drop = self.max_accuracy_drop
        if drop is not None and not 0 <= drop < math.inf:
            raise UsageError(f"the accuracy drop allowed must be at least 0 points, got {drop}")
        for name, limit in (("weights", self.max_weights_bytes), ("arena", self.max_arena_bytes)):
            if limit is not None and limit < 0:
                raise UsageError(f"the {name} limit must be at least 0 bytes, got {limit}")

    @property
    def additive(self) -> bool:
        """Whether a limit that adds up over the layers (accuracy, weights) is set."""
        return self.max_accuracy_drop is not None or self.max_weights_bytes is not None

    def allow(self, accuracy_drop: float, weights_bytes: int, arena_bytes: int = 0) -> bool:
        """Whether a whole plan keeps all limits."""
        return (
            (self.max_accuracy_drop is None or accuracy_drop <= self.max_accuracy_drop)
            and (self.max_weights_bytes is None or weights_bytes <= self.max_weights_bytes)
            and (self.max_arena_bytes is None or arena_bytes <= self.max_arena_bytes)
        )


NO_BUDGETS = Budgets()


def units_needed(points: float) -> int:
    """Percentage points in whole units, rounded up: what a layer is charged."""
    return math.ceil(Decimal(repr(float(points))) * UNITS)


def units_allowed(points: float) -> int:
    """Percentage points in whole units, rounded down: what may be spent."""
    return math.floor(Decimal(repr(float(points))) * UNITS)
