"""The journal: append-only, fsynced JSON lines of all measurements, shared between processes.

The layout follows Optuna's journal storage (``storages/journal/_file.py``): one JSON object a
line, an advisory lock around appends, a torn last line skipped. The first line names format
and version.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
from pydantic import ValidationError

from tvmx.errors import JournalError
from tvmx.store._atomic import sync_folder, unwritable
from tvmx.store._records import MeasurementKey, MeasurementRecord

JOURNAL_SCHEMA = 1
_HEADER = json.dumps({"format": "tvmx-journal", "schema_version": JOURNAL_SCHEMA}) + "\n"
_LOCK_TIMEOUT_S = 60.0


@dataclass
class _Tail:
    """How far the file is understood: byte and line number behind the last good line."""

    offset: int = 0
    line: int = 0


class Journal:
    """All measurements in one file, with an index in memory.

    A record is durable when :meth:`append` returns. Several processes may append to one
    file; each sees the others' records at its next call. Reading skips a torn last line
    (what a crash in mid-append leaves) and the next append repairs it; any other damage
    raises JournalError with file and line number. The file is created by the first append.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = filelock.FileLock(f"{path}.lock", timeout=_LOCK_TIMEOUT_S)
        self._index: dict[MeasurementKey, MeasurementRecord] = {}
        self._records: list[MeasurementRecord] = []
        self._lines: set[str] = set()
        self._tail = _Tail()
        self._refresh()

    def __len__(self) -> int:
        return len(self._records)

    def records(self) -> Iterator[MeasurementRecord]:
        """All records in the order they were written, other processes' included."""
        self._refresh()
        return iter(tuple(self._records))

    def lookup(self, key: MeasurementKey) -> MeasurementRecord | None:
        """The latest record of a key, or None."""
        self._refresh()
        return self._index.get(key)

    def append(self, record: MeasurementRecord) -> None:
        """Write one record; durable on return.

        Raises UnwritableError (disk full, no permission), JournalError for a damaged file.
        """
        self._append_lines([record])

    def merge(self, other: Path) -> int:
        """Add the records of another journal that are not here yet; returns how many.

        A set union: merging twice, or a journal with itself, adds nothing.
        """
        if not other.is_file():
            raise JournalError(f"no journal at {other}")
        return self._append_lines(list(Journal(other).records()), skip_known=True)

    def _append_lines(self, records: list[MeasurementRecord], *, skip_known: bool = False) -> int:
        try:
            with self._lock:
                self._refresh()
                if skip_known:
                    unique = {record.line(): record for record in records}
                    records = [r for line, r in unique.items() if line not in self._lines]
                if records:
                    self._write("".join(record.line() + "\n" for record in records))
                    self._refresh()
                return len(records)
        except filelock.Timeout as err:
            raise JournalError(
                f"{self.path} has been locked by another process for {_LOCK_TIMEOUT_S:g} s"
            ) from err
        except OSError as err:
            raise unwritable(self.path, err) from err

    def _write(self, text: str) -> None:
        """Append behind the last good line, cutting off what a crash left; under the lock."""
        created = not self.path.exists()
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            text = text if self._tail.offset else _HEADER + text
            os.ftruncate(descriptor, self._tail.offset)
            os.lseek(descriptor, self._tail.offset, os.SEEK_SET)
            try:
                _write_all(descriptor, text.encode())
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, self._tail.offset)
                raise
        finally:
            os.close(descriptor)
        if created:
            sync_folder(self.path.parent)

    def _refresh(self) -> None:
        """Read what was appended since the last call."""
        try:
            size = self.path.stat().st_size
            if size == self._tail.offset:
                return
            if size < self._tail.offset:
                raise JournalError(
                    f"{self.path} became shorter while it was open ({self._tail.offset} to"
                    f" {size} bytes): something else writes to it"
                )
            with self.path.open("rb") as stream:
                stream.seek(self._tail.offset)
                content = stream.read()
        except FileNotFoundError:
            if self._tail.offset:
                raise JournalError(f"{self.path} was removed while it was open") from None
            return
        except OSError as err:
            raise JournalError(f"cannot read {self.path}: {err.strerror}") from err
        self._read(content)

    def _read(self, content: bytes) -> None:
        lines = _split(content)
        for position, raw in enumerate(lines):
            number = self._tail.line + 1
            last = position == len(lines) - 1
            if not raw.endswith(b"\n") and (number > 1 or _HEADER.encode().startswith(raw)):
                # Torn, or being written at this moment: the next call looks again.
                return
            try:
                record = self._parse(raw, number)
            except JournalError:
                if last and number > 1 and not _is_json(raw):
                    return
                raise
            if record is not None:
                self._records.append(record)
                self._lines.add(record.line())
                self._index[record.key] = record
            self._tail = _Tail(self._tail.offset + len(raw), number)

    def _parse(self, raw: bytes, number: int) -> MeasurementRecord | None:
        """One line; None for the header. Raises JournalError."""
        try:
            if number == 1:
                self._check_header(json.loads(raw))
                return None
            return MeasurementRecord.model_validate_json(raw)
        except (ValueError, ValidationError) as err:
            reason = str(err).splitlines()[0]
            raise JournalError(
                f"{self.path}, line {number}: damaged ({reason})",
                hint=f"restore the file, or delete from line {number} on to keep what is before",
            ) from err

    def _check_header(self, header: object) -> None:
        if not isinstance(header, dict) or header.get("format") != "tvmx-journal":
            raise JournalError(f"{self.path}, line 1: not a tvmx journal")
        if header.get("schema_version") != JOURNAL_SCHEMA:
            raise JournalError(
                f"{self.path} has journal schema {header.get('schema_version')!r}, this tvmx"
                f" reads {JOURNAL_SCHEMA}",
                hint="use the tvmx that wrote it, or another --out",
            )


def _split(content: bytes) -> list[bytes]:
    """Lines with their newlines; unlike ``splitlines`` this breaks at newlines alone."""
    parts = content.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _is_json(raw: bytes) -> bool:
    try:
        json.loads(raw)
    except ValueError:
        return False
    return True
