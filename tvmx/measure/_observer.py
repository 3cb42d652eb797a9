"""Who is told what happens on the way to the devices."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """Told by a runner, from one thread at a time; must return at once.

    :class:`tvmx.explore.Progress` is one.
    """

    def message(self, text: str) -> None:
        """One line worth keeping: a device left, came back, differs from its siblings."""

    def waiting(self, text: str, seconds_left: float | None) -> None:
        """Nothing is measured because of ``text``; given up in ``seconds_left``.

        Called about once a second, and once with an empty text when work goes on. None: there
        is no limit.
        """


class Unobserved:
    """An observer that says nothing."""

    def message(self, text: str) -> None:
        """Ignore."""

    def waiting(self, text: str, seconds_left: float | None) -> None:
        """Ignore."""
