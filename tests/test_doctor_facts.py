"""Judging scripted facts: what no machine here has. And reading files of devices."""

from __future__ import annotations

import contextlib
import struct
from pathlib import PurePosixPath
from typing import Any

import pytest

from tvmx.doctor import Finding
from tvmx.doctor._examine import compare_siblings
from tvmx.doctor._failures import explain_failure, incomplete_upload
from tvmx.doctor._features import best_targets, missing_features, target_of_model
from tvmx.doctor._judge import judge_inside, judge_outside
from tvmx.doctor._peaks import float_peak, int8_peak
from tvmx.measure import (
    FFI_VERSION,
    TVM_VERSION,
    Cores,
    Deadlines,
    DeviceAddress,
    Fact,
    FailedEvent,
    ProbeFigures,
    Status,
)
from tvmx.measure._device_files import (
    hwcap_features,
    library_path,
    meminfo_kib,
    os_name,
    parse_version,
    version_files,
)
from tvmx.measure._inspect import inspect
from tvmx.measure._tasks import Link
from tvmx.targets import load_target

ADDRESS = DeviceAddress("10.0.0.2", 9190, "pi")
RPI4 = load_target("rpi4")
RPI5 = load_target("rpi5")

# A Raspberry Pi 4 on which all is well.
WELL = {
    "machine": "aarch64",
    "libc": "",
    "os": "Debian GNU/Linux 12 (bookworm)",
    "folder": "/tmp/tmpabc/",
    "governor": "performance",
    "clocks": "1500 1500 1500 1500",
    "temperature": "48.2",
    "sent": "all",
    "loaded": "yes",
    "kernel": "6.6.31+rpt-rpi-v8",
    "processor": "",
    "features": "asimd",
    "tvm": TVM_VERSION,
    "tvm-ffi": FFI_VERSION,
    "glibc": "2.36",
    "memory": "3885396 3400000",
    "free": str(20 << 30),
    "upload": "38",
    "right": "yes",
}
RATES = {"float": "11.9", "int8": "22", "bandwidth": "4.1"}


def facts(**changes: str | None) -> dict[str, Fact]:
    """The well board's, changed; None leaves a fact out."""
    texts: dict[str, Any] = {**WELL, **{k.replace("_", "-"): v for k, v in changes.items()}}
    found = {name: Fact(name, text) for name, text in texts.items() if text is not None}
    spread = texts.pop("spread", "0.004")
    for name, value in RATES.items():
        found[name] = Fact(name, changes.get(name) or value, spread)
    found.pop("spread", None)
    return found


def judged(target: Any = RPI4, **changes: str | None) -> dict[str, Finding]:
    """Lines by name."""
    found = facts(**changes)
    lines = [*judge_outside(found, target), *judge_inside(found, target)]
    assert len({line.name for line in lines}) == len(lines)
    return {line.name: line for line in lines}


def only(name: str, level: str, lines: dict[str, Finding]) -> str:
    """All other lines are ok; the text and what to do of this one."""
    assert {line.name for line in lines.values() if line.level != "ok"} == {name}
    assert lines[name].level == level
    assert lines[name].todo
    return " | ".join([lines[name].text, *lines[name].todo])


def test_a_healthy_board() -> None:
    lines = judged()
    assert {line.level for line in lines.values()} == {"ok"}
    assert list(lines) == [
        "userland", "governor", "temperature", "cores", "CPU features", "TVM", "glibc", "memory",
        "disk", "probe", "float peak", "int8 peak", "bandwidth",
    ]  # fmt: skip
    assert lines["userland"].text == (
        "64-bit aarch64, Debian GNU/Linux 12 (bookworm), 6.6.31+rpt-rpi-v8"
    )
    assert lines["float peak"].text == "11.9 GFLOP/s, 99% of 12 (cortex-a72 at 1500 MHz)"
    assert lines["disk"].text == "20480 MiB free in /tmp/tmpabc/, uploads at 38 MB/s"


def test_cores_and_their_clocks() -> None:
    assert judged()["cores"].text == "4 at 1500 MHz"
    assert judged(clocks="1800 1800")["cores"].text == (
        "2 at 1800 MHz; target 'rpi4' says 1500 MHz"
    )
    line = judged(load_target("rk3399"), clocks="1416 1416 1800", processor="A Chip")["cores"]
    assert line.text == "A Chip, 2 at 1416 MHz, 1 at 1800 MHz"


def test_a_32_bit_system_is_named() -> None:
    text = only("userland", "broken", judged(machine="arm", os="Raspbian GNU/Linux 11"))
    assert "32-bit (Raspbian GNU/Linux 11, 6.6.31+rpt-rpi-v8)" in text
    assert "Raspberry Pi OS (64-bit)" in text


def test_both_kinds_of_loaders_do_not_decide() -> None:
    assert judged(machine="aarch64 arm")["userland"].level == "ok"


