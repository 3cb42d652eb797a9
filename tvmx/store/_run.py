"""Run: the folder of one exploration, which a second start continues."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import filelock

from tvmx.errors import RunMismatchError, StoreError, UsageError
from tvmx.ir import Plan
from tvmx.store._atomic import make_folder, unwritable, write_atomic
from tvmx.store._journal import Journal
from tvmx.store._settings import RunSettings

_SETTINGS = "settings.json"
JOURNAL = "journal.jsonl"
"""The journal in a run folder."""

_CURVE = "curve.jsonl"
_RESULT = "result.json"
_SIMULATION = "simulation"
_PLANS = "plans"
_WORK = "work"
_LOCK = ".lock"
_OWN = (JOURNAL, f"{JOURNAL}.lock", _CURVE, _RESULT, _PLANS, _WORK, _SETTINGS)


class Run:
    """One exploration's folder.

    ``settings.json`` the request; ``journal.jsonl`` every measurement; ``curve.jsonl`` the
    learning curve; ``plans/`` the plans worth keeping; ``result.json`` the outcome; ``work/``
    libraries and other things that can be made again. :meth:`open` takes the folder for
    writing, for this process alone; :meth:`load` reads one. Use as a context manager.
    """

    def __init__(
        self,
        path: Path,
        settings: RunSettings,
        *,
        lock: filelock.BaseFileLock | None,
        resumed: bool,
    ) -> None:
        self.path = path
        self.settings = settings
        self.resumed = resumed
        self._lock = lock
        self._journal: Journal | None = None

    @classmethod
    def open(cls, path: Path, settings: RunSettings, *, fresh: bool = False) -> Run:
        """Start a run in ``path``, or go on with the one that is there.

        ``fresh`` deletes an earlier run's own files first, and nothing else. Raises
        RunMismatchError when the folder belongs to another exploration, UsageError when it is
        a folder of something else, UnwritableError, and StoreError when another live process
        works on it. A lock left behind by a killed process is no obstacle.
        """
        _check_folder(path, settings_needed=False)
        make_folder(path)
        lock = _take_lock(path)
        try:
            resumed = _prepare(path, settings, fresh=fresh)
            make_folder(path / _PLANS)
            make_folder(path / _WORK)
            write_atomic(path / _SETTINGS, settings.model_dump_json(indent=1) + "\n")
            _mend(path / _CURVE)
        except BaseException:
            lock.release()
            raise
        return cls(path, settings, lock=lock, resumed=resumed)

    @classmethod
    def load(cls, path: Path) -> Run:
        """Read a run without taking it. Raises StoreError when ``path`` is no run."""
        _check_folder(path, settings_needed=True)
        return cls(path, RunSettings.load(path / _SETTINGS), lock=None, resumed=True)

    @property
    def journal(self) -> Journal:
        """The run's journal."""
        if self._journal is None:
            self._journal = Journal(self.path / JOURNAL)
        return self._journal

    @property
    def work(self) -> Path:
        """Folder for libraries and other things that can be made again."""
        return self.path / _WORK

    def bind(self, simulation: str) -> None:
        """Say what measures: ``simulation`` names a simulated board's model, empty a real device.

        Raises RunMismatchError when other measurements in the run are of another kind.
        """
        self._need_lock()
        path = self.path / _WORK / _SIMULATION
        before = path.read_text(encoding="utf-8") if path.is_file() else simulation
        if before != simulation:
            raise RunMismatchError(
                f"{self.path} was measured on {before or 'a real device'}, the device is now "
                f"{simulation or 'a real one'}",
                hint="--fresh to delete it and start over, or another folder with --out",
            )
        write_atomic(path, simulation)

    def append_curve(self, point: dict[str, Any]) -> None:
        """Add a point of the learning curve. Raises UnwritableError."""
        self._need_lock()
        path = self.path / _CURVE
        try:
            with path.open("ab") as stream:
                stream.write(json.dumps(point, separators=(",", ":")).encode() + b"\n")
        except OSError as err:
            raise unwritable(path, err) from err

    def curve(self) -> list[dict[str, Any]]:
        """The learning curve so far, oldest point first."""
        path = self.path / _CURVE
        if not path.is_file():
            return []
        complete, _, _ = path.read_bytes().rpartition(b"\n")
        try:
            return [json.loads(line) for line in complete.splitlines()]
        except ValueError as err:
            raise StoreError(f"{path} is damaged: {err}") from err

    def save_plan(self, name: str, plan: Plan) -> Path:
        """Keep a plan as ``plans/<name>.json``. Raises UnwritableError."""
        self._need_lock()
        path = self.path / _PLANS / f"{_plain(name)}.json"
        write_atomic(path, plan.model_dump_json(indent=1) + "\n")
        return path

    @property
    def plan_folder(self) -> Path:
        """Folder of the kept plans, and of files that they name."""
        return self.path / _PLANS

    def plan(self, name: str) -> Plan:
        """A kept plan. Raises StoreError, naming those there are."""
        if name not in self.plans():
            known = ", ".join(self.plans()) or "none"
            raise StoreError(f"run {self.path} has no plan {name!r} (plans: {known})")
        return Plan.load(self.path / _PLANS / f"{name}.json")

    def plans(self) -> list[str]:
        """Names of the kept plans, sorted."""
        return sorted(p.stem for p in (self.path / _PLANS).glob("*.json"))

    def save_result(self, result: dict[str, Any]) -> None:
        """Write ``result.json``. Raises UnwritableError."""
        self._need_lock()
        write_atomic(self.path / _RESULT, json.dumps(result, indent=1) + "\n")

    def result(self) -> dict[str, Any] | None:
        """The outcome, or None while the run has not come to an end."""
        path = self.path / _RESULT
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as err:
            raise StoreError(f"{path} is damaged: {err}") from err
        if not isinstance(content, dict):
            raise StoreError(f"{path} is damaged: not an object")
        return content

    def close(self) -> None:
        """Give the folder free for other processes. Idempotent."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def _need_lock(self) -> None:
        if self._lock is None:
            raise StoreError(f"run {self.path} is open for reading only")


def _check_folder(path: Path, *, settings_needed: bool) -> None:
    """Refuse everything that is neither a run nor (unless needed) an empty or missing folder."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file, not a run's folder", hint="name another --out")
    try:
        names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    except OSError as err:
        raise unwritable(path, err) from err
    if _SETTINGS in names:
        return
    if settings_needed:
        raise StoreError(
            f"{path} holds no tvmx run (no {_SETTINGS})", hint="tvmx explore MODEL --out RUN"
        )
    foreign = sorted(names - {_LOCK, *_OWN})
    if foreign:
        raise UsageError(
            f"{path} is not empty and not a tvmx run (it holds {', '.join(foreign[:3])})",
            hint="name another folder with --out",
        )


