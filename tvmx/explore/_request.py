"""What explore is asked, what it reports while it runs, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from tvmx.measure import DeviceAddress, Manners

Objective = Literal["latency", "arena", "weights"]
Calibration = Literal["percentile", "minmax", "average", "kl", "mse"]
PruneMethod = Literal["magnitude", "reconstruction"]


@dataclass(frozen=True)
class ExploreRequest:
    """One exploration. ``tracker`` None means: an own tracker and host server as children.

    ``params`` are the weights of a Relay model.

    ``budget_s`` seconds or ``trials`` kernel measurements bound the tuning; with neither, the
    budget is 600 s. ``max_accuracy_drop`` is in percentage points of ``metric``
    (``module:function``; None means top-1 with labels, else agreement); ``max_weights`` and
    ``max_arena`` bound the best plan's bytes. ``calibration`` is how int8 ranges are found;
    ``equalise`` scales channels of neighbouring layers to like ranges before, ``bias_correction``
    takes what int8 adds to a channel's mean off its bias. ``prune_method`` is how layers are
    pruned: by magnitude, or reconstructed on the calibration samples wherever that is better.
    ``skip`` are globs: layers whose names match one are never int8.
    ``agent`` (of :data:`tvmx.search.AGENTS`, or ``policy``) chooses on the cost table; None is the
    best one for what is asked, or that of the file ``policy``.
    ``data`` is an npz file, a folder of images (prepared as the file ``preprocess`` says) or
    ``module:function``. ``manners`` say how the devices are used: cores, deadlines, patience.
    ``learn_from`` are folders of earlier runs that the knob tuner starts from. ``prefilter``:
    candidates whose inner loop llvm-mca finds slow are not measured. ``ray`` is the address of a
    Ray cluster that builds kernels and plays the agent's episodes (``local``: one of its own).
    """

    model: Path
    target: str
    out: Path
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    params: Path | None = None
    tracker: DeviceAddress | None = None
    data: Path | None = None
    preprocess: Path | None = None
    budget_s: float | None = None
    trials: int | None = None
    metric: str | None = None
    calibration: Calibration = "percentile"
    equalise: bool = False
    bias_correction: bool = False
    prune_method: PruneMethod = "reconstruction"
    skip: tuple[str, ...] = ()
    max_accuracy_drop: float = 1.0
    max_weights: int | None = None
    max_arena: int | None = None
    objective: Objective = "latency"
    agent: str | None = None
    policy: Path | None = None
    manners: Manners = field(default_factory=Manners)
    schedules: tuple[Path, ...] = ()
    learn_from: tuple[Path, ...] = ()
    prefilter: bool = False
    ray: str | None = None
    seed: int = 0
    fresh: bool = False

    @property
    def pruning(self) -> PruneMethod:
        """How layers are pruned; without data none is."""
        return self.prune_method if self.data is not None else "magnitude"

    @property
    def threads(self) -> int:
        """Threads of the network."""
        return self.manners.cores.threads


class CandidateSummary(BaseModel):
    """One whole network that was built, verified and measured end to end.

    ``accuracy`` is in percent of the held-out half (None without data); ``accuracy_kind`` is
    ``top-1`` with labels, ``agreement`` without, or the user's metric. ``ratio`` is the median
    over rounds of (this / baseline) latency, paired within a round. Sizes are bytes. ``meets``
    tells whether the accuracy drop and the memory stay within what was asked; ``layers`` counts
    the layers by precision and sparsity; ``max_error`` is against ``checked_against``.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    plan: str
    latency_us: float
    spread_us: float
    ratio: float
    weights_bytes: int
    arena_bytes: int
    scratch_bytes: int
    library_bytes: int
    accuracy: float | None = None
    accuracy_drop: float | None = None
    accuracy_kind: str = ""
    max_error: float | None = None
    checked_against: str = ""
    meets: bool = True
    layers: dict[str, int] = Field(default_factory=dict)


class LayerSummary(BaseModel):
    """One row of the per-layer table: implementations and tuned latencies in us.

    ``memory`` is the implementation in the candidate of least memory.
    """

    model_config = ConfigDict(frozen=True)

    layer: str
    workload: str
    baseline: str
    baseline_us: float | None
    best: str
    best_us: float | None
    memory: str = ""
    memory_us: float | None = None


