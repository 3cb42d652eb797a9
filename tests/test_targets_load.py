"""Target files: the built-in ones, the user's, and what is wrong with a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tvmx.errors import UnknownTargetError, UsageError
from tvmx.targets import Target, list_targets, load_target
from tvmx.targets import _loader as loader

BOARDS = {
    "rpi3b+": "cortex-a53", "rpi4": "cortex-a72", "rpi5": "cortex-a76",
    "jetson-nano": "cortex-a57", "rk3399": "cortex-a72", "odroid-c4": "cortex-a55",
    "orion-o6": "cortex-a720", "aarch64": "generic",
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's targets folder, empty."""
    monkeypatch.setattr(loader, "user_targets_dir", lambda: tmp_path)
    return tmp_path


def test_names_in_order() -> None:
    assert [e.name for e in list_targets()] == [*sorted(BOARDS), "host"]
    assert {e.origin for e in list_targets()} == {"built-in", "detected"}


@pytest.mark.parametrize("name", BOARDS)
def test_built_in_boards(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.big.core == BOARDS[name]
    assert target.triple == "aarch64-linux-gnu"
    assert (target.lanes(), target.vector_registers) == (4, 32)
    assert target.sources
    dot = {"cortex-a55", "cortex-a76", "cortex-a720"}
    assert ("+dotprod" in target.features) == (target.big.core in dot)
    assert ("+fullfp16" in target.features) == (target.big.core in dot)
    assert ("+i8mm" in target.features) == (target.big.core == "cortex-a720")
    clocks = [c.clock_mhz for c in target.clusters]
    assert clocks == sorted(clocks, reverse=True)


@pytest.mark.parametrize("name", [*BOARDS, "host"])
def test_llvm_knows_cpu_and_features(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    import tvm

    made = tvm.target.Target(load_target(name).tvm_config())
    with made:
        known = set(tvm.target.codegen.llvm_get_cpu_archlist(made))
    assert load_target(name).cpu in known
    assert "not" not in capfd.readouterr().err


def test_in_order_cores() -> None:
    assert [c.in_order for c in load_target("rk3399").clusters] == [False, True]
    assert load_target("odroid-c4").big.in_order
    assert not load_target("rpi5").big.in_order


def test_unknown_name_lists_and_suggests() -> None:
    with pytest.raises(UnknownTargetError, match="jetson-nano") as caught:
        load_target("rpi44")
    assert "rpi4" in str(caught.value.hint)
    assert caught.value.exit_code == 2


MINIMAL = """
description = "mine"
triple = "aarch64-linux-gnu"
cpu = "cortex-a53"
memory_mib = 512
[[clusters]]
core = "cortex-a53"
count = 2
clock_mhz = 1000
in_order = true
l1d_kib = 32
l2_kib = 256
"""


def write(folder: Path, text: str, name: str = "mine") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_users_target_by_name_and_by_path(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    write(folder, MINIMAL)
    assert load_target("mine").cores == 2
    assert next(e for e in list_targets() if e.name == "mine").origin == "user"
    other = write(tmp_path_factory.mktemp("elsewhere"), MINIMAL)
    assert load_target(other) == load_target(str(other)) == load_target("mine")


def test_round_trip_of_every_field() -> None:
    target = load_target("rk3399")
    assert Target.model_validate_json(target.model_dump_json()) == target


def test_a_users_target_never_replaces_a_built_in_one(folder: Path) -> None:
    path = write(folder, MINIMAL, "rpi4")
    with pytest.raises(UsageError, match="exists already") as caught:
        load_target("rpi4")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text, words",
    [
        ("triple = \n", ("mine.toml", "no TOML", "line 1")),
        (MINIMAL.replace("count = 2", "count = 0"), ("mine.toml", "clusters.0.count")),
        (MINIMAL.replace("memory_mib = 512", ""), ("memory_mib", "required")),
        (MINIMAL.replace("memory_mib = 512", "memory = 512"), ("memory:", "not permitted")),
        (MINIMAL.split("[[", maxsplit=1)[0], ("clusters",)),
        ('name = "other"' + MINIMAL, ("'other'", "'mine'")),
        (MINIMAL.replace("memory_mib", 'features = ["neon"]\nmemory_mib'), ("features", "'neon'")),
        (MINIMAL.replace("memory_mib", "vector_bits = 100\nmemory_mib"), ("vector_bits", "100")),
    ],
)
def test_malformed_file_names_file_and_field(
    folder: Path, text: str, words: tuple[str, ...]
) -> None:
    write(folder, text)
    with pytest.raises(UsageError) as caught:
        load_target("mine")
    for word in words:
        assert word in str(caught.value)


def test_missing_file_and_bytes_that_are_no_text(folder: Path) -> None:
    with pytest.raises(UnknownTargetError, match="absent"):
        load_target(folder / "absent.toml")
    (folder / "mine.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="no TOML"):
        load_target("mine")


def test_loading_needs_no_tvm() -> None:
    code = (
        "import sys; from tvmx.targets import list_targets, load_target;"
        "[load_target(e.name) for e in list_targets()];"
        "assert not {'tvm', 'numpy', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
