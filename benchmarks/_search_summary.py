"""What the search benchmark comes to: medians over the cases, and the policy beside the others."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks._search_cases import LIMITED
from benchmarks._search_policies import POLICY
from benchmarks._search_results import FEW, Line, Report, Summary

_TIE = 1e-4
_TOLD = {POLICY, "exact"}  # one has been trained, the other reads the table


def print_summary(report: Report) -> None:
    """As Markdown: every agent over the free and over the limited cases, then the policy's rows."""
    agents = [line.agent for line in report.cases[0].long]
    for limited in (False, True):
        cases = [case for case in report.cases if (LIMITED in case.case) == limited]
        if cases:
            kind = "limited" if limited else "free"
            print(f"\nRegret, median of {len(cases)} {kind} cases; the last column is the worst.\n")
            _row(["agent", *(f"{few - 1} plans" for few in FEW), "all episodes", "worst case"])
            _row(["---"] * (3 + len(FEW)))
            for agent in agents:
                _row([agent, *_medians(cases, agent)])
    untrained = [agent for agent in agents if agent not in _TOLD]
    if POLICY in agents and untrained:
        _print_policy(report.cases, untrained)


def _medians(cases: Sequence[Summary], agent: str) -> list[str]:
    few = [[_line(case, agent, n).regret for case in cases] for n in FEW]
    last = [_line(case, agent, None).regret for case in cases]
    return [*(_percent(statistics.median(r)) for r in (*few, last)), _percent(max(last))]


def _print_policy(cases: Sequence[Summary], untrained: Sequence[str]) -> None:
    """After 1, 10 and 100 plans besides the baseline; the best of the others after 10 and 100."""
    print("\nRegret of the policy on a network held out, and of the best untrained agent.\n")
    _row(["case", *(f"{POLICY}: {few - 1}" for few in FEW), "others: 10", "others: 100"])
    _row(["---"] * (3 + len(FEW)))
    counts = dict.fromkeys(("first plan ahead of others' 10", "10 ahead of others' 10",
                            "10 ahead of others' 100", "10 level with others' 100",
                            "100 not behind others' 100"), 0)  # fmt: skip
    for case in cases:
        own = [_line(case, POLICY, few).regret for few in FEW]
        ten, hundred = (min(_line(case, a, few).regret for a in untrained) for few in FEW[1:])
        _row([case.case, *(_percent(regret) for regret in (*own, ten, hundred))])
        found = (own[0] <= ten, own[1] <= ten, own[1] < hundred - _TIE,
                 abs(own[1] - hundred) <= _TIE, own[2] <= hundred + _TIE)  # fmt: skip
        for name, right in zip(counts, found, strict=True):
            counts[name] += right
    print("\nOf", len(cases), "cases:", ", ".join(f"{n} {count}" for n, count in counts.items()))


def _line(case: Summary, agent: str, few: int | None) -> Line:
    found = case.line(agent, few)
    assert found is not None, (case.case, agent)
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _row(cells: Sequence[str]) -> None:
    print("| " + " | ".join(cells) + " |")
