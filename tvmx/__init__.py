"""Explore graph-level and schedule choices for CNNs on Arm Cortex-A CPUs, on Apache TVM.

Importing ``tvmx`` loads nothing else; import what is needed from its packages.
"""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__"]
