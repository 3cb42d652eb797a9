"""The device options: together or not at all, and asked for before anything slow starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvmx.cli._parse import check_count, check_number, parse_duration
from tvmx.errors import BundleError, UsageError

if TYPE_CHECKING:
    from tvmx.deploy import Bundle
    from tvmx.measure import DeviceAddress, Manners

DEFAULT_TRACKER = "127.0.0.1:9190"
DEFAULT_WAIT = "10m"


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


def parse_manners(
    cores: str | None = None,
    threads: int | None = None,
    deadline: Sequence[str] | None = None,
    wait: str = DEFAULT_WAIT,
    max_temperature: float | None = None,
    cold: bool = False,
) -> Manners:
    """How devices are to be used, from the options of that name. Raises UsageError."""
    from tvmx.measure import Cores, Deadlines, Manners

    if threads is not None:
        check_count(threads, "--threads", 1024, "devices have fewer cores")
    if max_temperature is not None:
        check_number(max_temperature, "--max-temperature", 20, 150, "degrees Celsius")
    chosen = {} if max_temperature is None else {"max_temperature": max_temperature}
    return Manners(
        cores=Cores.parse(cores, threads),
        deadlines=Deadlines.parse(deadline or ()),
        patience_s=parse_duration(wait, "--wait"),
        cold=cold,
        **chosen,
    )


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
