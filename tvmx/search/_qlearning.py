"""Tabular Q-learning over layers, after QS-DNN.

Algorithm: M. de Prado, N. Pazos, L. Benini, "Learning to infer: RL-based search for DNN
primitive selection on heterogeneous embedded systems", DATE 2019 (arXiv:1811.07315).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

from tvmx.errors import UsageError
from tvmx.search._agent import Agent, Best, Env, LegalActions, OnEpisode, play_baseline

Transition = tuple[Hashable, int, float, Hashable]


@dataclass(frozen=True)
class QLearningParameters:
    """Hyperparameters of :class:`QLearning`.

    ``explore`` is the share of episodes with epsilon 1; then epsilon falls by
    ``epsilon_step`` down to 0 in equal phases over the remaining episodes, the last phase
    being pure exploitation. ``replay_size`` episodes are remembered; after each episode it
    and ``replay_batch`` of them, drawn at random, are learnt backwards. Exploring draws among
    the actions not yet tried in a state, and among all once each has been.

    ``learning_rate`` 1 suits table mode, where the same action in the same state always has
    the same outcome; take less where rewards are measured. ``discount`` is 1: an episode is
    as long as the network, and the plain sum of its rewards is what is optimised.
    """

    learning_rate: float = 1.0
    discount: float = 1.0
    explore: float = 0.35
    epsilon_step: float = 0.1
    replay_size: int = 128
    replay_batch: int = 8

    def __post_init__(self) -> None:
        shares = (self.learning_rate, self.discount, self.epsilon_step)
        if not all(0 < v <= 1 for v in shares) or not 0 <= self.explore <= 1:
            raise UsageError(f"Q-learning shares must lie between 0 and 1: {self}")
        if self.replay_size < 1 or self.replay_batch < 0:
            raise UsageError(f"Q-learning replay must hold at least one episode: {self}")

    def epsilon(self, episode: int, episodes: int) -> float:
        """Exploration share of one episode, 1 down to 0."""
        exploring = int(self.explore * episodes)
        if episode < exploring:
            return 1.0
        phases = max(1, round(1 / self.epsilon_step))
        phase = (episode - exploring) * phases // max(1, episodes - exploring)
        return max(0.0, 1.0 - (phase + 1) * self.epsilon_step)


class QLearning(Agent):
    """Q(state, action) in a table, keyed by ``info["state"]``."""

    def __init__(self, parameters: QLearningParameters | None = None) -> None:
        self.parameters = parameters or QLearningParameters()
        self._q: dict[Hashable, dict[int, float]] = {}

    def train(
        self, env: Env, episodes: int, seed: int = 0, on_episode: OnEpisode | None = None
    ) -> list[int]:
        """See :meth:`Agent.train`. Starts from an empty table."""
        self._q.clear()
        rng, best, legal = random.Random(seed), Best(on_episode), LegalActions()
        memory: deque[list[Transition]] = deque(maxlen=self.parameters.replay_size)
        play_baseline(env, seed, best)
        for episode in range(1, episodes):
            epsilon = self.parameters.epsilon(episode, episodes)
            path = self._play(env, epsilon, rng, legal)
            best.add(tuple(t[1] for t in path), sum(t[2] for t in path), epsilon)
            self._learn(path)
            memory.append(path)
            for _ in range(self.parameters.replay_batch):
                self._learn(memory[int(rng.random() * len(memory))])
        return list(best.actions)

    def _play(
        self, env: Env, epsilon: float, rng: random.Random, legal: LegalActions
    ) -> list[Transition]:
        path: list[Transition] = []
        _, info = env.reset()
        state, over, draw = info["state"], False, rng.random
        while not over:
            actions = legal(info)
            known = self._q.get(state)
            if known is None or draw() < epsilon:
                if known is not None and len(known) < len(actions):
                    actions = tuple(a for a in actions if a not in known)
                action = actions[int(draw() * len(actions))]
            else:
                action = max(known, key=known.__getitem__)
            _, reward, terminated, truncated, info = env.step(action)
            following = info["state"]
            path.append((state, action, float(reward), following))
            state, over = following, terminated or truncated
        return path

    def _learn(self, path: list[Transition]) -> None:
        # Unvisited pairs have no value, and the first visit sets it: an arbitrary initial
        # value would outrank actions known to lose against the baseline.
        rate, discount = self.parameters.learning_rate, self.parameters.discount
        table = self._q
        for state, action, reward, following in reversed(path):
            later = table.get(following)
            goal = reward + discount * max(later.values()) if later else reward
            values = table.get(state)
            if values is None:
                table[state] = {action: goal}
            elif action in values:
                values[action] += rate * (goal - values[action])
            else:
                values[action] = goal
