"""BudgetAllocator: which workload the next measurements go to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tvmx.errors import UsageError

_BEHIND = 8


@dataclass(frozen=True)
class TuningState:
    """Where the tuning of one workload with one template stands.

    ``layers`` is the number of the network's layers with this workload; ``history`` the best
    latency in us after each observation (:meth:`KnobTuner.history`), inf before the first
    success; ``rival_us`` the best latency of the workload's other implementations, if any;
    ``finished`` takes it out of the allocation.
    """

    layers: int
    history: tuple[float, ...]
    rival_us: float | None = None
    finished: bool = False


class BudgetAllocator:
    """Spends measurements where the network's latency is expected to fall most.

    Weight = layers' latency x improvement rate x chance against the rival. The rate per
    measurement mixes what the last ``window`` measurements brought with an optimistic guess
    of 1 / measurements, as in the task scheduler of L. Zheng et al., "Ansor: generating
    high-performance tensor programs for deep learning", OSDI 2020, section 6, with
    ``optimism`` the share of the guess. An implementation slower than its rival is discounted
    by how far it is behind to the eighth power: defaults come from analytical models, and tuning
    rarely makes up for more than a third. Pure: equal states, equal answer.
    """

    def __init__(self, window: int = 8, optimism: float = 0.3) -> None:
        if window < 1 or not 0 < optimism <= 1:
            raise UsageError(
                f"window must be at least 1 and optimism in (0, 1], got {window} and {optimism}"
            )
        self._window = window
        self._optimism = optimism

    def next_workload(self, states: Sequence[TuningState]) -> int | None:
        """Index of the state to measure next; None when all are finished.

        A state without any observation comes first, in order: every default is measured
        before anything is tuned.
        """
        open_ = [i for i, state in enumerate(states) if not state.finished]
        for i in open_:
            if not states[i].history:
                return i
        return max(open_, key=lambda i: self.weight(states[i]), default=None)

    def weight(self, state: TuningState) -> float:
        """Expected gain in us of network latency per measurement; needs an observation."""
        best = state.history[-1]
        if not math.isfinite(best):
            # Nothing worked yet: as promising as its rival, less with every failure.
            rival = state.rival_us or 0.0
            return state.layers * rival * self._optimism / (1 + len(state.history))
        gain = state.layers * best * self._rate(state.history)
        if state.rival_us is not None and state.rival_us < best:
            gain *= (state.rival_us / best) ** _BEHIND
        return gain

    def _rate(self, history: tuple[float, ...]) -> float:
        window = min(self._window, len(history) - 1)
        before = history[-1 - window]
        recent = 0.0
        if window and math.isfinite(before):
            recent = (before - history[-1]) / (window * before)
        return (1 - self._optimism) * recent + self._optimism / len(history)
