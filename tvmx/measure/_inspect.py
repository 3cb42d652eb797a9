"""What the doctor reads off a connected device. Runs in the worker."""

from __future__ import annotations

from tvmx.measure._remote import RemoteSession
from tvmx.measure._tasks import Fact, Link


def inspect(session: RemoteSession, link: Link) -> tuple[Fact, ...]:
    """Every fact that can be had, in the order of :data:`FACTS`."""
    raise NotImplementedError
