"""The runs of the search benchmark: one file each, made once."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks._search_cases import Case, case_of
from benchmarks._search_policies import POLICY, policy_without
from benchmarks._search_results import FEW, Curve, Step, Summary, line_of
from tvmx.search import Agent, Episode, make_agent, plan_us, walk_of
from tvmx.search.policy import PolicyAgent


@dataclass(frozen=True)
class Settings:
    """What one start is to have. Agents that think longer the more they play are told fewer."""

    out: Path
    cases: tuple[str, ...]
    agents: tuple[str, ...]
    seeds: int
    episodes: int

    def told(self, agent: Agent, episodes: int | None) -> int:
        """How many episodes an agent is told it has; None stands for a long run."""
        return min(episodes or self.episodes, self.episodes, agent.affordable or self.episodes)

    def path(self, case: str, agent: str, episodes: int, seed: int) -> Path:
        """Where a run is kept."""
        return self.out / case.replace(" ", "-") / f"{agent}.{episodes}.{seed}.json"


class _Recorder:
    """Follows a training run: improvements, and distinct plans."""

    def __init__(self, case: Case) -> None:
        self._table, self._walk = case.table, walk_of(case.table)
        self._seen: set[tuple[int, ...]] = set()
        self._best = float("-inf")
        self.steps: list[Step] = []
        self.played = 0

    def __call__(self, episode: Episode) -> None:
        self.played += 1
        self._seen.add(episode.actions)
        if episode.feasible and episode.total > self._best:
            self._best = episode.total
            us = plan_us(self._table, self._walk, episode.actions)
            self.steps.append(Step(episode=self.played, plans=len(self._seen), us=us))

    @property
    def plans(self) -> int:
        """How many distinct plans were played."""
        return len(self._seen)


class _Clock:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def seconds(self) -> tuple[float, float]:
        """Of processor time and of wall time since, to a millisecond."""
        spent = time.process_time() - self._cpu, time.perf_counter() - self._wall
        return round(spent[0], 3), round(spent[1], 3)


def agent_of(settings: Settings, name: str, case: str) -> Agent:
    """A new agent; the policy is one that has not seen the case's network."""
    if name == POLICY:
        return PolicyAgent.load(policy_without(case.split()[0], settings.out / "policies"))
    return make_agent(name)


def run(settings: Settings, name: str, agent: str, few: int | None, seed: int) -> Curve:
    """One run, from its file where that is still good."""
    case, player = case_of(name), agent_of(settings, agent, name)
    episodes = settings.told(player, few)
    path = settings.path(name, agent, episodes, seed)
    kept = Curve.load(path)
    if kept is not None and kept.digest == case.digest:
        return kept
    env, recorder = case.env(), _Recorder(case)
    clock = _Clock()
    player.train(env, episodes, seed, on_episode=recorder)
    cpu_s, wall_s = clock.seconds()
    curve = Curve(
        case=name, digest=case.digest, agent=agent, seed=seed, episodes=episodes,
        steps=tuple(recorder.steps), played=recorder.played, plans=recorder.plans,
        cpu_s=cpu_s, wall_s=wall_s,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    curve.save(path)
    return curve


def summarise(settings: Settings, name: str) -> Summary:
    """Every agent on a case; makes the runs that are missing."""
    case = case_of(name)
    clock = _Clock()
    exact = case.exact()
    cpu_s, wall_s = clock.seconds()
    lines = []
    for few in (*FEW, None):
        found = []
        for agent in settings.agents:
            curves = [run(settings, name, agent, few, seed) for seed in range(settings.seeds)]
            found.append(line_of(agent, curves, exact.latency_us))
        lines.append(tuple(found))
    return Summary(
        case=name, layers=len(case.table.layers),
        choices=round(statistics.mean(len(c.legal) for c in case.table.layers), 1),
        baseline_us=case.env().baseline_us, exact_us=exact.latency_us, proven=exact.exact,
        exact_cpu_s=cpu_s, exact_wall_s=wall_s, few=tuple(lines[:-1]), long=lines[-1],
    )  # fmt: skip
