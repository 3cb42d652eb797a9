"""The emulator with its plugin: counters, caches and the clock, against what the code must do.

The guest program (guest_programs/core.c) has no C library: its instructions are known. Most
tests cost each instruction one cycle, so that cycles can be counted by hand; no llvm-mca then.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.simulated import tools_or_skip
from tvmx.errors import SimulationError
from tvmx.simulate import _emulator
from tvmx.simulate._core import SimulatedCore, simulated_core
from tvmx.simulate._emulator import Emulator
from tvmx.simulate._mca import Code
from tvmx.targets import Cluster, Simulation, list_targets, load_target

PROGRAM = Path(__file__).parent / "guest_programs" / "core.c"
NOISE = 12  # lines of stack and code around what is measured
SECONDS = 60


class Unit:
    """Every instruction takes one cycle."""

    name = "one cycle for each instruction"

    def costs(self, blocks: Sequence[Code]) -> list[int]:
        return [1000 * len(block.sizes) for block in blocks]


class Interval(NamedTuple):
    """A line of the guest's report; cycles in thousandths."""

    ns: int
    core: int
    memory: int
    instructions: int
    l1_misses: int
    l2_hits: int
    prefetched: int
    l2_misses: int


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest program, cross-compiled."""
    tools_or_skip("qemu-aarch64", "setarch", "cc")
    out = tmp_path_factory.mktemp("guest") / "core"
    target = ["-target", "aarch64-freestanding-none", "-nostdlib", "-static", "-Wl,-e,_start"]
    plain = ["-O1", "-fno-builtin", "-fno-stack-protector", "-fno-sanitize=all"]
    command = [sys.executable, "-m", "ziglang", "cc", *target, *plain, "-o", str(out)]
    subprocess.run([*command, str(PROGRAM)], check=True)
    return out


@pytest.fixture
def core() -> SimulatedCore:
    """A Cortex-A72 of the Raspberry Pi 4: 32 KiB L1 in 2 ways, 1 MiB L2, at 1500 MHz."""
    return simulated_core(load_target("rpi4"))


def run(emulator: Emulator, guest: Path, *args: str) -> list[str]:
    done = subprocess.run(
        [*emulator.command(), str(guest), *args],
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def intervals(lines: Sequence[str], name: str) -> list[Interval]:
    found = [line.split()[1:] for line in lines if line.split()[0] == name]
    return [Interval(*map(int, values)) for values in found if values]


def value(lines: Sequence[str], name: str) -> int:
    (found,) = [int(line.split()[1]) for line in lines if line.split()[0] == name]
    return found


@pytest.fixture
def unit(core: SimulatedCore, tmp_path: Path, guest: Path) -> Iterator[Emulator]:
    with Emulator(core, model=Unit(), folder=tmp_path) as emulator:
        yield emulator


def test_instructions_of_a_known_loop(unit: Emulator, guest: Path) -> None:
    found = intervals(run(unit, guest, "count"), "count")
    assert len(found) == 4
    rounds = (10**3, 10**4, 10**5, 10**6)
    around = {i.instructions - 2 * n for i, n in zip(found, rounds, strict=True)}
    assert max(around) - min(around) <= 4, "the loop has two instructions, the rest is the same"
    assert 0 < max(around) < 40
    assert all(i.core == 1000 * i.instructions for i in found)


def test_the_clock_shows_the_cycles_at_the_clock_rate(unit: Emulator, guest: Path) -> None:
    for interval in intervals(run(unit, guest, "count"), "count"):
        cycles = (interval.core + interval.memory) / 1000
        assert interval.ns == pytest.approx(cycles / 1.5, abs=0.5)


@pytest.mark.parametrize(
    ("kib", "l1", "l2"), [(16, False, False), (128, True, False), (4096, True, True)]
)
def test_working_sets(unit: Emulator, guest: Path, kib: int, l1: bool, l2: bool) -> None:
    """The second round through lines in random order: LRU keeps all of them, or none."""
    lines = kib * 1024 // 64
    (found,) = intervals(run(unit, guest, "chase", str(kib)), "chase")
    assert found.l1_misses == pytest.approx(lines if l1 else 0, abs=NOISE)
    assert found.l2_misses == pytest.approx(lines if l2 else 0, abs=NOISE)
    assert found.l1_misses == found.l2_hits + found.prefetched + found.l2_misses
    cycles = 6 * found.l2_hits + 30 * found.prefetched + 170 * found.l2_misses
    assert found.memory == round(700 * cycles)


def test_sizes_come_from_the_core(core: SimulatedCore, guest: Path, tmp_path: Path) -> None:
    big = replace(core, l1d_kib=256, l1d_ways=8)
    with Emulator(big, model=Unit(), folder=tmp_path) as emulator:
        (found,) = intervals(run(emulator, guest, "chase", "128"), "chase")
    assert found.l1_misses <= NOISE


def test_a_stream_is_prefetched(unit: Emulator, guest: Path) -> None:
    (found,) = intervals(run(unit, guest, "stream", "1024"), "stream")
    assert found.l1_misses == pytest.approx(1024 * 1024 // 64, abs=NOISE)
    assert found.l2_misses <= NOISE
    assert found.prefetched >= 1024 * 1024 // 64 - NOISE


def test_the_core_alone(core: SimulatedCore, guest: Path, tmp_path: Path) -> None:
    with Emulator(replace(core, figure="core"), model=Unit(), folder=tmp_path) as emulator:
        (found,) = intervals(run(emulator, guest, "stream", "1024"), "stream")
    assert found.memory > found.core
    assert found.ns == pytest.approx(found.core / 1500, abs=0.5)


def test_sleep_changes_nothing_and_every_clock_agrees(unit: Emulator, guest: Path) -> None:
    began = time.time()
    lines = run(unit, guest, "clocks")
    assert time.time() - began > 0.3, "the sleep itself is real"
    assert value(lines, "elapsed") < 2000
    (shown,) = intervals(lines, "shown")
    assert value(lines, "difference") == shown.ns
    assert shown.instructions == pytest.approx(2e6, abs=40)
    before, after = next(line.split()[1:] for line in lines if line.startswith("gettimeofday"))
    assert int(after) - int(before) == pytest.approx(20e6 / 1.5, rel=1e-3)
    assert int(before) / 1e9 == pytest.approx(began, abs=SECONDS)


def test_deadlines_of_the_simulated_clock_take_real_time(unit: Emulator, guest: Path) -> None:
    began = time.monotonic()
    lines = run(unit, guest, "deadline")
    assert 0.3 < time.monotonic() - began < SECONDS / 2
    assert value(lines, "kept") == 1


def test_a_process_switches_its_own_clock(core: SimulatedCore, guest: Path, tmp_path: Path) -> None:
    with Emulator(core, model=Unit(), folder=tmp_path, simulated=False) as emulator:
        lines = run(emulator, guest, "switch")
    assert value(lines, "host") >= 100_000_000
    assert not intervals(lines, "none"), "no interval before the clock was switched"
    (counted,) = intervals(lines, "counted")
    assert counted.instructions == pytest.approx(2e6, abs=40)
    assert value(lines, "simulated") == counted.ns


def test_forked_children_count_for_themselves(unit: Emulator, guest: Path) -> None:
    lines = run(unit, guest, "fork")
    children, parent = intervals(lines, "child"), intervals(lines, "parent")
    assert len(children) == 2
    assert {*children, *parent} == {children[0]}
    assert children[0].instructions == pytest.approx(2e6, abs=40)


def test_other_threads_do_not_disturb(unit: Emulator, guest: Path) -> None:
    alone = intervals(run(unit, guest, "threads", "0"), "measured")
    together = intervals(run(unit, guest, "threads", "1"), "measured")
    assert alone == together
    assert alone[0].instructions > 6e6


def test_other_code_at_the_same_address(core: SimulatedCore, guest: Path, tmp_path: Path) -> None:
    class Multiply(Unit):
        def costs(self, blocks: Sequence[Code]) -> list[int]:
            multiply = (0x9BC17C00).to_bytes(4, "little")
            return [
                7000 if block.data.startswith(multiply) else cost
                for block, cost in zip(blocks, super().costs(blocks), strict=True)
            ]

    with Emulator(core, model=Multiply(), folder=tmp_path) as emulator:
        found = intervals(run(emulator, guest, "remap"), "remap")
    cycles = [round(i.core / 1000, -3) for i in found]
    # The first time through, the loop's first round is part of the block before it or not.
    assert cycles == [300_000, 700_000, 300_000, 700_000]
    assert len({i.instructions for i in found}) == 1


def test_dotprod_dies_on_a_core_without_it(guest: Path, tmp_path: Path) -> None:
    for name, code in (("rpi4", -signal.SIGILL), ("rpi3b+", -signal.SIGILL), ("rpi5", 0)):
        core = simulated_core(load_target(name))
        with Emulator(core, model=Unit(), folder=tmp_path) as emulator:
            command = [*emulator.command(), str(guest), "dotprod"]
            done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
        assert done.returncode == code, name


def test_runs_are_identical(guest: Path, tmp_path: Path) -> None:
    """With llvm-mca's costs: repeated, in a new emulator, and with costs analysed anew."""
    tools_or_skip("llvm-mca-22")
    core = simulated_core(load_target("rpi4"))
    seen = set()
    for folder in (tmp_path / "a", tmp_path / "a", tmp_path / "b"):
        with Emulator(core, folder=folder) as emulator:
            for _ in range(2):
                tests = (("count",), ("chase", "256"), ("stream", "2048"), ("threads", "1"))
                seen.add(tuple(line for args in tests for line in run(emulator, guest, *args)))
    assert len(seen) == 1
    assert len(next(iter(seen))) == 7


