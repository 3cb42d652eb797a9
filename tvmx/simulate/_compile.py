"""The emulator's plugin, compiled by this machine's C compiler into the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import filelock

from tvmx.errors import SimulationError
from tvmx.simulate._tools import cache_folder

SOURCES = Path(__file__).parent / "plugin"
_FLAGS = ("-std=gnu11", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread")
_INSTALL = "install one as root: apt-get install gcc libc6-dev; or name one in CC"


def sources_digest() -> str:
    """What the plugin is made of: another digest may count otherwise."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.glob("*.[ch]")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:16]


def plugin_library(folder: Path | None = None) -> Path:
    """The compiled plugin; made when there is none of these very sources and this compiler.

    Raises:
        SimulationError: no C compiler (the hint installs one), or it failed.
    """
    compiler = _compiler()
    if folder is None:
        folder = cache_folder() / "plugin"
    digest = hashlib.sha256(" ".join([*compiler, *_FLAGS, sources_digest()]).encode())
    library = folder / f"tvmx-{digest.hexdigest()[:16]}.so"
    if not library.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / "lock"):
            if not library.is_file():
                _compile(compiler, library)
    return library


def _compiler() -> list[str]:
    """The host's own C compiler: the plugin becomes part of the host's qemu."""
    named = shlex.split(os.environ.get("CC", ""))
    for command in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        path = shutil.which(command[0])
        if path is not None:
            return [path, *command[1:]]
    what = f"CC names {named[0]}, which is not here" if named else "there is none"
    raise SimulationError(f"simulated boards need a C compiler; {what}", hint=_INSTALL)


def _compile(compiler: list[str], library: Path) -> None:
    partial = library.with_suffix(f".{os.getpid()}.partial")
    sources = [str(path) for path in sorted(SOURCES.glob("*.c"))]
    command = [*compiler, *_FLAGS, "-o", str(partial), *sources]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), "")
            raise SimulationError(
                f"{compiler[0]} did not compile the simulator's plugin: {first or done.stderr}",
                hint=_INSTALL,
            )
        partial.rename(library)
    finally:
        partial.unlink(missing_ok=True)
