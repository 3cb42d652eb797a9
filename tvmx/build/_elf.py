"""What an ELF shared library is made for and what it needs, read with pyelftools."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

from tvmx.errors import BuildError

_MACHINES = {
    "EM_X86_64": "x86_64",
    "EM_AARCH64": "aarch64",
    "EM_ARM": "arm",
    "EM_RISCV": "riscv64",
    "EM_386": "i386",
}
_GLIBC = re.compile(r"^GLIBC_(\d+)\.(\d+)")


@dataclass(frozen=True)
class ElfInfo:
    """Facts of one shared library.

    ``machine`` is the architecture as in an LLVM triple (``aarch64``, ``x86_64``);
    ``needed`` the DT_NEEDED names; ``glibc`` the newest GLIBC symbol version it asks for,
    ``(0, 0)`` when it asks for none.
    """

    machine: str
    needed: tuple[str, ...]
    glibc: tuple[int, int]


def read_elf(path: Path) -> ElfInfo:
    """Read the facts of a shared library. Raises BuildError when ``path`` is no ELF file."""
    try:
        with path.open("rb") as stream:
            return _facts(ELFFile(stream))
    except (ELFError, OSError) as err:
        raise BuildError(f"{path} is not a readable ELF library: {err}") from err


def _facts(elf: ELFFile) -> ElfInfo:
    machine = str(elf["e_machine"])
    needed: list[str] = []
    glibc = (0, 0)
    for section in elf.iter_sections():
        if isinstance(section, DynamicSection):
            # pyelftools sets this attribute on tags that have a name.
            tags = section.iter_tags("DT_NEEDED")
            needed += [str(tag.needed) for tag in tags]  # type: ignore[attr-defined]
        elif isinstance(section, GNUVerNeedSection):
            for _, versions in section.iter_versions():
                for version in versions:
                    match = _GLIBC.match(str(version.name))
                    if match:
                        glibc = max(glibc, (int(match.group(1)), int(match.group(2))))
    return ElfInfo(_MACHINES.get(machine, machine), tuple(needed), glibc)
