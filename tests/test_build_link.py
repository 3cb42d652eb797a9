"""Linkers: which one is taken, what the library needs, what is said when there is none."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tvmx.build import LINKER_ENV, fcompile, find_linker, host_arch, link, read_elf
from tvmx.errors import BuildError, LinkerError
from tvmx.targets import Cluster, Target

CLUSTER = Cluster(core="any", count=2, clock_mhz=1000, in_order=True, l1d_kib=32, l2_kib=512)
OTHER = "aarch64" if host_arch() == "x86_64" else "x86_64"
CODE = "double exp(double); double answer(double x) { return exp(x) + 1; }\n"
UNRESOLVED = """
int TVMFFIErrorSetRaisedFromCStr(void);
int f(void) { return TVMFFIErrorSetRaisedFromCStr(); }
"""


def target(arch: str, glibc: str = "2.28") -> Target:
    return Target(
        name=f"test-{arch}",
        description="",
        triple=f"{arch}-linux-gnu",
        cpu="generic",
        glibc=glibc,
        memory_mib=512,
        clusters=(CLUSTER,),
    )


def source(folder: Path, text: str = CODE) -> Path:
    path = folder / "answer.c"
    path.write_text(text)
    return path


def script(folder: Path, name: str, body: str) -> Path:
    path = folder / name
    path.write_text("#!/bin/sh\n" + body)
    path.chmod(0o755)
    return path


def hide_ziglang(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        return None if name == "ziglang" else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LINKER_ENV, raising=False)


def test_host_library_loads_and_needs_only_libc_and_libm(tmp_path: Path) -> None:
    out = tmp_path / "answer.so"
    link([source(tmp_path)], out, target(host_arch()))
    facts = read_elf(out)
    assert facts.machine == host_arch()
    assert {name.split(".")[0] for name in facts.needed} <= {"libc", "libm"}
    assert "libm.so.6" in facts.needed
    function = ctypes.CDLL(str(out)).answer
    function.restype, function.argtypes = ctypes.c_double, [ctypes.c_double]
    assert function(0.0) == 2.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["answer.c", "answer.so"]


@pytest.mark.cross
def test_cross_library_by_zig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert find_linker(target(OTHER)).origin == "ziglang"
    link([source(tmp_path)], tmp_path / "answer.so", target(OTHER))
    facts = read_elf(tmp_path / "answer.so")
    assert facts.machine == OTHER
    assert {name.split(".")[0] for name in facts.needed} <= {"libc", "libm"}
    assert (2, 0) < facts.glibc <= (2, 28)


@pytest.mark.cross
def test_runtime_symbols_stay_open(tmp_path: Path) -> None:
    for arch in (host_arch(), OTHER):
        link([source(tmp_path, UNRESOLVED)], tmp_path / "f.so", target(arch))
        assert read_elf(tmp_path / "f.so").machine == arch


@pytest.mark.cross
def test_zig_keeps_no_objects_and_survives_an_unwritable_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An assembler file whose included bytes change must not come out of zig's cache."""
    zig = shlex.join([sys.executable, "-m", "ziglang", "cc", "-target", f"{OTHER}-linux-gnu.2.28"])
    monkeypatch.setenv(LINKER_ENV, zig)
    blob, code = tmp_path / "blob", tmp_path / "blob.S"
    code.write_text(f'.section .rodata\n.globl blob\nblob: .incbin "{blob}"\n')
    for text in (b"first-version", b"other-version"):
        blob.write_bytes(text)
        link([code], tmp_path / "blob.so", target(OTHER))
        assert text in (tmp_path / "blob.so").read_bytes()
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    monkeypatch.setenv("HOME", "/proc/none")
    from tvmx.build import _link

    environment = _link._zig_environment(str(tmp_path))
    assert os.access(environment["ZIG_GLOBAL_CACHE_DIR"], os.W_OK)
    assert not environment["ZIG_GLOBAL_CACHE_DIR"].startswith("/proc")


