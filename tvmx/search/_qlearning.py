"""Tabular Q-learning over layers, after QS-DNN.

Algorithm: M. de Prado, N. Pazos, L. Benini, "Learning to infer: RL-based search for DNN
primitive selection on heterogeneous embedded systems", DATE 2019 (arXiv:1811.07315).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from tvmx.errors import UsageError
from tvmx.search._agent import Agent, Best, Env, LegalActions, OnEpisode, play_baseline

Transition = tuple[Hashable, int, float, Hashable]
Path = list[Transition]
Choose = Callable[[int, Hashable, tuple[int, ...]], int]
"""Layer, state and legal actions to action."""


@dataclass(frozen=True)
class QLearningParameters:
    """Hyperparameters of :class:`QLearning`.

    The share ``refine`` of the episodes comes last and repeats the best plan with one or two
    layers changed at random, as far as budgets allow. Of the ones before, ``explore`` is the
    share with epsilon 1; then epsilon falls by ``epsilon_step`` down to 0 in equal phases, the
    last phase being pure exploitation. ``replay_size`` episodes are remembered; after each one
    it and ``replay_batch`` of them, drawn at random, are learnt backwards. Exploring draws
    among the actions not yet tried in a state, and among all once each has been.

    ``learning_rate`` 1 suits table mode, where the same action in the same state always has
    the same outcome; take less where rewards are measured. ``discount`` is 1: an episode is
    as long as the network, and the plain sum of its rewards is what is optimised.
    """

    learning_rate: float = 1.0
    discount: float = 1.0
    refine: float = 0.5
    explore: float = 0.35
    epsilon_step: float = 0.1
    replay_size: int = 128
    replay_batch: int = 8

    def __post_init__(self) -> None:
        shares = (self.learning_rate, self.discount, self.epsilon_step)
        if not all(0 < v <= 1 for v in shares) or not all(
            0 <= v <= 1 for v in (self.explore, self.refine)
        ):
            raise UsageError(f"Q-learning shares must lie between 0 and 1: {self}")
        if self.replay_size < 1 or self.replay_batch < 0:
            raise UsageError(f"Q-learning replay must hold at least one episode: {self}")

    def epsilon(self, episode: int, episodes: int) -> float:
        """Exploration share of one of ``episodes`` before the refinement, 1 down to 0."""
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
        memory: deque[Path] = deque(maxlen=self.parameters.replay_size)
        play_baseline(env, seed, best)
        learning = episodes - int(self.parameters.refine * episodes)
        for episode in range(1, episodes):
            epsilon = 0.0
            if episode < learning:
                epsilon = self.parameters.epsilon(episode, learning)
                choose = self._learner(rng, best.actions, epsilon)
            else:
                choose = self._refiner(rng, best.actions)
            path, feasible = _play(env, legal, choose)
            best.add(tuple(t[1] for t in path), sum(t[2] for t in path), epsilon, feasible)
            self._learn(path)
            memory.append(path)
            for _ in range(self.parameters.replay_batch):
                self._learn(memory[int(rng.random() * len(memory))])
        return list(best.actions)

    def _learner(self, rng: random.Random, incumbent: tuple[int, ...], epsilon: float) -> Choose:
        draw, table = rng.random, self._q

        def choose(layer: int, state: Hashable, actions: tuple[int, ...]) -> int:
            if draw() >= epsilon:
                return self._exploit(state, actions, incumbent[layer], rng)
            known = table.get(state)
            if known is not None and len(known) < len(actions):
                actions = tuple(a for a in actions if a not in known) or actions
            return actions[int(draw() * len(actions))]

        return choose

    def _refiner(self, rng: random.Random, incumbent: tuple[int, ...]) -> Choose:
        changed = {rng.randrange(len(incumbent)) for _ in range(rng.randint(1, 2))}

        def choose(layer: int, state: Hashable, actions: tuple[int, ...]) -> int:
            if layer in changed:
                return actions[int(rng.random() * len(actions))]
            kept = incumbent[layer]
            return kept if kept in actions else self._exploit(state, actions, kept, rng)

        return choose

    def _exploit(
        self, state: Hashable, actions: tuple[int, ...], incumbent: int, rng: random.Random
    ) -> int:
        """The legal action of most value; where none is known the best plan's, if legal."""
        known = self._q.get(state)
        if known:
            action = max(known, key=known.__getitem__)
            if action in actions:
                return action
            # Budgets: equal levels of what is left do not always permit the same.
            tried = [a for a in actions if a in known]
            if tried:
                return max(tried, key=known.__getitem__)
        return incumbent if incumbent in actions else actions[int(rng.random() * len(actions))]

    def _learn(self, path: Path) -> None:
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


def _play(env: Env, legal: LegalActions, choose: Choose) -> tuple[Path, bool]:
    path: Path = []
    _, info = env.reset()
    state, over = info["state"], False
    while not over:
        action = choose(len(path), state, legal(info))
        _, reward, terminated, truncated, info = env.step(action)
        following = info["state"]
        path.append((state, action, float(reward), following))
        state, over = following, terminated or truncated
    return path, info.get("feasible", True)
