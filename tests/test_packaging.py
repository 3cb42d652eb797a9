"""The wheel, the resources it carries, the pins, and the entry points of the Makefile."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hatchling.build import build_wheel
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import tvmx
from tvmx import _resources
from tvmx.errors import TvmxError

ROOT = Path(__file__).parents[1]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return folder / build_wheel(str(folder))


def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    every = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(r.name): r for r in every}


def test_wheel_carries_schedules_and_targets(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = [*ROOT.glob("schedules/**/*.py"), *ROOT.glob("targets/**/*.toml")]
    packaged = {f"tvmx/_{path.relative_to(ROOT).as_posix()}" for path in sources}
    assert any(name.startswith("tvmx/_schedules/") for name in packaged)
    assert any(name.startswith("tvmx/_targets/") for name in packaged)
    assert packaged <= names


def test_wheel_carries_the_package_and_nothing_foreign(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    info = f"tvmx-{tvmx.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"tvmx", info}
    assert "tvmx/py.typed" in names
    assert not [name for name in names if "__pycache__" in name]


def test_wheel_carries_the_plugin_and_both_licences(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = f"tvmx-{tvmx.__version__}.dist-info"
    folder = "tvmx/simulate/plugin"
    files = {path.name for path in (ROOT / folder).iterdir() if path.is_file()}
    assert {"plugin.c", "model.h", "LICENSE", "README.md"} <= files
    for name in files:
        assert archive.read(f"{folder}/{name}") == (ROOT / folder / name).read_bytes()
    apache = archive.read(f"{info}/licenses/LICENSE").decode()
    gpl = archive.read(f"{info}/licenses/{folder}/LICENSE").decode()
    assert "Apache License\n" in apache
    assert "GNU GENERAL PUBLIC LICENSE\n                       Version 2, June 1991" in gpl


def test_the_plugin_compiles_from_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        pytest.skip("needs a C compiler: make setup-sim")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import sys, pathlib; from tvmx.simulate._compile import plugin_library;"
        " print(plugin_library(pathlib.Path(sys.argv[1])))"
    )
    out = subprocess.check_output(
        [sys.executable, "-c", code, str(tmp_path / "built")],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")}, cwd=tmp_path, text=True,
    )  # fmt: skip
    assert Path(out.strip()).read_bytes()[:4] == b"\x7fELF"


def test_only_the_plugin_is_gpl() -> None:
    """Its sources say so, and nothing else that is shipped does."""
    folder = ROOT / "tvmx" / "simulate" / "plugin"
    mark = "SPDX-License-Identifier: GPL-2.0-or-later"
    sources = set(folder.glob("*.[ch]"))
    assert all(mark in path.read_text() for path in sources)
    shipped = [path for top in ("tvmx", "schedules", "targets") for path in (ROOT / top).rglob("*")]
    texts = {
        p for p in shipped if p.suffix in (".py", ".c", ".h", ".toml") and mark in p.read_text()
    }
    assert texts == sources


def test_wheel_metadata(wheel: Path) -> None:
    info = f"tvmx-{tvmx.__version__}.dist-info"
    archive = zipfile.ZipFile(wheel)
    metadata = archive.read(f"{info}/METADATA").decode()
    assert f"\nVersion: {tvmx.__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0 AND GPL-2.0-or-later\n" in metadata
    assert "tvmx = tvmx.cli:main" in archive.read(f"{info}/entry_points.txt").decode()


def test_installed_wheel_finds_its_own_resources(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "from tvmx._resources import *; print(schedules_dir(), targets_dir(), sep='\\n')"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    out = subprocess.check_output(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, text=True
    )
    package = tmp_path.resolve() / "tvmx"
    assert out.splitlines() == [str(package / "_schedules"), str(package / "_targets")]


def test_checkout_uses_its_top_level_folders() -> None:
    assert _resources.schedules_dir() == ROOT.resolve() / "schedules"
    assert _resources.targets_dir() == ROOT.resolve() / "targets"


def test_missing_resources_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "targets").mkdir()  # somebody else's, as it could be in site-packages
    monkeypatch.setattr(_resources, "_PACKAGE", tmp_path / "tvmx")
    with pytest.raises(TvmxError, match="built-in targets are missing") as caught:
        _resources.targets_dir()
    assert caught.value.hint


def test_importing_tvmx_loads_nothing_else() -> None:
    code = "import sys; b = set(sys.modules); import tvmx; print(*(set(sys.modules) - b))"
    out = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert set(out.split()) <= {"tvmx", "__future__"}


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    described = project()
    extras = described["optional-dependencies"].values()
    for line in itertools.chain(described["dependencies"], *extras):
        wanted = Requirement(line)
        (pin,) = pins()[canonicalize_name(wanted.name)].specifier
        assert pin.operator == "=="
        assert wanted.specifier.contains(pin.version), line


def test_pins_hold_anywhere() -> None:
    for pin in pins().values():
        assert pin.url is None
        (specifier,) = pin.specifier
        assert "+" not in specifier.version, f"{pin} names a build that one index has"


@needs_make
@pytest.mark.parametrize("target", ["setup", "demo", "test", "lint", "clean"])
def test_make_target(target: str) -> None:
    subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


@needs_make
def test_demo_and_test_set_up_first(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for target in ("demo", "test"):
        out = subprocess.check_output(["make", "-n", target], cwd=tmp_path, text=True)
        assert out.index("pip install") < out.index({"demo": "digits.py", "test": "check"}[target])


@needs_make
def test_setup_refuses_an_unsupported_python(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "python3.10"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.10.4 && exit\nexit 1\n')
    old.chmod(0o755)
    done = subprocess.run(
        ["make", "setup", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert re.search(r"needs Python 3\.11.*is Python 3\.10\.4\..*PYTHON=", done.stderr)
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("script", [".ci/run", "scripts/check"])
def test_scripts_can_be_run(script: str) -> None:
    path = ROOT / script
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", str(path)], check=True)
