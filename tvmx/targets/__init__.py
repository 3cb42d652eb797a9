"""Targets: boards and cores described by TOML files."""

from tvmx.targets._host import detect_host, x86_features
from tvmx.targets._loader import TargetEntry, list_targets, load_target, user_targets_dir
from tvmx.targets._target import Cluster, Simulation, Target

__all__ = [
    "Cluster", "Simulation", "Target", "TargetEntry", "detect_host", "list_targets", "load_target",
    "user_targets_dir", "x86_features",
]  # fmt: skip
