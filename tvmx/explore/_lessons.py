"""What earlier runs teach: kernels the knob tuner, whole plans the search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tvmx.errors import UsageError
from tvmx.measure import Manners, Measurement
from tvmx.search import Sample
from tvmx.store import JOURNAL, Journal, MeasurementRecord

WHOLE = "whole:"
"""How the journal's workload names of whole plans begin; the plan's digest follows."""

PREDICTED = "predicted_us"
"""Beside its terms, what the cost table promised for a whole plan."""


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
        found |= {
            line: record
            for line, record in useful.items()
            if not record.key.workload.startswith(WHOLE)
        }
    return tuple(sorted(found.values(), key=lambda record: (record.timestamp, record.line())))


def whole_lessons(runs: Sequence[Path], target_key: str, manners: Manners) -> tuple[Sample, ...]:
    """What other runs on this target found of whole plans, to correct cost tables by.

    ``runs`` as for :func:`lessons`, which has refused those that hold nothing. Raises JournalError.
    """
    journals = [run / JOURNAL if run.is_dir() else run for run in runs]
    found = {
        record.line(): record
        for path in journals
        for record in Journal(path).records()
        if record.key.workload.startswith(WHOLE) and _alike(record, target_key, manners)
    }
    samples = [whole_sample(record) for _, record in sorted(found.items())]
    return tuple(sample for sample in samples if sample is not None)


def whole_sample(record: MeasurementRecord) -> Sample | None:
    """A whole plan's record as a sample; None for failures and for final comparisons."""
    measurement = Measurement.model_validate(record.measurement)
    features = record.features
    if features is None or PREDICTED not in features or measurement.median_us is None:
        return None
    terms = {name: value for name, value in features.items() if name != PREDICTED}
    return Sample(features[PREDICTED], measurement.median_us, terms)


def _alike(record: MeasurementRecord, target_key: str, manners: Manners) -> bool:
    key, cores = record.key, manners.cores
    return (key.target, key.threads, key.cores, key.cache) == (
        target_key, cores.threads, cores.cluster, manners.cache,
    )  # fmt: skip
