"""Files written whole or not at all: temporary file, fsync, rename, fsync of the folder."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

from tvmx.errors import UnwritableError


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replace ``path`` by ``data`` (text as UTF-8), durable when this returns.

    After a crash the old or the new content is there, never a part. Raises UnwritableError.
    """
    content = data.encode() if isinstance(data, str) else data
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fchmod(stream.fileno(), 0o644)
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as err:
        raise unwritable(path, err) from err
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make created, renamed and removed names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Create ``path`` and its parents and check that files can be made in it.

    Raises UnwritableError.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return
    except OSError as err:
        raise unwritable(path, err) from err


def unwritable(path: Path, err: OSError) -> UnwritableError:
    """The error for a failed write, with the reason in the system's words."""
    reason = os.strerror(err.errno) if err.errno else str(err)
    if err.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = f"free some space ({_free(path)} left there), then run the same command again"
    else:
        hint = "name another folder with --out"
    return UnwritableError(f"cannot write {path}: {reason}", hint=hint)


def _free(path: Path) -> str:
    folder = next((p for p in (path, *path.parents) if p.is_dir()), Path("/"))
    return f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB"
