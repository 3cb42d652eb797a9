"""What a simulated device tells of a run besides its latency."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

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


def simulation_id(facts: str) -> str:
    """A short name of what simulated figures depend on besides the target; for record keys.

    ``facts`` is the JSON object a simulated board tells; empty for a real device.
    """
    if not facts:
        return ""
    told = json.loads(facts)
    depends = {
        name: value for name, value in told.items() if name not in ("board", "figure_source")
    }
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:8]
    return f"simulated:{digest}"


def describe_simulation(facts: str) -> str:
    """Such as ``core+memory cycles of cortex-a72 at 1500 MHz, by llvm-mca ...``; or nothing."""
    if not facts:
        return ""
    told = json.loads(facts)
    figure = told.get("figure") or "no"
    clock, model = told.get("clock_mhz"), told.get("model")
    return f"{figure} cycles of {told.get('core')} at {clock} MHz, by {model}"