class DeviceSummary(BaseModel):
    """A device that took part. ``server`` is host:port, ``measured`` counts its kernels.

    ``fma_gflops`` and ``stream_gbs`` are what the probe reached at first; ``drift`` is the
    largest relative change since (0.05: 5 %), ``deviation`` how it differs from its siblings.
    """

    model_config = ConfigDict(frozen=True)

    server: str
    identity: str
    measured: int
    fma_gflops: float | None = None
    stream_gbs: float | None = None
    drift: float | None = None
    deviation: str | None = None


class ExploreResult(BaseModel):
    """The outcome; also written to ``result.json`` of the run.

    ``candidates[baseline]`` is the baseline, ``candidates[best]`` the winner for the objective
    and ``candidates[best_memory]`` the one of least weights plus arena among those that meet
    accuracy and memory limits (all possibly the same). ``device`` says where the whole networks
    were measured, ``devices`` who measured the kernels, ``deadlines`` what each phase could take,
    ``simulated`` by which model (empty: on real devices);
    ``notes`` is what a reader must know.

    ``front`` are the candidates that no other one dominates in latency, weights, arena and accuracy
    drop. ``hypervolume`` is the share that it dominates of the box from 0 to ``reference_point``:
    1.1 times the baseline, and the points that may be lost. ``phases`` are the seconds of each
    stage, ``hardware`` counts what the device timed: ``measurements`` are kernels that were tuned.
    """

    model_config = ConfigDict(frozen=True)

    run: str
    model: str
    target: str
    device: str
    devices: list[DeviceSummary] = Field(default_factory=list)
    simulated: str = ""
    threads: int
    cores: str = "big"
    deadlines: str = ""
    objective: str
    candidates: list[CandidateSummary]
    baseline: int
    best: int
    best_memory: int = 0
    layers: list[LayerSummary]
    measurements: int
    failures: int
    seconds: float
    reference: str
    notes: list[str]
    front: list[int] = Field(default_factory=list)
    hypervolume: float = 0.0
    reference_point: dict[str, float] = Field(default_factory=dict)
    phases: dict[str, float] = Field(default_factory=dict)
    hardware: dict[str, int] = Field(default_factory=dict)


class BundleSummary(BaseModel):
    """A bundle that was written. Sizes are bytes; ``layers_hit`` of ``layers`` run templates."""

    model_config = ConfigDict(frozen=True)

    path: str
    target: str
    layers_hit: int
    layers: int
    library_bytes: int
    weights_bytes: int
    arena_bytes: int
    scratch_bytes: int
    measured_on_target: bool
    notes: list[str]


class DryRun(BaseModel):
    """What explore would do: layers, implementations, space sizes; nothing is measured.

    ``conversions`` is the most there are to cost: those that only implementations need which
    their default configs rule out are not.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    target: str
    layers: int
    covered: int
    workloads: list[DryRunWorkload]
    conversions: int
    notes: list[str]


class DryRunWorkload(BaseModel):
    """A distinct workload, the layers that share it, and its templates with space sizes."""

    model_config = ConfigDict(frozen=True)

    workload: str
    layers: list[str]
    templates: dict[str, int]


class Progress(Protocol):
    """What long work tells its caller. The command line draws it; tests record it."""

    def stage(self, name: str) -> None:
        """A new stage begins (import, tune, search, measure ...)."""

    def update(
        self,
        done: float,
        total: float,
        *,
        best_us: float | None,
        baseline_us: float | None,
        seconds_left: float | None,
    ) -> None:
        """``done`` of ``total`` within the stage; the best estimate so far; time left."""

    def message(self, text: str) -> None:
        """One line worth keeping on the screen (a restarted server, a rejected candidate)."""

    def waiting(self, text: str, seconds_left: float | None) -> None:
        """Nothing goes on because of ``text`` (see :class:`tvmx.measure.Observer`)."""


class Silent:
    """A Progress that says nothing."""

    def stage(self, name: str) -> None:
        """Ignore."""

    def update(
        self,
        done: float,
        total: float,
        *,
        best_us: float | None,
        baseline_us: float | None,
        seconds_left: float | None,
    ) -> None:
        """Ignore."""

    def message(self, text: str) -> None:
        """Ignore."""

    def waiting(self, text: str, seconds_left: float | None) -> None:
        """Ignore."""
