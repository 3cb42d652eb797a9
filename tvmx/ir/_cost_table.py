"""CostTable: what the search plans with: layer x implementation -> us, and border costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tvmx.errors import StoreError
from tvmx.ir._graph import NetworkGraph
from tvmx.ir._implementation import Implementation
from tvmx.ir._layout import MATRIX, PLAIN, block_of, dtype_of, stored_as
from tvmx.ir._workload import Workload

COST_TABLE_SCHEMA = 2

Latency = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Border = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Points = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def transition_key(shape: Sequence[int], source: str, destination: str) -> str:
    """Key of one conversion between formats, such as ``1x64x56x56:NCHW16c>NCHW16c/s8``.

    ``shape`` is the logical shape (NCHW or NC) of the tensor that is converted. Unblocked
    formats are spelt by the shape: ``NC`` for a matrix and ``NCHW`` for all else.
    """
    plain = MATRIX if len(shape) == 2 else PLAIN
    forms = [f if block_of(f) else stored_as(plain, dtype_of(f)) for f in (source, destination)]
    return f"{'x'.join(str(d) for d in shape)}:{forms[0]}>{forms[1]}"


class LayerCosts(BaseModel):
    """Measured costs of one layer's implementations.

    ``latency_us[i]`` is the tuned latency of ``implementations[i]`` in us, None when it is
    illegal or failed; ``weights_bytes[i]`` is what its packed constants occupy;
    ``baseline`` indexes the baseline's implementation, which must have a latency.
    ``accuracy_drop[i]`` is the loss expected, in percentage points, when this layer alone
    takes the implementation; empty means that none loses anything.
    ``workload`` is the workload's digest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: str
    workload: str
    implementations: tuple[Implementation, ...] = Field(min_length=1)
    latency_us: tuple[Latency | None, ...]
    weights_bytes: tuple[Annotated[int, Field(ge=0)], ...]
    baseline: int = Field(ge=0)
    accuracy_drop: tuple[Points, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> LayerCosts:
        count = len(self.implementations)
        if len(self.latency_us) != count or len(self.weights_bytes) != count:
            raise ValueError(
                f"layer {self.layer!r} has {count} implementations, {len(self.latency_us)} "
                f"latencies and {len(self.weights_bytes)} weight sizes"
            )
        if self.accuracy_drop and len(self.accuracy_drop) != count:
            raise ValueError(
                f"layer {self.layer!r} has {count} implementations and "
                f"{len(self.accuracy_drop)} accuracy drops"
            )
        if self.baseline >= count or self.latency_us[self.baseline] is None:
            raise ValueError(f"layer {self.layer!r}: baseline {self.baseline} has no latency")
        return self

    @property
    def legal(self) -> tuple[int, ...]:
        """Indices of the implementations that have a latency."""
        return tuple(i for i, us in enumerate(self.latency_us) if us is not None)

    @property
    def drops(self) -> tuple[float, ...]:
        """``accuracy_drop`` with one entry per implementation, zeros where it is empty."""
        return self.accuracy_drop or (0.0,) * len(self.implementations)


class CostTable(BaseModel):
    """All layers of a network in topological order, and the conversions between formats.

    ``transitions`` maps :func:`transition_key` to us. ``workloads`` (digest to workload)
    makes the table self-describing: the environment takes its layer features from there,
    and leaves the shape features of a layer whose workload is absent at zero. ``graph`` is the
    network: with it the borders of branches and joins are known too, without it layers are a chain.
    ``target`` is the device as numbers between 0 and 1, for policies that know several.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = COST_TABLE_SCHEMA
    layers: tuple[LayerCosts, ...] = Field(min_length=1)
    transitions: dict[str, Border] = Field(default_factory=dict)
    workloads: dict[str, Workload] = Field(default_factory=dict)
    graph: NetworkGraph | None = None
    target: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _digests(self) -> CostTable:
        for digest, workload in self.workloads.items():
            if workload.digest != digest:
                raise ValueError(f"workload {workload.describe()!r} is filed under {digest!r}")
        return self

    @property
    def baseline(self) -> tuple[int, ...]:
        """The baseline's implementation index for every layer."""
        return tuple(costs.baseline for costs in self.layers)

    def layers_us(self, assignment: Sequence[int]) -> float:
        """Sum of the layers' latencies in us, without borders. Raises StoreError if one is None."""
        total = 0.0
        for costs, index in zip(self.layers, assignment, strict=True):
            us = costs.latency_us[index]
            if us is None:
                raise StoreError(
                    f"layer {costs.layer!r} has no latency for "
                    f"{costs.implementations[index].label()}"
                )
            total += us
        return total

    def weights_bytes(self, assignment: Sequence[int]) -> int:
        """Sum of the layers' packed constants in bytes."""
        pairs = zip(self.layers, assignment, strict=True)
        return sum(costs.weights_bytes[index] for costs, index in pairs)

    def accuracy_drop(self, assignment: Sequence[int]) -> float:
        """Expected loss in percentage points: the sum of the layers' own losses.

        The additive model: exact for one changed layer, an estimate for several, which may
        make each other worse or better. Whole plans are measured before one is called best.
        Rounded to a billionth of a point, so that 0.1 + 0.2 is not more than 0.3.
        """
        pairs = zip(self.layers, assignment, strict=True)
        return round(math.fsum(costs.drops[index] for costs, index in pairs), 9)

    def save(self, path: Path) -> None:
        """Write as indented JSON."""
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> CostTable:
        """Read a table. Raises :class:`StoreError` when the file is missing or no cost table."""
        try:
            table = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as err:
            raise StoreError(f"cannot read cost table {path}: {err.strerror}") from err
        except (ValidationError, UnicodeDecodeError) as err:
            raise StoreError(
                f"{path} is not a tvmx cost table", hint="cost tables are written by `tvmx explore`"
            ) from err
        if table.schema_version != COST_TABLE_SCHEMA:
            raise StoreError(
                f"{path} has cost table schema {table.schema_version}, "
                f"this tvmx reads {COST_TABLE_SCHEMA}"
            )
        return table
