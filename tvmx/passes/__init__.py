"""Passes over the imported network: layer extraction, plans, lowering, simulation."""

from tvmx.passes._equalise import equalisation, equalised
from tvmx.passes._int8_ops import convert
from tvmx.passes._layers import LayerStep, Network, OpStep, extract_layers
from tvmx.passes._lower import Lowered, conversion_name, finish_relax, lower
from tvmx.passes._memory_marks import CONCAT, IN_PLACE
from tvmx.passes._plans import (
    baseline_plan,
    check_replay,
    choose,
    int8_plan,
    transfer_plan,
    versions,
)
from tvmx.passes._pruned import (
    constants_named,
    digest_of,
    fits,
    float_constants,
    named,
    planned,
    with_pruned,
)
from tvmx.passes._quantise import activations_of, params_of, tie
from tvmx.passes._simulate import Simulator, Values

__all__ = [
    "CONCAT", "IN_PLACE", "LayerStep", "Lowered", "Network", "OpStep", "Simulator", "Values",
    "activations_of", "baseline_plan", "check_replay", "choose", "constants_named",
    "conversion_name", "convert", "digest_of", "equalisation", "equalised", "extract_layers",
    "finish_relax", "fits", "float_constants", "int8_plan", "lower", "named", "params_of",
    "planned", "tie", "transfer_plan", "versions", "with_pruned",
]  # fmt: skip
