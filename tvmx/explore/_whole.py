"""Whole networks: build plans, measure them interleaved with the baseline, score them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tvmx.build import NetworkBuild, build_network
from tvmx.ir import Plan
from tvmx.measure import Measurement, NetworkJob, Runner, TimingPolicy
from tvmx.passes import Lowered, lower

if TYPE_CHECKING:
    from tvmx.passes import Network
    from tvmx.targets import Target
    from tvmx.templates import Registry

Array = npt.NDArray[Any]

_BOOTSTRAP = 2000


@dataclass(frozen=True)
class BuiltPlan:
    """A plan compiled for its target."""

    name: str
    plan: Plan
    lowered: Lowered
    build: NetworkBuild


def build_plan(
    name: str, plan: Plan, network: Network, registry: Registry, target: Target, folder: Path
) -> BuiltPlan:
    """Lower and compile one plan to ``folder/<name>.so``."""
    lowered = lower(network, plan, registry, target)
    return BuiltPlan(name, plan, lowered, build_network(lowered.mod, target, folder / f"{name}.so"))


@dataclass(frozen=True)
class Paired:
    """A candidate against the baseline, paired by round.

    ``ratio`` is the median of candidate / baseline latency; (``low``, ``high``) its 95 %
    bootstrap interval.
    """

    ratio: float
    low: float
    high: float

    @property
    def faster(self) -> bool:
        """Faster beyond the noise."""
        return self.high < 1.0


def paired(candidate: Measurement, baseline: Measurement, seed: int = 0) -> Paired:
    """Compare two measurements of the same interleaved rounds."""
    ratios = np.asarray(candidate.latencies_us) / np.asarray(baseline.latencies_us)
    rng = np.random.default_rng(seed)
    draws = rng.choice(ratios, size=(_BOOTSTRAP, ratios.size))
    low, high = np.percentile(np.median(draws, axis=1), (2.5, 97.5))
    return Paired(float(np.median(ratios)), float(low), float(high))


def measure_interleaved(
    runner: Runner, built: Sequence[BuiltPlan], inputs: dict[str, Array],
    expected: tuple[Array, ...], rounds: int,
) -> list[Measurement]:  # fmt: skip
    """Rounds of baseline, candidate, candidate ...; every output checked against ``expected``."""
    jobs = [
        NetworkJob(library=b.build.path, inputs=inputs, expected=expected, label=b.name)
        for b in built
    ]
    return runner.compare(jobs, rounds, TimingPolicy.careful())
