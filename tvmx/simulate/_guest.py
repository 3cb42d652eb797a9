"""The guest: an arm64 Python with TVM's runtime, in the user's cache folder.

::

    <cache>/tvmx/simulate/root       libraries and Python of Debian's arm64 packages
    <cache>/tvmx/simulate/site-3.11  the aarch64 wheels (without TVM's compiler: 240 MB)
    <cache>/tvmx/simulate/downloads  what is there already while a preparation is under way

The environment variable TVMX_SIM_ROOT names a root of the user's own in place of the first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import filelock

from tvmx.errors import SimulationError
from tvmx.measure._serve import FFI_VERSION, TVM_VERSION
from tvmx.simulate import _debian, _wheels
from tvmx.simulate._components import complete, intact, size_bytes
from tvmx.simulate._tools import OWN_ROOT, QEMU, cache_folder, require, run, said

OWN_ROOT_VARIABLE = "TVMX_SIM_ROOT"
REQUIREMENTS = (
    f"apache-tvm=={TVM_VERSION}",
    f"apache-tvm-ffi=={FFI_VERSION}",
    "numpy>=2.0,<3",
    "typing_extensions>=4.5",
)
PREPARE = "tvmx simulate --prepare"

_RECIPE = 1  # of what is done besides: count up when the folders must be made anew
_PYTHONS = ("3.11", "3.12", "3.13")
_UNUSED = ("tvm/lib/libtvm_compiler.so", "tvm/3rdparty", "tvm/include", "tvm/src", "bin")
_WARM_UP = "import numpy, json, argparse, select, multiprocessing.popen_fork, tvm.rpc.server"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Guest:
    """A prepared guest: ``root`` for qemu's ``-L``, ``site`` with the wheels, its ``python``."""

    root: Path
    site: Path
    python: Path

    @property
    def version(self) -> str:
        """Of its Python, such as ``3.11``."""
        return self.python.name.removeprefix("python")

    def environment(self, *more: Path) -> dict[str, str]:
        """Variables of a process in the guest; ``more`` are folders from :func:`add_wheels`."""
        return {
            "PYTHONPATH": os.pathsep.join(map(str, (*more, self.site))),
            "PYTHONNOUSERSITE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
            "TVM_USE_RUNTIME_LIB": "1",
            "TVM_NUM_THREADS": "1",
            "TVM_BIND_THREADS": "0",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }


def find_guest() -> Guest | None:
    """The guest if it is prepared and intact; nothing is downloaded.

    Raises :class:`SimulationError` when TVMX_SIM_ROOT names something of no use.
    """
    folder = cache_folder()
    root = _own_root()
    if root is None:
        root = folder / "root"
        if not intact(root, _root_recipe()):
            return None
    python = _python(root)
    site = _site(folder, python)
    if not intact(site, _site_recipe(python, REQUIREMENTS)):
        return None
    return Guest(root, site, python)


def prepare(say: Say) -> Guest:
    """The guest, made if need be; ``say`` gets lines of progress.

    Does nothing where all is there. What an interrupted preparation left is completed or
    replaced. Raises :class:`SimulationError`.
    """
    start = time.monotonic()
    require(QEMU)
    folder = cache_folder()
    with _downloads(folder) as downloads:
        root, new_root = _own_root(), False
        if root is None:
            root = folder / "root"
            new_root = complete(
                root, _root_recipe(), lambda r: _debian.unpack(_debian.PACKAGES, downloads, r, say)
            )
        python = _python(root)
        guest = Guest(root, _site(folder, python), python)

        def unpack_site(staging: Path) -> None:
            _wheels.install(REQUIREMENTS, guest.version, downloads, staging, say)
            for name in _UNUSED:
                _drop(staging / name)
            _compile(replace(guest, site=staging), downloads / "log", say)

        new_site = complete(guest.site, _site_recipe(python, REQUIREMENTS), unpack_site)
        if new_root and not new_site:
            _compile(guest, downloads / "log", say)
    made = new_root or new_site
    size = size_bytes(guest.root) + size_bytes(guest.site)
    state = f"ready after {time.monotonic() - start:.0f} s" if made else "ready, nothing to do"
    say(f"arm64 guest {state}: Python {guest.version}, {size / 1e6:.0f} MB in {folder}")
    return guest


def add_wheels(guest: Guest, requirements: Sequence[str], say: Say) -> Path:
    """More Python packages for the guest, in a folder of their own for its PYTHONPATH.

    Exactly ``requirements``, without what they depend on. Raises :class:`SimulationError`.
    """
    digest = hashlib.sha256("\n".join(sorted(requirements)).encode()).hexdigest()[:12]
    folder = cache_folder()
    site = folder / f"extra-{guest.version}-{digest}"
    with _downloads(folder) as downloads:
        complete(
            site,
            _site_recipe(guest.python, requirements),
            lambda staging: _wheels.install(requirements, guest.version, downloads, staging, say),
        )
    return site


@contextlib.contextmanager
def _downloads(folder: Path) -> Iterator[Path]:
    """The downloads under way in ``folder``, for one process at a time.

    Removed at the end; what fails leaves them for the next try.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / "lock"):
        downloads = folder / "downloads"
        downloads.mkdir(exist_ok=True)
        yield downloads
        shutil.rmtree(downloads)


def _own_root() -> Path | None:
    text = os.environ.get(OWN_ROOT_VARIABLE)
    if not text:
        return None
    root = Path(text).expanduser().resolve()
    if not (root / "lib/ld-linux-aarch64.so.1").exists():
        raise SimulationError(
            f"{OWN_ROOT_VARIABLE}={text} is no arm64 root: it has no lib/ld-linux-aarch64.so.1",
            hint=OWN_ROOT,
        )
    return root


def _python(root: Path) -> Path:
    found = [root / "usr/bin" / f"python{version}" for version in reversed(_PYTHONS)]
    for path in found:
        if path.is_file():
            return path
    there = sorted(
        path.name
        for path in (root / "usr/bin").glob("python3*")
        if re.fullmatch(r"python3\.\d+", path.name)
    )
    raise SimulationError(
        f"the arm64 root {root} has {', '.join(there) or 'no Python'}, TVM's wheels need one of"
        f" {', '.join(_PYTHONS)}",
        hint=OWN_ROOT,
    )


def _site(folder: Path, python: Path) -> Path:
    return folder / f"site-{python.name.removeprefix('python')}"


def _root_recipe() -> dict[str, object]:
    return {"recipe": _RECIPE, "packages": list(_debian.PACKAGES)}


def _site_recipe(python: Path, requirements: Sequence[str]) -> dict[str, object]:
    return {"recipe": _RECIPE, "python": python.name, "requirements": list(requirements)}


def _drop(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _compile(guest: Guest, log: Path, say: Say) -> None:
    """Import once what servers import: proves that the guest works, and Python keeps bytecode."""
    say("starting the guest's Python once")
    env = {**guest.environment(), "PYTHONDONTWRITEBYTECODE": "", "PYTHONHOME": ""}
    done, text = run([require(QEMU), "-L", guest.root, guest.python, "-c", _WARM_UP], log, env)
    if not done:
        raise SimulationError(
            f"the guest's Python cannot import TVM: {said(text)}",
            hint=f"delete {guest.root} and run `{PREPARE}`; the whole story is in {log}",
        )
