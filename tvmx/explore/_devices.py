"""Opening the device a request names: a board behind a tracker, or the host's own server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tvmx.build import host_arch
from tvmx.errors import UsageError
from tvmx.measure import Cores, DeviceAddress, LocalFarm, RpcRunner, Runner, require_key
from tvmx.targets import Target

LOCAL_KEY = "host"


def device_key(tracker: DeviceAddress | None) -> str:
    """The key measurements are recorded under."""
    return tracker.key if tracker else LOCAL_KEY


def check_device(target: Target, tracker: DeviceAddress | None) -> None:
    """Fail early: a foreign target needs a board, and the board's key must be known.

    Raises UsageError, TrackerError, UnknownKeyError.
    """
    if tracker is not None:
        require_key(tracker)
    elif target.arch != host_arch():
        raise UsageError(
            f"target {target.name!r} is {target.arch}, this machine is {host_arch()}: "
            "measuring needs a device",
            hint="`tvmx serve --key KEY --commands` prints what the board needs, then give "
            "--tracker HOST:PORT --key KEY; `tvmx build` compiles without measuring",
        )


@contextmanager
def open_runner(target_arch: str, tracker: DeviceAddress | None, threads: int) -> Iterator[Runner]:
    """A runner on the device; without a tracker an own tracker and server as children."""
    if tracker is not None:
        with RpcRunner(tracker, cores=Cores(threads=threads), arch=target_arch) as runner:
            yield runner
        return
    with (
        LocalFarm(threads=threads, key=LOCAL_KEY) as farm,
        farm.runner(arch=target_arch) as runner,
    ):
        yield runner
