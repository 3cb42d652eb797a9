"""Where the built-in schedule templates and targets are on disk.

Both live at the top of the repository and travel inside the wheel, so they are looked
for beside this module first (installed) and then at the top of a checkout (editable).
"""

from __future__ import annotations

from pathlib import Path

from tvmx.errors import TvmxError

_PACKAGE = Path(__file__).resolve().parent


def schedules_dir() -> Path:
    """Return the folder of the built-in schedule templates, one Python file each."""
    return _find("schedules")


def targets_dir() -> Path:
    """Return the folder of the built-in targets, one TOML file each."""
    return _find("targets")


def _find(name: str) -> Path:
    packaged = _PACKAGE / f"_{name}"
    if packaged.is_dir():
        return packaged
    checkout = _PACKAGE.parent
    # In site-packages a neighbour called "targets" would be someone else's.
    if (checkout / "pyproject.toml").is_file() and (checkout / name).is_dir():
        return checkout / name
    raise TvmxError(
        f"the built-in {name} are missing: neither {packaged} nor {checkout / name} exists",
        hint="reinstall tvmx, or run it from a complete checkout",
    )
