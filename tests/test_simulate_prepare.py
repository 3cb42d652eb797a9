"""Preparing the guest: folders that are complete or not there, apt and pip that fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tvmx.cli._main import app
from tvmx.errors import SimulationError
from tvmx.simulate import _debian, _guest, _tools, _wheels
from tvmx.simulate._components import complete, intact, size_bytes
from tvmx.simulate._overlay import board_files
from tvmx.targets import load_target
from tvmx.targets._host import ARM_PARTS, parse_cpuinfo

RECIPE = {"recipe": 1, "packages": ["a"]}


def silent(text: str) -> None:
    del text


def two_files(folder: Path) -> None:
    (folder / "lib").mkdir()
    (folder / "lib/one").write_text("1")
    (folder / "two").write_text("22")


def test_a_component_is_built_once(tmp_path: Path) -> None:
    folder = tmp_path / "root"
    assert not intact(folder, RECIPE)
    assert complete(folder, RECIPE, two_files)
    stamp = (folder / "two").stat().st_ino
    assert intact(folder, RECIPE)
    assert not complete(folder, RECIPE, two_files)
    assert (folder / "two").stat().st_ino == stamp
    assert size_bytes(folder) >= 3


@pytest.mark.parametrize("damage", ["lost", "cut", "marker", "recipe"])
def test_a_damaged_component_is_built_anew(tmp_path: Path, damage: str) -> None:
    folder, recipe = tmp_path / "root", RECIPE
    complete(folder, recipe, two_files)
    if damage == "lost":
        (folder / "lib/one").unlink()
    elif damage == "cut":
        (folder / "two").write_text("2")
    elif damage == "marker":
        (folder / ".tvmx.json").write_text('{"recipe": ')
    else:
        recipe = {**RECIPE, "recipe": 2}
    assert not intact(folder, recipe)
    assert complete(folder, recipe, two_files)
    assert (folder / "two").read_text() == "22"
    assert (folder / "lib/one").read_text() == "1"


def test_a_torn_build_leaves_nothing_that_counts(tmp_path: Path) -> None:
    folder = tmp_path / "root"

    def torn(staging: Path) -> None:
        two_files(staging)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        complete(folder, RECIPE, torn)
    assert not folder.exists()
    assert complete(folder, RECIPE, two_files)
    assert [p.name for p in tmp_path.iterdir()] == ["root"]


def test_bytecode_does_not_count(tmp_path: Path) -> None:
    complete(tmp_path / "site", RECIPE, two_files)
    (tmp_path / "site/__pycache__").mkdir()
    (tmp_path / "site/__pycache__/two.pyc").write_bytes(b"x" * 100)
    assert intact(tmp_path / "site", RECIPE)


def tools(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """PATH with nothing but these shell scripts and what they use."""
    folder.mkdir()
    for name, text in scripts.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    for name in ("sh", "cp", "tar", "cat", "rm", "sed"):
        (folder / name).symlink_to(shutil.which(name) or "/missing")
    monkeypatch.setenv("PATH", str(folder))


def package(folder: Path, name: str, tree: dict[str, str]) -> None:
    """A real .deb with these files; what begins with ``->`` is a link."""
    content = folder / name
    (content / "DEBIAN").mkdir(parents=True)
    (content / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: arm64\nMaintainer: x <x@x>\nDescription: x\n"
    )
    for path, text in tree.items():
        file = content / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("->"):
            file.symlink_to(text[2:])
        else:
            file.write_text(text)
    subprocess.run(["dpkg-deb", "-b", content, folder / f"{name}.deb"], check=True)
    shutil.rmtree(content)


needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="no dpkg-deb here")

# Stands for apt: puts the packages where its configuration (second argument) has the archives.
COPY = """case "$*" in *install*)
cache=$(sed -n 's/^Dir::Cache "\\(.*\\)";/\\1/p' "$2")
cp {packages}/*.deb "$cache/archives/";; esac"""


@needs_dpkg
@pytest.mark.parametrize("merged", [False, True], ids=["debian12", "debian13"])
def test_packages_become_a_root_of_libraries_and_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merged: bool
) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    lib = "usr/lib" if merged else "lib"
    package(packages, "libc6", {f"{lib}/ld-linux-aarch64.so.1": "ELF", "etc/ld.so.conf.d/x": "x"})
    package(
        packages,
        "python3",
        {
            "usr/bin/python3.12": "ELF",
            "usr/bin/dpkg": "ELF",
            "usr/share/doc/x": "x",
            "usr/lib/python3.12/os.py": "",
            "usr/lib/python3.12/sitecustomize.py": "->/etc/python3.12/sitecustomize.py",
        },
    )
    dpkg = shutil.which("dpkg-deb")
    tools(tmp_path / "bin", monkeypatch, apt_get=COPY.format(packages=packages))
    (tmp_path / "bin/dpkg-deb").symlink_to(str(dpkg))
    root = tmp_path / "root"
    root.mkdir()
    _debian.unpack(["python3"], tmp_path / "downloads", root, silent)
    found = {str(p.relative_to(root)) for p in root.rglob("*") if not p.is_dir()}
    expected = {"usr/bin/python3.12", "usr/lib/python3.12/os.py", f"{lib}/ld-linux-aarch64.so.1"}
    assert found == expected
    assert (root / "lib/ld-linux-aarch64.so.1").is_file()
    assert (root / "lib").is_symlink() == merged


@needs_dpkg
def test_a_damaged_package_is_named_and_downloaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages, root = tmp_path / "packages", tmp_path / "root"
    packages.mkdir()
    root.mkdir()
    (packages / "libc6.deb").write_bytes(b"half a pack")
    dpkg = shutil.which("dpkg-deb")
    tools(tmp_path / "bin", monkeypatch, apt_get=COPY.format(packages=packages))
    (tmp_path / "bin/dpkg-deb").symlink_to(str(dpkg))
    with pytest.raises(SimulationError, match=r"libc6\.deb is damaged"):
        _debian.unpack(["libc6"], tmp_path / "downloads", root, silent)
    assert not (tmp_path / "downloads/apt/cache/archives/libc6.deb").exists()


@pytest.mark.parametrize(
    ("says", "message", "hint"),
    [
        ("E: Unable to locate package libc6", "no arm64 packages", "TVMX_SIM_ROOT"),
        ("E: Package 'x' has no installation candidate", "no arm64 packages", "TVMX_SIM_ROOT"),
        ("E: Failed to fetch x  Could not resolve y", "Failed to fetch x", "check the network"),
    ],
)
def test_what_apt_lacks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, message: str, hint: str
) -> None:
    script = f'case "$*" in *install*) echo "{says}"; echo W: also; exit 100;; esac'
    tools(tmp_path / "bin", monkeypatch, apt_get=script, dpkg_deb="exit 1")
    with pytest.raises(SimulationError, match=message) as raised:
        _debian.unpack(["libc6"], tmp_path / "downloads", tmp_path / "root", silent)
    assert hint in str(raised.value.hint)
    assert says in (tmp_path / "downloads/log").read_text()


@pytest.mark.skipif(not shutil.which("apt-config"), reason="no apt here")
def test_apt_keeps_to_our_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As apt itself reads the settings: its state, cache and hooks are not this machine's."""
    config = str(shutil.which("apt-config"))
    with monkeypatch.context() as patch:
        tools(tmp_path / "bin", patch, apt_get="exit 100", dpkg_deb="exit 1")
        with pytest.raises(SimulationError):
            _debian.unpack(["libc6"], tmp_path / "own", tmp_path / "root", silent)
    dump = subprocess.run(
        [config, "-c", tmp_path / "own/apt/apt.conf", "dump"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    values: dict[str, list[str]] = {}
    for line in dump.splitlines():
        name, _, value = line.partition(" ")
        values.setdefault(name, []).append(value.rstrip(";").strip('"'))
    own = str(tmp_path / "own/apt")
    for name in ("Dir::State", "Dir::State::status", "Dir::Cache", "Dir::Log"):
        assert values[name][0].startswith(own), name
    for name in ("Dir::State::lists", "Dir::Cache::archives"):
        assert not values[name][0].startswith("/"), name
    assert values["APT::Architecture"] == ["arm64"]
    assert [v for v in values["APT::Architectures::"] if v] == ["arm64"]
    assert not [v for name, vs in values.items() if "Invoke" in name for v in vs if v]


def test_what_pip_lacks_is_said(tmp_path: Path) -> None:
    """The real pip, asked for a wheel that no file and no index can give."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        with pytest.raises(SimulationError, match="no-such-distribution") as raised:
            _wheels.install(
                ["no-such-distribution==1"], "3.11", tmp_path, tmp_path / "site", silent
            )
    assert "pip config list" in str(raised.value.hint)


def test_a_missing_tool_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    for program, command in (
        ("qemu-aarch64", "apt-get install qemu-user"),
        ("dpkg-deb", "apt-get install dpkg"),
        ("apt-get", "TVMX_SIM_ROOT"),
    ):
        with pytest.raises(SimulationError, match=program) as raised:
            _tools.require(program)
        assert command in str(raised.value.hint)


def test_a_root_of_ones_own_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVMX_SIM_ROOT", str(tmp_path))
    with pytest.raises(SimulationError, match=r"ld-linux-aarch64\.so\.1"):
        _guest.find_guest()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/ld-linux-aarch64.so.1").touch()
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/python3.9").touch()
    with pytest.raises(SimulationError, match=r"python3\.9, TVM's wheels need"):
        _guest.find_guest()


@pytest.mark.parametrize("name", ["rpi4", "rpi5", "rpi3b+", "odroid-c4", "jetson-nano", "orion-o6"])
def test_a_board_shows_its_core(name: str) -> None:
    """Read back as tvmx reads a real board's files."""
    target = load_target(name)
    files = board_files(target)
    (processor,) = parse_cpuinfo(files["proc/cpuinfo"])
    assert ARM_PARTS[int(processor["CPU part"], 0)] == target.big.core
    midr = int(files["sys/devices/system/cpu/cpu0/regs/identification/midr_el1"], 0)
    assert midr >> 24 == 0x41
    assert midr >> 4 & 0xFFF == int(processor["CPU part"], 0)
    features = processor["Features"].split()
    assert ("asimddp" in features) == ("+dotprod" in target.features)
    assert ("i8mm" in features) == ("+i8mm" in target.features)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "tvmx simulate rpi4"),
        (["host"], "only aarch64 boards"),
        (["no-such-board"], "no-such-board"),
        (["rpi4", "--count", "0"], "--count"),
    ],
)
def test_wrong_requests_are_refused(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["simulate", *arguments, "--json"])
    assert done.exit_code == 2
    error = json.loads(done.stdout)["error"]
    assert message in error["message"] + error.get("hint", "")


def test_preparing_without_tools_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    done = CliRunner().invoke(app, ["simulate", "--prepare", "--json"])
    assert done.exit_code == 1
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "SimulationError"
    assert "apt-get install qemu-user" in error["hint"]
