"""Agents without learning, to compare with: random, greedy per layer."""

from __future__ import annotations

import random

from tvmx.search._agent import Agent, Best, Env, LegalActions, OnEpisode, play, play_baseline


class RandomAgent(Agent):
    """Uniform legal actions; keeps the best episode."""

    def train(
        self, env: Env, episodes: int, seed: int = 0, on_episode: OnEpisode | None = None
    ) -> list[int]:
        """See :meth:`Agent.train`."""
        rng, best, legal = random.Random(seed), Best(on_episode), LegalActions()
        play_baseline(env, seed, best)
        for _ in range(1, episodes):
            actions, total, feasible = play(env, lambda info: rng.choice(legal(info)))
            best.add(actions, total, 1.0, feasible)
        return list(best.actions)


class GreedyAgent(Agent):
    """Layer by layer the action with the best immediate reward, blind to what follows.

    Each alternative is tried in an episode of its own that repeats what is fixed, tries the
    action and goes on with the baseline. When the episodes run out the best one seen counts.
    """

    def train(
        self, env: Env, episodes: int, seed: int = 0, on_episode: OnEpisode | None = None
    ) -> list[int]:
        """See :meth:`Agent.train`. Deterministic; stops after the last layer."""
        best, legal = Best(on_episode), LegalActions()
        play_baseline(env, seed, best)
        fixed: list[int] = []
        for layer in range(len(best.actions)):
            rewards: dict[int, float] = {}
            for action in self._options(env, fixed, legal):
                if best.count >= episodes:
                    return list(best.actions)
                rewards[action] = self._try(env, [*fixed, action], layer, best)
            fixed.append(max(rewards, key=rewards.__getitem__))
        return list(best.actions)

    def _options(self, env: Env, fixed: list[int], legal: LegalActions) -> tuple[int, ...]:
        _, info = env.reset()
        for action in fixed:
            info = env.step(action)[4]
        return legal(info)

    def _try(self, env: Env, prefix: list[int], layer: int, best: Best) -> float:
        _, info = env.reset()
        path: list[int] = []
        rewards: list[float] = []
        over = False
        while not over:
            path.append(prefix[len(path)] if len(path) < len(prefix) else info["baseline"])
            _, reward, terminated, truncated, info = env.step(path[-1])
            rewards.append(float(reward))
            over = terminated or truncated
        best.add(tuple(path), sum(rewards), 0.0, info.get("feasible", True))
        return rewards[layer]
