"""Figures as people read them. Machine output keeps plain us, bytes and counts."""

from __future__ import annotations

from collections.abc import Sequence


def duration(us: float | None) -> str:
    """Microseconds as us, ms or s with three figures."""
    if us is None:
        return "-"
    for limit, scale, unit in ((1e3, 1.0, "us"), (1e6, 1e3, "ms"), (float("inf"), 1e6, "s")):
        if abs(us) < limit:
            return f"{_three(us / scale)} {unit}"
    return f"{us} us"


def size(count: int | None) -> str:
    """Bytes as B, KiB, MiB or GiB."""
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{_three(value)} {unit}"
        value /= 1024
    return f"{_three(value)} GiB"


def count(value: int | float) -> str:
    """A count in thousands (k), millions (M) or billions (G)."""
    for scale, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= scale:
            return f"{_three(value / scale)}{unit}"
    return f"{value:.0f}"


def clock(seconds: float | None) -> str:
    """Seconds as ``1h05m``, ``3m20s`` or ``12s``."""
    if seconds is None:
        return "-"
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def shape(dims: Sequence[int]) -> str:
    """Dimensions as ``1x3x224x224``."""
    return "x".join(map(str, dims))


def _three(value: float) -> str:
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f}"
