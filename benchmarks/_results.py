"""What a network's benchmark found: records as JSON, one file per network, written atomically."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tvmx.store import write_atomic

SCHEMA = 2
OF_THE_RANGE = 1e-3
"""Largest absolute error of a float, dense candidate's output, over the reference's range."""

INT8_OF_THE_RANGE = 0.03
"""The same for ONNX Runtime's int8, against its quantised model without optimisations."""


OPENVINO_OF_THE_RANGE = 0.1
"""The same for OpenVINO with that model: it rounds in other places, 0.075 was seen."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Series(_Record):
    """One candidate's rounds, in ms per inference.

    ``wall_ms`` is what a clock saw; ``cpu_ms`` what the calling thread got of the core in the same
    time, and ``busy`` below 1 says that somebody else had the rest. ``max_error`` is the
    largest error against what this candidate must output, over the range of that, and ``limit``
    what was allowed. ``deviation`` is the relative L2 distance from the float network's outputs:
    with random weights it tells nothing about accuracy.
    """

    name: str
    wall_ms: tuple[float, ...]
    cpu_ms: tuple[float, ...]
    max_error: float
    limit: float = OF_THE_RANGE
    deviation: float = 0.0

    @property
    def median_ms(self) -> float:
        """Median wall time."""
        return statistics.median(self.wall_ms)

    @property
    def spread_ms(self) -> float:
        """Interquartile range of the wall times; the whole range under four rounds."""
        if len(self.wall_ms) < 4:
            return max(self.wall_ms) - min(self.wall_ms)
        low, _, high = statistics.quantiles(self.wall_ms, n=4, method="inclusive")
        return high - low

    @property
    def busy(self) -> float:
        """Share of the wall time the thread was running."""
        return sum(self.cpu_ms) / sum(self.wall_ms)


class Rounds(_Record):
    """Candidates measured side by side in one process: round ``i`` of each follows the other."""

    series: tuple[Series, ...]
    load_before: float
    load_after: float
    failed: dict[str, str] = Field(default_factory=dict)
    """Peers that cannot run the network, and why."""

    def get(self, name: str) -> Series | None:
        """The series of that name."""
        return next((s for s in self.series if s.name == name), None)

    def ratio(self, first: str, second: str) -> float | None:
        """Median over rounds of first / second wall time, paired within a round."""
        return self._ratio(first, second, lambda series: series.wall_ms)

    def cpu_ratio(self, first: str, second: str) -> float | None:
        """The same of the CPU times, which other people's load disturbs less."""
        return self._ratio(first, second, lambda series: series.cpu_ms)

    def _ratio(
        self, first: str, second: str, times: Callable[[Series], tuple[float, ...]]
    ) -> float | None:
        a, b = self.get(first), self.get(second)
        if a is None or b is None:
            return None
        return statistics.median(x / y for x, y in zip(times(a), times(b), strict=True))


class Footprint(_Record):
    """Memory of one candidate in a process of its own, 1 thread, in KiB of its resident set.

    ``baseline_kib`` is the process with the runtime imported and nothing loaded; the others are
    above that: the peak while the network was loaded, the peak of all (loading and a few
    inferences), and what was left at the end.
    """

    name: str
    baseline_kib: int
    loaded_kib: int
    peak_kib: int
    after_kib: int

    @property
    def peak_mb(self) -> float:
        """The peak above the baseline in MB."""
        return self.peak_kib * 1024 / 1e6


class Explored(_Record):
    """The exploration behind the explored column. ``best`` is a candidate's name."""

    best: str
    is_baseline: bool
    measurements: int
    seconds: float


class Quantised(_Record):
    """The int8 candidates: tvmx's layers by implementation, ONNX Runtime's operators.

    ``method`` is how ranges were found, the same for both. ``ort_nodes`` counts the operators
    of ONNX Runtime's optimised graph.
    """

    layers: dict[str, int]
    method: str
    ort_nodes: dict[str, int] = Field(default_factory=dict)
    weights_bytes: int = 0
    arena_bytes: int = 0
    """Constants and activations of tvmx's int8 plan."""


class Mixed(_Record):
    """A plan of random implementations that was built, run and found right; not timed.

    ``layers`` counts them by implementation; ``max_error`` is against the plan's simulation,
    over its range, ``limit`` what was allowed; ``deviation`` as in :class:`Series`.
    """

    seed: int
    layers: dict[str, int]
    max_error: float
    limit: float
    deviation: float

    @property
    def kinds(self) -> dict[str, int]:
        """Layers that are float and dense, int8, and block-sparse."""
        kinds = {"float": 0, "int8": 0, "sparse": 0}
        for how, count in self.layers.items():
            precision, *sparsity, _layout = how.split()
            kinds["sparse" if sparsity else {"f32": "float"}.get(precision, precision)] += count
        return kinds


class NetworkResult(_Record):
    """Everything known about one network; sections are filled one after the other."""

    schema_version: int = SCHEMA
    network: str
    machine: str
    versions: dict[str, str]
    layers: int = 0
    layers_hit: int = 0
    weights_bytes: int = 0
    arena_bytes: int = 0
    """Constants, and activations of one inference, by the defaults, as planned."""

    quantised: Quantised | None = None
    mixed: Mixed | None = None
    explored: Explored | None = None
    main: Rounds | None = None
    threaded: dict[int, Rounds] = Field(default_factory=dict)
    """As ``main``, by the number of threads; that is on one."""

    untuned: Rounds | None = None
    memory: tuple[Footprint, ...] | None = None

    def footprint(self, name: str) -> Footprint | None:
        """The memory of the candidate of that name."""
        return next((f for f in self.memory or () if f.name == name), None)

    def save(self, path: Path) -> None:
        """Write as JSON. Raises UnwritableError."""
        write_atomic(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> NetworkResult | None:
        """What an earlier run left; None when there is nothing this version can read."""
        try:
            result = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError, UnicodeDecodeError):
            return None
        return result if result.schema_version == SCHEMA else None
