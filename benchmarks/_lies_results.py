"""How far cost tables are from whole networks, and corrected ones, on plans they did not see."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import kendalltau, spearmanr

from benchmarks._lies_runs import PlanSample
from benchmarks._records import Record
from tvmx.search import TERMS, Correction, Sample, held_out

LIMIT = 1.0
"""Points that a plan may lose."""


class Report(Record):
    """All plans of all networks."""

    machine: str
    samples: tuple[PlanSample, ...]


class Error(Record):
    """Predicted against measured.

    ``error`` is the mean absolute one (0.05: 5 %), the correlations are those of ranks, ``regret``
    is by how much the plan predicted fastest is slower than the fastest.
    """

    name: str
    error: float
    spearman: float
    kendall: float
    regret: float


class Joint(Record):
    """The sum of the layers' losses against what whole plans lose, in points.

    ``within`` plans keep ``LIMIT`` by the sum, ``broken`` of them lose more than that.
    """

    error: float
    spearman: float
    within: int
    broken: int


class Summary(Record):
    """Of one network; ``plans`` measured."""

    network: str
    plans: int
    errors: tuple[Error, ...]
    correction: str
    joint: Joint


def summarise(report: Report) -> list[Summary]:
    """The table alone, times a factor, corrected leaving one plan out, and by other networks."""
    names = list(dict.fromkeys(s.network for s in report.samples))
    strange = _by_other_networks(report.samples) if len(names) > 1 else None
    found = []
    for name in names:
        mine = [s for s in report.samples if s.network == name]
        samples = list(map(_sample, mine))
        plain = [s.predicted_us for s in samples]
        errors = [
            _error("table", plain, samples),
            _error("times a factor", _factor_alone(samples), samples),
            _error("corrected, one plan left out", held_out(samples), samples),
        ]
        if strange is not None:
            guessed = [strange[s.network, s.number] for s in mine]
            errors.append(_error("corrected by the other networks", guessed, samples))
        told = Correction.fit(samples).describe()
        found.append(
            Summary(
                network=name,
                plans=len(mine),
                errors=tuple(errors),
                correction=told,
                joint=_joint(mine),
            )
        )
    return found


def print_report(summaries: Sequence[Summary]) -> None:
    """A Markdown table."""
    print("| network | plans | prediction | error | Spearman | Kendall | pick is slower by |")
    print("|---|---|---|---|---|---|---|")
    for summary in summaries:
        for e in summary.errors:
            print(
                f"| {summary.network} | {summary.plans} | {e.name} | {e.error:.1%} | "
                f"{e.spearman:.3f} | {e.kendall:.3f} | {e.regret:.1%} |"
            )
    for summary in summaries:
        print(f"\n{summary.network}: {summary.correction}")
    print("\n| network | sum of losses is off by | Spearman | within the limit by it | broken |")
    print("|---|---|---|---|---|")
    for summary in summaries:
        j = summary.joint
        print(
            f"| {summary.network} | {j.error:.2f} points | {j.spearman:.3f} | {j.within} | "
            f"{j.broken} |"
        )
    print(f"\nterms: {', '.join(TERMS)}")


def _sample(plan: PlanSample) -> Sample:
    return Sample(plan.predicted_us, plan.measured_us, plan.terms)


def _joint(plans: Sequence[PlanSample]) -> Joint:
    added = np.array([plan.added_drop for plan in plans])
    lost = np.array([plan.measured_drop for plan in plans])
    within = added <= LIMIT
    return Joint(
        error=float(np.mean(np.abs(added - lost))),
        spearman=float(spearmanr(added, lost).statistic),
        within=int(within.sum()), broken=int((within & (lost > LIMIT)).sum()),
    )  # fmt: skip


def _by_other_networks(plans: Sequence[PlanSample]) -> dict[tuple[str, int], float]:
    guessed = held_out(list(map(_sample, plans)), [plan.network for plan in plans])
    return {(p.network, p.number): us for p, us in zip(plans, guessed, strict=True)}


def _factor_alone(samples: Sequence[Sample]) -> list[float]:
    """Each by the mean residual of the others."""
    residuals = [s.residual for s in samples]
    total = sum(residuals)
    others = max(1, len(samples) - 1)
    return [
        s.predicted_us * (1 + (total - r) / others) for s, r in zip(samples, residuals, strict=True)
    ]


def _error(name: str, predicted: Sequence[float], samples: Sequence[Sample]) -> Error:
    measured = np.array([s.measured_us for s in samples])
    guessed = np.array(predicted)
    picked = measured[int(np.argmin(guessed))]
    return Error(
        name=name, error=float(np.mean(np.abs(guessed / measured - 1))),
        spearman=float(spearmanr(guessed, measured).statistic),
        kendall=float(kendalltau(guessed, measured).statistic),
        regret=float(picked / measured.min() - 1),
    )  # fmt: skip
