"""What was measured of block-sparse kernels, and from it the crossovers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tvmx.store import write_atomic

SCHEMA = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WayFigures(_Record):
    """One template's default config for a layer dense (level 0) or pruned to ``level`` percent.

    ``mflop`` counts two for every multiply-add whose weight is kept, ``bytes`` all constants of
    the kernel as they are packed. ``us`` is of one call: the median of paired rounds on this
    machine, or what a simulated board's clock shows; ``core_us`` the simulated core's alone.
    """

    key: str
    template: str
    precision: str
    blocks: str
    level: int
    config: str
    mflop: float
    bytes: int
    us: float
    core_us: float | None = None


class LayerFigures(_Record):
    """One layer in all the ways it was measured."""

    layer: str
    workload: str
    ways: tuple[WayFigures, ...] = ()

    def best(self, precision: str, level: int = 0) -> WayFigures | None:
        """The fastest at a level of sparsity; 0: the fastest dense one."""
        found = [w for w in self.ways if (w.precision, w.level) == (precision, level)]
        return min(found, key=lambda w: w.us, default=None)

    def levels(self) -> list[int]:
        """Of sparsity, ascending."""
        return sorted({w.level for w in self.ways if w.level})

    def crossover(self, sparse: str, dense: str) -> Crossover | None:
        """From which level on the best sparse kernel beats the best dense one; by precision."""
        other = self.best(dense)
        points = [(level, w.us) for level in self.levels() if (w := self.best(sparse, level))]
        if other is None or not points:
            return None
        return crossover(points, other.us)


class Crossover(_Record):
    """``level`` in percent; ``known`` "below" or "above" all levels that were measured, or "at"."""

    level: float
    known: str

    def __str__(self) -> str:
        sign = {"below": "<", "above": ">", "at": ""}[self.known]
        return f"{sign}{self.level:.0f}"


def crossover(points: Sequence[tuple[int, float]], dense: float) -> Crossover:
    """Where (level, latency) falls to ``dense`` for good: a straight line between two levels.

    ``points`` ascend by level.
    """
    slower = [index for index, (_, latency) in enumerate(points) if latency > dense]
    if not slower:
        return Crossover(level=points[0][0], known="below")
    last = slower[-1]
    if last == len(points) - 1:
        return Crossover(level=points[-1][0], known="above")
    (low, a), (high, b) = points[last], points[last + 1]
    return Crossover(level=low + (high - low) * (a - dense) / (a - b), known="at")


class SparseFigures(_Record):
    """All layers on one machine, or one simulated core, with one thread count."""

    schema_version: int = SCHEMA
    target: str
    machine: str
    threads: int
    versions: dict[str, str]
    layers: tuple[LayerFigures, ...] = ()

    def save(self, path: Path) -> None:
        """Write as JSON. Raises UnwritableError."""
        write_atomic(path, self.model_dump_json(indent=1) + "\n")

    def resumed(self, path: Path) -> SparseFigures:
        """This, with the layers an earlier start left for the same machine and versions."""
        try:
            earlier = SparseFigures.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError, UnicodeDecodeError):
            return self
        same = earlier.model_copy(update={"layers": ()}) == self.model_copy(update={"layers": ()})
        return earlier if same else self

    def find(self, layer: str, workload: str) -> LayerFigures:
        """The figures of a layer, empty where there are none or the layer was another."""
        for found in self.layers:
            if (found.layer, found.workload) == (layer, workload):
                return found
        return LayerFigures(layer=layer, workload=workload)

    def having(self, layer: LayerFigures) -> SparseFigures:
        """This, with a layer's figures in place of its earlier ones."""
        others = tuple(f for f in self.layers if f.layer != layer.layer)
        return self.model_copy(update={"layers": (*others, layer)})


def only(layer: LayerFigures, keys: Iterable[str]) -> LayerFigures:
    """The layer without figures of templates, configs or levels that are not ``keys``."""
    wanted = set(keys)
    return layer.model_copy(update={"ways": tuple(w for w in layer.ways if w.key in wanted)})
