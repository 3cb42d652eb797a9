"""The probe library: what it computes, what it is compiled to, what it reads."""

from __future__ import annotations

import os
import platform
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from tests.disassembly import instructions
from tvmx.build import read_elf
from tvmx.doctor import build_probe
from tvmx.doctor._predict import predict_dot, predict_fma
from tvmx.measure import ProbeKernel, ProbeLibrary
from tvmx.targets import Target, load_target, x86_features
from tvmx.targets._host import parse_cpuinfo
from tvmx.templates import DotForm

BOARDS = ("aarch64", "rpi3b+", "rpi4", "rpi5", "odroid-c4")


def x86(level: set[str]) -> Target:
    """This machine, as if it had no more than these features of /proc/cpuinfo."""
    cpu, features, bits, registers = x86_features(level)
    changes = {"cpu": cpu, "features": features, "vector_bits": bits, "vector_registers": registers}
    return load_target("host").model_copy(update=changes)


def host_variants() -> dict[str, Target]:
    """Targets whose code runs here: what this machine is, and older kinds of it."""
    found = {"host": load_target("host")}
    if found["host"].arch == "x86_64":
        processors = parse_cpuinfo(Path("/proc/cpuinfo").read_text())
        flags = set(processors[0].get("flags", "").split())
        found["sse"] = x86({"cx16", "popcnt", "ssse3", "sse4_1", "sse4_2"})
        if "avx2" in flags:
            found["avx2"] = x86({f for f in flags if "avx512" not in f})
    return found


VARIANTS = host_variants()


