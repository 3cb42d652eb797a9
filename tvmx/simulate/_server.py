"""Starting one simulated server: the guest's script inside the emulator, as a guarded process."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tvmx.measure import DeviceAddress
from tvmx.measure import _server_functions as functions
from tvmx.measure._guard import GuardedProcess
from tvmx.simulate import guest_server
from tvmx.simulate._guest import Guest
from tvmx.simulate._tools import QEMU, require


class Emulation(Protocol):
    """How a program of the guest is run, and what its clock shows."""

    def command(self, root: Path) -> list[str]:
        """What stands before the program's own command line; ``root`` is for qemu's ``-L``.

        ``{scratch}`` in it becomes a folder of this process alone, which goes when it ends.
        """

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables besides the guest's own; ``{scratch}`` as in the command."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """``core``, ``figure``, ``clock_mhz`` and ``model``: what times on it mean."""

    def __enter__(self) -> object:
        """Start what the guest's processes need while they run."""

    def __exit__(self, *exc: object) -> None:
        """End it."""


@dataclass(frozen=True)
class PlainEmulation:
    """qemu without a cycle model: right results, and times that say nothing about a board."""

    core: str
    qemu_cpu: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self, root: Path) -> list[str]:
        """See :class:`Emulation`."""
        return [require(QEMU), "-cpu", self.qemu_cpu, "-L", str(root)]

    @property
    def facts(self) -> Mapping[str, Any]:
        """See :class:`Emulation`."""
        return {"core": self.core, "figure": None, "clock_mhz": None, "model": None}

    def __enter__(self) -> PlainEmulation:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing is left."""


def start_server(
    guest: Guest,
    root: Path,
    emulation: Emulation,
    address: DeviceAddress,
    facts: Mapping[str, Any],
    *,
    host: str = "127.0.0.1",
    share_files: bool = True,
) -> GuardedProcess:
    """Start a server that registers at ``address``; it is not waited for.

    ``facts`` is what ``tvmx.simulated`` answers there.
    """
    # Below 32768, where Linux starts to hand out ephemeral ports.
    first = random.SystemRandom().randrange(20000, 31000)
    script = [str(guest.python), str(Path(guest_server.__file__).resolve())]
    script += ["--host", host, "--port", str(first), "--port-end", str(first + 1000)]
    script += ["--tracker-host", address.host, "--tracker-port", str(address.port)]
    script += ["--key", address.key, "--facts", json.dumps(facts)]
    script += ["--identity", identity(facts)]
    if share_files:
        script += ["--functions", str(Path(functions.__file__).resolve())]
    command = [*emulation.command(root), *script]
    environment = {**guest.environment(), **emulation.environment}
    args = ["--command", json.dumps(command), "--environment", json.dumps(environment)]
    return GuardedProcess("tvmx.simulate._launch", args)


def identity(facts: Mapping[str, Any]) -> str:
    """In one line what answers there, with the host it runs on."""
    clock = f" at {facts['clock_mhz']} MHz" if facts.get("clock_mhz") else ""
    return f"simulated {facts['board']}: {facts['core']}{clock}, on {functions.identity()}"
