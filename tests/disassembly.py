"""The instructions of a linked AArch64 library, by a disassembler independent of LLVM."""

from __future__ import annotations

from pathlib import Path

from capstone import CS_ARCH_ARM64, CS_MODE_ARM, Cs
from elftools.elf.elffile import ELFFile


def instructions(library: Path) -> list[tuple[str, str]]:
    """(mnemonic, operands) of all code in ``library``."""
    decoder = Cs(CS_ARCH_ARM64, CS_MODE_ARM)
    decoder.skipdata = True
    with library.open("rb") as stream:
        elf = ELFFile(stream)
        assert elf["e_machine"] == "EM_AARCH64"
        section = elf.get_section_by_name(".text")
        decoded = decoder.disasm_lite(section.data(), section["sh_addr"])
        return [(mnemonic, operands) for _, _, mnemonic, operands in decoded]
