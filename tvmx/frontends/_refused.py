"""Operators that cannot be imported, all in one message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tvmx.errors import UnsupportedOpError

_SHOWN = 4


def refuse_operators(
    path: Path, ops: dict[str, list[str]], hint: Callable[[dict[str, list[str]]], str]
) -> None:
    """Raise UnsupportedOpError if there are any; ``ops`` maps operators to their nodes' names."""
    if not ops:
        return
    listed = "; ".join(f"{op} ({_some(names)})" for op, names in sorted(ops.items()))
    raise UnsupportedOpError(
        f"{path} uses operators that cannot be imported: {listed}", ops=ops, hint=hint(ops)
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
