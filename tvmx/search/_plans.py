"""Whole plans as episodes, for agents that do not walk from layer to layer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from tvmx.search._agent import Best, Env, OnEpisode, Play, play, play_baseline


class Plans:
    """Plays whole plans until the episodes run out; the baseline comes first.

    ``options`` are the actions of every layer that some episode permits, ``open`` the layers
    that have more than one. Where the budgets mask what a plan wants, what stands in for the
    baseline there is played, and that is the plan an episode counts for.
    """

    def __init__(self, env: Env, episodes: int, seed: int, on_episode: OnEpisode | None) -> None:
        self._env, self._episodes = env, episodes
        self.best = Best(on_episode)
        _, info = env.reset(seed=seed)
        self.options: tuple[tuple[int, ...], ...] = info["options"]
        self.open = [layer for layer, options in enumerate(self.options) if len(options) > 1]
        play_baseline(env, seed, self.best)
        self.baseline = Play(self.best.actions, self.best.total, True)

    @property
    def over(self) -> bool:
        """Whether the episodes ran out, or there is nothing to choose."""
        return self.best.count >= self._episodes or not self.open

    @property
    def progress(self) -> float:
        """Share of the episodes that were played."""
        return self.best.count / self._episodes

    def play(self, plan: Sequence[int], epsilon: float = 0.0) -> Play:
        """One episode of a plan."""

        def choose(info: dict[str, Any]) -> int:
            wanted = plan[info["layer"]]
            return wanted if info["action_mask"][wanted] else int(info["baseline"])

        played = play(self._env, choose)
        self.best.add(played.actions, played.total, epsilon, played.feasible)
        return played

    def mutated(self, plan: Sequence[int], rng: random.Random, layers: int = 1) -> list[int]:
        """A copy with that many layers, at the most, given another action each."""
        changed = list(plan)
        for layer in rng.sample(self.open, min(layers, len(self.open))):
            changed[layer] = rng.choice([a for a in self.options[layer] if a != plan[layer]])
        return changed
