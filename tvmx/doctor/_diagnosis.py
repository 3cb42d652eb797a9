"""What an examination comes to: lines that say ok, or what to do next."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import BaseModel, ConfigDict, computed_field

Level = Literal["ok", "hint", "broken"]


class Finding(BaseModel):
    """One line. ``todo`` are commands to type, or what to do where no command does it."""

    model_config = ConfigDict(frozen=True)

    name: str
    level: Level
    text: str
    todo: tuple[str, ...] = ()


class Section(BaseModel):
    """The lines about one thing, in order; ``facts`` are what a device said of itself, raw."""

    model_config = ConfigDict(frozen=True)

    title: str
    findings: tuple[Finding, ...]
    facts: dict[str, str] = {}


class Diagnosis(BaseModel):
    """All that was found. ``target`` is what devices were held against, ``why`` it was chosen."""

    model_config = ConfigDict(frozen=True)

    sections: tuple[Section, ...]
    seconds: float
    target: str | None = None
    why: str = ""

    def count(self, level: Level) -> int:
        """Lines of that level."""
        return Counter(f.level for s in self.sections for f in s.findings)[level]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def healthy(self) -> bool:
        """Whether nothing is broken."""
        return not self.count("broken")


def ok(name: str, text: str) -> Finding:
    """All is well."""
    return Finding(name=name, level="ok", text=text)


def hint(name: str, text: str, *todo: str) -> Finding:
    """It works, and could be better."""
    return Finding(name=name, level="hint", text=text, todo=todo)


def broken(name: str, text: str, *todo: str) -> Finding:
    """It cannot work like this."""
    return Finding(name=name, level="broken", text=text, todo=todo)
