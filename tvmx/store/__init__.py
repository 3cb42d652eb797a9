"""Runs and journals: what survives a crash."""

from tvmx.store._atomic import make_folder, write_atomic
from tvmx.store._journal import Journal
from tvmx.store._records import MeasurementKey, MeasurementRecord

__all__ = ["Journal", "MeasurementKey", "MeasurementRecord", "make_folder", "write_atomic"]
