"""Progress of long work, on stderr: a bar on a terminal, lines elsewhere, silence with --json."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from tvmx.cli._units import clock, duration

if TYPE_CHECKING:
    from tvmx.cli._output import Output

LINE_EVERY_S = 15.0


class QuietProgress:
    """Says nothing. Also the base: a ``tvmx.explore.Progress`` and a context manager."""

    def __enter__(self) -> QuietProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the display."""

    def stage(self, name: str) -> None:
        """A new stage begins."""

    def update(
        self,
        done: float,
        total: float,
        *,
        best_us: float | None,
        baseline_us: float | None,
        seconds_left: float | None,
    ) -> None:
        """``done`` of ``total`` within the stage."""

    def message(self, text: str) -> None:
        """One line worth keeping."""


class LineProgress(QuietProgress):
    """Lines on a stream that is no terminal: one per stage, then one every 15 seconds."""

    def __init__(self, stream: TextIO, every_s: float = LINE_EVERY_S) -> None:
        self._stream = stream
        self._every_s = every_s
        self._stage = ""
        self._said = 0.0

    def stage(self, name: str) -> None:
        """Say the stage's name."""
        self._stage = name
        self._said = time.monotonic()
        self._say(f"{name} ...")

    def update(
        self,
        done: float,
        total: float,
        *,
        best_us: float | None,
        baseline_us: float | None,
        seconds_left: float | None,
    ) -> None:
        """Say where it stands, if the last line is old enough."""
        now = time.monotonic()
        if now - self._said < self._every_s:
            return
        self._said = now
        parts = [f"{self._stage} {_share(done, total)}", describe_best(best_us, baseline_us)]
        if seconds_left is not None:
            parts.append(f"{clock(seconds_left)} left")
        self._say(", ".join(part for part in parts if part))

    def message(self, text: str) -> None:
        """Say it."""
        self._say(text)

    def _say(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


class BarProgress(QuietProgress):
    """A bar with the best so far and the time left, on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[share]}", markup=False),
            TextColumn("{task.fields[best]}", markup=False),
            TextColumn("{task.fields[left]}", markup=False),
            console=console,
            transient=True,
        )
        self._task: Any = None
        self._bar.start()

    def close(self) -> None:
        """Take the bar off the screen."""
        self._bar.stop()

    def stage(self, name: str) -> None:
        """Start a bar of its own; the old one goes."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(name, total=None, share="", best="", left="")

    def update(
        self,
        done: float,
        total: float,
        *,
        best_us: float | None,
        baseline_us: float | None,
        seconds_left: float | None,
    ) -> None:
        """Move the bar."""
        if self._task is None:
            self.stage("")
        self._bar.update(
            self._task,
            completed=done,
            total=total or None,
            share=_share(done, total),
            best=describe_best(best_us, baseline_us),
            left=f"{clock(seconds_left)} left" if seconds_left is not None else "",
        )

    def message(self, text: str) -> None:
        """Print above the bar."""
        self._bar.console.print(text, soft_wrap=True)


def open_progress(output: Output) -> QuietProgress:
    """The progress display that fits the output and the terminal; use it in a ``with``."""
    if output.as_json:
        return QuietProgress()
    return BarProgress(sys.stderr) if sys.stderr.isatty() else LineProgress(sys.stderr)


def describe_best(best_us: float | None, baseline_us: float | None) -> str:
    """Such as ``best 1.20 ms, 1.45 x baseline``."""
    if best_us is None:
        return ""
    if not baseline_us or best_us <= 0:
        return f"best {duration(best_us)}"
    return f"best {duration(best_us)}, {baseline_us / best_us:.2f} x as fast as the baseline"


def _share(done: float, total: float) -> str:
    return f"{min(100.0, 100 * done / total):.0f} %" if total > 0 else ""
