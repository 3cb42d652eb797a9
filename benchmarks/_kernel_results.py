"""What was measured of kernels: records as JSON, one file, written after every layer."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks._results import Rounds
from tvmx.measure import SimulatedCounts
from tvmx.store import write_atomic

SCHEMA = 1
PEAK, READ, ORT, TORCH = "peak", "read", "onnxruntime", "torch"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Simulated(_Record):
    """One template's default config on a simulated core; ``cycles`` is what its clock shows."""

    template: str
    config: str
    counts: SimulatedCounts
    cycles: float


class LayerFigures(_Record):
    """One layer.

    ``templates`` are those measured: the digest of the file and the default config, by name.
    ``rounds`` holds them under their names, and PEAK (``peak_gflop`` GFLOP of multiply-adds in
    registers), ORT, TORCH, and for a matrix-vector product READ: as many bytes as its weights
    have, read and added up. ``simulated`` has what a simulated core makes of the same templates.
    """

    layer: str
    workload: str
    gflop: float
    templates: dict[str, str]
    peak_gflop: float = 0.0
    rounds: Rounds | None = None
    simulated: tuple[Simulated, ...] = ()

    def peak_share(self, name: str) -> float | None:
        """Share of the measured multiply-add peak, paired round by round."""
        slower = self.rounds.ratio(PEAK, name) if self.rounds else None
        return None if slower is None else slower * self.gflop / self.peak_gflop

    def read_share(self, name: str) -> float | None:
        """Share of the rate at which the weights' bytes can be read."""
        return self.rounds.ratio(READ, name) if self.rounds else None


class KernelFigures(_Record):
    """All layers on one machine, or one simulated core (``model``), with one thread count."""

    schema_version: int = SCHEMA
    target: str
    machine: str
    threads: int
    versions: dict[str, str]
    layers: tuple[LayerFigures, ...] = ()

    def save(self, path: Path) -> None:
        """Write as JSON. Raises UnwritableError."""
        write_atomic(path, self.model_dump_json(indent=1) + "\n")

    def resumed(self, path: Path) -> KernelFigures:
        """This, with the layers an earlier start left for the same machine and versions."""
        try:
            earlier = KernelFigures.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError, UnicodeDecodeError):
            return self
        same = earlier.model_copy(update={"layers": ()}) == self.model_copy(update={"layers": ()})
        return earlier if same else self

    def find(self, layer: str, workload: str, templates: dict[str, str]) -> LayerFigures | None:
        """The figures of a layer, unless it or one of its templates has changed since."""
        for found in self.layers:
            if (found.layer, found.workload, found.templates) == (layer, workload, templates):
                return found
        return None

    def having(self, figures: LayerFigures) -> KernelFigures:
        """This, with a layer's figures in place of its earlier ones."""
        others = tuple(f for f in self.layers if f.layer != figures.layer)
        return self.model_copy(update={"layers": (*others, figures)})
