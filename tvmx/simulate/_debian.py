"""Debian packages for arm64 in a private folder.

apt reads this machine's sources and keys, and nothing else of its state: lists, cache and the
list of installed packages (none) are in folders of ours, the architecture is set for this one
call. No rights are needed, and ``dpkg --print-foreign-architectures`` stays what it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from tvmx.errors import SimulationError
from tvmx.simulate._tools import OWN_ROOT, require, run, said

PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6", "libgcc-s1", "zlib1g")

# The hooks of a desktop's apt (software centres, command-not-found) write to the system.
_CONFIGURATION = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Pre-Install-Pkgs;
#clear DPkg::Post-Invoke;
#clear APT::Architectures;
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Sandbox::User "root";
APT::Get::Assume-Yes "true";
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Cache::archives "archives";
Dir::Log "{folder}/log";
"""
_KEPT = ("lib", "usr/lib", "usr/bin")
_LOADER = "lib/ld-linux-aarch64.so.1"


def unpack(
    packages: Sequence[str], downloads: Path, root: Path, say: Callable[[str], None]
) -> None:
    """Download ``packages`` and all they depend on, and unpack them into ``root``.

    Only programs and libraries are kept: qemu looks up every absolute path in ``root`` first,
    and a guest should see this machine's files, not a second /etc. Complete downloads stay in
    ``downloads`` and are not repeated. Raises :class:`SimulationError`.
    """
    apt, dpkg = require("apt-get"), require("dpkg-deb")
    folder = downloads / "apt"
    archives = folder / "cache" / "archives"
    for path in (folder / "state/lists/partial", archives / "partial", folder / "log"):
        path.mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    settings = folder / "apt.conf"
    settings.write_text(_CONFIGURATION.format(folder=folder), encoding="utf-8")
    log = downloads / "log"
    say("apt: reading the package lists for arm64")
    updated, news = run([apt, "-c", settings, "update"], log)
    say(f"apt: downloading {', '.join(packages)} and what they need")
    got, text = run([apt, "-c", settings, "--download-only", "install", *packages], log)
    if not got:
        raise _failure(news if not updated else text, log)
    say("unpacking the packages")
    for archive in sorted(archives.glob("*.deb")):
        done, text = run([dpkg, "-x", archive, root], log)
        if not done:
            archive.unlink()
            raise SimulationError(
                f"the package {archive.name} is damaged: {said(text)}",
                hint="run `tvmx simulate --prepare` again: it is downloaded anew",
            )
    _tidy(root)


def _failure(text: str, log: Path) -> SimulationError:
    if "Unable to locate package" in text or "has no installation candidate" in text:
        return SimulationError(
            "apt's sources on this machine have no arm64 packages (Ubuntu keeps them on another"
            " server than those for x86)",
            hint=f"add a source for [arch=arm64], or do without apt: {OWN_ROOT}",
        )
    return SimulationError(
        f"apt could not download the arm64 packages: {said(text, ('E:', 'Err:'))}",
        hint="check the network and apt's sources (`apt-get update`), then run `tvmx simulate"
        f" --prepare` again: what is complete is kept; apt's own words are in {log}",
    )


def _tidy(root: Path) -> None:
    """Drop what is neither program nor library, and links that lead out of ``root``."""
    for path in list(root.iterdir()):
        if path.name not in ("lib", "usr"):
            _remove(path)
    for path in list((root / "usr").iterdir()):
        if f"usr/{path.name}" not in _KEPT:
            _remove(path)
    for path in list((root / "usr/bin").iterdir()):
        if not path.name.startswith("python3"):
            _remove(path)
    if not (root / "lib").exists():  # since Debian 13 packages hold only usr/lib
        (root / "lib").symlink_to("usr/lib")
    for path in list(root.rglob("*")):
        if path.is_symlink() and path.readlink().is_absolute():
            path.unlink()
    if not (root / _LOADER).exists():
        raise SimulationError(
            f"the arm64 packages brought no {_LOADER}", hint=f"use a root of your own: {OWN_ROOT}"
        )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
