"""Running the probe on a connected device, from the worker."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmx.measure._probe import ProbeFigures, ProbeKernel, ProbeLibrary

if TYPE_CHECKING:
    from tvmx.measure._jobs import Array
    from tvmx.measure._remote import RemoteSession

_SECONDS = 30.0
"""The deadline of running the probe: seconds of work on the slowest boards is under one."""
_REPEATS = 7
_WARM_S = 0.1  # governors take that long to raise the clock
_PATH_BYTES = 4096
_STATVFS = 32
_BLOCK, _AVAILABLE = 1, 4  # f_frsize and f_bavail, as 64-bit words of struct statvfs


@dataclass(frozen=True)
class Rate:
    """Work per nanosecond in the fastest call; ``spread``: the median call's share below it."""

    best: float
    spread: float


class Probe:
    """A probe library loaded in a session; ``path`` is where it has been uploaded, if it has."""

    def __init__(
        self, session: RemoteSession, library: ProbeLibrary, path: str | None = None
    ) -> None:
        self._session, self._library = session, library
        if path is None:
            with session.phase("upload"):
                path = session.upload(str(library.path))
        with session.phase("load"):
            self.module = session.load(path)

    def figures(self, *, warm: bool, int8: bool = False) -> ProbeFigures:
        """Time the kernels; ``warm`` first keeps the core busy until its clock is up."""
        lib = self._library
        with self._session.phase("run", _SECONDS):
            if warm:
                self.warm_up()
            return ProbeFigures(
                fma_gflops=self.rate(lib.fma).best,
                stream_gbs=self.rate(lib.stream).best,
                dot_gops=self.rate(lib.dot).best if int8 else None,
            )

    def warm_up(self) -> None:
        """Keep the core busy until its clock is up."""
        end = time.monotonic() + _WARM_S
        while time.monotonic() < end:
            self.rate(self._library.fma)

    def rate(self, kernel: ProbeKernel, repeats: int = _REPEATS) -> Rate:
        """The fastest of a few calls: what disturbs the core is left out."""
        buffer = self._session.empty((kernel.size,), kernel.dtype)
        timer = self.module.time_evaluator(
            kernel.symbol, self._session.device, number=1, repeat=repeats
        )
        seconds = timer(buffer).results
        best = float(min(seconds))
        return Rate(kernel.work / best / 1e9, 1 - best / float(median(seconds)))

    def wrong_values(self) -> dict[str, tuple[int, int]]:
        """For each kernel, how many values differ from NumPy's, of how many."""
        found = {}
        with np.load(self._library.examples, allow_pickle=False) as examples:
            for symbol, (before, after) in examples.items():
                buffer = self._tensor(before)
                self.module[symbol](buffer)
                differ = self._session.fetch(buffer) != after
                found[symbol] = (int(differ.sum()), differ.size)
        return found

    def read(self, path: str, size: int = 1 << 16) -> bytes:
        """The first bytes of a file of the device, also of /proc; empty if it cannot be read."""
        out = self._session.empty((size,), "uint8")
        self.module[self._library.copy_text](self._path(path), out)
        return self._session.fetch(out).tobytes().rstrip(b"\0")

    def libc_version(self) -> str:
        """Such as ``glibc 2.36``; empty where it is not glibc."""
        out = self._session.empty((_PATH_BYTES,), "uint8")
        self.module[self._library.libc_version](out)
        return self._session.fetch(out).tobytes().split(b"\0", 1)[0].decode(errors="replace")

    def free_bytes(self, folder: str) -> int:
        """Room for files of the server in a folder; 0 as well where it cannot be read."""
        out = self._session.empty((_STATVFS,), "int64")
        self.module[self._library.file_system](self._path(folder), out)
        values = self._session.fetch(out)
        return int(values[_BLOCK]) * int(values[_AVAILABLE])

    def _path(self, path: str) -> Any:
        return self._tensor(np.frombuffer(path.encode() + b"\0", np.uint8))

    def _tensor(self, values: Array) -> Any:
        tensor = self._session.empty(values.shape, values.dtype.name)
        tensor.copyfrom(np.ascontiguousarray(values))
        return tensor
