"""Cores: which cores of a device kernels run on, and with how many threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from tvmx.errors import UsageError

Cluster = Literal["big", "little"]
_MOST_THREADS = 1024


@dataclass(frozen=True)
class Cores:
    """``threads`` threads, one a core, on the ``cluster`` with the fastest or slowest cores.

    TVM sorts cores by their highest clock (``src/runtime/threading_backend.cc``); where all are
    alike they are all big. 0 threads leave the device's own default.
    """

    cluster: Cluster = "big"
    threads: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.threads <= _MOST_THREADS:
            raise UsageError(f"{self.threads} threads: give 1 to {_MOST_THREADS}")

    @classmethod
    def parse(cls, text: str | None, threads: int | None = None) -> Cores:
        """From ``--cores``, such as ``big``, ``little:2``, and ``--threads``; both optional.

        Raises:
            UsageError: no such cluster, or two different numbers of threads.
        """
        name, colon, number = (text or "big").strip().partition(":")
        if name not in get_args(Cluster) or (colon and not number.isdecimal()):
            raise UsageError(
                f"--cores {text}: not a choice of cores",
                hint="give big or little, with a number of threads: --cores big:4",
            )
        count = int(number) if colon else None
        if count is not None and threads is not None and count != threads:
            raise UsageError(
                f"--cores {text} asks for {count} threads, --threads for {threads}",
                hint="leave one of them out",
            )
        chosen = count if count is not None else threads if threads is not None else 1
        if chosen < 1:
            raise UsageError(f"{chosen} threads: give at least 1")
        return cls(name, chosen)  # type: ignore[arg-type]  # one of the literals, just checked

    @property
    def mode(self) -> int:
        """The first argument of ``runtime.config_threadpool``."""
        return 1 if self.cluster == "big" else -1

    def __str__(self) -> str:
        return f"{self.cluster}:{self.threads}"
