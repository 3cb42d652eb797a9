"""Simulated annealing over whole plans."""

from __future__ import annotations

import math
import random

from tvmx.search._agent import Agent, Env, OnEpisode
from tvmx.search._plans import Plans


class AnnealingAgent(Agent):
    """One or two layers changed at random; a worse plan is accepted the less the later.

    After S. Kirkpatrick, C. D. Gelatt, M. P. Vecchi, "Optimization by simulated annealing",
    Science 220 (1983). The temperature falls geometrically over the episodes, from ``hot`` to
    ``cold``, both as returns: shares of the baseline's latency (bytes).
    """

    def __init__(self, hot: float = 0.01, cold: float = 1e-5) -> None:
        self.hot, self.cold = hot, cold

    def train(
        self, env: Env, episodes: int, seed: int = 0, on_episode: OnEpisode | None = None
    ) -> list[int]:
        """See :meth:`Agent.train`."""
        rng, plans = random.Random(seed), Plans(env, episodes, seed, on_episode)
        current = plans.baseline
        while not plans.over:
            temperature = self.hot * (self.cold / self.hot) ** plans.progress
            changed = plans.play(plans.mutated(current.actions, rng, rng.randint(1, 2)))
            loss = current.total - changed.total
            if loss <= 0 or rng.random() < math.exp(-loss / temperature):
                current = changed
        return list(plans.best.actions)
