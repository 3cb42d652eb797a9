"""Machine code: a linked AArch64 library's, and loops in LLVM's assembly."""

from __future__ import annotations

import re
from pathlib import Path

from capstone import CS_ARCH_ARM64, CS_MODE_ARM, Cs
from elftools.elf.elffile import ELFFile


def instructions(library: Path) -> list[tuple[str, str]]:
    """(mnemonic, operands) of all code in ``library``, by a disassembler independent of LLVM."""
    decoder = Cs(CS_ARCH_ARM64, CS_MODE_ARM)
    decoder.skipdata = True
    with library.open("rb") as stream:
        elf = ELFFile(stream)
        assert elf["e_machine"] == "EM_AARCH64"
        section = elf.get_section_by_name(".text")
        decoded = decoder.disasm_lite(section.data(), section["sh_addr"])
        return [(mnemonic, operands) for _, _, mnemonic, operands in decoded]


def inner_loop(text: str, instruction: str) -> list[str]:
    """The lines of the shortest loop (label to its own branch) that holds the instruction."""
    loops = []
    lines = text.splitlines()
    labels = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"(\.L\w+):", line))}
    for end, line in enumerate(lines):
        branch = re.match(r"\s+(?:b\.\w+|cbn?z\s+\w+,|j\w+)\s+(\.L\w+)", line)
        start = labels.get(branch[1], end) if branch else end
        body = lines[start:end]
        if start < end and any(re.search(rf"\s{instruction}\s", b) for b in body):
            loops.append(body)
    assert loops, f"no loop holds {instruction}"
    return min(loops, key=len)
