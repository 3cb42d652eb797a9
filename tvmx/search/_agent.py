"""The Agent contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium

from tvmx.search._budgets import Budgets

Env = gymnasium.Env[Any, Any]


class Episode(NamedTuple):
    """One finished episode: its number, what was chosen, its return, the exploration share.

    ``feasible`` is False for a plan over a budget; its return is then a penalty.
    """

    number: int
    actions: tuple[int, ...]
    total: float
    epsilon: float
    feasible: bool = True


OnEpisode = Callable[[Episode], object]


class Agent(ABC):
    """Learns to choose by playing episodes. Sees only the gymnasium environment.

    Environments give ``info["action_mask"]``, ``info["state"]`` and ``info["baseline"]``
    as :class:`tvmx.search.DeployEnv` documents them, ``info["options"]`` at the start and
    ``info["feasible"]`` at the end. The
    first episode plays the baseline, or what the environment names in its place where budgets
    mask it, so what :meth:`train` returns is never worse than that.

    ``affordable`` is after how many episodes thinking takes longer than it is worth, if it grows.
    """

    affordable: int | None = None

    def check(self, objective: str, budgets: Budgets) -> None:  # noqa: B027  (most need nothing)
        """Raise UsageError where the agent can do nothing, before anything is measured for it."""

    @abstractmethod
    def train(
        self, env: Env, episodes: int, seed: int = 0, on_episode: OnEpisode | None = None
    ) -> list[int]:
        """Play at most ``episodes`` episodes; returns the actions of the best one seen.

        Where an arena budget was never met that is the plan least over it: check, or collect
        with :class:`tvmx.search.TopCandidates`, which takes feasible plans only.
        ``on_episode`` is called after each. Equal seeds give equal runs.
        """


class Best:
    """The best episode so far; the earlier one on ties. Reports each one to ``on_episode``."""

    def __init__(self, on_episode: OnEpisode | None) -> None:
        self._on_episode = on_episode
        self.count = 0
        self.total = float("-inf")
        self.actions: tuple[int, ...] = ()

    def add(
        self, actions: tuple[int, ...], total: float, epsilon: float, feasible: bool = True
    ) -> None:
        """Record one episode."""
        if total > self.total:
            self.total, self.actions = total, actions
        if self._on_episode is not None:
            self._on_episode(Episode(self.count, actions, total, epsilon, feasible))
        self.count += 1


class Play(NamedTuple):
    """What an episode came to."""

    actions: tuple[int, ...]
    total: float
    feasible: bool


def play(env: Env, choose: Callable[[dict[str, Any]], int], seed: int | None = None) -> Play:
    """One episode; ``choose`` turns each step's ``info`` into an action."""
    _, info = env.reset(seed=seed)
    actions: list[int] = []
    total, over = 0.0, False
    while not over:
        actions.append(choose(info))
        _, reward, terminated, truncated, info = env.step(actions[-1])
        total += float(reward)
        over = terminated or truncated
    return Play(tuple(actions), total, info.get("feasible", True))


def play_baseline(env: Env, seed: int, best: Best) -> None:
    """Seed the environment and play ``info["baseline"]`` for one episode."""
    actions, total, feasible = play(env, lambda info: int(info["baseline"]), seed)
    best.add(actions, total, 0.0, feasible)


class LegalActions:
    """Mask to tuple of legal actions, remembered by the mask's bytes."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[int, ...]] = {}

    def __call__(self, info: dict[str, Any]) -> tuple[int, ...]:
        """The legal actions of a step's ``info``."""
        mask = info["action_mask"]
        key = mask.tobytes()
        legal = self._known.get(key)
        if legal is None:
            legal = self._known[key] = tuple(int(i) for i in mask.nonzero()[0])
        return legal
