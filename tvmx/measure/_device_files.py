"""What files of a Linux device say: pure functions of their contents."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from pathlib import PurePosixPath

LOADERS = {
    "/lib/ld-linux-aarch64.so.1": "aarch64",
    "/lib64/ld-linux-x86-64.so.2": "x86_64",
    "/lib/ld-linux-armhf.so.3": "arm",
    "/lib/ld-musl-aarch64.so.1": "aarch64 musl",
    "/lib/ld-musl-x86_64.so.1": "x86_64 musl",
    "/lib/ld-musl-armhf.so.1": "arm musl",
}
"""Dynamic loaders by path: which of them are there tells the machine programs are made for."""

_AT_HWCAP, _AT_HWCAP2 = 16, 26
# asm/hwcap.h of Linux on AArch64
_HWCAP = {"asimd": 1, "fphp": 9, "asimdhp": 10, "asimddp": 20, "sve": 22}
_HWCAP2 = {"sve2": 1, "i8mm": 13, "bf16": 14}
_VERSION = re.compile(r"^__version__ *= *(?:version *= *)?[\"']([^\"']+)[\"']", re.MULTILINE)


def hwcap_features(auxv: bytes) -> list[str]:
    """CPU features that matter here, by the kernel's names, from an AArch64 /proc/self/auxv."""
    padded = auxv + bytes(-len(auxv) % 16)  # the zeros at its end may have been taken off
    words = dict(struct.iter_unpack("<QQ", padded))
    return [
        name
        for key, bits in ((_AT_HWCAP, _HWCAP), (_AT_HWCAP2, _HWCAP2))
        for name, bit in bits.items()
        if words.get(key, 0) >> bit & 1
    ]


def library_path(maps: str, names: Iterable[str]) -> PurePosixPath | None:
    """Where the first of these libraries that a process has mapped is, from /proc/self/maps."""
    paths = [PurePosixPath(line[line.index("/") :]) for line in maps.splitlines() if "/" in line]
    for name in names:
        for path in paths:
            if path.name == name:
                return path
    return None


def version_files(library: PurePosixPath) -> list[str]:
    """Where a Python package that ships this library may say its version."""
    return [
        str(folder / name)
        for folder in (library.parent.parent, library.parent)
        for name in ("_version.py", "libinfo.py")
    ]


def parse_version(text: str) -> str | None:
    """The version in a package's ``_version.py`` or ``libinfo.py``."""
    found = _VERSION.search(text)
    return found.group(1) if found else None


def meminfo_kib(text: str, name: str) -> int | None:
    """A field of /proc/meminfo, such as ``MemAvailable``."""
    found = re.search(rf"^{name}: *(\d+) kB", text, re.MULTILINE)
    return int(found.group(1)) if found else None


def os_name(text: str) -> str:
    """``PRETTY_NAME`` of /etc/os-release."""
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)', text, re.MULTILINE)
    return found.group(1) if found else ""
