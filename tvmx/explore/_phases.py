"""Which stage of an exploration took how long."""

from __future__ import annotations

from tvmx.explore._budget import Budget
from tvmx.explore._request import Progress


class Phases:
    """A Progress that passes everything on, and times the stages by the budget's clock.

    ``seconds`` is by stage, in order; what an interrupted part of the run took before is
    ``earlier``.
    """

    def __init__(self, progress: Progress, budget: Budget) -> None:
        self._progress, self._budget = progress, budget
        self._done: dict[str, float] = {}
        self._stage = ""
        self._since = budget.elapsed_s

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each stage so far, the running one included; to the hundredth."""
        found = dict(self._done)
        if self._budget.spent_s:
            found = {"earlier": self._budget.spent_s, **found}
        found[self._stage] = found.get(self._stage, 0.0) + self._running_s
        return {name: round(s, 2) for name, s in found.items() if name}

    @property
    def _running_s(self) -> float:
        return self._budget.elapsed_s - self._since

    def begin(self, spent_s: float) -> None:
        """Tell the budget what earlier parts took, once that is known; no stage is charged."""
        self._budget.spent_s = spent_s
        self._since += spent_s

    def stage(self, name: str) -> None:
        """A new stage begins."""
        if self._stage:
            self._done[self._stage] = self._done.get(self._stage, 0.0) + self._running_s
        self._stage, self._since = name, self._budget.elapsed_s
        self._progress.stage(name)

    def update(
        self, done: float, total: float, *, best_us: float | None, baseline_us: float | None,
        seconds_left: float | None,
    ) -> None:  # fmt: skip
        """Pass on."""
        self._progress.update(
            done, total, best_us=best_us, baseline_us=baseline_us, seconds_left=seconds_left
        )

    def message(self, text: str) -> None:
        """Pass on."""
        self._progress.message(text)

    def waiting(self, text: str, seconds_left: float | None) -> None:
        """Pass on."""
        self._progress.waiting(text, seconds_left)
