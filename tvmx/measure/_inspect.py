"""What the doctor reads off a connected device. Runs in the worker.

Facts, by name; each is empty where it cannot be read:

=============  =====================================================================
name           value
=============  =====================================================================
machine        what programs there are made for: ``aarch64``, ``x86_64``, ``arm``; blanks between
libc           ``musl`` where there is no glibc
os             name and version of the system
folder         where the server puts what is uploaded
governor       of the clock, each kind once
clocks         highest clock of each core in MHz, blanks between
temperature    of the warmest zone, degrees Celsius
*with a probe*
sent           ``all`` of the probe, or bytes that arrived ``of`` those sent
loaded         ``yes``
kernel         release
processor      model name (x86)
features       CPU features by the kernel's names, blanks between
tvm            version of apache-tvm; note: its runtime's file
tvm-ffi        version of apache-tvm-ffi
glibc          version
memory         total and available, KiB
free           bytes free in ``folder``
upload         rate, MB/s
right          ``yes``, or which kernels of the probe compute something else than NumPy
float          GFLOP/s of one core; note: spread of the repeats
int8           GOP/s of one core; note: the same
bandwidth      GB/s of one core; note: the same
=============  =====================================================================
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tvmx.measure._cores import parse_cpu_list
from tvmx.measure._device_files import (
    LOADERS,
    hwcap_features,
    library_path,
    meminfo_kib,
    os_name,
    parse_version,
    version_files,
)
from tvmx.measure._elf import elf_machine, machine_of
from tvmx.measure._probe import ProbeLibrary
from tvmx.measure._probing import Probe
from tvmx.measure._tasks import Fact, Link
from tvmx.measure._thermal import is_lost, read_text

if TYPE_CHECKING:
    from tvmx.measure._remote import RemoteSession

_CPU = "/sys/devices/system/cpu"
_MOST_CPUS = 64
_MAPS_BYTES = 1 << 19
_RATE_BYTES = 2 << 20
_REPEATS = 15
_PROGRAM_SECONDS = 20.0  # a Python interpreter is up to 30 MB
_NAME = "probe.so"
_RUNTIMES = ("libtvm_runtime.so", "libtvm_compiler.so", "libtvm.so")
_FFI = ("libtvm_ffi.so",)


def inspect(session: RemoteSession, link: Link) -> None:
    """Tell the parent every fact that can be had, from outside or, with a probe, from inside."""
    if link.probe is None:
        _outside(session)
    else:
        _inside(session, link.probe)


def _tell(session: RemoteSession, name: str, value: str, note: str = "") -> None:
    session.tell(Fact(name, value, note))


def _outside(session: RemoteSession) -> None:
    with session.phase("connect"):
        loaders = [what.split() for path, what in LOADERS.items() if _exists(session, path)]
        musl = bool(loaders) and all("musl" in words for words in loaders)
        _tell(session, "libc", "musl" if musl else "")
    _tell(session, "machine", _machine(session, {words[0] for words in loaders}))
    with session.phase("connect"):
        _tell(session, "os", os_name(_text(session, "/etc/os-release")))
        path = session.remote.get_function("tvm.rpc.server.workpath")("")
        _tell(session, "folder", str(path))
    with session.phase("connect"):
        cpus = parse_cpu_list(_text(session, f"{_CPU}/online"))[:_MOST_CPUS]
        _tell(session, "governor", " ".join(_per_cpu(session, cpus, "scaling_governor")))
        khz = _per_cpu(session, cpus, "cpuinfo_max_freq", once=False)
        clocks = [int(value) // 1000 for value in khz if value.isdecimal()]
        _tell(session, "clocks", " ".join(map(str, clocks)))
        celsius = session.thermometer.read(fresh=True)
        _tell(session, "temperature", "" if celsius is None else f"{celsius:.1f}")


def _machine(session: RemoteSession, known: set[str]) -> str:
    """The only machine there are loaders for; of several, the one the server itself is for."""
    if len(known) < 2:
        return "".join(known)
    with session.phase("connect", _PROGRAM_SECONDS):
        try:
            program = bytes(session.remote.download("/proc/self/exe"))
        except Exception as err:
            if is_lost(err):
                raise
            program = b""
    return machine_of(program) or " ".join(sorted(known))


def _inside(session: RemoteSession, library: ProbeLibrary) -> None:
    if not _send(session, library):
        return
    probe = Probe(session, library, _NAME)
    _tell(session, "loaded", "yes")
    with session.phase("run"):
        _read_system(session, probe, arm=elf_machine(library.path) == "aarch64")
        _read_versions(session, probe)
    with session.phase("run"):
        wrong = [
            f"{symbol} ({bad} of {size})"
            for symbol, (bad, size) in probe.wrong_values().items()
            if bad
        ]
        _tell(session, "right", ", ".join(wrong) or "yes")
    with session.phase("run"):
        probe.warm_up()
    for name, kernel in (
        ("float", library.fma),
        ("int8", library.dot),
        ("bandwidth", library.stream),
    ):
        with session.phase("run"):
            rate = probe.rate(kernel, _REPEATS)
            _tell(session, name, f"{rate.best:.4g}", f"{rate.spread:.4f}")


def _send(session: RemoteSession, library: ProbeLibrary) -> bool:
    """Upload the probe as to a board, whatever files are shared; whether all of it is there.

    TVM's server says nothing when its disk is full.
    """
    blob = Path(library.path).read_bytes()
    with session.phase("upload"):
        session.remote.upload(bytearray(blob), _NAME)
        there = bytes(session.remote.download(_NAME))
    whole = there == blob
    _tell(session, "sent", "all" if whole else f"{len(there)} of {len(blob)}")
    return whole


def _read_system(session: RemoteSession, probe: Probe, *, arm: bool) -> None:
    def text(path: str) -> str:
        return probe.read(path).decode(errors="replace")

    _tell(session, "kernel", text("/proc/sys/kernel/osrelease").strip())
    fields = dict(_fields(text("/proc/cpuinfo")))
    if arm:  # an emulated board shows the /proc/cpuinfo of the machine it runs on
        processor, features = "", hwcap_features(probe.read("/proc/self/auxv"))
    else:
        processor, features = fields.get("model name", ""), fields.get("flags", "").split()
    _tell(session, "processor", processor)
    _tell(session, "features", " ".join(features))
    name, _, version = probe.libc_version().partition(" ")
    _tell(session, "glibc", version if name == "glibc" else "")
    memory = text("/proc/meminfo")
    sizes = [meminfo_kib(memory, name) for name in ("MemTotal", "MemAvailable")]
    _tell(session, "memory", " ".join(str(kib) for kib in sizes if kib is not None))
    folder = str(session.remote.get_function("tvm.rpc.server.workpath")(""))
    free = probe.free_bytes(folder)
    _tell(session, "free", str(free))
    if free > 4 * _RATE_BYTES:
        _tell(session, "upload", f"{_upload_rate(session):.3g}")


def _upload_rate(session: RemoteSession) -> float:
    """MB/s, of bytes that nothing on the way can make fewer."""
    data = bytearray(os.urandom(_RATE_BYTES))
    start = time.monotonic()
    session.remote.upload(data, "rate.bin")
    seconds = time.monotonic() - start
    session.remote.remove("rate.bin")
    return _RATE_BYTES / seconds / 1e6


def _read_versions(session: RemoteSession, probe: Probe) -> None:
    maps = probe.read("/proc/self/maps", _MAPS_BYTES).decode(errors="replace")
    for fact, names in (("tvm", _RUNTIMES), ("tvm-ffi", _FFI)):
        path = library_path(maps, names)
        files = version_files(path) if path else []
        versions = (parse_version(_text(session, file)) for file in files)
        _tell(session, fact, next(filter(None, versions), ""), str(path or ""))


def _fields(cpuinfo: str) -> list[tuple[str, str]]:
    """``name: value`` of the first processor."""
    lines = cpuinfo.split("\n\n")[0].splitlines()
    return [(n.strip(), v.strip()) for n, colon, v in (x.partition(":") for x in lines) if colon]


def _per_cpu(session: RemoteSession, cpus: list[int], file: str, *, once: bool = True) -> list[str]:
    """A file of each core's clock control; none where the first core has none."""
    values: list[str] = []
    for cpu in cpus:
        value = _text(session, f"{_CPU}/cpu{cpu}/cpufreq/{file}")
        if not value:
            break
        values.append(value)
    return list(dict.fromkeys(values)) if once else values


def _text(session: RemoteSession, path: str) -> str:
    return read_text(session.remote, path)


def _exists(session: RemoteSession, path: str) -> bool:
    try:
        return len(session.remote.download(path)) > 0
    except Exception as err:
        if is_lost(err):
            raise
        return False
