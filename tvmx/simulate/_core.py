"""SimulatedCore: all that the cycles of a simulated device depend on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from tvmx.errors import SimulationError
from tvmx.targets import Target

Figure = Literal["core", "core+memory"]


@dataclass(frozen=True)
class SimulatedCore:
    """One core: what qemu emulates, whose llvm-mca tables are used, and its memory.

    ``exact_isa`` is False where QEMU 7.2 has no such core: everything QEMU knows then runs, also
    what the core would refuse. ``figure`` is what the clock shows. Latencies are cycles of one
    line, multiplied by ``memory_factor`` (part of a miss overlaps with other work).
    """

    name: str
    arch: str
    qemu_cpu: str
    exact_isa: bool
    mca_cpu: str
    mca_attrs: tuple[str, ...]
    clock_mhz: int
    l1d_kib: int
    l1d_ways: int
    l2_kib: int
    l2_ways: int
    line_bytes: int = 64
    l2_hit_cycles: float = 6.0
    prefetched_cycles: float = 30.0
    l2_miss_cycles: float = 170.0
    memory_factor: float = 0.7
    figure: Figure = "core+memory"
    source: str = ""

    def __post_init__(self) -> None:
        for level, kib, ways in (
            ("L1", self.l1d_kib, self.l1d_ways), ("L2", self.l2_kib, self.l2_ways),
        ):  # fmt: skip
            sets = kib * 1024 // (self.line_bytes * ways)
            if sets < 1 or sets & (sets - 1) or sets * ways * self.line_bytes != kib * 1024:
                raise SimulationError(
                    f"the {level} cache of {self.name} cannot be simulated: {kib} KiB in {ways}"
                    f" ways of {self.line_bytes}-byte lines is no power of two of sets"
                )
        if self.line_bytes & (self.line_bytes - 1):
            raise SimulationError(f"{self.name}: lines of {self.line_bytes} bytes")

    def plugin_arguments(self) -> dict[str, int]:
        """What the plugin is told; costs in thousandths of a cycle."""
        scale = 1000 * self.memory_factor
        return {
            "clock_mhz": self.clock_mhz,
            "line_bytes": self.line_bytes,
            "l1_kib": self.l1d_kib,
            "l1_ways": self.l1d_ways,
            "l2_kib": self.l2_kib,
            "l2_ways": self.l2_ways,
            "l2_hit": round(self.l2_hit_cycles * scale),
            "prefetched": round(self.prefetched_cycles * scale),
            "l2_miss": round(self.l2_miss_cycles * scale),
            "default_cpi": 1000,
            "memory_in_clock": int(self.figure == "core+memory"),
        }

    @property
    def triple(self) -> str:
        """LLVM's triple of the guest."""
        return f"{self.arch}-linux-gnu"


@dataclass(frozen=True)
class _Kind:
    """A core as QEMU and LLVM know it; ways of its caches from its Technical Reference Manual."""

    qemu: str
    mca: str
    l1d_ways: int
    l2_ways: int
    memory_factor: float


# QEMU 7.2 has no Cortex-A55, A73, A75, A77, A78, A510, A710, A720: the emulated core is then "max".
# LLVM times A57, A72 and A76 by one table; its Neoverse-N1 is the A76's own pipeline.
_KINDS = {
    "cortex-a35": _Kind("cortex-a35", "cortex-a35", 4, 8, 0.3),
    "cortex-a53": _Kind("cortex-a53", "cortex-a53", 4, 16, 0.3),
    "cortex-a55": _Kind("max", "cortex-a55", 4, 4, 0.3),
    "cortex-a57": _Kind("cortex-a57", "cortex-a57", 2, 16, 0.7),
    "cortex-a72": _Kind("cortex-a72", "cortex-a72", 2, 16, 0.7),
    "cortex-a73": _Kind("max", "cortex-a73", 8, 16, 0.7),
    "cortex-a75": _Kind("max", "cortex-a75", 16, 8, 0.7),
    "cortex-a76": _Kind("cortex-a76", "neoverse-n1", 4, 8, 0.7),
    "cortex-a77": _Kind("max", "neoverse-n1", 4, 8, 0.7),
    "cortex-a78": _Kind("max", "cortex-a78", 4, 8, 0.7),
    "neoverse-n1": _Kind("neoverse-n1", "neoverse-n1", 4, 8, 0.7),
    "cortex-a510": _Kind("max", "cortex-a510", 4, 8, 0.3),
    "cortex-a710": _Kind("max", "cortex-a710", 4, 8, 0.7),
    "cortex-a720": _Kind("max", "cortex-a720", 4, 8, 0.7),
}
_GENERIC = "cortex-a53"  # the least a target of unnamed Armv8-A cores may have
_ATTRS = ("+all",)  # what a core lacks never runs: QEMU refuses it


def simulated_core(target: Target) -> SimulatedCore:
    """The fastest core of a target, with the settings of its ``[simulation]`` table.

    Raises:
        SimulationError: not an AArch64 target, or a core that neither QEMU nor LLVM is known for.
    """
    cluster = target.big
    kind = _KINDS.get(_GENERIC if cluster.core == "generic" else cluster.core)
    if target.arch != "aarch64" or kind is None:
        raise SimulationError(
            f"no simulated board for target {target.name}: {target.arch}, {cluster.core};"
            f" there are AArch64 targets of {', '.join(_KINDS)}",
            hint="`tvmx targets` lists targets",
        )
    core = SimulatedCore(
        name=target.name,
        arch=target.arch,
        qemu_cpu=kind.qemu,
        exact_isa=kind.qemu != "max",
        mca_cpu=kind.mca,
        mca_attrs=_ATTRS,
        clock_mhz=cluster.clock_mhz,
        l1d_kib=cluster.l1d_kib,
        l1d_ways=kind.l1d_ways,
        l2_kib=cluster.l2_kib,
        l2_ways=kind.l2_ways,
        memory_factor=kind.memory_factor,
        figure="core" if cluster.in_order else "core+memory",
        source="not said by the target: in-order cores show the core alone",
    )
    if target.simulation is None:
        return core
    told = target.simulation.model_dump(exclude_none=True)
    return replace(core, **told)
