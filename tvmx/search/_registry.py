"""The agents by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from tvmx.errors import UsageError
from tvmx.search._agent import Agent
from tvmx.search._annealing import AnnealingAgent
from tvmx.search._baselines import GreedyAgent, RandomAgent
from tvmx.search._budgets import NO_BUDGETS, Budgets
from tvmx.search._coordinate import CoordinateAgent
from tvmx.search._evolution import EvolutionAgent
from tvmx.search._exact_agent import ExactAgent, arena_counts
from tvmx.search._qlearning import QLearning
from tvmx.search._tpe import TpeAgent

AGENTS: Mapping[str, Callable[[], Agent]] = MappingProxyType(
    {
        "q-learning": QLearning,
        "exact": ExactAgent,
        "annealing": AnnealingAgent,
        "evolution": EvolutionAgent,
        "coordinate": CoordinateAgent,
        "tpe": TpeAgent,
        "greedy": GreedyAgent,
        "random": RandomAgent,
    }
)


POLICY = "policy"
"""The agent that needs a file, and is therefore not in :data:`AGENTS`."""


def make_agent(name: str, policy: Path | None = None) -> Agent:
    """A new agent of that name; ``policy`` is the file of the agent ``policy``, and of no other.

    Raises UsageError for any other name, and StoreError for a file that is no policy.
    """
    if name not in (*AGENTS, POLICY):
        raise UsageError(
            f"unknown agent {name!r}; agents: {', '.join((*AGENTS, POLICY))}",
            hint="--agent q-learning",
        )
    if (name == POLICY) != (policy is not None):
        problem = "needs a policy's file" if name == POLICY else "has no use for a policy's file"
        raise UsageError(
            f"the agent {name} {problem}",
            hint="--agent policy --policy FILE, a file of `tvmx train-agent`",
        )
    if policy is None:
        return AGENTS[name]()
    from tvmx.search.policy import PolicyAgent  # loads torch

    return PolicyAgent.load(policy)


def default_agent(objective: str, budgets: Budgets) -> str:
    """The agent to take where none is named: exact, unless the arena counts."""
    return "q-learning" if arena_counts(objective, budgets) else "exact"


def choose_agent(
    name: str | None, policy: Path | None, objective: str, budgets: Budgets = NO_BUDGETS
) -> str:
    """The agent for a search, whether named, implied by a policy's file, or the default.

    Raises UsageError for one that does not exist or cannot choose there, and StoreError for a
    file that is no policy.
    """
    chosen = name or (POLICY if policy else default_agent(objective, budgets))
    make_agent(chosen, policy).check(objective, budgets)
    return chosen
