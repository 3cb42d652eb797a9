"""Libraries for arm64 boards: right, crashing, endless, with dot products, and a network."""

from __future__ import annotations

from pathlib import Path

from tests.measure_libraries import BODIES, C_KERNEL, Libraries, build_tvm
from tvmx.build import fcompile, link
from tvmx.targets import Target

# sdot on what the first 64 bytes of the arguments hold; the result does not matter.
SDOT = 'asm volatile(".arch armv8.2-a+dotprod\\nsdot v0.4s, v1.16b, v2.16b" ::: "v0");'
KERNELS = {"crash": BODIES["crash"], "loop": BODIES["loop"], "sdot": SDOT, "idle": BODIES["idle"]}


def build(folder: Path, target: Target) -> Libraries:
    """Compile everything for ``target``."""
    for name, body in KERNELS.items():
        source = folder / f"{name}.c"
        source.write_text(C_KERNEL.format(body=body))
        link([source], folder / f"{name}.so", target)
    return build_tvm(folder, target.tvm_config(), fcompile(target))