def test_a_failing_cost_server_ends_the_guest(
    core: SimulatedCore, guest: Path, tmp_path: Path
) -> None:
    class Broken(Unit):
        def costs(self, blocks: Sequence[Code]) -> list[int]:
            raise SimulationError("llvm-mca fell over")

    with Emulator(core, model=Broken(), folder=tmp_path) as emulator:
        command = [*emulator.command(), str(guest), "count"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert done.returncode == 70
        assert "the cost server gave no answer" in done.stderr
        assert str(emulator.costs.failure) == "llvm-mca fell over"
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert "no cost server at" in done.stderr, "it ended with the emulator"


def test_every_board_has_a_core() -> None:
    for entry in list_targets():
        if entry.name == "host":
            continue
        target = load_target(entry.name)
        core = simulated_core(target)
        assert target.simulation is not None, entry.name
        assert (core.figure, core.source) == (target.simulation.figure, target.simulation.source)
        assert core.source
        assert core.clock_mhz == target.big.clock_mhz
        assert core.figure == ("core" if target.big.in_order else "core+memory")
        newer = ("cortex-a55", "cortex-a720")  # than what QEMU 7.2 has by name
        assert core.exact_isa == (target.big.core not in newer)
    assert simulated_core(load_target("rpi5")).mca_cpu == "neoverse-n1"


def test_a_target_sets_what_it_says_and_no_more() -> None:
    target = load_target("rpi4")
    told = Simulation(figure="core", source="mine", l2_miss_cycles=200)
    core = simulated_core(target.model_copy(update={"simulation": told}))
    assert (core.figure, core.source, core.l2_miss_cycles) == ("core", "mine", 200)
    assert core.plugin_arguments()["l2_miss"] == 140_000
    assert core.l2_hit_cycles == 6


def test_what_cannot_be_simulated_is_named() -> None:
    target = load_target("rpi4")
    odd = Cluster(core="cortex-m4", count=1, clock_mhz=100, in_order=True, l1d_kib=8, l2_kib=64)
    with pytest.raises(SimulationError, match="cortex-m4"):
        simulated_core(target.model_copy(update={"clusters": (odd,)}))
    with pytest.raises(SimulationError, match="48 KiB in 2 ways"):
        replace(simulated_core(target), l1d_kib=48)


def test_a_missing_tool_is_named_with_its_command(
    core: SimulatedCore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SimulationError, match="need setarch") as caught:
        Emulator(core, model=Unit(), folder=tmp_path)
    assert "apt-get install util-linux" in str(caught.value.hint)


def test_an_emulator_without_plugins_is_refused(
    core: SimulatedCore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guest: Path
) -> None:
    emulator = Emulator(core, model=Unit(), folder=tmp_path)
    fake = tmp_path / "qemu-aarch64"
    fake.write_text("#!/bin/sh\necho usage: qemu-aarch64\n")
    fake.chmod(0o755)
    monkeypatch.setattr(emulator, "_qemu", [*emulator._qemu[:2], str(fake)])
    with pytest.raises(SimulationError, match="without plugins") as caught, emulator:
        pass
    assert "apt-get install qemu-user" in str(caught.value.hint)
    assert _emulator.CALL_NUMBER == 0x74766D78
