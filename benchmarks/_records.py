"""Figures as frozen JSON files, so that a benchmark that was stopped goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from tvmx.store import write_atomic


class Record(BaseModel):
    """What a benchmark writes for its next start to read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def save(self, path: Path) -> None:
        """Write as JSON. Raises UnwritableError."""
        write_atomic(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """What an earlier start left; None when there is nothing this version can read."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError, UnicodeDecodeError):
            return None
