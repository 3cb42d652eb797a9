"""What a simulated device tells of a run besides its latency."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

TIE = 0.20
"""Differences between simulated figures under this are ties: the model is no better."""
FACTS = "tvmx.simulated"
COUNTERS = "tvmx.simulated_counters"


class SimulatedRun(BaseModel):
    """Counters of one run on a simulated core. Cycles are the core's own.

    ``cycles`` is the figure the latency follows from: ``core`` cycles alone (all operands in
    L1), or with those of the memory model added (``core+memory``), as the target's file says.
    Misses and hits count cache lines.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    figure: Literal["core", "core+memory"]
    clock_mhz: int
    core_cycles: float
    memory_cycles: float
    instructions: int
    l1_misses: int
    l2_hits: int
    prefetched_lines: int
    l2_misses: int

    @property
    def cycles(self) -> float:
        """What the latency follows from."""
        return self.core_cycles + (self.memory_cycles if self.figure == "core+memory" else 0.0)


def parse_run(facts: dict[str, Any], counters: str) -> SimulatedRun:
    """From the server's facts and its counters (JSON). Raises ValueError when there are none."""
    told = json.loads(counters)
    if "missing" in told:
        raise ValueError(f"the simulated board counts nothing: {told['missing']}")
    names = set(SimulatedRun.model_fields) - {"figure", "clock_mhz"}
    return SimulatedRun(
        figure=facts["figure"],
        clock_mhz=facts["clock_mhz"],
        **{name: told[name] for name in names},
    )
