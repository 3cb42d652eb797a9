"""What prune is asked and what it returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tvmx.explore._request import PruneMethod
from tvmx.ir import LEVELS, DataSource


@dataclass(frozen=True)
class PruneRequest:
    """One study of a network pruned, by simulation on this machine.

    ``levels`` are percent of the blocks, ``pattern`` the blocks (rows, columns) of every layer;
    None: those of the target's sparse kernels, and only layers that have one. ``target`` is what
    the plan is for. ``samples`` bounds how many of each half are simulated; None: as many as about
    a minute allows. With ``out`` a report, a plan and its weights are written into that folder. The
    rest is as in :class:`tvmx.explore.ExploreRequest`; ``skip`` are layers that are not pruned.
    """

    model: Path
    data: Path
    target: str = "host"
    out: Path | None = None
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    params: Path | None = None
    preprocess: Path | None = None
    metric: str | None = None
    levels: tuple[int, ...] = LEVELS
    pattern: tuple[int, int] | None = None
    method: PruneMethod = "reconstruction"
    skip: tuple[str, ...] = ()
    max_accuracy_drop: float = 1.0
    samples: int | None = None
    schedules: tuple[Path, ...] = ()
    seed: int = 0


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class LevelFigures(_Frozen):
    """A layer pruned to one level, alone.

    ``sparsity`` is as in a plan (``16x1@80``). ``method`` is what made it: reconstruction only
    where it errs less than magnitude. ``sqnr_db`` is of the layer's output, ``output_sqnr_db`` of
    the network's; ``drop`` in points of the metric, ``sensitivity`` as explore counts it.
    """

    sparsity: str
    method: PruneMethod
    sqnr_db: float | None
    output_sqnr_db: float
    drop: float
    sensitivity: float


class Work(_Frozen):
    """What a layer or network takes: floating point operations, and bytes of its weights.

    A multiply-add is two operations. Sparse weights count with the indices of their blocks.
    """

    flops: int
    bytes: int


class PrunedLayerFigures(_Frozen):
    """A layer: the zeros it arrived with, each level of it alone, and what was chosen.

    ``zeros`` is the share (0 to 1) of its weights that were zero, ``zero_pattern`` the largest
    blocks that explain them and ``zero_blocks`` the share of those. ``kernel`` is the target's
    sparse template for the pattern; empty: its zeros are computed like other numbers, and buy no
    time. ``chosen`` is the sparsity in the plan, or why the layer is as it was. ``dense`` and
    ``after`` tell what the layer takes before and after.
    """

    layer: str
    workload: str
    zeros: float
    zero_pattern: str
    zero_blocks: float
    kernel: str
    levels: list[LevelFigures]
    chosen: str
    dense: Work
    after: Work


class PruneCurvePoint(_Frozen):
    """A whole network without its ``left_out`` most costly prunings, on the visible half."""

    left_out: int
    drop: float
    output_sqnr_db: float


class PrunedNetwork(_Frozen):
    """A whole network, simulated jointly: on the visible half, and on the held-out half."""

    pruned_layers: int
    visible_drop: float
    visible_sqnr_db: float
    accuracy: float
    drop: float
    sqnr_db: float
    work: Work


class PruneResult(_Frozen):
    """The outcome; also written to ``report.json``.

    SQNRs are in dB, drops in percentage points of ``metric``. ``most`` is every layer at the
    highest level, ``best`` the highest levels with which the whole network keeps within
    ``max_accuracy_drop``; ``meets``: on the held-out half too, which no choice has seen. Latency is
    not measured.
    """

    format: Literal["tvmx-prune"] = "tvmx-prune"
    schema_version: int = 1
    model: str
    model_digest: str
    target: str
    data: DataSource | None
    metric: str
    method: PruneMethod
    pattern: str
    max_accuracy_drop: float
    visible: int
    visible_total: int
    held_out: int
    held_out_total: int
    float_accuracy: float
    layers: list[PrunedLayerFigures]
    curve: list[PruneCurvePoint]
    dense: Work
    most: PrunedNetwork
    best: PrunedNetwork
    meets: bool
    seconds: float
    plan: str | None = None
    report: str | None = None
    notes: list[str]
