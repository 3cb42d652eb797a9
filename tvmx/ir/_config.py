"""Space and Config: a template's knobs and one point among them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from tvmx.errors import IllegalConfigError

KnobValue = int | str | bool


class Config(Mapping[str, KnobValue]):
    """One point of a space: an immutable, ordered, hashable mapping, knob name to value."""

    __slots__ = ("_items",)

    def __init__(
        self, values: Mapping[str, KnobValue] | None = None, /, **knobs: KnobValue
    ) -> None:
        self._items: tuple[tuple[str, KnobValue], ...] = tuple({**(values or {}), **knobs}.items())

    def __getitem__(self, key: str) -> KnobValue:
        for name, value in self._items:
            if name == key:
                return value
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(self.key())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.key() == other.key()

    def __repr__(self) -> str:
        return "Config(" + ", ".join(f"{k}={v!r}" for k, v in self._items) + ")"

    def int(self, name: str) -> int:
        """The knob as an integer. Raises :class:`IllegalConfigError` when it is none."""
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise IllegalConfigError(f"knob {name!r} must be an integer, got {value!r} in {self!r}")
        return value

    def key(self) -> str:
        """Canonical JSON, sorted by knob name."""
        return json.dumps(dict(self._items), sort_keys=True, separators=(",", ":"))

    def to_dict(self) -> dict[str, Any]:
        """A plain dict, for JSON."""
        return dict(self._items)


class Space:
    """The finite, ordered product of knobs, with a default config.

    ``knobs`` maps each name to its ordered candidate values. ``default`` must be in the
    space. ``constraint`` (optional) rules out combinations, such as tiles that spill.
    """

    def __init__(
        self,
        knobs: Mapping[str, list[Any]],
        default: Mapping[str, KnobValue],
        constraint: Any = None,
    ) -> None:
        self.knobs: dict[str, list[Any]] = {}
        for name, values in knobs.items():
            unique = list(dict.fromkeys(values))
            if default.get(name) not in unique:
                unique.append(default[name])
            self.knobs[name] = unique
        self._constraint = constraint
        self.default = Config({name: default[name] for name in self.knobs})
        self._points: list[Config] | None = None

    def points(self) -> list[Config]:
        """All legal configs in order, the default among them (computed once)."""
        if self._points is None:
            names = list(self.knobs)
            every = (
                Config(dict(zip(names, v, strict=True)))
                for v in itertools.product(*self.knobs.values())
            )
            self._points = [c for c in every if c == self.default or self._allowed(c)]
        return self._points

    def _allowed(self, config: Config) -> bool:
        return self._constraint is None or bool(self._constraint(config))

    def __len__(self) -> int:
        return len(self.points())

    def __contains__(self, config: object) -> bool:
        if not isinstance(config, Config) or set(config) != set(self.knobs):
            return False
        if config == self.default:
            return True
        return all(config[n] in vs for n, vs in self.knobs.items()) and self._allowed(config)

    def check(self, config: Config, template: str) -> None:
        """Raise :class:`IllegalConfigError` unless ``config`` is a point of this space."""
        if config not in self:
            raise IllegalConfigError(
                f"{config!r} is not in the space of template {template!r} "
                f"({len(self)} points over {', '.join(self.knobs)})"
            )