def test_cross_driver_comes_before_zig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path, "aarch64-linux-gnu-g++", "exit 0\n")
    script(tmp_path, "cc", "exit 0\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert find_linker(target("aarch64")).origin == "aarch64-linux-gnu-g++"
    assert find_linker(target("x86_64")).origin == "cc"
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert find_linker(target("aarch64")).origin == "cc"


@pytest.mark.parametrize("arch", [host_arch(), OTHER])
def test_no_linker_at_all(arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    hide_ziglang(monkeypatch)
    with pytest.raises(LinkerError, match=f"no linker for target 'test-{arch}'") as caught:
        link([source(tmp_path)], tmp_path / "out.so", target(arch))
    assert caught.value.hint is not None
    assert "pip install ziglang" in caught.value.hint
    assert "apt install" in caught.value.hint


def test_own_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    body = f'echo "$@" > {shlex.quote(str(log))}\nexec {shutil.which("cc")} "$@"\n'
    wrapper = script(tmp_path, "my linker", body)
    monkeypatch.setenv(LINKER_ENV, f"{shlex.quote(str(wrapper))} -s")
    link([source(tmp_path)], tmp_path / "out.so", target(host_arch()))
    assert log.read_text().startswith("-s -shared")


@pytest.mark.parametrize("value", ["/no/such/linker -x", "'unbalanced", " "])
def test_own_command_that_is_none(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LINKER_ENV, value)
    with pytest.raises(LinkerError, match=LINKER_ENV):
        link([source(tmp_path)], tmp_path / "out.so", target(host_arch()))


def test_failing_linker_shows_its_words_and_leaves_the_old_library(tmp_path: Path) -> None:
    out = tmp_path / "out.so"
    out.write_text("old")
    with pytest.raises(LinkerError, match="int main") as caught:
        link([source(tmp_path, "int main( {\n")], out, target(host_arch()))
    assert f"test-{host_arch()}" in caught.value.message
    assert out.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["answer.c", "out.so"]


def test_library_for_another_machine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LINKER_ENV, str(shutil.which("cc")))
    with pytest.raises(LinkerError, match=f"linked for {host_arch()}"):
        link([source(tmp_path)], tmp_path / "out.so", target(OTHER))
    assert not (tmp_path / "out.so").exists()


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_foreign_dependencies_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = tmp_path / "a.cc"
    code.write_text("#include <iostream>\nvoid f() { std::cout << 1; }\n")
    monkeypatch.setenv(LINKER_ENV, "g++")
    with pytest.raises(LinkerError, match=r"libstdc\+\+"):
        link([code], tmp_path / "out.so", target(host_arch()))
    code.write_text('extern "C" int f() { return 1; }\n')
    link([code], tmp_path / "out.so", target(host_arch()))
    assert not any("stdc++" in name for name in read_elf(tmp_path / "out.so").needed)


@pytest.mark.cross
def test_glibc_newer_than_the_target_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zig = shlex.join([sys.executable, "-m", "ziglang", "cc", "-target", f"{OTHER}-linux-gnu.2.34"])
    monkeypatch.setenv(LINKER_ENV, zig)
    with pytest.raises(LinkerError, match=r"glibc 2\.\d+, target .* has 2\.17"):
        link([source(tmp_path)], tmp_path / "out.so", target(OTHER, glibc="2.17"))


def test_fcompile_takes_what_tvm_passes(tmp_path: Path) -> None:
    out = str(tmp_path / "out.so")
    fcompile(target(host_arch()))(out, [str(source(tmp_path))], options=["-DX=1"])
    assert read_elf(Path(out)).machine == host_arch()


def test_read_elf_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("no elf")
    for name in ("x", "missing"):
        with pytest.raises(BuildError, match=name):
            read_elf(tmp_path / name)


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf")
def test_read_elf_agrees_with_readelf(tmp_path: Path) -> None:
    link([source(tmp_path)], tmp_path / "out.so", target(host_arch()))
    text = subprocess.run(
        ["readelf", "-d", str(tmp_path / "out.so")], capture_output=True, text=True, check=True
    ).stdout
    needed = [line.split("[")[1].rstrip("]") for line in text.splitlines() if "(NEEDED)" in line]
    assert list(read_elf(tmp_path / "out.so").needed) == needed
