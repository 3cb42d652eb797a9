"""Targets: boards and cores described by TOML files."""

from tvmx.targets._host import detect_host
from tvmx.targets._loader import TargetEntry, list_targets, load_target, user_targets_dir
from tvmx.targets._target import Cluster, Target

__all__ = [
    "Cluster", "Target", "TargetEntry", "detect_host", "list_targets", "load_target",
    "user_targets_dir",
]  # fmt: skip
