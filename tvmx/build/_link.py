"""Linking object files to a shared library for a target: compiler driver, cross driver or zig."""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from tvmx.build._elf import read_elf
from tvmx.errors import BuildError, LinkerError
from tvmx.targets import Target

LINKER_ENV = "TVMX_LINKER"
# Debug sections name the temporary build folder: equal plans would give unequal libraries.
_FLAGS = ("-shared", "-fPIC", "-O2", "-Wl,--as-needed", "-Wl,--strip-debug")
_TAIL = ("-lm",)
_TIMEOUT_S = 600
_ALLOWED = ("libc.so.", "libm.so.", "libpthread.so.", "libdl.so.", "ld-linux")


@dataclass(frozen=True)
class Linker:
    """A command that takes compiler-driver options, and where it was found."""

    command: tuple[str, ...]
    origin: str

    @property
    def is_zig(self) -> bool:
        """Whether the command is the PyPI ``ziglang`` driver."""
        return "ziglang" in self.command


def host_arch() -> str:
    """Architecture of this machine as an LLVM triple spells it."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def find_linker(target: Target) -> Linker:
    """The linker for ``target``.

    In this order: the command in ``TVMX_LINKER``; for this machine's architecture ``cc``,
    ``gcc`` or ``clang``, for another ``<arch>-linux-gnu-g++`` or ``-gcc``; PyPI ``ziglang``.
    Raises LinkerError, naming what to install, when there is none.
    """
    own = os.environ.get(LINKER_ENV)
    if own:
        return _from_environment(own)
    native = target.arch == host_arch()
    names = ("cc", "gcc", "clang") if native else _cross_names(target.arch)
    for name in names:
        path = shutil.which(name)
        if path:
            return Linker((path,), name)
    if importlib.util.find_spec("ziglang") is not None:
        triple = f"{target.arch}-linux-gnu.{target.glibc}"
        command = (sys.executable, "-m", "ziglang", "cc", "-target", triple)
        return Linker(command, "ziglang")
    package = "gcc" if native else f"g++-{target.arch.replace('_', '-')}-linux-gnu"
    raise LinkerError(
        f"no linker for target {target.name!r}: none of {', '.join(names)} is on PATH"
        " and the Python package ziglang is not installed",
        hint=f"pip install ziglang   (or: apt install {package}, or set {LINKER_ENV})",
    )


def _cross_names(arch: str) -> tuple[str, ...]:
    return (f"{arch}-linux-gnu-g++", f"{arch}-linux-gnu-gcc")


def _from_environment(own: str) -> Linker:
    try:
        command = tuple(shlex.split(own))
    except ValueError as err:
        raise LinkerError(f"{LINKER_ENV}={own!r} is no command line: {err}") from err
    if not command or shutil.which(command[0]) is None:
        raise LinkerError(
            f"{LINKER_ENV}={own!r}: no such program", hint=f"unset {LINKER_ENV}, or correct it"
        )
    return Linker(command, LINKER_ENV)


def link(
    objects: Sequence[Path], output: Path, target: Target, *, options: Sequence[str] = ()
) -> Linker:
    """Link ``objects`` (objects, C or assembler files) to the shared library ``output``.

    TVM's runtime symbols stay undefined and are resolved when the library is loaded. The
    result is checked: it is for the target's architecture, needs nothing besides libc and
    libm, and no glibc newer than the target's. Written by rename, so ``output`` is either
    complete or untouched. Returns the linker used; raises LinkerError.
    """
    linker = find_linker(target)
    partial = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        _run(linker, objects, partial, target, options)
        _verify(partial, linker, target)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return linker


def _run(
    linker: Linker, objects: Sequence[Path], output: Path, target: Target, options: Sequence[str]
) -> None:
    command = [*linker.command, *_FLAGS, *options, "-o", str(output), *map(str, objects), *_TAIL]
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        with tempfile.TemporaryDirectory(prefix="tvmx-link-") as scratch:
            if linker.is_zig:
                environment.update(_zig_environment(scratch))
            done = subprocess.run(
                command,
                env=environment,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT_S,
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise LinkerError(f"linking {output.name} with {linker.origin} failed: {err}") from err
    if done.returncode != 0 or not output.is_file():
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise LinkerError(
            f"{linker.origin} could not link for target {target.name!r}"
            f" (exit code {done.returncode}): {tail}",
            hint=f"set {LINKER_ENV} to another linker command",
        )


def _verify(library: Path, linker: Linker, target: Target) -> None:
    try:
        facts = read_elf(library)
    except BuildError as err:
        raise LinkerError(f"{linker.origin} did not write a library: {err.message}") from err
    if facts.machine != target.arch:
        raise LinkerError(
            f"{linker.origin} linked for {facts.machine}, target {target.name!r} is {target.arch}",
            hint=f"unset {LINKER_ENV}, or set it to a linker for {target.arch}",
        )
    foreign = [name for name in facts.needed if not name.startswith(_ALLOWED)]
    if foreign:
        raise LinkerError(
            f"{linker.origin} linked {', '.join(foreign)} into the library of {target.name!r};"
            " a bundle may need libc and libm only",
            hint=f"set {LINKER_ENV} to a C (not C++) driver",
        )
    limit = tuple(int(part) for part in target.glibc.split(".")[:2])
    if target.arch != host_arch() and facts.glibc > limit:
        raise LinkerError(
            f"{linker.origin} linked against glibc {facts.glibc[0]}.{facts.glibc[1]}, target"
            f" {target.name!r} has {target.glibc}",
            hint=f"set {LINKER_ENV}='{sys.executable} -m ziglang cc -target"
            f" {target.arch}-linux-gnu.{target.glibc}'",
        )


def _zig_environment(scratch: str) -> dict[str, str]:
    """Zig's caches: its C library in tvmx's cache folder, objects of this link in ``scratch``.

    The object cache does not notice that a file named by ``.incbin`` changed, and would keep
    every network's weights.
    """
    folder = platformdirs.user_cache_path("tvmx") / "zig"
    if not _writable(folder):
        folder = Path(tempfile.gettempdir()) / f"tvmx-zig-{os.getuid()}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {
        "ZIG_GLOBAL_CACHE_DIR": os.environ.get("ZIG_GLOBAL_CACHE_DIR", str(folder)),
        "ZIG_LOCAL_CACHE_DIR": scratch,
    }


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def fcompile(target: Target, options: Sequence[str] = ()) -> Callable[..., None]:
    """A function that ``export_library(fcompile=...)`` accepts, linking by :func:`link`."""

    def run(output: str, objects: Sequence[str], **kwargs: Any) -> None:
        extra = kwargs.get("options") or ()
        link([Path(o) for o in objects], Path(output), target, options=(*options, *extra))

    return run
