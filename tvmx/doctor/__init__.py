"""The doctor: what is wrong with the way to a device, or with the device; and the probe."""

from tvmx.doctor._build import build_probe, peak_kernel
from tvmx.doctor._diagnosis import Diagnosis, Finding, Section
from tvmx.doctor._examine import DEADLINES, examine

__all__ = ["DEADLINES", "Diagnosis", "Finding", "Section", "build_probe", "examine", "peak_kernel"]
