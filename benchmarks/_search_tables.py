"""The search benchmark's tables, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from benchmarks._search_results import FEW, Line, Report, Summary


def print_report(report: Report) -> None:
    """Regrets, episodes until within 1 %, and the short budget beside random."""
    agents = [line.agent for line in report.cases[0].long]
    print(f"Regret to the optimum after {report.episodes} episodes, median of {report.seeds} seeds")
    print("(worst seed in brackets); runs of tpe and policy are shorter.\n")
    _table(report, agents, lambda c, a: _regret(c.line(a), worst=True))
    for few in FEW:
        print(f"\nRegret after {few} episodes, the baseline's among them.\n")
        _table(report, agents, lambda c, a, few=few: _regret(c.line(a, few)))
    print("\nEpisodes until within 1 % of the optimum (distinct plans in brackets).\n")
    _table(report, agents, _within)
    print("\nSeconds of a run of the first table: processor time (wall time); exact alone.\n")
    _table(report, agents, _seconds)
    print(f"\nRandom's best over the agent's best after {FEW[-1]} episodes: latency, regret.\n")
    if "random" in agents:
        _table(report, [a for a in agents if a != "random"], _beside_random)


def _table(report: Report, agents: Sequence[str], cell: Callable[[Summary, str], str]) -> None:
    _row(["case", "layers x choices", "baseline / optimum", *agents])
    _row(["---"] * (3 + len(agents)))
    for case in report.cases:
        size = f"{case.layers} x {case.choices:g}"
        head = [case.case, size, f"{case.baseline_us / case.exact_us:.2f}"]
        _row([*head, *(cell(case, agent) for agent in agents)])


def _row(cells: Iterable[str]) -> None:
    print("| " + " | ".join(cells) + " |")


def _regret(line: Line | None, *, worst: bool = False) -> str:
    if line is None:
        return ""
    return _percent(line.regret) + (f" ({_percent(line.worst)})" if worst else "")


def _percent(share: float) -> str:
    return "none" if math.isinf(share) else f"{100 * share:.1f} %"


def _within(case: Summary, agent: str) -> str:
    line = case.line(agent)
    if line is None or line.episodes_within is None:
        return "-"
    return f"{line.episodes_within:g} ({line.plans_within:g})"


def _seconds(case: Summary, agent: str) -> str:
    line = case.line(agent)
    if line is None:
        return ""
    found = (line.cpu_s, line.wall_s)
    if agent == "exact":  # its runs go on from the optimum, plan by plan
        found = (case.exact_cpu_s, case.exact_wall_s)
    return f"{found[0]:.2f}" + ("" if found[1] is None else f" ({found[1]:.2f})")


def _beside_random(case: Summary, agent: str) -> str:
    line, drawn = case.line(agent, FEW[-1]), case.line("random", FEW[-1])
    if line is None or drawn is None:
        return ""
    latency = (1 + drawn.regret) / (1 + line.regret)
    if line.regret < 1e-4:
        return f"{latency:.2f}, optimum" if drawn.regret > 1e-4 else "both optimal"
    return f"{latency:.2f}, {drawn.regret / line.regret:.1f}"