@pytest.fixture(scope="module", params=VARIANTS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(target, probe, its module in this process)."""
    from tvmx._tvm import tvm

    target = VARIANTS[request.param]
    probe = build_probe(target, tmp_path_factory.mktemp(request.param))
    return target, probe, tvm.runtime.load_module(str(probe.path))


def tensor(values: np.ndarray) -> Any:
    from tvmx._tvm import tvm

    return tvm.runtime.tensor(values)


def text(value: str) -> Any:
    return tensor(np.frombuffer(value.encode() + b"\0", np.uint8).copy())


@pytest.mark.parametrize("name", ["fma", "dot", "stream"])
def test_kernels_compute_what_numpy_does(loaded: Any, name: str) -> None:
    _, probe, module = loaded
    with np.load(probe.examples) as examples:
        before, after = examples[name]
    buffer = tensor(before.copy())
    module[name](buffer)
    np.testing.assert_array_equal(buffer.numpy(), after)
    assert (before != after).mean() > 0.9


def test_figures_are_within_what_a_core_can_do(loaded: Any) -> None:
    """Far above it, a loop was computed at compile time; far below, it waits for something."""
    target, probe, module = loaded
    lanes = target.lanes("float32")
    fma, dot = rate(module, probe.fma), rate(module, probe.dot)
    # From one slow unit at a throttled GHz, on a machine others use, to three at 6 GHz.
    assert 0.2 * 2 * lanes < fma < 3 * 6 * 2 * lanes
    assert dot < 3 * 6 * 2 * 4 * lanes
    assert rate(module, probe.stream) < 500


def rate(module: Any, kernel: ProbeKernel) -> float:
    from tvmx._tvm import tvm

    cores = os.sched_getaffinity(0)
    tvm.get_global_func("runtime.config_threadpool")(1, 1)
    timer = module.time_evaluator(kernel.symbol, tvm.cpu(), number=1, repeat=5)
    seconds = min(timer(tensor(np.ones(kernel.size, kernel.dtype))).results)
    os.sched_setaffinity(0, cores)
    return kernel.work / seconds / 1e9


def test_files_are_read_as_python_reads_them(loaded: Any, tmp_path: Path) -> None:
    _, probe, module = loaded
    (tmp_path / "long").write_bytes(bytes(range(1, 256)) * 20)
    for path, size in (("/proc/sys/kernel/osrelease", 4096), (str(tmp_path / "long"), 1000)):
        out = tensor(np.full(size, 7, np.uint8))
        module[probe.copy_text](text(path), out)
        wanted = Path(path).read_bytes()[:size]
        assert out.numpy().tobytes() == wanted + bytes(size - len(wanted))
    for path in ("/no/such/file", str(tmp_path)):
        out = tensor(np.full(100, 7, np.uint8))
        module[probe.copy_text](text(path), out)
        assert not out.numpy().any()


def test_library_version_and_room_on_disk(loaded: Any, tmp_path: Path) -> None:
    _, probe, module = loaded
    out = tensor(np.full(64, 7, np.uint8))
    module[probe.libc_version](out)
    assert out.numpy().tobytes().split(b"\0")[0].decode() == " ".join(platform.libc_ver())
    values = tensor(np.full(32, 7, np.int64))
    module[probe.file_system](text(str(tmp_path)), values)
    known = os.statvfs(tmp_path)
    got = values.numpy()
    assert (got[1], got[2]) == (known.f_frsize, known.f_blocks)
    assert abs(got[4] - known.f_bavail) < 0.1 * known.f_blocks


@pytest.fixture(scope="module")
def cross(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ProbeLibrary]:
    folder = tmp_path_factory.mktemp("cross")
    return {name: build_probe(load_target(name), folder / name) for name in BOARDS}


def loop_with(library: Path, mnemonic: str) -> Counter[str]:
    """How often each instruction is in the loop that holds those of that name."""
    code = instructions(library)
    with library.open("rb") as stream:
        start = ELFFile(stream).get_section_by_name(".text")["sh_addr"]
    at = next(i for i, (name, _) in enumerate(code) if name == mnemonic)
    last = next(i for i in range(at, len(code)) if code[i][0].startswith("b."))
    first = (int(code[last][1].removeprefix("#"), 16) - start) // 4
    assert first <= at
    return Counter(name for name, _ in code[first : last + 1])


@pytest.mark.cross
@pytest.mark.parametrize("board", BOARDS)
def test_loops_on_arm_are_multiply_adds_alone(cross: Any, board: str) -> None:
    probe, target = cross[board], load_target(board)
    fma = loop_with(probe.path, "fmla")
    other = sum(fma.values()) - fma["fmla"]
    assert fma["fmla"] >= 16 and other <= 3, fma
    dot = loop_with(probe.path, "sdot" if target.int8_dot == "sdot" else "sadalp")
    if target.int8_dot == "sdot":
        kinds = {"sdot": 16}
    else:
        kinds = dict.fromkeys(("smull", "smull2", "smlal", "smlal2"), 8) | {"sadalp": 16}
    for name, count in kinds.items():
        assert dot[name] >= count, dot
    assert sum(dot.values()) <= sum(dot[k] for k in kinds) + 3, dot
    assert read_elf(probe.path).machine == "aarch64"


@pytest.mark.cross
def test_a_call_is_short_on_the_slowest_board(cross: Any) -> None:
    """A Cortex-A53 at 1.2 GHz starts one vector instruction a cycle; memory moves 1.5 GB/s."""
    probe = cross["rpi3b+"]
    per_instruction = 4 * 2
    assert probe.fma.work / per_instruction / 1.2e9 < 1e-3
    multiply_adds_per_instruction = 32 / 6  # smull, smull2, smlal, smlal2 and two sadalp
    assert probe.dot.work / 2 / multiply_adds_per_instruction / 1.2e9 < 1e-3
    assert probe.stream.work / 1.5e9 < 0.05
    assert 4 * probe.stream.size >= 16 << 20


def test_predicted_sdot_is_a_dot_product() -> None:
    form = DotForm("sdot", 4, 4)
    buffer = np.random.default_rng(0).integers(0, 1 << 31, 3 * 4 + 4, np.int32)
    weights = buffer[12:].view(np.int8).tolist()
    sums = buffer[:12].tolist()
    for _ in range(3):
        for i in range(12):
            data = [b - 256 if b > 127 else b for b in struct.pack("<i", sums[i])]
            lane = weights[4 * (i % 4) : 4 * (i % 4) + 4]
            total = sums[i] + sum(d * w for d, w in zip(data, lane, strict=True))
            sums[i] = (total + (1 << 31)) % (1 << 32) - (1 << 31)
    got = predict_dot(buffer, form, chains=3, steps=3)
    assert got[:12].tolist() == sums


def test_predicted_smlal_adds_two_words() -> None:
    """Lane j of half h: two neighbouring products of each of the two words."""
    form = DotForm("smlal", 4, 4)
    random = np.random.default_rng(1)
    sums = random.integers(0, 1 << 31, 2 * 4, np.int32)
    weights = random.integers(-127, 128, 32).astype(np.int8)
    data = sums.view(np.int8).reshape(2, 16).tolist()
    factors = weights.reshape(2, 16).tolist()
    wanted = []
    for half in range(2):
        for j in range(4):
            places = [8 * half + 2 * j, 8 * half + 2 * j + 1]
            wanted.append(sum(data[t][p] * factors[t][p] for t in range(2) for p in places))
    buffer = np.concatenate([sums, weights.view(np.int32)])
    got = predict_dot(buffer, form, chains=1, steps=1)[:8]
    np.testing.assert_array_equal(got, (sums.astype(np.int64) + wanted).astype(np.int32))


def test_predicted_fma_is_exact_to_one_rounding() -> None:
    """In double precision the product and the sum are exact, so rounding once is fused."""
    buffer = np.array([0, 1, 3, 16383, 12345], np.int32)
    want = buffer.astype(np.float32)
    for _ in range(50):
        want = (want.astype(np.float64) * (1 + 2.0**-13)).astype(np.float32)
    got = predict_fma(buffer, steps=50, seeds=(1 << 14) - 1, factor=2.0**-13)
    np.testing.assert_array_equal(got.view(np.float32), want)


def test_its_files_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    probe = build_probe(load_target("host"), Path("run"))
    assert (probe.path.parent, probe.examples.parent) == (tmp_path / "run", tmp_path / "run")
