"""Folders in the cache that are complete or not there: built aside, marked, renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

_MARKER = ".tvmx.json"


def intact(folder: Path, recipe: Mapping[str, object]) -> bool:
    """Whether ``folder`` was completed by this very recipe and lost no file since."""
    try:
        facts = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(facts == {"recipe": dict(recipe), "contents": list(_contents(folder))})


def complete(folder: Path, recipe: Mapping[str, object], build: Callable[[Path], None]) -> bool:
    """Make ``folder`` by ``build(its staging folder)`` unless it is intact; whether it was made.

    The recipe is plain JSON. The caller holds a lock on the folder's parent.
    """
    if intact(folder, recipe):
        return False
    staging = folder.with_name(folder.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    build(staging)
    facts = {"recipe": dict(recipe), "contents": list(_contents(staging))}
    (staging / _MARKER).write_text(json.dumps(facts), encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    staging.rename(folder)
    return True


def size_bytes(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(size for _, size in _walk(folder, skip=False))


def _contents(folder: Path) -> tuple[int, int]:
    """Number of files and their bytes, without what Python compiles and the marker itself."""
    sizes = [size for path, size in _walk(folder, skip=True) if path != str(folder / _MARKER)]
    return len(sizes), sum(sizes)


def _walk(folder: Path, *, skip: bool) -> Iterator[tuple[str, int]]:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            if not (skip and entry.name == "__pycache__"):
                yield from _walk(Path(entry.path), skip=skip)
        else:
            yield entry.path, entry.stat(follow_symlinks=False).st_size
