"""The best plan of an exploration that is not over, kept so that it can be exported."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from tvmx.errors import StoreError
from tvmx.ir import Plan
from tvmx.store import Run, write_atomic

_FILE = "so_far.json"


class SoFar(BaseModel):
    """The plan, and what is known of it, for a bundle's notes; ``whole``: it was measured so."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: Plan
    told: str
    seconds: float
    whole: bool = False

    def save(self, run: Run) -> None:
        """Replace what was kept, in one step: others may be reading."""
        write_atomic(run.work / _FILE, self.model_dump_json() + "\n")

    @classmethod
    def load(cls, run: Run) -> SoFar | None:
        """What the run has so far; None before its baseline was measured.

        Raises StoreError for a damaged file.
        """
        path = run.work / _FILE
        if not path.is_file():
            return None
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError, UnicodeDecodeError) as err:
            raise StoreError(
                f"{path} is damaged", hint="the next measurements of the exploration replace it"
            ) from err
