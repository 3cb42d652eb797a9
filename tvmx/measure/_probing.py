"""Running the probe on a connected device, from the worker."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tvmx.measure._probe import ProbeFigures, ProbeKernel, ProbeLibrary

if TYPE_CHECKING:
    from tvmx.measure._remote import RemoteSession

_SECONDS = 30.0
"""The deadline of running the probe: seconds of work on the slowest boards is under one."""
_REPEATS = 7
_WARM_S = 0.1  # governors take that long to raise the clock


class Probe:
    """A probe library loaded in a session."""

    def __init__(self, session: RemoteSession, library: ProbeLibrary) -> None:
        self._session, self._library = session, library
        with session.phase("upload"):
            path = session.upload(str(library.path))
        with session.phase("load"):
            self.module = session.load(path)

    def figures(self, *, warm: bool, int8: bool = False) -> ProbeFigures:
        """Time the kernels; ``warm`` first keeps the core busy until its clock is up."""
        lib = self._library
        with self._session.phase("run", _SECONDS):
            if warm:
                end = time.monotonic() + _WARM_S
                while time.monotonic() < end:
                    self._rate(lib.fma)
            return ProbeFigures(
                fma_gflops=self._rate(lib.fma),
                stream_gbs=self._rate(lib.stream),
                dot_gops=self._rate(lib.dot) if int8 else None,
            )

    def _rate(self, kernel: ProbeKernel) -> float:
        """Work per nanosecond in the fastest of a few calls: what disturbs the core is left out."""
        buffer = self._session.empty((kernel.size,), kernel.dtype)
        timer = self.module.time_evaluator(
            kernel.symbol, self._session.device, number=1, repeat=_REPEATS
        )
        return kernel.work / float(min(timer(buffer).results)) / 1e9
