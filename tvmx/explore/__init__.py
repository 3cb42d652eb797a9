"""The main job: explore a model on a target, build plans, export bundles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmx.explore._pick import check_pick
from tvmx.explore._prune_request import (
    LevelFigures,
    PruneCurvePoint,
    PrunedLayerFigures,
    PrunedNetwork,
    PruneRequest,
    PruneResult,
    Work,
)
from tvmx.explore._quantise_request import (
    CutPoint,
    LayerFigures,
    MethodFigures,
    NetworkFigures,
    QuantiseRequest,
    QuantiseResult,
    ValueRange,
)
from tvmx.explore._request import (
    BundleSummary,
    CandidateSummary,
    DeviceSummary,
    DryRun,
    DryRunWorkload,
    ExploreRequest,
    ExploreResult,
    LayerSummary,
    Objective,
    Progress,
    Silent,
)

if TYPE_CHECKING:
    from tvmx.explore._dry_run import dry_run
    from tvmx.explore._explore import explore
    from tvmx.explore._export import build_bundle, export_run
    from tvmx.explore._prune import prune_network
    from tvmx.explore._quantise import quantise

__all__ = [
    "BundleSummary",
    "CandidateSummary",
    "CutPoint",
    "DeviceSummary",
    "DryRun",
    "DryRunWorkload",
    "ExploreRequest",
    "ExploreResult",
    "LayerFigures",
    "LayerSummary",
    "LevelFigures",
    "MethodFigures",
    "NetworkFigures",
    "Objective",
    "Progress",
    "PruneCurvePoint",
    "PruneRequest",
    "PruneResult",
    "PrunedLayerFigures",
    "PrunedNetwork",
    "QuantiseRequest",
    "QuantiseResult",
    "Silent",
    "ValueRange",
    "Work",
    "build_bundle",
    "check_pick",
    "dry_run",
    "explore",
    "export_run",
    "prune_network",
    "quantise",
]  # fmt: skip

_LAZY = {
    "dry_run": "_dry_run", "explore": "_explore", "build_bundle": "_export",
    "export_run": "_export", "prune_network": "_prune", "quantise": "_quantise",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import what needs TVM on first use."""
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"tvmx.explore.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
