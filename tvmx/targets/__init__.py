"""Targets: boards and cores described by TOML files."""

from tvmx.targets._target import Cluster, Target

__all__ = ["Cluster", "Target"]
