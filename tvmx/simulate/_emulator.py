"""Emulator: runs programs as one simulated core would, their clock showing its time."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from tvmx.errors import SimulationError
from tvmx.simulate._compile import plugin_library, sources_digest
from tvmx.simulate._core import SimulatedCore
from tvmx.simulate._costs import CostModel, CostServer
from tvmx.simulate._mca import analyser
from tvmx.simulate._tools import require

# The guest's own calls to the plugin: a syscall of this number, which QEMU answers by ENOSYS.
CALL_NUMBER = 0x74766D78
CALL_REPORT = 0  # (double *fields, long index): see plugin/README.md
CALL_SIMULATED = 1  # the clock shows simulated time from now on; caches and counters are empty
CALL_HOST = 2  # the clock shows the host's time again

# One thread is simulated: libraries that start others would wait for them in vain.
_ONE_THREAD = MappingProxyType(
    {
        "TVM_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
    }
)


class Emulator:
    """qemu's user-mode emulator with the plugin, and the cost server it asks.

    ::

        with Emulator(simulated_core(load_target("rpi4"))) as emulator:
            subprocess.run([*emulator.command(root), "program"], env=...)

    Programs started by ``command`` must end before the ``with`` does: they ask the cost server
    whenever code is new. Where ``simulated`` is False the clock shows the host's time until a
    process asks for the simulated one (``CALL_SIMULATED``): servers need real timeouts.

    ``model`` and ``folder`` (of its costs) replace llvm-mca's for the core and the user's cache.

    Creating it raises :class:`SimulationError` when a tool is missing; the hint installs it.
    """

    def __init__(
        self,
        core: SimulatedCore,
        *,
        simulated: bool = True,
        model: CostModel | None = None,
        folder: Path | None = None,
    ) -> None:
        self.core = core
        self._simulated = simulated
        self._qemu = [require("setarch"), "-R", require(f"qemu-{core.arch}")]
        model = model or analyser(core.triple, core.mca_cpu, core.mca_attrs)
        self.costs = CostServer(model, folder)
        self._plugin = plugin_library()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._check()
        self._stack.enter_context(self.costs)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def command(self, root: Path | None = None) -> list[str]:
        """What stands before a program's own command line; ``root`` is for qemu's ``-L``."""
        arguments = {
            **self.core.plugin_arguments(),
            "simulated": int(self._simulated),
            "socket": self.costs.path,
        }
        plugin = ",".join(
            [_escaped(self._plugin), *(f"{k}={_escaped(v)}" for k, v in arguments.items())]
        )
        where = [] if root is None else ["-L", str(root)]
        return [*self._qemu, "-cpu", self.core.qemu_cpu, "-plugin", plugin, *where]

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables for programs: one thread, and nothing random."""
        return _ONE_THREAD

    @property
    def facts(self) -> Mapping[str, Any]:
        """What its times mean, for manifests: plain JSON."""
        return {
            "core": self.core.qemu_cpu if self.core.exact_isa else self.core.mca_cpu,
            "figure": self.core.figure,
            "figure_source": self.core.source,
            "clock_mhz": self.core.clock_mhz,
            "exact_isa": self.core.exact_isa,
            "model": self.costs.model.name,
            "parameters": self.core.plugin_arguments(),
            "plugin": sources_digest(),
        }

    def _check(self) -> None:
        """Raises when this qemu cannot load plugins or addresses cannot be made reproducible."""
        randomised = subprocess.run(
            [*self._qemu[:2], "true"], capture_output=True, text=True, check=False
        )
        if randomised.returncode:
            raise SimulationError(
                f"address randomisation cannot be switched off: {randomised.stderr.strip()}",
                hint="in a container: docker run --security-opt seccomp=unconfined",
            )
        told = subprocess.run([self._qemu[2], "-help"], capture_output=True, text=True, check=False)
        if "QEMU_PLUGIN" not in told.stdout:
            raise SimulationError(
                f"{self._qemu[2]} is built without plugins (qemu-user-static is)",
                hint="install the other one as root: apt-get install qemu-user",
            )


def _escaped(value: object) -> str:
    """For qemu's option syntax."""
    return str(value).replace(",", ",,")
