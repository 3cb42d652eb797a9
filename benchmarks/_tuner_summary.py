"""What the runs on a workload came to, and whether that is what was wanted: records as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from benchmarks._records import Record
from benchmarks._tuner_results import (
    COLD,
    METASCHEDULE,
    WARM,
    Candidate,
    Comparison,
    Curve,
    behind,
    measured_us,
    median_needed,
    needed,
)
from benchmarks._tuner_workloads import Workload

BOUNDS = {COLD: 32, WARM: 8}
"""The most measurements until within 5 % of the best known config, median over seeds."""


class Summary(Record):
    """One workload. Latencies in us, timed side by side.

    ``needed`` are, by method and seed, the measurements until within 5 % of the best known
    config, None where a run did not get there. ``ratios`` are, by seed, the median over rounds
    of tvmx's (cold) winner over MetaSchedule's; ``verdicts`` whether that is ``faster``,
    ``slower`` or a ``tie`` at 95 % confidence. ``progress`` is, by method and after 1, 2, ...
    measurements, the median over seeds of the speed held over that of the best known config.
    """

    workload: str
    description: str
    gflop: float
    best_us: float
    best_template: str
    best_config: str
    needed: dict[str, tuple[int | None, ...]]
    winners_us: dict[str, tuple[float, ...]]
    ratios: tuple[float, ...]
    verdicts: tuple[str, ...]
    progress: dict[str, tuple[float, ...]]

    def median_needed(self, method: str) -> float | None:
        """Median over seeds; None where the median run did not get there, or there is none."""
        return median_needed(self.needed[method]) if self.needed.get(method) else None

    @property
    def ratio(self) -> float | None:
        """Time of tvmx over MetaSchedule's, median over seeds; under 1 tvmx is ahead."""
        return statistics.median(self.ratios) if self.ratios else None


class Report(Record):
    """Everything the table shows, and what it was measured on."""

    machine: str
    versions: dict[str, str]
    seeds: int
    trials: int
    metaschedule_round: int
    workloads: tuple[Summary, ...]


def summarise(
    name: str, workload: Workload, curves: Sequence[Curve], comparison: Comparison, trials: int
) -> Summary:
    """The figures of one workload."""
    methods: dict[str, list[Curve]] = {}
    for curve in curves:
        methods.setdefault(curve.method, []).append(curve)
    searched = measured_us(curves)
    winners = {
        method: {c.seed: w for c in found if (w := comparison.winner(c, trials)) is not None}
        for method, found in methods.items()
    }
    ours, theirs = winners.get(COLD, {}), winners.get(METASCHEDULE, {})
    pairs = [comparison.paired(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    best = comparison.best
    return Summary(
        workload=name, description=workload.describe(), gflop=2e-9 * workload.macs,
        best_us=best.median_us, best_template=best.template, best_config=best.config,
        needed={
            m: tuple(needed(c, trials, comparison, searched) for c in found)
            for m, found in methods.items()
        },
        winners_us={
            m: tuple(w.median_us for w in found.values()) for m, found in winners.items() if found
        },
        ratios=tuple(p.ratio for p in pairs), verdicts=tuple(p.verdict for p in pairs),
        progress={
            m: _progress(found, trials, comparison, searched) for m, found in methods.items()
        },
    )  # fmt: skip


def _progress(
    curves: Sequence[Curve], trials: int, comparison: Comparison,
    searched: Mapping[Candidate, float],
) -> tuple[float, ...]:  # fmt: skip
    speeds = [
        [1 / (1 + behind(p.candidate, comparison, searched)) if p else 0.0 for p in c.held(trials)]
        for c in curves
    ]
    return tuple(statistics.median(at) for at in zip(*speeds, strict=True))


def missed(summaries: Sequence[Summary]) -> list[str]:
    """One line for every workload that a bound was missed on."""
    lines = []
    for summary in summaries:
        for method, most in BOUNDS.items():
            if summary.needed.get(method):
                found = summary.median_needed(method)
                if found is None or found > most:
                    how = "never" if found is None else f"after {found:g}"
                    lines.append(
                        f"{summary.workload}, {method}: within 5 % of the best known {how},"
                        f" {most} measurements were allowed"
                    )
        if summary.ratio is not None and summary.ratio >= 1:
            lines.append(
                f"{summary.workload}: {summary.ratio:.2f} times as long as MetaSchedule's winner"
            )
    return lines
