"""Programs of this machine that a simulated board needs: found or named, and run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import platformdirs

from tvmx.errors import SimulationError

QEMU = "qemu-aarch64"

_INSTALL = {
    QEMU: "apt-get install qemu-user",
    "qemu-x86_64": "apt-get install qemu-user",
    "apt-get": None,
    "dpkg-deb": "apt-get install dpkg",
    "setarch": "apt-get install util-linux",
}


def cache_folder() -> Path:
    """Where guests, costs and the plugin are kept (it need not exist)."""
    return Path(platformdirs.user_cache_path("tvmx")) / "simulate"


def require(program: str) -> str:
    """Its path. Raises :class:`SimulationError` that names the command which installs it."""
    path = shutil.which(program)
    if path is None:
        command = _INSTALL[program]
        hint = f"install it as root: {command}" if command else OWN_ROOT
        raise SimulationError(f"simulated boards need {program}, which is not here", hint=hint)
    return path


OWN_ROOT = (
    "where there is no apt, unpack a Debian or Ubuntu for arm64 with Python 3.11, 3.12 or 3.13"
    " (debootstrap --arch=arm64 --foreign, or an exported container) and name the folder in the"
    " environment variable TVMX_SIM_ROOT"
)


def run(
    command: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None
) -> tuple[bool, str]:
    """Run to the end; whether it succeeded, and what it said. Everything is added to ``log``."""
    done = subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
        check=False,
    )
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"$ {' '.join(str(part) for part in command)}\n{done.stdout}\n")
    return done.returncode == 0, done.stdout


def said(text: str, marks: Sequence[str] = ()) -> str:
    """The line of a program's output that says best what is wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = [line for line in lines if line.startswith(tuple(marks))] if marks else []
    return (marked or lines or ["it wrote no message"])[-1][:400]


def pip() -> list[str]:
    """The command of pip, configured as it is for this Python."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--version"], capture_output=True, check=False
    )
    if done.returncode:
        raise SimulationError(
            f"simulated boards need pip, which {sys.executable} does not have",
            hint=f"install it: {sys.executable} -m ensurepip",
        )
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
