"""Manners: how devices are used in one piece of work; and opening a runner that does so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from tvmx.measure._address import DeviceAddress
from tvmx.measure._base import Runner
from tvmx.measure._cores import Cores
from tvmx.measure._deadlines import Deadlines
from tvmx.measure._farm import LocalFarm
from tvmx.measure._observer import Observer
from tvmx.measure._probe import ProbeLibrary
from tvmx.measure._rpc import RpcRunner

LOCAL_KEY = "host"
"""The key of the server tvmx starts on this machine where no device is named."""


@dataclass(frozen=True)
class Manners:
    """How devices are treated.

    ``cores`` are the ones kernels run on; ``deadlines`` what each phase may take at first (a
    caller that knows the baseline's time tightens them). When no device is left, work pauses
    for ``patience_s`` seconds at most. Above ``max_temperature`` (degrees Celsius; None: never)
    a device cools first. With ``cold`` kernels are timed on flushed caches.
    """

    cores: Cores = field(default_factory=Cores)
    deadlines: Deadlines = field(default_factory=Deadlines)
    patience_s: float = 600.0
    max_temperature: float | None = 80.0
    cold: bool = False

    @property
    def cache(self) -> Literal["warm", "cold"]:
        """State of the caches kernels are timed in."""
        return "cold" if self.cold else "warm"


@contextmanager
def open_runner(
    address: DeviceAddress | None,
    manners: Manners,
    *,
    arch: str,
    observer: Observer | None = None,
    probe: ProbeLibrary | None = None,
) -> Iterator[Runner]:
    """A runner on all devices at ``address``, or on a farm of its own on this machine.

    ``arch`` is what the libraries are built for.
    """
    if address is not None:
        with RpcRunner(
            address,
            cores=manners.cores,
            deadlines=manners.deadlines,
            arch=arch,
            parallel=None,
            patience_s=manners.patience_s,
            observer=observer,
            probe=probe,
            max_temperature=manners.max_temperature,
        ) as runner:
            yield runner
        return
    cores = manners.cores
    with (
        LocalFarm(threads=cores.threads, key=LOCAL_KEY, cluster=cores.cluster) as farm,
        farm.runner(
            deadlines=manners.deadlines,
            arch=arch,
            observer=observer,
            probe=probe,
            max_temperature=manners.max_temperature,
        ) as runner,
    ):
        yield runner
