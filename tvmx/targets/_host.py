"""The machine tvmx runs on, as a target. Read from the operating system, TVM is not needed."""

from __future__ import annotations

import functools
import os
import platform
from collections import Counter
from pathlib import Path

from tvmx.errors import UsageError
from tvmx.targets._target import Cluster, Target

# LLVM's micro-architecture levels and the /proc/cpuinfo flags they need. A level holds what
# the (perhaps virtual) machine really offers; a core's name could promise more.
_X86_LEVELS = (
    ("x86-64-v4", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    ("x86-64-v3", {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}),
    ("x86-64-v2", {"cx16", "popcnt", "ssse3", "sse4_1", "sse4_2"}),
)
_X86_EXTRAS = {
    "avx512_vnni": "+avx512vnni",
    "avx512_bf16": "+avx512bf16",
    "avx512_fp16": "+avx512fp16",
    "avx_vnni": "+avxvnni",
}
_ARM_EXTRAS = {"asimd": "+neon", "asimddp": "+dotprod", "asimdhp": "+fullfp16", "i8mm": "+i8mm"}
# Part numbers of Arm's own cores (implementer 0x41), from their MIDR_EL1 registers.
ARM_PARTS = {
    0xD03: "cortex-a53", 0xD04: "cortex-a35", 0xD05: "cortex-a55", 0xD07: "cortex-a57",
    0xD08: "cortex-a72", 0xD09: "cortex-a73", 0xD0A: "cortex-a75", 0xD0B: "cortex-a76",
    0xD0C: "neoverse-n1", 0xD0D: "cortex-a77", 0xD40: "neoverse-v1", 0xD41: "cortex-a78",
    0xD44: "cortex-x1", 0xD46: "cortex-a510", 0xD47: "cortex-a710", 0xD48: "cortex-x2",
    0xD49: "neoverse-n2", 0xD4F: "neoverse-v2", 0xD80: "cortex-a520", 0xD81: "cortex-a720",
}  # fmt: skip
_IN_ORDER = {"cortex-a35", "cortex-a53", "cortex-a55", "cortex-a510", "cortex-a520"}
_ARM_IMPLEMENTER = 0x41
_MIB = 1 << 20


@functools.cache
def detect_host() -> Target:
    """The running machine: instruction set, cores, caches, memory and C library.

    Raises:
        UsageError: neither x86-64 nor AArch64.
    """
    import psutil

    machine = platform.machine().lower()
    processors = parse_cpuinfo(_text(Path("/proc/cpuinfo")))
    memory = max(psutil.virtual_memory().total // _MIB, 1)
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    clock = _clock_mhz(processors)
    if machine in ("x86_64", "amd64"):
        return _x86(processors, min(cores, usable), clock, memory)
    if machine in ("aarch64", "arm64"):
        return _aarch64(processors, min(cores, usable), clock, memory)
    raise UsageError(
        f"the host is a {machine} machine; only x86-64 and AArch64 are known",
        hint="describe it in a TOML file and give --target FILE.toml",
    )


def parse_cpuinfo(text: str) -> list[dict[str, str]]:
    """/proc/cpuinfo as one mapping per processor."""
    processors = []
    for block in text.split("\n\n"):
        fields = {}
        for line in block.splitlines():
            key, colon, value = line.partition(":")
            if colon:
                fields[key.strip()] = value.strip()
        if "processor" in fields:
            processors.append(fields)
    return processors


def x86_features(flags: set[str]) -> tuple[str, tuple[str, ...], int, int]:
    """LLVM cpu and features, vector bits and registers for the flags of /proc/cpuinfo."""
    # Each level contains the ones below it.
    needs = [need for _, need in _X86_LEVELS]
    have = [set[str]().union(*needs[i:]) for i in range(len(needs))]
    level = next((i for i, need in enumerate(have) if need <= flags), None)
    cpu = "x86-64" if level is None else _X86_LEVELS[level][0]
    features = tuple(
        llvm for flag, llvm in _X86_EXTRAS.items()
        if flag in flags and (level == 0 or (level == 1 and flag == "avx_vnni"))
    )  # fmt: skip
    bits, registers = {0: (512, 32), 1: (256, 16)}.get(-1 if level is None else level, (128, 16))
    return cpu, features, bits, registers


def _x86(processors: list[dict[str, str]], cores: int, clock: int, memory: int) -> Target:
    flags = set(processors[0].get("flags", "").split()) if processors else set()
    cpu, features, bits, registers = x86_features(flags)
    l1, l2, private = _caches(0)
    core = Cluster(
        core=cpu, count=cores, clock_mhz=clock, in_order=False,
        l1d_kib=l1, l2_kib=l2, l2_private=private,
    )  # fmt: skip
    model = processors[0].get("model name", "x86-64") if processors else "x86-64"
    return _host(model, "x86_64-linux-gnu", cpu, features, (bits, registers), memory, (core,))


def _aarch64(processors: list[dict[str, str]], cores: int, clock: int, memory: int) -> Target:
    flags = set(processors[0].get("Features", "").split()) if processors else set()
    features = tuple(llvm for flag, llvm in _ARM_EXTRAS.items() if flag in flags) or ("+neon",)
    names = [_arm_core(p) for p in processors] or ["generic"] * cores
    clusters = []
    for name, count in Counter(names).items():
        first = names.index(name)
        l1, l2, private = _caches(first)
        clusters.append(
            Cluster(
                core=name, count=count, clock_mhz=_max_mhz(first) or clock,
                in_order=name in _IN_ORDER, l1d_kib=l1, l2_kib=l2, l2_private=private,
            )
        )  # fmt: skip
    clusters.sort(key=lambda c: (c.in_order, -c.clock_mhz))
    # Of a big.LITTLE pair the in-order core decides: its code runs well on both.
    cpu = clusters[-1].core
    title = "AArch64 with " + ", ".join(f"{c.count} x {c.core}" for c in clusters)
    return _host(title, "aarch64-linux-gnu", cpu, features, (128, 32), memory, tuple(clusters))


def _arm_core(processor: dict[str, str]) -> str:
    try:
        maker = int(processor.get("CPU implementer", "0"), 0)
        part = int(processor.get("CPU part", "0"), 0)
    except ValueError:
        return "generic"
    return ARM_PARTS.get(part, "generic") if maker == _ARM_IMPLEMENTER else "generic"


def _host(
    title: str, triple: str, cpu: str, features: tuple[str, ...], vector: tuple[int, int],
    memory: int, clusters: tuple[Cluster, ...],
) -> Target:  # fmt: skip
    library, version = platform.libc_ver()
    return Target(
        name="host",
        description=f"this machine: {title}",
        triple=triple,
        cpu=cpu,
        features=features,
        vector_bits=vector[0],
        vector_registers=vector[1],
        glibc=version if library == "glibc" and version else "2.28",
        memory_mib=memory,
        clusters=clusters,
        sources=("/proc/cpuinfo", "/sys/devices/system/cpu", "psutil"),
    )


def _caches(processor: int) -> tuple[int, int, bool]:
    """L1 data and L2 size in KiB, and whether one physical core has the L2 to itself.

    Where the kernel does not say (containers, some boards) a small core's caches are assumed.
    """
    l1, l2, private = 32, 256, True
    cpu = Path(f"/sys/devices/system/cpu/cpu{processor}")
    siblings = _text(cpu / "topology" / "thread_siblings_list")
    for index in sorted((cpu / "cache").glob("index*")):
        level, kind = _text(index / "level"), _text(index / "type")
        size = _kib(_text(index / "size"))
        if not size:
            continue
        if level == "1" and kind in ("Data", "Unified"):
            l1 = size
        elif level == "2":
            l2 = size
            private = _text(index / "shared_cpu_list") in (siblings, str(processor))
    return l1, l2, private


def _kib(text: str) -> int:
    scale = {"K": 1, "M": 1024}.get(text[-1:], 0)
    return int(text[:-1]) * scale if text[:-1].isdigit() else 0


def _max_mhz(processor: int) -> int:
    text = _text(Path(f"/sys/devices/system/cpu/cpu{processor}/cpufreq/cpuinfo_max_freq"))
    return int(text) // 1000 if text.isdigit() else 0


def _clock_mhz(processors: list[dict[str, str]]) -> int:
    import psutil

    frequency = psutil.cpu_freq()
    if frequency is not None and (frequency.max or frequency.current):
        return max(int(frequency.max or frequency.current), 1)
    told = processors[0].get("cpu MHz", "") if processors else ""
    return max(int(float(told)), 1) if told.replace(".", "", 1).isdigit() else 2000


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
