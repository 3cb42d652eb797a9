"""Costs of blocks: llvm-mca's figures, the cache on disk, and the server the plugin asks."""

from __future__ import annotations

import re
import socket
import struct
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.simulated import REQUIRED
from tvmx.errors import SimulationError
from tvmx.simulate import _mca
from tvmx.simulate._compile import plugin_library
from tvmx.simulate._costs import CostCache, CostServer
from tvmx.simulate._mca import Analyser, Code, analyser

UNDECODABLE = b"\xff\xff\xff\xff"


def analyse(cpu: str, *, triple: str = "aarch64-linux-gnu") -> Analyser:
    try:
        return analyser(triple, cpu, ("+all",) if triple.startswith("aarch64") else ())
    except SimulationError as err:
        if REQUIRED:
            raise
        pytest.skip(f"{err.message}: make setup-sim")


def assemble(text: str, *, triple: str = "aarch64-linux-gnu") -> Code:
    """By llvm-mc; lines are parted by semicolons."""
    tool = analyse("cortex-a72").mc
    attrs = ["-mattr=+all"] if triple.startswith("aarch64") else []
    done = subprocess.run(
        [str(tool), f"-triple={triple}", *attrs, "-show-encoding"],
        input=text.replace(";", "\n") + "\n", capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = re.findall(r"encoding: \[(.*)\]", done.stdout)
    parts = [bytes(int(b, 16) for b in one.split(",")) for one in found]
    return Code(bytes(map(len, parts)), b"".join(parts))


def cycles(cpu: str, text: str) -> float:
    return analyse(cpu).costs([assemble(text)])[0] / 1000


INDEPENDENT = ";".join(f"fmla v{i}.4s, v30.4s, v31.4s" for i in range(16))


@pytest.mark.parametrize(
    ("cpu", "text", "expected"),
    [
        # Arm's software optimisation guides: peak of one 128-bit fmla a cycle on A72, two on N1
        # (A76), load to use in 4 cycles, two simple additions a cycle on A72.
        ("cortex-a72", INDEPENDENT, 16),
        ("neoverse-n1", INDEPENDENT, 8),
        ("cortex-a53", INDEPENDENT, 16),
        ("cortex-a72", "ldr x0, [x0]", 4),
        ("neoverse-n1", "ldr x0, [x0]", 4),
        ("cortex-a72", ";".join(f"add x{i}, x{i}, #1" for i in range(16)), 8),
        ("cortex-a72", "subs x0, x0, #1; b.ne #-4", 1),
    ],
)
def test_known_throughputs(cpu: str, text: str, expected: float) -> None:
    assert cycles(cpu, text) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("cpu", ["cortex-a72", "neoverse-n1", "cortex-a53", "cortex-a55"])
def test_a_moved_base_is_ready_before_the_loaded_value(cpu: str) -> None:
    """Two loads from a pointer that moves on: no chain through the load's latency."""
    moved = cycles(cpu, "ldr q0, [x0], #16; ldr q1, [x0], #16")
    plain = cycles(cpu, "ldr q0, [x0]; add x0, x0, #16; ldr q1, [x0]; add x0, x0, #16")
    assert moved == plain


@pytest.mark.parametrize(
    ("written", "access", "step"),
    [
        ("ldp q0, q1, [x3], #32", "ldp\tq0, q1, [x3]", "add\tx3, x3, #32"),
        ("stp x29, x30, [sp, #-48]!", "stp\tx29, x30, [sp, #-48]", "sub\tsp, sp, #48"),
        ("ld1 {v0.4s, v1.4s}, [x1], x2", "ld1\t{ v0.4s, v1.4s }, [x1]", "add\tx1, x1, x2"),
        ("ld1 {v0.16b}, [x1], #16", "ld1\t{ v0.16b }, [x1]", "add\tx1, x1, #16"),
        ("ldrb w2, [x1, #-1]!", "ldrb\tw2, [x1, #-1]", "sub\tx1, x1, #1"),
    ],
)
def test_how_a_moved_base_is_written(written: str, access: str, step: str) -> None:
    (text,) = analyse("cortex-a72")._disassemble([assemble(written)])
    assert [line.split(" //")[0].strip() for line in text] == [access, step]
    both = ["ldr q0, [x0, #16]", "ldr q0, [x0, x1, lsl #4]", "str q0, [x0]", "prfm pldl1keep, [x0]"]
    kept = analyse("cortex-a72")._disassemble([assemble(";".join(both))])
    assert len(kept[0]) == len(both), "a base that stays is left alone"


def test_calls_and_returns_cost_as_branches() -> None:
    assert cycles("cortex-a72", "add x0, x0, #1; bl #64") <= 2
    assert cycles("cortex-a72", "add x0, x0, #1; blr x3") <= 2
    assert cycles("cortex-a72", "ldr x1, [x2]; ret") <= 2


def test_unknown_instructions_cost_one_cycle() -> None:
    add = assemble("add x0, x0, #1")
    blocks = [
        add,
        Code(bytes([4, 4]), add.data + UNDECODABLE),
        Code(bytes([4, 4]), UNDECODABLE * 2),
        assemble("add x0, x0, #1; fmla z0.s, p0/m, z1.s, z2.s"),  # no figures for it on A72
    ]
    assert analyse("cortex-a72").costs(blocks) == [1000, 2000, 2000, 2000]


@pytest.mark.parametrize("cpu", ["cortex-a72", "cortex-a53"])
def test_a_cost_does_not_depend_on_the_company(cpu: str) -> None:
    texts = [INDEPENDENT, "svc #0", "ldr x0, [x0]", f"{INDEPENDENT};{INDEPENDENT};{INDEPENDENT}",
             "mrs x0, tpidr_el0; add x0, x0, #1", "dmb ish", "b #4", "udiv x0, x0, x1"]  # fmt: skip
    blocks = [assemble(text) for text in texts] * 12
    model = analyse(cpu)
    together = model.costs(blocks)
    assert together == [model.costs([block])[0] for block in blocks[: len(texts)]] * 12
    assert together == model.costs(blocks[::-1])[::-1]
    assert all(cost > 0 for cost in together)


def test_x86_blocks_for_the_validation_on_the_host() -> None:
    code = assemble(
        "lock cmpxchgl %ecx, (%rdi); rep movsb; vaddps %ymm0, %ymm1, %ymm2; jne -24",
        triple="x86_64-linux-gnu",
    )
    prefixed = Code(bytes([4, *code.sizes[-3:]]), code.data)
    assert sum(prefixed.sizes) == len(code.data)
    model = analyse("skylake", triple="x86_64-linux-gnu")
    assert model.costs([prefixed])[0] > 1000
    assert model.costs([assemble("vaddps %ymm0, %ymm1, %ymm0", triple=model.triple)]) == [4000]


def test_a_core_llvm_does_not_know() -> None:
    with pytest.raises(SimulationError, match="cortex-a999") as caught:
        analyse("cortex-a999").costs([assemble("add x0, x0, #1")])
    assert "llvm" in str(caught.value.hint)


def fake(path: Path, version: str) -> Path:
    path.write_text(f"#!/bin/sh\necho 'LLVM version {version}'\n")
    path.chmod(0o755)
    return path


def test_the_newest_suitable_llvm_mca(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(_mca.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    (tmp_path / "none").mkdir()
    for name, version in (("-14", "14.0.6"), ("-21", "21.1.0"), ("-55", "55.0.1"), ("", "20.1.2")):
        fake(tmp_path / f"llvm-mca{name}", version)
        fake(tmp_path / f"llvm-mc{name}", version)
    found = analyser("aarch64-linux-gnu", "cortex-a72")
    assert (found.mca, found.mc) == (tmp_path / "llvm-mca-55", tmp_path / "llvm-mc-55")
    assert "llvm-mca 55.0.1" in found.name
    assert "cortex-a72" in found.name

    monkeypatch.setenv(_mca.VARIABLE, str(tmp_path / "llvm-mca-21"))
    assert analyser("aarch64-linux-gnu", "cortex-a72").version == "21.1.0"
    monkeypatch.setenv(_mca.VARIABLE, str(tmp_path / "llvm-mca-14"))
    with pytest.raises(SimulationError, match="no llvm-mca of LLVM 20"):
        analyser("aarch64-linux-gnu", "cortex-a72")


def test_no_llvm_mca_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(_mca.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SimulationError, match="llvm-mca") as caught:
        analyser("aarch64-linux-gnu", "cortex-a72")
    assert "apt-get install llvm-22" in str(caught.value.hint)


class Counting:
    """Costs the length of the code, and remembers what it was asked."""

    name = "counting"

    def __init__(self) -> None:
        self.asked: list[Code] = []

    def costs(self, blocks: Sequence[Code]) -> list[int]:
        self.asked += blocks
        return [len(block.data) * 10 + len(block.sizes) for block in blocks]


BLOCKS = [Code(bytes([4] * n), bytes(range(n)) * 4) for n in range(1, 150)]


def test_each_block_is_analysed_once_and_kept_on_disk(tmp_path: Path) -> None:
    model = Counting()
    with CostServer(model, tmp_path) as server:
        first = server.answer(BLOCKS + BLOCKS[:5])
        assert server.answer(BLOCKS[10:20]) == first[10:20]
        assert server.analysed == len(model.asked) == len(set(model.asked)) == len(BLOCKS)
    assert first == Counting().costs(BLOCKS + BLOCKS[:5])
    again = Counting()
    with CostServer(again, tmp_path) as server:
        assert server.answer(BLOCKS[::-1]) == first[: len(BLOCKS)][::-1]
    assert not again.asked


def test_same_bytes_cut_otherwise_are_another_block(tmp_path: Path) -> None:
    cuts = [Code(bytes([4, 4]), b"01234567"), Code(bytes([8]), b"01234567")]
    with CostServer(Counting(), tmp_path) as server:
        assert server.answer(cuts) == [82, 81]


def test_other_models_have_files_of_their_own(tmp_path: Path) -> None:
    class Other(Counting):
        name = "other"

    other = Other()
    for model in (Counting(), other):
        with CostServer(model, tmp_path) as server:
            server.answer(BLOCKS[:3])
    assert other.asked == BLOCKS[:3]
    assert len(list(tmp_path.glob("*.sqlite"))) == 2


def test_servers_share_a_cache(tmp_path: Path) -> None:
    def work(_: int) -> list[int]:
        with CostServer(Counting(), tmp_path) as server:
            return [server.answer([block])[0] for block in BLOCKS[:40]]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, range(4)))
    assert found == [Counting().costs(BLOCKS[:40])] * 4


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    path = CostCache("m", tmp_path).path
    for file in tmp_path.iterdir():
        file.unlink()
    path.write_bytes(b"not a database " * 100)
    with pytest.raises(SimulationError, match=re.escape(str(path))) as caught:
        CostCache("m", tmp_path)
    assert f"rm {path}" in str(caught.value.hint)


def test_the_protocol_and_a_client_that_hangs_up(tmp_path: Path) -> None:
    with CostServer(Counting(), tmp_path) as server:
        for sent, expected in (
            (struct.pack("=III", 1, 1, 4) + b"\x04abcd", struct.pack("=q", 41)),
            (struct.pack("=II", 2, 1), b""),
            (struct.pack("=I", 0), b""),
        ):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(server.path))
                client.sendall(sent)
                client.shutdown(socket.SHUT_WR)
                assert client.makefile("rb").read() == expected
        assert "ended while asking" in str(server.failure)
        assert server.answer([BLOCKS[0]]) == [41]
    assert not server.path.parent.exists()


def test_the_plugin_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(lambda _: plugin_library(tmp_path), range(3))
    assert others == [first, first]
    made = first.stat().st_mtime_ns
    assert plugin_library(tmp_path).stat().st_mtime_ns == made
    assert [p.name for p in tmp_path.glob("*.so*")] == [first.name]

    monkeypatch.setenv("CC", "no-such-compiler -O1")
    with pytest.raises(SimulationError, match="no-such-compiler") as caught:
        plugin_library(tmp_path)
    assert "apt-get install gcc" in str(caught.value.hint)
    monkeypatch.setenv("CC", "false")
    with pytest.raises(SimulationError, match="did not compile"):
        plugin_library(tmp_path / "other")
