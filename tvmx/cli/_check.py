"""Cheap checks that come before anything slow: files, folders, names. No TVM here."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tvmx.errors import TemplateLoadError, UnwritableError, UsageError


def check_file(path: Path, what: str, hint: str | None = None) -> Path:
    """The path of an existing, readable file. ``what`` names its role: ``model`` ..."""
    if not path.exists():
        raise UsageError(f"{what} {path} does not exist", hint=hint)
    if path.is_dir():
        raise UsageError(f"{what} {path} is a folder, not a file", hint=hint)
    if not os.access(path, os.R_OK):
        raise UsageError(f"{what} {path} cannot be read: permission denied")
    return path


def check_folder(path: Path, what: str, hint: str | None = None) -> Path:
    """The path of an existing folder."""
    if not path.is_dir():
        problem = "is a file, not a folder" if path.exists() else "does not exist"
        raise UsageError(f"{what} {path} {problem}", hint=hint)
    return path


def check_writable(path: Path, what: str = "--out") -> Path:
    """A folder that exists and can be written, or whose nearest existing parent can.

    Nothing is left behind.
    """
    if path.exists() and not path.is_dir():
        raise UnwritableError(f"{what} {path} is a file, not a folder")
    folder = path.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise UnwritableError(f"{what} {path}: {folder} is a file, not a folder")
    try:
        # Permission bits do not tell: not for root, not on a read-only file system.
        with tempfile.TemporaryFile(dir=folder):
            return path
    except OSError as err:
        raise UnwritableError(f"{what} {path} cannot be written: {folder}: {err.strerror}") from err


def check_bundle_out(path: Path) -> Path:
    """A folder a bundle can be written to: new, empty, or an earlier bundle."""
    check_writable(path)
    if path.is_dir() and any(path.iterdir()) and not (path / "manifest.json").is_file():
        raise UsageError(
            f"--out {path} is not empty and not a tvmx bundle", hint="name another folder"
        )
    return path


def check_file_writable(path: Path, what: str = "--output") -> Path:
    """A file that can be written, in a folder that exists."""
    if path.is_dir():
        raise UnwritableError(f"{what} {path} is a folder, not a file")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UnwritableError(f"{what} {path}: folder {folder} does not exist")
    try:
        with path.open("ab") if path.exists() else tempfile.TemporaryFile(dir=folder):
            return path
    except OSError as err:
        raise UnwritableError(f"{what} {path} cannot be written: {err.strerror}") from err


def check_schedules(folders: Sequence[Path] | None) -> tuple[Path, ...]:
    """User folders that exist and hold Python files; what is in them is looked at later."""
    for folder in folders or ():
        if not folder.is_dir():
            raise TemplateLoadError(f"schedule folder {folder} does not exist")
        if not any(not file.name.startswith("_") for file in folder.glob("*.py")):
            raise TemplateLoadError(f"schedule folder {folder} holds no *.py file")
    return tuple(folders or ())


def check_study(path: Path, written: set[str], command: str) -> None:
    """A folder that is new, empty, or holds what this command wrote."""
    check_writable(path)
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if foreign := sorted(names - written):
        raise UsageError(
            f"--out {path} is not empty and not of `{command}` (it holds {', '.join(foreign[:3])})",
            hint="name another folder",
        )
