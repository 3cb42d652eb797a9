"""Passes over the imported network: layer extraction, plans, lowering."""

from tvmx.passes._layers import LayerStep, Network, OpStep, extract_layers
from tvmx.passes._lower import Lowered, convert_layout, finish_relax, lower
from tvmx.passes._plans import baseline_plan, check_replay, choose, transfer_plan, versions

__all__ = [
    "LayerStep", "Lowered", "Network", "OpStep", "baseline_plan", "check_replay", "choose",
    "convert_layout", "extract_layers", "finish_relax", "lower", "transfer_plan", "versions",
]  # fmt: skip