def _take_lock(path: Path) -> filelock.BaseFileLock:
    lock = filelock.FileLock(path / _LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as err:
        raise StoreError(
            f"another process is working on run {path}",
            hint="wait until it ends, or name another folder with --out",
        ) from err
    except OSError as err:
        raise unwritable(path, err) from err
    return lock


def _prepare(path: Path, settings: RunSettings, *, fresh: bool) -> bool:
    """Clear or check an earlier run, under the lock. Returns whether there is one to resume."""
    if not (path / _SETTINGS).is_file():
        return False
    before = RunSettings.load(path / _SETTINGS)
    if fresh:
        _clear(path)
        return False
    differences = before.differences(settings)
    if differences:
        raise RunMismatchError(
            f"{path} holds another exploration: {'; '.join(differences)}",
            hint="--fresh to delete it and start over, or another folder with --out",
        )
    return True


def _clear(path: Path) -> None:
    """Delete a run's own files, ``settings.json`` last: what is half deleted is still a run."""
    for name in _OWN:
        entry = path / name
        try:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
        except OSError as err:
            raise unwritable(entry, err) from err


def _mend(path: Path) -> None:
    """Cut off a last line that a crash left incomplete."""
    if not path.is_file():
        return
    content = path.read_bytes()
    keep = content.rfind(b"\n") + 1
    if keep != len(content):
        os.truncate(path, keep)


def _plain(name: str) -> str:
    if not name or name.startswith(".") or "/" in name or "\\" in name:
        raise UsageError(f"{name!r} cannot be a plan's name")
    return name
