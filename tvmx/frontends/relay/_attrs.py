"""An operator's attributes with Relay's defaults: what a text leaves out, JSON may have as null."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tvmx.frontends._reason import RuleError

_LARGEST = 2**40


class Attrs:
    """Typed look-ups; everything raises RuleError."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def _get(self, name: str, default: Any) -> Any:
        value = self._values.get(name)
        return default if value is None else value

    def has(self, name: str) -> bool:
        """Whether the attribute has a value."""
        return self._values.get(name) is not None

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number."""
        value = self._get(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or abs(value) > _LARGEST:
            raise RuleError(f"{name} is {_show(value)}, not a whole number")
        return int(value)

    def count(self, name: str, default: int) -> int:
        """A number from 1."""
        value = self.integer(name, default)
        if value < 1:
            raise RuleError(f"{name} is {value}, below 1")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        return bool(self.integer(name, int(default)))

    def real(self, name: str, default: float) -> float:
        """A finite number."""
        value = self._get(name, default)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise RuleError(f"{name} is {_show(value)}, not a number")
        return float(value)

    def text(self, name: str, default: str = "") -> str:
        """A text."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise RuleError(f"{name} is {_show(value)}, not a text")
        return value

    def ints(self, name: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """Whole numbers; one alone is a list of one."""
        value = self._get(name, default)
        if isinstance(value, int):
            value = (value,)
        if not isinstance(value, tuple) or not all(
            isinstance(item, int) and abs(item) <= _LARGEST for item in value
        ):
            raise RuleError(f"{name} is {_show(value)}, not whole numbers")
        return value

    def pair(self, name: str, default: int, least: int = 1) -> tuple[int, int]:
        """Height and width, each at least ``least``; one number is for both."""
        values = self.ints(name, (default,))
        if len(values) not in (1, 2) or min(values) < least:
            raise RuleError(f"{name} is {values}, not a height and a width")
        return values[0], values[-1]

    def padding(self) -> tuple[int, int, int, int]:
        """Top, left, bottom, right."""
        values = self.ints("padding", (0,))
        if len(values) not in (1, 2, 4) or min(values) < 0:
            raise RuleError(f"padding is {values}, not 1, 2 or 4 widths")
        four = values * (4 // len(values))
        return four[0], four[1], four[2], four[3]

    def with_default(self, name: str, value: Any) -> Attrs:
        """The same with a value for one that has none."""
        return Attrs({**self._values, name: self._get(name, value)})

    def replaced(self, name: str, value: Any) -> Attrs:
        """The same with another value for one."""
        return Attrs({**self._values, name: value})

    def raw(self, name: str) -> Any:
        """The value as it is in the file, None where there is none."""
        return self._values.get(name)


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:60]}..."
