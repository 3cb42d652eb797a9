"""An evolutionary agent over whole plans."""

from __future__ import annotations

import random
from collections import deque

from tvmx.search._agent import Agent, Env, OnEpisode, Play
from tvmx.search._plans import Plans


class EvolutionAgent(Agent):
    """Regularised evolution: the best of a random few has a child, the oldest plan dies.

    After E. Real, A. Aggarwal, Y. Huang, Q. V. Le, "Regularized evolution for image classifier
    architecture search", AAAI 2019 (arXiv:1802.01548). Half of the children take a run of layers
    from a second parent, so that neighbours whose formats fit stay together; all of them have one
    layer changed.
    """

    def __init__(self, population: int = 32, few: int = 8) -> None:
        self.population, self.few = population, few

    def train(
        self, env: Env, episodes: int, seed: int = 0, on_episode: OnEpisode | None = None
    ) -> list[int]:
        """See :meth:`Agent.train`."""
        rng, plans = random.Random(seed), Plans(env, episodes, seed, on_episode)
        alive: deque[Play] = deque([plans.baseline], maxlen=self.population)
        while not plans.over:
            if len(alive) < self.population:
                parent = plans.baseline.actions
                changes = rng.randint(1, len(plans.open))
            else:
                parent, changes = self._parent(alive, rng), 1
                if rng.random() < 0.5:
                    parent = _crossed(parent, self._parent(alive, rng), rng)
            alive.append(plans.play(plans.mutated(parent, rng, changes)))
        return list(plans.best.actions)

    def _parent(self, alive: deque[Play], rng: random.Random) -> tuple[int, ...]:
        few = rng.sample(range(len(alive)), min(self.few, len(alive)))
        return max((alive[i] for i in few), key=lambda play: play.total).actions


def _crossed(
    first: tuple[int, ...], second: tuple[int, ...], rng: random.Random
) -> tuple[int, ...]:
    start, end = sorted(rng.randrange(len(first) + 1) for _ in range(2))
    return first[:start] + second[start:end] + first[end:]
