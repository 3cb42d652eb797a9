"""The device options: together or not at all, and asked for before anything slow starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmx.errors import UsageError

if TYPE_CHECKING:
    from tvmx.measure import DeviceAddress

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
