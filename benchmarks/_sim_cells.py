"""Figures of one runner on one simulated core, kept in a JSON file that grows cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tvmx.errors import MeasureError
from tvmx.measure import SimulatedCounts
from tvmx.store import write_atomic

SCHEMA = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Counts(SimulatedCounts):
    """One inference on one core.

    ``unmodelled_instructions`` ran too rarely to be analysed and are taken for one cycle each.
    """

    unmodelled_instructions: int

    @property
    def core_mcycles(self) -> float:
        """All operands in L1, in millions."""
        return self.core_cycles / 1e6

    @property
    def mcycles(self) -> float:
        """With the memory model, in millions."""
        return (self.core_cycles + self.memory_cycles) / 1e6


class Cell(_Record):
    """One inference of ``network`` by ``runner`` on the simulated ``target``, batch 1, 1 thread.

    ``max_error`` is the largest error against what this runner must output, over its range, and
    ``limit`` what was allowed. ``model`` is what the cycles depend on besides the target.
    ``seconds`` are of this machine: ``load`` and ``warm`` run without the cycle model, ``count``
    with it, ``all`` includes starting the guest. ``facts`` are the runner's own.
    """

    network: str
    size: int
    target: str
    runner: str
    version: str
    model: str
    counts: Counts
    max_error: float
    limit: float
    seconds: dict[str, float]
    facts: dict[str, str] = Field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int, str, str]:
        """What the file has at most one cell of."""
        return self.network, self.size, self.target, self.runner


class _File(_Record):
    schema_version: int = SCHEMA
    cells: tuple[Cell, ...] = ()


class Cells:
    """The cells of one file; adding one writes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cells: dict[tuple[str, int, str, str], Cell] = {}
        if path.is_file():
            try:
                found = _File.model_validate_json(path.read_text(encoding="utf-8"))
            except ValidationError as err:
                raise MeasureError(
                    f"{path} holds no figures of this version", hint=f"move it away: mv {path} ..."
                ) from err
            self._cells = {cell.key: cell for cell in found.cells}

    def get(self, network: str, size: int, target: str, runner: str) -> Cell | None:
        """The cell of that key."""
        return self._cells.get((network, size, target, runner))

    def has(self, network: str, size: int, target: str, runner: str, model: str) -> bool:
        """Whether that cell is there, with figures of that model."""
        cell = self.get(network, size, target, runner)
        return cell is not None and cell.model == model

    def add(self, cell: Cell) -> None:
        """Keep a cell, in the place of an earlier one of its key. Raises UnwritableError."""
        self._cells[cell.key] = cell
        content = _File(cells=tuple(self._cells.values()))
        write_atomic(self._path, content.model_dump_json(indent=1) + "\n")

    def of(self, target: str, size: int, networks: Sequence[str], model: str) -> list[Cell]:
        """The cells of one core, as that model has them."""
        return [
            cell
            for cell in self._cells.values()
            if (cell.target, cell.size, cell.model) == (target, size, model)
            and cell.network in networks
        ]
