"""Skip lists: the layers a user wants to keep out of int8, by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from tvmx.errors import UsageError

_NAMED = 3  # layers that a message names


def skipped_layers(names: Sequence[str], globs: Sequence[str]) -> frozenset[str]:
    """The layer names that some glob (or exact name) matches; upper and lower case differ.

    Raises:
        UsageError: a glob matches no layer; layers of like names are told.
    """
    found: set[str] = set()
    for glob in globs:
        matched = [name for name in names if name == glob or fnmatchcase(name, glob)]
        if not matched:
            raise UsageError(
                f"--skip {glob!r} matches no layer; {_close(names, glob)}",
                hint="`tvmx import MODEL` lists the layers; a glob is quoted: --skip 'block1*'",
            )
        found.update(matched)
    return frozenset(found)


def _close(names: Sequence[str], glob: str) -> str:
    """Such as ``close ones: 'a', 'b'``: names with the glob's letters, or spelled alike."""
    letters = max(glob.lower().replace("?", "*").split("*"), key=len)
    inside = [name for name in names if letters and letters in name.lower()]
    alike = difflib.get_close_matches(glob, names, _NAMED, cutoff=0.5)
    close = list(dict.fromkeys([*inside, *alike]))
    shown = ", ".join(repr(name) for name in (close or names)[:_NAMED])
    more = ", ..." if len(close or names) > _NAMED else ""
    return f"close ones: {shown}{more}" if close else f"there are {shown}{more}"
