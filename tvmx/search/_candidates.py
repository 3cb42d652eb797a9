"""TopCandidates: the best distinct assignments of a training run, to be built whole."""

from __future__ import annotations

import heapq
from typing import NamedTuple

from tvmx.errors import UsageError
from tvmx.search._agent import Episode


class Candidate(NamedTuple):
    """An assignment and its return."""

    actions: tuple[int, ...]
    total: float


class TopCandidates:
    """The ``k`` best distinct assignments seen; on ties the earlier one is better.

    An instance is an ``on_episode`` callback. Infeasible episodes are passed over, so there
    may be fewer than ``k``, or none. Assumes that equal actions have equal returns.
    """

    def __init__(self, k: int) -> None:
        if k < 1:
            raise UsageError(f"the number of candidates to keep must be at least 1, got {k}")
        self._k = k
        self._heap: list[tuple[float, int, tuple[int, ...]]] = []
        self._kept: set[tuple[int, ...]] = set()
        self._seen = 0

    def __call__(self, episode: Episode) -> None:
        """Record one episode, if it keeps the budgets."""
        if episode.feasible:
            self.add(episode.actions, episode.total)

    def add(self, actions: tuple[int, ...], total: float) -> None:
        """Record one assignment."""
        full = len(self._heap) == self._k
        if (full and total <= self._heap[0][0]) or actions in self._kept:
            return
        self._seen += 1
        entry = (total, -self._seen, actions)
        self._kept.add(actions)
        if full:
            self._kept.discard(heapq.heapreplace(self._heap, entry)[2])
        else:
            heapq.heappush(self._heap, entry)

    def best(self) -> list[Candidate]:
        """Best first."""
        return [Candidate(actions, total) for total, _, actions in sorted(self._heap, reverse=True)]
