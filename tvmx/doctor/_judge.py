"""From a device's facts to lines: pure functions, one a line.

Facts are texts by name, as :mod:`tvmx.measure._inspect` lists them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from tvmx.doctor._diagnosis import Finding, broken, hint, ok
from tvmx.doctor._features import arm_needs, best_targets, missing_features
from tvmx.doctor._peaks import Peak, float_peak, int8_peak
from tvmx.measure import BOARD_INSTALL, FFI_VERSION, TVM_VERSION, Fact
from tvmx.targets import Target

Facts = Mapping[str, Fact]

_HOT_C = 75.0
_LITTLE_MEMORY_MIB = 256
_FULL_MIB, _TIGHT_MIB = 64, 512
_UNSTEADY, _UNSTEADY_MEMORY = 0.10, 0.25
_WEAK = 0.85
_WEAK_X86 = 0.4  # half of them have one unit only, and the nominal clock says little
_GOVERNORS = "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
_CLOCK_NOW = "cat /sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq"


def judge_outside(facts: Facts, target: Target | None) -> list[Finding]:
    """What shows before anything was uploaded; ``target`` None where none could be chosen."""
    return [judge_userland(facts, target), _governor(facts), _temperature(facts)]


def judge_inside(facts: Facts, target: Target) -> list[Finding]:
    """What the probe showed, as far as it came."""
    rules = {
        "processor": _cores, "features": _features, "tvm": _tvm, "glibc": _glibc,
        "memory": _memory, "free": _disk,
    }  # fmt: skip
    findings = [rule(facts, target) for name, rule in rules.items() if name in facts]
    if "right" in facts:
        findings.append(_probe(facts))
    rates = {"float": _float, "int8": _int8, "bandwidth": _bandwidth}
    return findings + [rule(facts, target) for name, rule in rates.items() if name in facts]


def judge_userland(facts: Facts, target: Target | None) -> Finding:
    """Whether programs there are of the target's kind."""
    machines = _text(facts, "machine").split()
    system = ", ".join(filter(None, (_text(facts, "os"), _text(facts, "kernel"))))
    if machines == ["arm"]:
        return thirty_two_bit(system)
    if target is None or (machines and target.arch not in machines):
        return _other_machine(machines, target)
    if _text(facts, "libc") == "musl":
        return broken(
            "userland",
            f"{system or 'a system'} with musl instead of glibc: neither apache-tvm's wheels nor"
            " libraries linked here run there",
            "install a system with glibc there, such as Debian or Raspberry Pi OS (64-bit)",
        )
    return ok("userland", f"64-bit {target.arch}" + (f", {system}" if system else ""))


def thirty_two_bit(system: str = "") -> Finding:
    """A 32-bit system, most of the time on a 64-bit core and kernel."""
    return broken(
        "userland",
        f"32-bit{f' ({system})' if system else ''}: apache-tvm and tvmx need a 64-bit userland,"
        " whatever the kernel is",
        "install a 64-bit system there, such as Raspberry Pi OS (64-bit)",
    )


def _other_machine(machines: list[str], target: Target | None) -> Finding:
    there = " and ".join(machines) or "of an unknown kind"
    if target is None:
        return broken(
            "userland",
            f"programs there are {there}: no target fits",
            "the same with: --target NAME   (`tvmx targets` lists them)",
        )
    fit = "aarch64" if "aarch64" in machines else "host"
    return broken(
        "userland",
        f"{there} there, target {target.name!r} is {target.arch}",
        f"the same with: --target {fit}",
    )


def _governor(facts: Facts) -> Finding:
    kinds = _text(facts, "governor").split()
    if not kinds:
        return ok("governor", "the device shows none")
    if kinds == ["performance"]:
        return ok("governor", "performance")
    return hint(
        "governor",
        f"{', '.join(kinds)}: the clock follows the load, and timings follow the clock",
        f"on the device: echo performance | sudo tee {_GOVERNORS}",
    )


def _temperature(facts: Facts) -> Finding:
    text = _text(facts, "temperature")
    if not text:
        return ok("temperature", "the device shows none")
    if float(text) < _HOT_C:
        return ok("temperature", f"{float(text):.0f} °C")
    return hint(
        "temperature",
        f"{float(text):.0f} °C: most boards slow down from 80 °C on",
        "give it a fan, or measure with: --max-temperature 70",
    )


def _cores(facts: Facts, target: Target) -> Finding:
    clocks = Counter(_text(facts, "clocks").split())
    parts = [f"{count} at {mhz} MHz" for mhz, count in clocks.items()]
    text = ", ".join(filter(None, [_text(facts, "processor"), *parts]))
    told = str(target.big.clock_mhz)
    if clocks and told not in clocks:
        text += f"; target {target.name!r} says {told} MHz"
    return ok("cores", text or "the device does not say")


def _tvm(facts: Facts, target: Target) -> Finding:
    tvm, ffi = _text(facts, "tvm"), _text(facts, "tvm-ffi")
    install = f"on the device: {BOARD_INSTALL}"
    restart = "then start its server anew"
    if not tvm:
        where = facts["tvm"].note
        return hint(
            "TVM",
            f"its version cannot be read{f' beside {where}' if where else ''}; tvmx is made for"
            f" {TVM_VERSION}",
            install, restart,
        )  # fmt: skip
    if tvm != TVM_VERSION:
        return broken("TVM", f"{tvm} there, tvmx is made for {TVM_VERSION}", install, restart)
    if ffi and ffi != FFI_VERSION:
        return hint(
            "TVM", f"{tvm}, but with apache-tvm-ffi {ffi} instead of {FFI_VERSION}", install,
            restart,
        )  # fmt: skip
    return ok("TVM", f"{tvm}, apache-tvm-ffi {ffi or 'unknown'}")


