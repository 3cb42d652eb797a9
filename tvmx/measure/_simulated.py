"""What a simulated device tells of a run besides its latency."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FACTS = "tvmx.simulated"
COUNTERS = "tvmx.simulated_counters"


class SimulatedCounts(BaseModel):
    """What one run cost a simulated core; ``memory_cycles`` come on top of ``core_cycles``.

    ``core_cycles`` are those with all operands in L1. Misses and hits count cache lines.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    core_cycles: float
    memory_cycles: float
    instructions: int
    l1_misses: int
    l2_hits: int
    prefetched_lines: int
    l2_misses: int


class SimulatedRun(SimulatedCounts):
    """Counters of one run, and what the latency follows from.

    ``figure`` is ``core`` cycles alone, or with those of the memory model added
    (``core+memory``), as the target's file says.
    """

    figure: Literal["core", "core+memory"]
    clock_mhz: int

    @property
    def cycles(self) -> float:
        """What the latency follows from."""
        return self.core_cycles + (self.memory_cycles if self.figure == "core+memory" else 0.0)


def parse_run(facts: dict[str, Any], counters: str) -> SimulatedRun:
    """From the server's facts and its counters (JSON). Raises ValueError when there are none."""
    told = json.loads(counters)
    if "missing" in told:
        raise ValueError(f"the simulated board counts nothing: {told['missing']}")
    counts = {name: told[name] for name in SimulatedCounts.model_fields}
    return SimulatedRun(figure=facts["figure"], clock_mhz=facts["clock_mhz"], **counts)


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
