"""Runs and journals: what survives a crash."""

from tvmx.store._atomic import make_folder, sync_folder, unwritable, write_atomic
from tvmx.store._journal import Journal
from tvmx.store._records import MeasurementKey, MeasurementRecord
from tvmx.store._run import JOURNAL, Run
from tvmx.store._settings import RunSettings

__all__ = [
    "JOURNAL",
    "Journal",
    "MeasurementKey",
    "MeasurementRecord",
    "Run",
    "RunSettings",
    "make_folder",
    "sync_folder",
    "unwritable",
    "write_atomic",
]
