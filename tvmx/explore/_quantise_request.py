"""What quantise is asked and what it returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tvmx.explore._request import Calibration
from tvmx.ir import DataSource


@dataclass(frozen=True)
class QuantiseRequest:
    """One study of a network in int8, by simulation on this machine.

    ``target`` decides which layers have an int8 kernel, and is what the plan is for.
    ``calibration`` ``all`` tries every method and goes on with the one of least sensitivity.
    ``samples`` bounds how many of each half are simulated; None: as many as about a minute
    allows. With ``out`` a report and a plan are written into that folder. The rest is as in
    :class:`tvmx.explore.ExploreRequest`.
    """

    model: Path
    data: Path
    target: str = "host"
    out: Path | None = None
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    params: Path | None = None
    preprocess: Path | None = None
    metric: str | None = None
    calibration: Calibration | Literal["all"] = "percentile"
    equalise: bool = False
    bias_correction: bool = False
    skip: tuple[str, ...] = ()
    max_accuracy_drop: float = 1.0
    samples: int | None = None
    schedules: tuple[Path, ...] = ()
    seed: int = 0


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class ValueRange(_Frozen):
    """A value that is int8 when every layer is: what calibration found.

    int8 represents ``low`` to ``high``; ``clipped`` is the share (0 to 1) of the float network's
    elements that saturate. ``name`` is that of the input, layer or operator that makes it.
    """

    value: int
    kind: Literal["input", "layer", "operator"]
    name: str
    scale: float
    zero_point: int
    low: float
    high: float
    clipped: float


class LayerFigures(_Frozen):
    """A layer when it alone is int8; None where it cannot be, or must not.

    ``value`` is the number of its output, as in :class:`ValueRange`. ``sqnr_db`` is of that
    output, ``output_sqnr_db`` of the network's; ``drop`` in points of the metric;
    ``sensitivity`` is the drop as explore counts it, which layers are ranked by (``rank`` 1: the
    most sensitive). ``cut`` is what it is in the best cut, and why if it had no choice.
    """

    layer: str
    value: int
    workload: str
    sqnr_db: float | None = None
    output_sqnr_db: float | None = None
    drop: float | None = None
    sensitivity: float | None = None
    rank: int | None = None
    cut: Literal["int8", "float", "skipped", "no int8 kernel", "as stated"]


class MethodFigures(_Frozen):
    """Every layer int8, calibrated by one method; on the visible half."""

    calibration: Calibration
    drop: float
    sensitivity: float
    output_sqnr_db: float


class CutPoint(_Frozen):
    """The ``kept_float`` most sensitive layers float (``layer`` is the last of them), others int8.

    ``drop`` and ``output_sqnr_db`` are simulated jointly, on the visible half.
    """

    kept_float: int
    layer: str
    drop: float
    output_sqnr_db: float


class NetworkFigures(_Frozen):
    """A whole network, simulated jointly: on the visible half, and on the held-out half."""

    int8_layers: int
    visible_drop: float
    visible_sqnr_db: float
    accuracy: float
    drop: float
    sqnr_db: float


class QuantiseResult(_Frozen):
    """The outcome; also written to ``report.json``.

    SQNRs are in dB, within 200 (equal) and -200 (not finite). Drops are in percentage points of
    ``metric`` (``top-1``, ``agreement`` or the user's). ``visible`` and ``held_out`` are the
    samples simulated of each half's ``visible_total`` and ``held_out_total``;
    ``float_accuracy`` is in percent of the held-out ones. ``meets``: the cut stays within
    ``max_accuracy_drop`` on the held-out half, which no choice has seen.
    """

    format: Literal["tvmx-quantise"] = "tvmx-quantise"
    schema_version: int = 1
    model: str
    model_digest: str
    target: str
    data: DataSource | None
    metric: str
    calibration: Calibration
    max_accuracy_drop: float
    visible: int
    visible_total: int
    held_out: int
    held_out_total: int
    float_accuracy: float
    methods: list[MethodFigures] = Field(default_factory=list)
    values: list[ValueRange]
    layers: list[LayerFigures]
    curve: list[CutPoint]
    int8: NetworkFigures
    cut: NetworkFigures
    kept_float: list[str]
    meets: bool
    seconds: float
    plan: str | None = None
    report: str | None = None
    notes: list[str]
