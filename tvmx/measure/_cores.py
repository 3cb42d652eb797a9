"""Cores: which cores of a device kernels run on, and with how many threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tvmx.errors import UsageError

Cluster = Literal["big", "little"]
_MOST_THREADS = 1024
_ONLINE = "/sys/devices/system/cpu/online"
_CLOCK = "/sys/devices/system/cpu/cpu{}/cpufreq/cpuinfo_max_freq"


@dataclass(frozen=True)
class Cores:
    """``threads`` threads, one a core, on the ``cluster`` with the fastest or slowest cores.

    TVM sorts cores by their highest clock (``src/runtime/threading_backend.cc``): little are
    those with the lowest, big all others; where all are alike they are all big. More threads
    than big cores go on to the little ones. 0 threads leave the device's own default.
    """

    cluster: Cluster = "big"
    threads: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.threads <= _MOST_THREADS:
            raise UsageError(f"{self.threads} threads: give 1 to {_MOST_THREADS}")
        if self.cluster == "little" and not self.threads:
            raise UsageError("the device's default threads are on its big cores: say how many")

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

    def problem(self, read: Callable[[str], str]) -> str | None:
        """Why a device cannot run on these cores, and what to type; None where it can.

        ``read(path)`` is a file of the device, empty where it cannot be read: then there is
        nothing to find fault with. TVM itself says nothing: it takes other cores than asked for,
        or puts several threads on one.
        """
        online = parse_cpu_list(read(_ONLINE))
        if not online:
            return None
        if self.threads > len(online):
            return (
                f"has {len(online)} cores, {self} were asked for:"
                f" give --cores {self.cluster}:{len(online)} or fewer"
            )
        if self.cluster == "big":
            return None
        little = count_little([_number(read(_CLOCK.format(cpu))) for cpu in online])
        if not little:
            return (
                "shows no difference between its cores, so none are little:"
                f" give --cores big:{self.threads}"
            )
        if self.threads > little:
            return f"has {little} little cores, {self} were asked for: give --cores little:{little}"
        return None


def has_little_cores() -> bool:
    """Whether this machine has cores of several kinds, going by their highest clocks."""

    def read(path: str) -> str:
        try:
            return Path(path).read_text(encoding="ascii").strip()
        except OSError:
            return ""

    clocks = [_number(read(_CLOCK.format(cpu))) for cpu in parse_cpu_list(read(_ONLINE))]
    return bool(clocks) and count_little(clocks) > 0


def count_little(clocks_khz: Sequence[int]) -> int:
    """How many cores TVM takes for little, from the highest clock of each (0: unknown)."""
    slowest = min(clocks_khz)
    return 0 if slowest == max(clocks_khz) else list(clocks_khz).count(slowest)


def parse_cpu_list(text: str) -> list[int]:
    """The processors of a list as Linux writes them, such as ``0-3,6``; empty if it is none."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            return []
        cpus += range(int(first), int(last if dash else first) + 1)
    return cpus


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
