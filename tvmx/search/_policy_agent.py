"""A trained policy as an agent: its guess first, then Q-learning on what it thinks likely."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Hashable
from pathlib import Path

import torch

from tvmx.errors import UsageError
from tvmx.search._agent import Best, Env, LegalActions, OnEpisode, play_baseline
from tvmx.search._environment import DeployEnv
from tvmx.search._policy_net import ImplementationPolicy
from tvmx.search._policy_rollout import Stage
from tvmx.search._qlearning import Path as Transitions
from tvmx.search._qlearning import QLearning

Choice = Callable[[int, Hashable, tuple[int, ...], list[float], int], int]
"""Layer, state, legal actions, the policy's odds and the best plan's action to action."""

_UNLIKELY = 0.01  # odds below which an action is not worth an episode


class PolicyAgent(QLearning):
    """Plays the policy's likeliest plan first, and learns from there.

    In the episodes of exploration a layer takes, by the policy's odds, an action that was not
    tried there yet, or else the best one known: all layers try at once, each what is likely, and
    the rewards tell them apart. In those of refinement, layers of the best plan that the policy
    is least sure of are changed first. Reads features from the table of the environment, and of
    its latencies the baseline's.
    """

    affordable = 200

    def __init__(self, policy: ImplementationPolicy) -> None:
        super().__init__()
        self._policy = policy

    @classmethod
    def load(cls, path: Path) -> PolicyAgent:
        """With the policy of a file. Raises StoreError."""
        return cls(ImplementationPolicy.load(path))

    def train(
        self, env: Env, episodes: int, seed: int = 0, on_episode: OnEpisode | None = None
    ) -> list[int]:
        """See :meth:`Agent.train`. Raises UsageError without a :class:`DeployEnv`."""
        deploy = env.unwrapped
        if not isinstance(deploy, DeployEnv):
            raise UsageError("the agent policy needs tvmx/Deploy-v0", hint="--agent q-learning")
        self._q.clear()
        self._stage, self._rng = Stage(deploy, 1), random.Random(seed)
        self._tried: list[set[int]] = [set() for _ in deploy.table.layers]
        best, legal, memory = Best(on_episode), LegalActions(), deque[Transitions](maxlen=128)
        play_baseline(env, seed, best)
        learning = episodes - int(self.parameters.refine * episodes)
        for episode in range(1, episodes):
            if episode == 1:
                choice: Choice = self._likeliest
            elif episode < max(3, learning):
                choice = self._curious
            else:
                self._changed = self._unsure()
                choice = self._refined
            path, feasible = self._play(env, legal, choice, best.actions)
            best.add(tuple(t[1] for t in path), sum(t[2] for t in path), 0.0, feasible)
            for layer, (_, action, _, _) in enumerate(path):
                self._tried[layer].add(action)
            self._learn(path)
            memory.append(path)
            for _ in range(self.parameters.replay_batch):
                self._learn(memory[int(self._rng.random() * len(memory))])
        return list(best.actions)

    def _play(
        self, env: Env, legal: LegalActions, choice: Choice, incumbent: tuple[int, ...]
    ) -> tuple[Transitions, bool]:
        path: Transitions = []
        actions: list[int] = []
        observation, info = env.reset()
        state, over = info["state"], False
        self._doubts: list[float] = []
        while not over:
            seen = [(observation, info)]
            inputs = self._stage.inputs(len(path), seen, [actions])
            with torch.no_grad():
                odds: list[float] = self._policy(*inputs)[0].exp().tolist()
            self._doubts.append(1 - max(odds))
            action = choice(len(path), state, legal(info), odds, incumbent[len(path)])
            observation, reward, terminated, truncated, info = env.step(action)
            path.append((state, action, float(reward), info["state"]))
            actions.append(action)
            state, over = info["state"], terminated or truncated
        return path, info.get("feasible", True)

    def _likeliest(
        self, layer: int, state: Hashable, actions: tuple[int, ...], odds: list[float], kept: int
    ) -> int:
        return max(actions, key=odds.__getitem__)

    def _curious(
        self, layer: int, state: Hashable, actions: tuple[int, ...], odds: list[float], kept: int
    ) -> int:
        new = [a for a in actions if a not in self._tried[layer] and odds[a] >= _UNLIKELY]
        drawn = self._rng.random()
        for action in new:
            drawn -= odds[action]
            if drawn < 0:
                return action
        return self._exploit(state, actions, kept, self._rng)

    def _refined(
        self, layer: int, state: Hashable, actions: tuple[int, ...], odds: list[float], kept: int
    ) -> int:
        if layer in self._changed:
            others = [a for a in actions if a != kept] or list(actions)
            weights = [odds[a] + 0.02 for a in others]
            return self._rng.choices(others, weights)[0]
        return kept if kept in actions else self._exploit(state, actions, kept, self._rng)

    def _unsure(self) -> set[int]:
        layers = range(len(self._doubts))
        weights = [doubt + 0.02 for doubt in self._doubts]
        return set(self._rng.choices(layers, weights, k=self._rng.randint(1, 2)))
