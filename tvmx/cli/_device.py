"""The device options: together or not at all, and asked for before anything slow starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tvmx.errors import BundleError, UsageError

if TYPE_CHECKING:
    from tvmx.deploy import Bundle
    from tvmx.measure import DeviceAddress, Runner

DEFAULT_TRACKER = "127.0.0.1:9190"


def parse_device(tracker: str | None, key: str | None) -> DeviceAddress | None:
    """The address of ``--tracker`` and ``--key``; None when neither is given."""
    if tracker is None and key is None:
        return None
    if tracker is None:
        raise UsageError(
            f"--key {key} needs the tracker it is registered at",
            hint=f"add --tracker HOST:PORT, such as --tracker {DEFAULT_TRACKER}",
        )
    if key is None:
        raise UsageError(
            f"--tracker {tracker} needs a device key",
            hint=f"add --key K; `tvmx devices --tracker {tracker}` lists the keys",
        )
    from tvmx.measure import DeviceAddress

    return DeviceAddress.parse(tracker, key)


def check_device(address: DeviceAddress | None) -> DeviceAddress | None:
    """Ask the tracker for the key, within seconds. Raises TrackerError or UnknownKeyError."""
    if address is not None:
        from tvmx.measure import require_key

        require_key(address)
    return address


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine alone, by its name: nothing is resolved."""
    import ipaddress

    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def open_runner(address: DeviceAddress | None, *, threads: int, arch: str) -> Iterator[Runner]:
    """A runner on the device, or on a farm of its own on this machine where there is none.

    ``arch`` is what the libraries are built for.
    """
    from tvmx.measure import Cores, LocalFarm, RpcRunner

    if address is not None:
        with RpcRunner(address, cores=Cores(threads=threads), arch=arch) as runner:
            yield runner
        return
    with LocalFarm(threads=threads) as farm, farm.runner(arch=arch) as runner:
        yield runner


def check_runs_here(bundle: Bundle, address: DeviceAddress | None) -> None:
    """Without a device to send it to, a bundle must be for this machine's architecture."""
    from tvmx.build import host_arch

    manifest, machine = bundle.manifest, host_arch()
    if address is None and manifest.arch != machine:
        raise BundleError(
            f"{bundle.path} is built for {manifest.target} ({manifest.arch}), this machine is "
            f"{machine}",
            hint="name a device with --tracker HOST:PORT --key K, or copy the bundle to the "
            "board and type: python run.py",
        )