def test_a_32_bit_system_shows_when_the_probe_is_loaded() -> None:
    message = "load: InternalError: lib0.so: wrong ELF class: ELFCLASS64"
    line = explain(FailedEvent("load", message), machine="aarch64 arm")
    assert (line.name, line.level) == ("userland", "broken")
    assert "32-bit" in line.text


def test_musl() -> None:
    text = only("userland", "broken", judged(libc="musl", os="Alpine Linux v3.20"))
    assert "Alpine Linux v3.20" in text and "glibc" in text


def test_another_machine() -> None:
    text = only("userland", "broken", judged(machine="x86_64"))
    assert "x86_64 there, target 'rpi4' is aarch64" in text and "--target host" in text
    old = load_target("rpi4").model_copy(
        update={"triple": "x86_64-linux-gnu", "cpu": "x86-64-v3", "features": ()}
    )
    text = only("CPU features", "broken", judged(old, machine="x86_64", features="sse4_2"))
    assert "x86-64-v3" in text and "FILE.toml" in text
    line = judge_outside(facts(machine="riscv64"), None)[0]
    assert line.level == "broken" and "riscv64" in line.text and "--target" in line.todo[0]


def test_missing_dot_product_names_targets_that_fit() -> None:
    text = only("CPU features", "broken", judged(RPI5, float="38", int8="150"))
    assert "asimddp, asimdhp" in text
    assert "--target rpi4" in text and "rpi5 " not in text + " " and "odroid" not in text


def test_unused_dot_product_names_targets_that_use_it() -> None:
    have = "asimd fphp asimdhp asimddp"
    text = only("CPU features", "hint", judged(features=have))
    assert "asimddp, asimdhp" in text and "--target rpi5" in text and "rpi4 --" not in text
    assert judged(RPI5, features=have, float="38", int8="150")["CPU features"].level == "ok"


def test_features_that_cannot_be_read() -> None:
    assert judged(features="")["CPU features"].level == "hint"


@pytest.mark.parametrize("version", ["0.26.0", "0.27.0", "0.28.0.dev3"])
def test_another_tvm(version: str) -> None:
    text = only("TVM", "broken", judged(tvm=version))
    assert version in text
    assert f"pip install apache-tvm=={TVM_VERSION} apache-tvm-ffi=={FFI_VERSION}" in text


def test_another_ffi_is_a_hint() -> None:
    assert "0.1.15.post2" in only("TVM", "hint", judged(tvm_ffi="0.1.15.post2"))


def test_tvm_without_a_version() -> None:
    assert "pip install" in only("TVM", "hint", judged(tvm=""))


@pytest.mark.parametrize(
    ("version", "level"), [("2.27", "broken"), ("2.28", "ok"), ("2.4", "broken")]
)
def test_glibc(version: str, level: str) -> None:
    line = judged(glibc=version)["glibc"]
    assert line.level == level
    assert version in line.text and "2.28" in line.text
    assert level == "ok" or f'glibc = "{version}"' in line.todo[0]


def test_a_governor_that_saves_power() -> None:
    text = only("governor", "hint", judged(governor="powersave"))
    assert "powersave" in text
    assert (
        "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor" in text
    )
    assert "ondemand" in only("governor", "hint", judged(governor="performance ondemand"))
    assert judged(governor="")["governor"].level == "ok"


def test_heat() -> None:
    assert "81 °C" in only("temperature", "hint", judged(temperature="81.3"))
    assert judged(temperature="")["temperature"].level == "ok"


def test_memory_and_disk() -> None:
    assert "97 of 3794 MiB" in only("memory", "hint", judged(memory="3885396 100000"))
    assert "300 MiB free" in only("disk", "hint", judged(free=str(300 << 20)))
    text = only("disk", "broken", judged(free=str(2 << 20), upload=None))
    assert "2 MiB free in /tmp/tmpabc/" in text and "TMPDIR" in text


def test_wrong_values() -> None:
    assert "dot (3 of 80)" in only("probe", "broken", judged(right="dot (3 of 80)"))


def test_a_slow_core_and_an_unsteady_one() -> None:
    assert "50% of 12" in only("float peak", "hint", judged(float="6.0"))
    lines = judged(spread="0.2")
    assert "20%" in lines["float peak"].text and lines["float peak"].level == "hint"
    assert lines["bandwidth"].level == "ok"


def test_facts_that_never_came_give_no_line() -> None:
    names = {line.name for line in judge_inside({"sent": Fact("sent", "all")}, RPI4)}
    assert names == set()


