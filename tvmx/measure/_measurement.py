"""Measurement: what came back for one job, a figure or a typed failure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tvmx.measure._paired import Paired, compare_paired, compare_simulated, median_interval
from tvmx.measure._simulated import SimulatedRun

Status = Literal[
    "ok", "build", "queue", "connect", "upload", "load", "run", "timeout", "crash", "wrong-output"
]
DEVICE_FAULTS: frozenset[str] = frozenset({"queue", "connect", "upload"})


class Measurement(BaseModel):
    """The outcome of one job. Frozen; plain JSON.

    ``latencies_us`` holds one mean latency per repeat (or per round of a comparison);
    ``median_us`` and ``spread_us`` (the interquartile range, 75th minus 25th percentile) are
    over them; ``interval_us`` encloses the true median with 95 % confidence, a little less where
    the policy ended the repeats early (see :class:`tvmx.measure.TimingPolicy`); None with fewer
    than six. ``max_error`` is the largest absolute deviation from the reference divided by the
    reference's range; None when there was no reference. ``device`` is the key, ``server``
    (host:port) and ``identity`` tell devices of one key apart; ``temperature_c`` is read next to
    the timing, where it can be. ``drift`` is the largest relative change of the device's probe
    figures since its first ones (0.05: 5 %). ``simulated`` is
    set when no board ran it: the latency is then simulated cycles over the core's clock.
    ``timestamp`` is Unix seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Status
    message: str = ""
    latencies_us: tuple[float, ...] = ()
    median_us: float | None = None
    spread_us: float | None = None
    interval_us: tuple[float, float] | None = None
    max_error: float | None = None
    device: str = ""
    server: str = ""
    identity: str = ""
    threads: int = 0
    temperature_c: float | None = None
    drift: float | None = None
    simulated: SimulatedRun | None = None
    timestamp: float = Field(default_factory=time.time)

    @property
    def ok(self) -> bool:
        """Whether there is a latency of a right result."""
        return self.status == "ok"

    @property
    def device_fault(self) -> bool:
        """True when the device, not the candidate, is to blame: measure it again later."""
        return self.status in DEVICE_FAULTS

    @classmethod
    def success(
        cls,
        latencies_us: Sequence[float],
        *,
        max_error: float | None = None,
        message: str = "",
        device: str = "",
        server: str = "",
        identity: str = "",
        threads: int = 0,
        temperature_c: float | None = None,
        drift: float | None = None,
        simulated: SimulatedRun | None = None,
    ) -> Measurement:
        """An ``ok`` measurement with its statistics (at least one latency)."""
        values = np.asarray(latencies_us, dtype=np.float64)
        low, median, high = np.percentile(values, (25, 50, 75))
        return cls(
            status="ok",
            message=message,
            latencies_us=tuple(float(v) for v in values),
            median_us=float(median),
            spread_us=float(high - low),
            interval_us=median_interval(latencies_us),
            max_error=max_error,
            device=device,
            server=server,
            identity=identity,
            threads=threads,
            temperature_c=temperature_c,
            drift=drift,
            simulated=simulated,
        )

    @classmethod
    def failure(
        cls,
        status: Status,
        message: str,
        *,
        max_error: float | None = None,
        device: str = "",
        server: str = "",
        identity: str = "",
        threads: int = 0,
    ) -> Measurement:
        """A typed failure; ``message`` is one line for the user."""
        return cls(
            status=status,
            message=message,
            max_error=max_error,
            device=device,
            server=server,
            identity=identity,
            threads=threads,
        )


def compare_measured(first: Measurement, second: Measurement) -> Paired:
    """Is the first faster? Both ok, from one comparison; simulated ones by the model's worth."""
    if first.simulated is not None and second.simulated is not None:
        return compare_simulated(first.latencies_us[0], second.latencies_us[0])
    return compare_paired(first.latencies_us, second.latencies_us)
