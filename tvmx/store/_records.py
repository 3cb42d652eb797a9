"""What the journal holds: one measurement and the key it is found by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tvmx.ir import Config, Implementation


class MeasurementKey(BaseModel):
    """Everything a measurement depends on. Equal keys mean the same kernel on the same device.

    ``workload`` is the workload's digest; ``implementation`` and ``config`` are canonical JSON
    (use :meth:`of`); ``target`` is name and digest, such as ``rpi4:1f3a..``; ``device`` the
    device key; ``threads`` run on the ``cores`` of that cluster, with ``cache`` warm or flushed
    before each call; ``tvmx`` and ``tvm`` the versions that built the kernel.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workload: str
    implementation: str
    config: str
    target: str
    device: str
    threads: int = Field(ge=1)
    cores: Literal["big", "little"] = "big"
    cache: Literal["warm", "cold"] = "warm"
    tvmx: str
    tvm: str

    @classmethod
    def of(
        cls,
        workload: str,
        implementation: Implementation,
        config: Config,
        *,
        target: str,
        device: str,
        threads: int,
        cores: Literal["big", "little"] = "big",
        cache: Literal["warm", "cold"] = "warm",
        versions: Mapping[str, str],
    ) -> MeasurementKey:
        """The key for these objects; ``versions`` maps ``tvmx`` and ``tvm`` to their versions."""
        return cls(
            workload=workload,
            implementation=json.dumps(
                implementation.model_dump(mode="json"), sort_keys=True, separators=(",", ":")
            ),
            config=config.key(),
            target=target,
            device=device,
            threads=threads,
            cores=cores,
            cache=cache,
            tvmx=versions["tvmx"],
            tvm=versions["tvm"],
        )


class MeasurementRecord(BaseModel):
    """One line of the journal.

    ``measurement`` is ``tvmx.measure.Measurement.model_dump(mode="json")``: plain JSON
    values; ``timestamp`` seconds since the epoch. ``features`` describe the kernel's loop nest
    (``tvmx.build.nest_features``), so that later runs on other networks can learn from it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: MeasurementKey
    measurement: dict[str, Any]
    timestamp: float
    features: dict[str, float] | None = None

    def line(self) -> str:
        """Canonical JSON without a newline: equal records have equal lines."""
        # Not in JSON mode, which would turn NaN into null.
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))
