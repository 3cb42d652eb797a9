"""TableBorder: a border walk that remembers what each placement cost."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from tvmx.ir._implementation import Implementation
from tvmx.search._border import BorderWalk, ResumableWalk


class TableBorder:
    """Prices placements by layer and implementation index, the outputs with the last layer.

    A resumable walk is asked once per (state, implementation); its states become small
    numbers. That makes episodes as fast as dictionaries whatever the walk costs. Any other
    walk is asked every time.
    """

    def __init__(
        self, walk: BorderWalk, implementations: Sequence[Sequence[Implementation]]
    ) -> None:
        self._walk = walk
        self._resumable = walk if isinstance(walk, ResumableWalk) else None
        self._implementations = implementations
        self._last = len(implementations) - 1
        self._states: list[Hashable] = []
        self._numbers: dict[Hashable, int] = {}
        self._known: dict[tuple[int, int, int], tuple[float, int]] = {}
        self.state: int | None = None
        """Number of the walk's present state; None when the walk is not resumable."""
        walk.reset()
        if self._resumable is not None:
            self._number(self._resumable.state())

    def reset(self) -> None:
        """Start over."""
        if self._resumable is None:
            self._walk.reset()
        else:
            self.state = 0

    def place(self, layer: int, index: int) -> float:
        """Us of the conversions that this choice causes."""
        if self.state is None:
            return self._ask(layer, index)
        key = (layer, index, self.state)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._follow(layer, index, self.state)
        us, self.state = known
        return us

    def _ask(self, layer: int, index: int) -> float:
        us = self._walk.place(layer, self._implementations[layer][index])
        return us + self._walk.finish() if layer == self._last else us

    def _follow(self, layer: int, index: int, number: int) -> tuple[float, int]:
        assert self._resumable is not None  # only resumable walks have numbered states
        self._resumable.restore(self._states[number])
        us = self._ask(layer, index)
        return us, self._number(self._resumable.state())

    def _number(self, state: Hashable) -> int:
        number = self._numbers.setdefault(state, len(self._states))
        if number == len(self._states):
            self._states.append(state)
        return number
