"""Option values from text. Everything that makes no sense is a UsageError, at once."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from tvmx.errors import UsageError

_PART = re.compile(r"(\d+(?:\.\d+)?)(h|m|s)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)(b|kb|mb|gb|kib|mib|gib)")
_BYTES = {
    "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip
MAX_BUDGET_S = 30 * 24 * 3600.0


def parse_duration(text: str, option: str = "--budget") -> float:
    """Seconds of ``90s``, ``10m``, ``1h30m``. A bare number has no unit and is refused."""
    compact = text.strip().lower()
    hint = f"write a time such as {option} 90s, {option} 10m or {option} 1h30m"
    parts = _PART.findall(compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        raise UsageError(f"{option} {text!r} is no duration", hint=hint)
    units = [unit for _, unit in parts]
    if units != sorted(set(units), key="hms".index):
        raise UsageError(f"{option} {text!r} is no duration", hint=hint)
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not 0 < seconds <= MAX_BUDGET_S:
        raise UsageError(f"{option} {text!r} must be more than 0 and at most 30 days", hint=hint)
    return seconds


def parse_size(text: str, option: str) -> int:
    """Bytes of ``2MB``, ``1.5MiB``, ``800KB``. A bare number has no unit and is refused."""
    match = _SIZE.fullmatch(text.strip().lower())
    size = int(float(match[1]) * _BYTES[match[2]]) if match else 0
    if size < 1:
        raise UsageError(
            f"{option} {text!r} is no size", hint=f"write a size such as {option} 2MB or 1.5MiB"
        )
    return size


def parse_shapes(items: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Input shapes of ``NAME=1,3,224,224`` items."""
    shapes: dict[str, tuple[int, ...]] = {}
    for item in items:
        name, sep, dims = item.rpartition("=")
        parts = dims.split(",")
        if not (sep and name and all(part.strip().isdecimal() for part in parts)):
            raise UsageError(
                f"--shape {item!r} is not NAME=DIM,DIM,...", hint="such as --shape data=1,3,224,224"
            )
        if name in shapes:
            raise UsageError(f"--shape gives input {name!r} twice")
        shapes[name] = tuple(int(part) for part in parts)
        if min(shapes[name]) < 1:
            raise UsageError(f"--shape {item!r}: every dimension must be at least 1")
    return shapes


def check_port(port: int, option: str = "--port") -> int:
    """A TCP port from 1 to 65535."""
    if not 1 <= port <= 65535:
        raise UsageError(f"{option}: port {port} is not in 1..65535")
    return port


def check_number(value: float, option: str, low: float, high: float, unit: str = "") -> float:
    """A finite number in ``low..high``."""
    if not (math.isfinite(value) and low <= value <= high):
        text = f" {unit}" if unit else ""
        raise UsageError(f"{option} {value:g} makes no sense: it must be {low:g} to {high:g}{text}")
    return value


def check_seed(value: int) -> int:
    """A seed, as NumPy takes it."""
    if not 0 <= value < 2**32:
        raise UsageError(f"--seed {value} must be 0 to {2**32 - 1}")
    return value


def check_count(value: int, option: str, high: int | None = None, why: str = "") -> int:
    """A whole number of at least 1, and at most ``high``."""
    if value < 1:
        raise UsageError(f"{option} {value} makes no sense: it must be at least 1")
    if high is not None and value > high:
        raise UsageError(f"{option} {value} is too many: {why}")
    return value
