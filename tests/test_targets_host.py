"""Detection of the host: instruction sets from /proc/cpuinfo, and this machine itself."""

from __future__ import annotations

import os
import platform

import numpy as np
import pytest

from tvmx.targets import _host, detect_host

V2 = {"cx16", "popcnt", "ssse3", "sse4_1", "sse4_2"}
V3 = V2 | {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


@pytest.mark.parametrize(
    "flags, want",
    [
        (V4 | {"avx512_vnni"}, ("x86-64-v4", ("+avx512vnni",), 512, 32)),
        (V4 - {"avx512vl"} | {"avx512_vnni"}, ("x86-64-v3", (), 256, 16)),
        (V3 | {"avx_vnni"}, ("x86-64-v3", ("+avxvnni",), 256, 16)),
        (V3 - {"fma"}, ("x86-64-v2", (), 128, 16)),
        (set(), ("x86-64", (), 128, 16)),
    ],
)
def test_x86_levels(flags: set[str], want: tuple[object, ...]) -> None:
    assert _host.x86_features(flags) == want


def arm(part: int, count: int, first: int = 0, features: str = "fp asimd crc32") -> str:
    return "".join(
        f"processor\t: {first + i}\nBogoMIPS\t: 48.00\nFeatures\t: {features}\n"
        f"CPU implementer\t: 0x41\nCPU part\t: {part:#x}\n\n"
        for i in range(count)
    )


def test_big_little_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_host, "_caches", lambda cpu: (32, 512, False))
    monkeypatch.setattr(_host, "_max_mhz", lambda cpu: 1800 if cpu >= 4 else 1400)
    processors = _host.parse_cpuinfo(arm(0xD03, 4) + arm(0xD08, 2, 4))
    target = _host._aarch64(processors, 6, 1000, 2048)
    assert [(c.core, c.count, c.clock_mhz, c.in_order) for c in target.clusters] == [
        ("cortex-a72", 2, 1800, False), ("cortex-a53", 4, 1400, True),
    ]  # fmt: skip
    assert target.cpu == "cortex-a53"
    assert target.features == ("+neon",)


def test_dot_product_core_and_unknown_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_host, "_caches", lambda cpu: (64, 512, True))
    monkeypatch.setattr(_host, "_max_mhz", lambda cpu: 0)
    text = arm(0xD0B, 4, features="asimd asimdhp asimddp")
    target = _host._aarch64(_host.parse_cpuinfo(text), 4, 2400, 4096)
    assert (target.cpu, target.features) == ("cortex-a76", ("+neon", "+dotprod", "+fullfp16"))
    assert target.big.clock_mhz == 2400
    assert _host._aarch64(_host.parse_cpuinfo(arm(0xFFF, 1)), 1, 1000, 512).cpu == "generic"


def test_this_machine() -> None:
    target = detect_host()
    assert target.arch == {"amd64": "x86_64", "arm64": "aarch64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    assert 1 <= target.cores <= (os.cpu_count() or 1)
    assert target.lanes() in (4, 8, 16)
    assert target.memory_mib > 256


def test_code_for_the_host_runs_here() -> None:
    import tvm
    from tvm import te

    target = detect_host()
    lanes = target.lanes()
    a = te.placeholder((64, lanes), "float32", name="a")
    b = te.compute((64, lanes), lambda i, j: a[i, j] * a[i, j] + 1.0, name="b")
    schedule = tvm.s_tir.Schedule(te.create_prim_func([a, b]))
    block = schedule.get_sblock("b")
    schedule.vectorize(schedule.get_loops(block)[1])
    built = tvm.tirx.build(schedule.mod, target=tvm.target.Target(target.tvm_config()))
    data = np.arange(64 * lanes, dtype=np.float32).reshape(64, lanes) / 100
    out = tvm.runtime.tensor(np.zeros_like(data))
    built["main"](tvm.runtime.tensor(data), out)
    np.testing.assert_allclose(out.numpy(), data * data + 1, rtol=1e-6)


def test_other_machines_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from tvmx.errors import UsageError

    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(UsageError, match="riscv64"):
        detect_host.__wrapped__()
