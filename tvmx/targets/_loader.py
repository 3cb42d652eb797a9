"""Finding and reading target files."""

from __future__ import annotations

import difflib
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tvmx._resources import targets_dir
from tvmx.errors import UnknownTargetError, UsageError
from tvmx.targets._host import detect_host
from tvmx.targets._target import Target

HOST = "host"


@dataclass(frozen=True)
class TargetEntry:
    """Where a target of a name comes from; ``path`` is None for the detected ``host``."""

    name: str
    origin: str
    path: Path | None


def user_targets_dir() -> Path:
    """The folder of the user's own target files (it need not exist)."""
    import platformdirs

    return Path(platformdirs.user_config_path("tvmx")) / "targets"


def list_targets() -> list[TargetEntry]:
    """Built-in targets, the user's, and ``host``, by name; nothing is read yet.

    A target is called like its file. Raises :class:`UsageError` when a file of the user's has
    the name of a built-in target.
    """
    entries = {HOST: TargetEntry(HOST, "detected", None)}
    for origin, folder in (("built-in", targets_dir()), ("user", user_targets_dir())):
        for path in sorted(folder.glob("*.toml")):
            if path.stem in entries:
                raise UsageError(
                    f"target {path.stem!r} of {path} has the name of a target that exists already",
                    hint="rename the file",
                )
            entries[path.stem] = TargetEntry(path.stem, origin, path)
    return sorted(entries.values(), key=lambda e: (e.name == HOST, e.origin != "built-in", e.name))


def load_target(name_or_path: str | Path) -> Target:
    """A target by name, or from a TOML file (a path with a folder or the suffix ``.toml``).

    Raises:
        UnknownTargetError: no target of that name, or no such file.
        UsageError: the file is no valid target; the field is named.
    """
    text = os.fspath(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or os.sep in text:
        return _read(Path(text))
    entries = {entry.name: entry for entry in list_targets()}
    if text not in entries:
        close = difflib.get_close_matches(text.lower(), entries, 3, 0.5)
        raise UnknownTargetError(
            f"there is no target {text!r}; there are {', '.join(entries)}",
            hint=f"did you mean {' or '.join(close)}?" if close else "see `tvmx targets`",
        )
    path = entries[text].path
    return detect_host() if path is None else _read(path)


def _read(path: Path) -> Target:
    try:
        with path.open("rb") as stream:
            data = tomllib.load(stream)
    except FileNotFoundError as err:
        hint = "`tvmx targets` lists the targets with a name"
        raise UnknownTargetError(f"there is no target file {path}", hint=hint) from err
    except OSError as err:
        raise UsageError(f"cannot read target file {path}: {err.strerror}") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise UsageError(f"{path} is no TOML file: {err}") from err
    try:
        target = Target.model_validate({"name": path.stem, **data})
    except ValidationError as err:
        raise UsageError(
            f"{path} is no valid target: {_fields(err)}",
            hint="`tvmx targets show rpi4` shows a complete one",
        ) from err
    _check(target, path)
    return target


def _fields(err: ValidationError) -> str:
    return "; ".join(f"{_place(e['loc'])}: {e['msg']}" for e in err.errors())


def _place(location: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in location) or "the file"


def _check(target: Target, path: Path) -> None:
    if target.name != path.stem:
        raise UsageError(f"{path}: name is {target.name!r}, the file is called {path.stem!r}")
    bad = next((f for f in target.features if f[:1] not in ("+", "-") or len(f) < 2), None)
    if bad is not None:
        raise UsageError(f"{path}: features: {bad!r} must begin with + or -, such as +neon")
    if target.vector_bits < 64 or target.vector_bits & (target.vector_bits - 1):
        raise UsageError(
            f"{path}: vector_bits: {target.vector_bits} is no power of two of at least 64"
        )
