"""The exact solver as an agent, to be chosen where agents are."""

from __future__ import annotations

from tvmx.errors import UsageError
from tvmx.search._agent import Agent, Env, OnEpisode
from tvmx.search._border import ResumableWalk
from tvmx.search._budgets import Budgets
from tvmx.search._environment import DeployEnv
from tvmx.search._exact import solve_exact
from tvmx.search._plans import Plans


def arena_counts(objective: str, budgets: Budgets) -> bool:
    """Whether something that does not add up over the layers decides, or limits, plans."""
    return objective == "arena" or budgets.max_arena_bytes is not None


class ExactAgent(Agent):
    """Plays the optimum, then the plans that differ from it in one layer.

    The one agent that reads the environment's table instead of learning from episodes: what the
    others are measured against. Raises UsageError where the optimum cannot be had: with the
    objective or a budget on the arena, which does not add up over the layers, and where the
    environment is no :class:`DeployEnv` over a resumable walk.
    """

    def check(self, objective: str, budgets: Budgets) -> None:
        """Raise UsageError where the arena counts."""
        if arena_counts(objective, budgets):
            raise UsageError(
                "the agent exact knows no arena: it does not add up over the layers",
                hint="--agent q-learning",
            )

    def train(
        self, env: Env, episodes: int, seed: int = 0, on_episode: OnEpisode | None = None
    ) -> list[int]:
        """See :meth:`Agent.train`. Deterministic; may end before the episodes do."""
        deploy = env.unwrapped
        if not isinstance(deploy, DeployEnv) or not isinstance(deploy.walk, ResumableWalk):
            raise UsageError(
                "the agent exact needs tvmx/Deploy-v0 over a resumable walk",
                hint="--agent q-learning",
            )
        self.check(deploy.objective, deploy.budgets)
        assert deploy.objective != "arena"
        found = solve_exact(deploy.table, deploy.walk, deploy.budgets, objective=deploy.objective)
        plans = Plans(env, episodes, seed, on_episode)
        if not plans.over:
            best = plans.play(found.actions).actions
        for layer in plans.open:
            for action in plans.options[layer]:
                if plans.over:
                    return list(plans.best.actions)
                if action != best[layer]:
                    plans.play((*best[:layer], action, *best[layer + 1 :]))
        return list(plans.best.actions)