def _glibc(facts: Facts, target: Target) -> Finding:
    version = _text(facts, "glibc")
    if not version:
        return hint("glibc", f"the C library there is another; target {target.name!r} is for glibc")
    if _numbers(version) >= _numbers(target.glibc):
        return ok("glibc", f"{version}, target {target.name!r} needs {target.glibc}")
    return broken(
        "glibc",
        f"{version} there, target {target.name!r} links for {target.glibc}",
        f'copy the target\'s file, set glibc = "{version}" there, and give --target FILE.toml',
    )


def _features(facts: Facts, target: Target) -> Finding:
    have = _text(facts, "features").split()
    if not have:
        return hint("CPU features", "cannot be read; a candidate may use one that is not there")
    missing = missing_features(target, have)
    if missing:
        names = [t.name for t in best_targets(target.arch, have)]
        fit = (
            f"the same with a target that fits: --target {' or --target '.join(names)}"
            if names
            else "write a target file for it, as `tvmx targets show host` shows one, and give"
            " --target FILE.toml"
        )
        return broken(
            "CPU features",
            f"target {target.name!r} uses {', '.join(missing)}, which the device has not",
            fit,
        )
    if target.arch != "aarch64":
        return ok("CPU features", ", ".join([target.cpu, *target.features]))
    used = arm_needs(target)
    better = [t for t in best_targets("aarch64", have) if len(arm_needs(t)) > len(used)]
    if better:
        unused = sorted({n for t in better for n in arm_needs(t)} - set(used))
        return hint(
            "CPU features",
            f"{', '.join(unused)} would be there, target {target.name!r} does not use them",
            f"the same with: --target {' or --target '.join(t.name for t in better)}",
        )
    return ok("CPU features", " ".join(n for n in have if n in _KNOWN))


_KNOWN = ("asimd", "fphp", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2")


def _memory(facts: Facts, target: Target) -> Finding:
    sizes = [int(kib) >> 10 for kib in _text(facts, "memory").split()]
    if not sizes:
        return ok("memory", "the device does not say")
    text = f"{sizes[-1]} of {sizes[0]} MiB available"
    if sizes[-1] >= _LITTLE_MEMORY_MIB:
        return ok("memory", text)
    return hint(
        "memory",
        f"{text}: large networks may be killed",
        "on the device, what takes it: ps aux --sort=-rss | head",
    )


def _disk(facts: Facts, target: Target) -> Finding:
    free = int(_text(facts, "free") or 0) >> 20
    folder, rate = _text(facts, "folder"), _text(facts, "upload")
    text = f"{free} MiB free in {folder}" + (f", uploads at {rate} MB/s" if rate else "")
    if free >= _TIGHT_MIB:
        return ok("disk", text)
    return (hint if free >= _FULL_MIB else broken)("disk", text, *more_room(folder))


def more_room(folder: str) -> tuple[str, ...]:
    """What to do when uploads find no room."""
    return (
        f"on the device, what takes it: df -h {folder or '/tmp'}",
        "or start its server with TMPDIR set to a folder on a larger disk",
    )


def _probe(facts: Facts) -> Finding:
    wrong = _text(facts, "right")
    if wrong == "yes":
        return ok("probe", "uploaded, loaded and run; every value as computed here")
    return broken(
        "probe",
        f"computes other values than NumPy here: {wrong}",
        "on the device: dmesg | tail   (memory, undervoltage, overclocking?)",
    )


def _float(facts: Facts, target: Target) -> Finding:
    return _rate("float peak", facts["float"], "GFLOP/s", float_peak(target), target)


def _int8(facts: Facts, target: Target) -> Finding:
    return _rate("int8 peak", facts["int8"], "GOP/s", int8_peak(target), target)


def _bandwidth(facts: Facts, target: Target) -> Finding:
    return _rate("bandwidth", facts["bandwidth"], "GB/s", None, target, _UNSTEADY_MEMORY)


def _rate(
    name: str,
    fact: Fact,
    unit: str,
    peak: Peak | None,
    target: Target,
    unsteady: float = _UNSTEADY,
) -> Finding:
    value, spread = float(fact.value), float(fact.note)
    text = f"{value:.3g} {unit}"
    if peak is not None:
        text += f", {value / peak.value:.0%} of {peak.value:.3g} ({peak.basis})"
    least = _WEAK if target.arch == "aarch64" else _WEAK_X86
    if peak is not None and value < least * peak.value:
        return hint(
            name,
            f"{text}: a lower clock than the target's, or other work",
            f"on the device: {_CLOCK_NOW}; uptime",
        )
    if spread > unsteady:
        return hint(
            name,
            f"{text}; repeats differ by {spread:.0%}: something else runs there",
            "on the device: top",
        )
    return ok(name, text)


def _text(facts: Facts, name: str) -> str:
    return facts[name].value if name in facts else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