def test_peaks_of_boards() -> None:
    """Against what cpufp measured on boards of these kinds, GFLOP/s and GOP/s of one core."""
    for name, floats in {"rpi4": 11.958, "rpi5": 38.369, "rk3399": 14.348}.items():
        peak = float_peak(load_target(name))
        assert peak is not None and peak.value == pytest.approx(floats, rel=0.01)
    int8 = int8_peak(RPI5)
    assert int8 is not None and int8.value == pytest.approx(153.48, rel=0.01)
    assert int8_peak(RPI4) is None
    assert float_peak(load_target("aarch64")) is None


def test_x86_levels() -> None:
    host = load_target("rpi4").model_copy(
        update={"triple": "x86_64-linux-gnu", "cpu": "x86-64-v3", "features": ()}
    )
    v2 = {"cx16", "popcnt", "ssse3", "sse4_1", "sse4_2"}
    v3 = v2 | {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}
    assert missing_features(host, v2) == ["x86-64-v3"]
    assert missing_features(host, v3) == []
    vnni = host.model_copy(update={"features": ("+avxvnni",)})
    assert missing_features(vnni, v3) == ["+avxvnni"]
    assert missing_features(vnni, v3 | {"avx_vnni"}) == []


def test_boards_are_known_by_their_model() -> None:
    models = {
        "Raspberry Pi 4 Model B Rev 1.4, pi": "rpi4",
        "Raspberry Pi 5 Model B Rev 1.0": "rpi5",
        "Raspberry Pi 3 Model B Plus Rev 1.3": "rpi3b+",
        "NVIDIA Jetson Nano Developer Kit": "jetson-nano",
        "Hardkernel ODROID-C4": "odroid-c4",
        "Radxa Orion O6": "orion-o6",
    }
    for model, name in models.items():
        found = target_of_model(model)
        assert found is not None and found.name == name, model
    assert target_of_model("Raspberry Pi 2 Model B") is None
    assert {t.name for t in best_targets("aarch64", ["asimd", "asimddp", "asimdhp"])} == {
        "rpi5", "odroid-c4",
    }  # fmt: skip


def explain(failure: FailedEvent, **changes: str | None) -> Finding:
    found = facts(**changes)
    if "loaded" in changes and changes["loaded"] is None:
        found = {name: fact for name, fact in found.items() if name in ("machine", "folder")}
    return explain_failure(failure, found, ADDRESS, RPI5)


@pytest.mark.parametrize(
    ("status", "message", "name", "parts"),
    [
        ("queue", "no device pi", "connection", ("no device pi", "type the same again")),
        ("connect", "connect: no end after 8 s", "connection", ("8 s", "--key pi")),
        ("connect", "connect: refused", "connection", ("refused", "--key pi")),
        ("timeout", "run: no end after 10 s", "probe", ("10 s", "hangs", "tvmx serve")),
        ("crash", "run: kShutdown", "probe", ("'rpi5' uses what", "--target aarch64")),
        ("upload", "upload: Broken pipe", "probe", ("Broken pipe", "df -h /tmp/tmpabc/")),
        ("load", "load: no such file", "probe", ("arrived whole", "getconf LONG_BIT")),
    ],
)
def test_failures(status: Status, message: str, name: str, parts: tuple[str, ...]) -> None:
    line = explain(FailedEvent(status, message))
    assert line.name == name
    assert line.level == ("hint" if status == "queue" else "broken")
    text = " | ".join([line.text, *line.todo])
    assert all(part in text for part in parts), text
    assert "kShutdown" not in text


def test_a_full_disk() -> None:
    line = incomplete_upload(facts(sent="4096 of 24632"))
    assert line.level == "broken"
    assert "4096 of 24632 bytes" in line.text and "TMPDIR" in " ".join(line.todo)


def test_siblings() -> None:
    alike = {"a:1": ProbeFigures(12, 4, 24), "b:1": ProbeFigures(12.5, 3.8, 24)}
    (section,) = compare_siblings(alike)
    assert [f.level for f in section.findings] == ["ok"]
    (section,) = compare_siblings({**alike, "c:1": ProbeFigures(6, 4, 12)})
    (line,) = section.findings  # the sound ones are not held against the slow one
    assert line.level == "hint" and line.todo
    assert "c:1: float peak 50% lower" in line.text and "bandwidth" not in line.text
    (section,) = compare_siblings({"a:1": ProbeFigures(12, 4), "c:1": ProbeFigures(6, 4)})
    assert ["50% lower" in f.text for f in section.findings] == [False, True]
    assert compare_siblings({"a:1": ProbeFigures(12, 4)}) == []


# reading


