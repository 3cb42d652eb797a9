"""The probe: a small library of known work, run on every device to see what it is good for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DRIFT = 0.03
"""A device whose figures moved by more than this since its first ones is flagged."""
SIBLINGS = 0.10
"""So is one that differs by more than this from the median of the devices under its key."""


@dataclass(frozen=True)
class ProbeKernel:
    """A function ``symbol(buffer)`` that overwrites ``buffer``: (``size``,) of ``dtype``.

    Whatever the buffer holds, it does ``work`` per call: float32 operations, int8 operations (a
    multiply-add is two), or bytes of memory traffic. One thread.
    """

    symbol: str
    dtype: str
    size: int
    work: float


@dataclass(frozen=True)
class ProbeLibrary:
    """A library built by :func:`tvmx.doctor.build_probe` for the device's target.

    ``fma`` is bound by float multiply-add, ``stream`` by memory, ``dot`` by int8 multiply-add
    through ``dot_instruction`` (such as ``sdot``). ``examples`` is an .npz file with, for each
    of them by symbol, a buffer's contents before and after one call: (2, n). Strings and texts
    of the other functions are uint8 and end with a zero:

    - ``copy_text(path, out)``: the first bytes of a file of the device, zeros behind them; all
      zero when it cannot be read. TVM's own ``download`` cannot read /proc.
    - ``libc_version(out)``: such as ``glibc 2.36``; empty where it is not glibc.
    - ``file_system(path, out)``: C's ``struct statvfs`` in ``out``, int64 (32,).
    """

    path: Path
    examples: Path
    fma: ProbeKernel
    stream: ProbeKernel
    dot: ProbeKernel
    dot_instruction: str
    copy_text: str = "copy_text"
    libc_version: str = "libc_version"
    file_system: str = "file_system"


@dataclass(frozen=True)
class ProbeFigures:
    """The best of a few repeats of the probe on one core: GFLOP/s, GB/s, int8 GOP/s if asked."""

    fma_gflops: float
    stream_gbs: float
    dot_gops: float | None = None

    def ratios(self, other: ProbeFigures) -> dict[str, float]:
        """This over ``other``, for each figure both have, by name."""
        pairs = {
            "float peak": (self.fma_gflops, other.fma_gflops),
            "memory bandwidth": (self.stream_gbs, other.stream_gbs),
            "int8 peak": (self.dot_gops, other.dot_gops),
        }
        return {name: a / b for name, (a, b) in pairs.items() if a and b}

    def deviation(self, other: ProbeFigures, limit: float) -> str | None:
        """Such as ``float peak 12 % lower``; None when all figures are within ``limit``."""
        return describe_deviation(self.ratios(other), limit)


def describe_deviation(ratios: dict[str, float], limit: float) -> str | None:
    """The figures off by more than ``limit`` (0.1 is 10 %), as text; None when there are none."""
    parts = [
        f"{name} {abs(ratio - 1):.0%} {'lower' if ratio < 1 else 'higher'}"
        for name, ratio in ratios.items()
        if abs(ratio - 1) > limit
    ]
    return ", ".join(parts) or None


def unlike_siblings(figures: Mapping[str, ProbeFigures]) -> dict[str, str | None]:
    """How each device differs from the median by more than :data:`SIBLINGS`, by server.

    Of two each is held against the other, one alone against nothing. From three on it is the
    median of all: of the others alone, one slow device would make the sound ones look fast.
    """
    if len(figures) < 2:
        return dict.fromkeys(figures)
    unlike: dict[str, str | None] = {}
    for server, own in figures.items():
        usual = [f for s, f in figures.items() if s != server or len(figures) > 2]
        unlike[server] = own.deviation(median_figures(usual), SIBLINGS)
    return unlike


def median_figures(figures: Sequence[ProbeFigures]) -> ProbeFigures:
    """The figure-wise median of several devices' (at least one)."""
    from statistics import median

    dots = [f.dot_gops for f in figures if f.dot_gops is not None]
    return ProbeFigures(
        median(f.fma_gflops for f in figures),
        median(f.stream_gbs for f in figures),
        median(dots) if dots else None,
    )
