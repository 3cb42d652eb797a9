"""What the knob tuner learns from earlier runs: their kernels' loop nests and latencies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tvmx.errors import UsageError
from tvmx.measure import Manners
from tvmx.store import JOURNAL, Journal, MeasurementRecord


def lessons(
    runs: Sequence[Path], target_key: str, manners: Manners
) -> tuple[MeasurementRecord, ...]:
    """Records of other runs' journals that say how fast kernels run on this target.

    ``runs`` are run folders, or journals; of any model and any device of the same target
    (``target_key``: name and digest), with as many threads on the same cores and equally warm
    caches. A record counts once, however many of the journals have it.

    Raises:
        UsageError: there is no journal, or it holds nothing of use.
        JournalError: a journal is damaged.
    """
    found: dict[str, MeasurementRecord] = {}
    for run in runs:
        path = run / JOURNAL if run.is_dir() else run
        if not path.is_file():
            raise UsageError(
                f"--learn-from {run}: there is no journal",
                hint="name the folder of an earlier `tvmx explore --out RUN`",
            )
        useful = {
            record.line(): record
            for record in Journal(path).records()
            if record.features is not None and _alike(record, target_key, manners)
        }
        if not useful:
            raise UsageError(
                f"--learn-from {run}: it measured no kernel on target {target_key.split(':')[0]!r}"
                f" with {manners.cores.threads} thread(s) on {manners.cores.cluster} cores and "
                f"{manners.cache} caches that could teach",
                hint="leave it out, or name a run with the same --target and --threads",
            )
        found |= useful
    return tuple(sorted(found.values(), key=lambda record: (record.timestamp, record.line())))


def _alike(record: MeasurementRecord, target_key: str, manners: Manners) -> bool:
    key, cores = record.key, manners.cores
    return (key.target, key.threads, key.cores, key.cache) == (
        target_key, cores.threads, cores.cluster, manners.cache,
    )  # fmt: skip
