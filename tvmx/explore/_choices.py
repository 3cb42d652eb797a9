"""The plan behind any assignment of a run's cost table, kept in the run beside the table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tvmx.errors import StoreError
from tvmx.ir import Activation, ChannelValues, LayerChoice, Plan
from tvmx.store import write_atomic

FILE = "choices.json"


class Choices(BaseModel):
    """What each implementation of the cost table is in a plan: its tuned config above all.

    ``layers[i][k]`` belongs to ``table.layers[i].implementations[k]``. ``activations`` and
    ``equalisation`` are those of plans with int8 layers; biases are not corrected.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    target: str
    seed: int
    versions: dict[str, str]
    layers: tuple[tuple[LayerChoice, ...], ...]
    activations: tuple[Activation, ...] = ()
    equalisation: tuple[ChannelValues, ...] = ()

    def plan(self, assignment: Sequence[int], note: str = "") -> Plan:
        """The plan of an assignment of the table."""
        pairs = zip(self.layers, assignment, strict=True)
        choices = tuple(options[index] for options, index in pairs)
        changed = not all(choice.implementation.exact for choice in choices)
        int8 = any(choice.implementation.precision == "int8" for choice in choices)
        return Plan(
            model=self.model, target=self.target, choices=choices, seed=self.seed,
            versions=self.versions, note=note,
            activations=self.activations if changed and int8 else (),
            equalisation=self.equalisation if changed else (),
        )  # fmt: skip

    def save(self, path: Path) -> None:
        """Write as JSON. Raises UnwritableError."""
        write_atomic(path, self.model_dump_json() + "\n")

    @classmethod
    def load(cls, path: Path) -> Choices:
        """Raises StoreError when the file is missing or damaged."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError, UnicodeDecodeError) as err:
            raise StoreError(
                f"{path} is missing or damaged", hint="the same `tvmx explore` writes it again"
            ) from err