class Board:
    """Stands for a session: files by path, as TVM's ``download`` would give them."""

    def __init__(self, **files: bytes) -> None:
        self.files = {path.replace("__", "/"): data for path, data in files.items()}
        self.files["/sys/devices/system/cpu/online"] = b"0-2\n" + bytes(4000)
        self.facts: dict[str, str] = {}
        self.remote = self
        self.thermometer = self

    def download(self, path: str) -> bytes:
        if path not in self.files:
            raise RuntimeError(f"Cannot open {path}")
        return self.files[path]

    def get_function(self, name: str) -> Any:
        assert name == "tvm.rpc.server.workpath"
        return lambda path: f"/tmp/x/{path}"

    def read(self, *, fresh: bool) -> float:
        assert fresh
        return 51.25

    def phase(self, name: str, seconds: float | None = None) -> Any:
        return contextlib.nullcontext()

    def tell(self, fact: Fact) -> None:
        self.facts[fact.name] = fact.value


def outside(**files: bytes) -> dict[str, str]:
    board = Board(**files)
    inspect(board, Link(ADDRESS, Cores(), Deadlines()))  # type: ignore[arg-type]
    return board.facts


ARM64, ARM32 = {"__lib__ld-linux-aarch64.so.1": b"x"}, {"__lib__ld-linux-armhf.so.3": b"x"}


def elf(machine: int) -> bytes:
    return b"\x7fELF\2\1" + bytes(12) + struct.pack("<H", machine) + bytes(44)


def test_the_machine_is_what_programs_are_for() -> None:
    assert outside(**ARM64)["machine"] == "aarch64"
    assert outside(**ARM32)["machine"] == "arm"
    assert outside()["machine"] == ""
    both = {**ARM64, **ARM32}
    assert outside(**both)["machine"] == "aarch64 arm"
    assert outside(**both, __proc__self__exe=elf(40))["machine"] == "arm"
    assert outside(**both, __proc__self__exe=elf(183))["machine"] == "aarch64"
    musl = {"__lib__ld-musl-aarch64.so.1": b"x"}
    assert (outside(**musl)["machine"], outside(**musl)["libc"]) == ("aarch64", "musl")
    assert outside(**musl, **ARM64)["libc"] == ""


def test_clocks_of_all_cores() -> None:
    files = {}
    for cpu, (governor, khz) in enumerate([("ondemand", 1416000)] * 2 + [("performance", 1800000)]):
        folder = f"__sys__devices__system__cpu__cpu{cpu}__cpufreq__"
        files[f"{folder}scaling_governor"] = governor.encode() + b"\n" + bytes(4000)
        files[f"{folder}cpuinfo_max_freq"] = f"{khz}\n".encode() + bytes(4000)
    found = outside(**ARM64, **files)
    assert found["governor"] == "ondemand performance"
    assert found["clocks"] == "1416 1416 1800"
    assert (found["temperature"], found["folder"]) == ("51.2", "/tmp/x/")
    assert (outside()["governor"], outside()["clocks"]) == ("", "")


def test_auxiliary_vector() -> None:
    def auxv(**words: int) -> bytes:
        keys = {"hwcap": 16, "hwcap2": 26, "page": 6}
        return b"".join(struct.pack("<QQ", keys[k], v) for k, v in words.items())

    a72, a76 = 0x8FF, 0x100FFFFF  # /proc/self/auxv of a Raspberry Pi 4; asimddp is bit 20
    assert hwcap_features(auxv(page=4096, hwcap=a72)) == ["asimd"]
    found = hwcap_features(auxv(hwcap=a76 | 1 << 20, hwcap2=1 << 13) + bytes(16))
    assert found == ["asimd", "fphp", "asimdhp", "asimddp", "i8mm"]
    assert hwcap_features(auxv(hwcap=a72).rstrip(b"\0")) == ["asimd"]
    assert hwcap_features(b"") == []


def test_versions_of_packages() -> None:
    maps = (
        "7f0 r--p 0 fe:00 1  /usr/bin/python3\n7f1 r-xp 0 00:00 0 \n"
        "7f2 r-xp 0 fe:00 2  /home/pi/my env/site-packages/tvm/lib/libtvm_runtime.so\n"
    )
    path = library_path(maps, ("libtvm.so", "libtvm_runtime.so"))
    assert path == PurePosixPath("/home/pi/my env/site-packages/tvm/lib/libtvm_runtime.so")
    assert version_files(path)[0] == "/home/pi/my env/site-packages/tvm/_version.py"
    assert library_path(maps, ("libtvm_ffi.so",)) is None
    assert parse_version("__version__: str\n__version__ = version = '0.27.0.post1'\n") == (
        "0.27.0.post1"
    )
    assert parse_version('x = 1\n__version__ = "0.18.0"\n') == "0.18.0"
    assert parse_version("") is None


def test_small_files() -> None:
    memory = "MemTotal:        3885396 kB\nMemFree: 1 kB\nMemAvailable:    3400000 kB\n"
    assert meminfo_kib(memory, "MemAvailable") == 3400000
    assert meminfo_kib(memory, "SwapTotal") is None
    assert os_name('ID=debian\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n') == (
        "Debian GNU/Linux 12 (bookworm)"
    )
    assert os_name("") == ""
