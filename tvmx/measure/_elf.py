"""Reads the machine a shared library was made for, before it travels to a device."""

from __future__ import annotations

import struct
from pathlib import Path

_MACHINES = {3: "i686", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
_ALIASES = {"arm64": "aarch64", "amd64": "x86_64", "armv7l": "arm", "armv7a": "arm", "i386": "i686"}


def elf_machine(path: Path) -> str | None:
    """Architecture of an ELF file (``aarch64``, ``x86_64`` ...); None if it is no ELF file.

    Raises OSError when the file cannot be read.
    """
    with path.open("rb") as file:
        return machine_of(file.read(20))


def machine_of(head: bytes) -> str | None:
    """The same from the first 20 bytes of the file, or more of them."""
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return None
    order = "<" if head[5] == 1 else ">"
    (code,) = struct.unpack_from(order + "H", head, 18)
    return _MACHINES.get(code, f"machine {code}")


def library_problem(path: Path, arch: str | None) -> str | None:
    """Why a device of this architecture cannot load the library; None if it may well."""
    try:
        machine = elf_machine(path)
    except OSError as err:
        return f"cannot read {path}: {err.strerror}"
    if machine is None:
        return f"{path.name} is not an ELF shared library"
    if arch is not None and machine != _ALIASES.get(arch, arch):
        return f"{path.name} is built for {machine}, the device is {_ALIASES.get(arch, arch)}"
    return None
