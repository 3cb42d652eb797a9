"""What an episode is rewarded for."""

from __future__ import annotations

from typing import Literal, get_args

from tvmx.errors import UsageError

Objective = Literal["latency", "weights", "arena"]

TIE_BREAK = 1e-3
"""What the whole baseline's latency is worth, in units of the whole baseline's bytes, when
bytes are the objective: latency decides between plans of (nearly) equal size."""


def check_objective(name: str) -> Objective:
    """``name`` as an objective. Raises UsageError for any other name."""
    for known in get_args(Objective):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise UsageError(
        f"unknown objective {name!r}; objectives: {', '.join(get_args(Objective))}",
        hint="--objective latency",
    )
