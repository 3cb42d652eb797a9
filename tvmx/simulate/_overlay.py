"""What a guest process sees of the machine it believes to be on.

qemu's ``-L FOLDER`` looks up every absolute path in FOLDER first. The folder of a board links to
the guest's libraries and holds the few files of /proc and /sys that programs read to tell
which core they are on. ONNX Runtime crashes on those of an x86 host.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import filelock

from tvmx.simulate._components import complete
from tvmx.simulate._guest import Guest
from tvmx.simulate._tools import cache_folder
from tvmx.targets import Target
from tvmx.targets._host import ARM_PARTS

_BASE = "fp asimd evtstrm crc32 cpuid"
_EXTRAS = {
    "+dotprod": "asimddp",
    "+fullfp16": "fphp asimdhp",
    "+i8mm": "i8mm",
}
_V82 = "atomics asimdrdm dcpop"
_UNKNOWN_PART = 0xD0F  # Arm's number for models of an architecture


def board_root(guest: Guest, target: Target) -> Path:
    """The folder for ``-L``, made if need be; the same one for the same board and guest."""
    files = board_files(target)
    text = "\0".join([str(guest.root), *(f"{k}\0{v}" for k, v in sorted(files.items()))])
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    folder = cache_folder() / "boards" / f"{target.name}-{digest}"

    def build(staging: Path) -> None:
        for name in ("lib", "usr"):
            (staging / name).symlink_to(guest.root / name)
        for name, content in files.items():
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")

    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.parent / "lock"):
        complete(folder, {"digest": digest}, build)
    return folder


def board_files(target: Target) -> Mapping[str, str]:
    """The files by their path. There is one core, because one thread is simulated."""
    core = target.big
    parts = {name: part for part, name in ARM_PARTS.items()}
    part = parts.get(core.core, _UNKNOWN_PART)
    flags = [_BASE, *(f for name, f in _EXTRAS.items() if name in target.features)]
    if len(flags) > 1:  # both came with Armv8.2, where these are no option
        flags.insert(1, _V82)
    cpuinfo = (
        "processor\t: 0\n"
        "BogoMIPS\t: 108.00\n"
        f"Features\t: {' '.join(flags)}\n"
        "CPU implementer\t: 0x41\n"
        "CPU architecture: 8\n"
        "CPU variant\t: 0x0\n"
        f"CPU part\t: {part:#05x}\n"
        "CPU revision\t: 3\n\n"
    )
    cpus = "sys/devices/system/cpu"
    khz = f"{core.clock_mhz * 1000}\n"
    return {
        "proc/cpuinfo": cpuinfo,
        **{f"{cpus}/{name}": "0\n" for name in ("online", "possible", "present", "kernel_max")},
        f"{cpus}/cpu0/cpufreq/cpuinfo_max_freq": khz,
        f"{cpus}/cpu0/cpufreq/scaling_cur_freq": khz,
        f"{cpus}/cpu0/cpufreq/scaling_governor": "performance\n",
        f"{cpus}/cpu0/regs/identification/midr_el1": f"{0x410F0003 | part << 4:#018x}\n",
        "sys/firmware/devicetree/base/model": f"{target.description} (simulated)\0",
        # The host's temperature is not the board's, which has none: no zone can be read.
        "sys/class/thermal/thermal_zone0/temp": "",
    }
