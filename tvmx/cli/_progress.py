"""Progress of long work, on stderr: a bar on a terminal, lines elsewhere, silence with --json."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from tvmx.cli._units import clock, duration

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress

    from tvmx.cli._output import Output

LINE_EVERY_S = 15.0
_SILENT_S = 5.0  # a wait that nobody has spoken of for so long is over


class QuietProgress:
    """Says nothing. Also the base: a ``tvmx.explore.Progress`` and a context manager.

    It is a ``tvmx.measure.Observer`` too, which is called from the threads that measure.
    """

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

    def waiting(self, text: str, seconds_left: float | None) -> None:
        """Nothing goes on because of ``text``; an empty text ends it."""


class Wait:
    """Times without a device: what is said of one, and when. Every call is a moment of it."""

    def __init__(self) -> None:
        self._text = ""
        self._since = self._heard = 0.0
        self._until = math.inf

    def hear(self, text: str, seconds_left: float | None) -> None:
        """It goes on, or begins; an empty text ends it."""
        now = time.monotonic()
        if not self:
            self._since = now
        self._text, self._heard = text, now
        self._until = math.inf if seconds_left is None else now + seconds_left

    def __bool__(self) -> bool:
        return bool(self._text) and time.monotonic() - self._heard < _SILENT_S

    def __str__(self) -> str:
        """Such as ``waiting, 09:58 left: no device ...``; empty when it is over."""
        if not self:
            return ""
        if math.isinf(self._until):
            return f"waiting: {self._text}"
        left = max(0, round(self._until - time.monotonic()))
        return f"waiting, {left // 60:02d}:{left % 60:02d} left: {self._text}"

    @property
    def lasted_s(self) -> float:
        """Seconds since it began; 0 when it is over."""
        return time.monotonic() - self._since if self else 0.0


class JsonProgress(QuietProgress):
    """Nothing but this: a wait of 15 seconds is said on stderr, once. It might look like a hang."""

    def __init__(self, output: Output, after_s: float = LINE_EVERY_S) -> None:
        self._output = output
        self._after_s = after_s
        self._wait = Wait()
        self._said = False

    def waiting(self, text: str, seconds_left: float | None) -> None:
        """Warn when it lasts."""
        self._said = self._said and bool(self._wait)
        self._wait.hear(text, seconds_left)
        if not self._said and self._wait.lasted_s >= self._after_s:
            self._said = True
            self._output.warn(str(self._wait))


class LineProgress(QuietProgress):
    """Lines on a stream that is no terminal: one per stage, then one every 15 seconds."""

    def __init__(self, stream: TextIO, every_s: float = LINE_EVERY_S) -> None:
        self._stream = stream
        self._every_s = every_s
        self._stage = ""
        self._said = 0.0
        self._wait = Wait()
        self._said_wait = False  # whether it was spoken of
        self._next_wait = 0.0
        self._lock = threading.RLock()

    def stage(self, name: str) -> None:
        """Say the stage's name."""
        self._end_wait()
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
        self._end_wait()
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

    def waiting(self, text: str, seconds_left: float | None) -> None:
        """Say it when it begins, every 15 seconds, and when work goes on.

        Of waits that follow each other, as those of a device that cools again and again, only
        one in 15 seconds is spoken of.
        """
        with self._lock:
            self._end_wait()
            self._wait.hear(text, seconds_left)
            now = time.monotonic()
            if self._wait and now >= self._next_wait:
                self._said_wait = True
                self._next_wait = now + self._every_s
                self._say(str(self._wait))
            self._end_wait()

    def _end_wait(self) -> None:
        with self._lock:
            if self._said_wait and not self._wait:
                self._said_wait = False
                self._say("going on")

    def _say(self, text: str) -> None:
        with self._lock:
            self._stream.write(text + "\n")
            self._stream.flush()


class BarProgress(QuietProgress):
    """A bar with the best so far and the time left, on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        self._wait = Wait()
        console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._bar = _make_bar(console, self._wait)
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

    def waiting(self, text: str, seconds_left: float | None) -> None:
        """A line with a countdown above the bar, until work goes on."""
        self._wait.hear(text, seconds_left)


def _make_bar(console: Console, wait: Wait) -> Progress:
    """The bar, and above it what is waited for, if anything is."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
    from rich.text import Text

    class Bar(Progress):
        def get_renderables(self) -> Iterable[RenderableType]:
            if line := str(wait):
                yield Text(line, style="yellow")
            yield from super().get_renderables()

    return Bar(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[share]}", markup=False),
        TextColumn("{task.fields[best]}", markup=False),
        TextColumn("{task.fields[left]}", markup=False),
        console=console,
        transient=True,
    )


def open_progress(output: Output) -> QuietProgress:
    """The progress display that fits the output and the terminal; use it in a ``with``."""
    if output.as_json:
        return JsonProgress(output)
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
