"""An agent's episodes on a cost table, here or from several seeds on a Ray cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tvmx.explore._walk import estimate_arena
from tvmx.ir import CostTable, Implementation, NetworkGraph
from tvmx.search import Budgets, Candidate, DeployEnv, TopCandidates, make_agent

if TYPE_CHECKING:
    from tvmx.build import RayCluster

SEEDS = 8
"""On a cluster, however large it is: the same request gives the same plans on any."""
SEEDED = ("q-learning", "annealing", "evolution", "coordinate", "tpe", "random")
"""The agents whose episodes depend on the seed, and which need no file."""


@dataclass(frozen=True)
class ArenaEstimate:
    """Bytes of activations of an assignment; ``scale`` is built over estimated, of the baseline.

    ``options`` are the implementations by layer index, in the table's order.
    """

    graph: NetworkGraph
    options: Mapping[int, Sequence[Implementation]]
    scale: float

    def __call__(self, assignment: Sequence[int]) -> int:
        """For ranking plans."""
        pairs = zip(self.options.items(), assignment, strict=True)
        chosen = {layer: options[action] for (layer, options), action in pairs}
        return int(self.scale * estimate_arena(self.graph, chosen))


@dataclass(frozen=True)
class Rollout:
    """One agent on one table from one seed; plain data, so that another machine can play it."""

    table: CostTable
    agent: str
    policy: Path | None
    episodes: int
    seed: int
    kept: int
    objective: str
    budgets: Budgets
    arena: ArenaEstimate


def play_rollout(rollout: Rollout) -> list[Candidate]:
    """The best distinct plans, best first."""
    env = DeployEnv(
        rollout.table, objective=rollout.objective, arena_bytes=rollout.arena,
        budgets=rollout.budgets,
    )  # fmt: skip
    top = TopCandidates(rollout.kept)
    agent = make_agent(rollout.agent, rollout.policy)
    agent.train(env, rollout.episodes, rollout.seed, on_episode=top)
    return top.best()


def spread_out(rollout: Rollout, seeds: int, cluster: RayCluster | None) -> list[Candidate]:
    """The best plans of the rollout from ``seeds`` seeds, played by the cluster if there is one.

    Raises DeviceError where the cluster is gone.
    """
    rollouts = [replace(rollout, seed=rollout.seed + i) for i in range(seeds)]
    if cluster is None:
        found = [play_rollout(each) for each in rollouts]
    else:
        found = cluster.map(play_rollout, rollouts)
    top = TopCandidates(rollout.kept)
    for candidates in found:
        for candidate in candidates:
            top.add(candidate.actions, candidate.total)
    return top.best()
