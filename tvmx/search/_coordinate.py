"""Coordinate descent over whole plans."""

from __future__ import annotations

import random

from tvmx.search._agent import Agent, Env, OnEpisode, Play
from tvmx.search._plans import Plans


class CoordinateAgent(Agent):
    """One layer after the other, in random order, is given the action with the best whole plan.

    Unlike :class:`GreedyAgent` it sees what a choice costs the layers behind it. When a round
    changes nothing it starts again from a plan drawn at random.
    """

    def train(
        self, env: Env, episodes: int, seed: int = 0, on_episode: OnEpisode | None = None
    ) -> list[int]:
        """See :meth:`Agent.train`."""
        rng, plans = random.Random(seed), Plans(env, episodes, seed, on_episode)
        current = plans.baseline
        while not plans.over:
            better = self._round(plans, current, rng)
            if better.total > current.total:
                current = better
            elif not plans.over:
                current = plans.play([rng.choice(options) for options in plans.options], 1.0)
        return list(plans.best.actions)

    def _round(self, plans: Plans, current: Play, rng: random.Random) -> Play:
        for layer in rng.sample(plans.open, len(plans.open)):
            before = current.actions
            for action in plans.options[layer]:
                if plans.over:
                    return current
                if action != before[layer]:
                    changed = plans.play((*before[:layer], action, *before[layer + 1 :]))
                    current = max(current, changed, key=lambda play: play.total)
        return current
