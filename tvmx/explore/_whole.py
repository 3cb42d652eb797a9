"""Whole networks: a plan lowered, compiled and made measurable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from tvmx.build import NetworkBuild, build_network
from tvmx.ir import LayoutWalk, NetworkGraph, Plan, is_int8
from tvmx.measure import NetworkJob
from tvmx.passes import Lowered, lower

if TYPE_CHECKING:
    from tvmx.passes import Network
    from tvmx.targets import Target
    from tvmx.templates import Registry

Array = npt.NDArray[Any]
_ROUNDED_RTOL = 0.03
SIMULATION = "tvmx's simulation of the plan (NumPy, PyTorch)"
"""What plans are checked against that do not compute what the reference does to the last step."""


@dataclass(frozen=True)
class BuiltPlan:
    """A plan compiled for its target."""

    name: str
    plan: Plan
    lowered: Lowered
    build: NetworkBuild


def build_plan(
    name: str, plan: Plan, network: Network, registry: Registry, target: Target, folder: Path
) -> BuiltPlan:
    """Lower and compile one plan to ``folder/<name>.so``. Raises BuildError, TemplateError."""
    lowered = lower(network, plan, registry, target)
    return BuiltPlan(name, plan, lowered, build_network(lowered.mod, target, folder / f"{name}.so"))


def network_job(
    built: BuiltPlan, inputs: dict[str, Array], expected: tuple[Array, ...] | None = None,
    rtol: float = 1e-3,
) -> NetworkJob:  # fmt: skip
    """The measurable candidate of a built plan."""
    return NetworkJob(
        library=built.build.path, inputs=inputs, expected=expected, label=built.name, rtol=rtol
    )


def as_reference(plan: Plan, graph: NetworkGraph) -> bool:
    """Whether a plan computes what the reference does, but for the rounding of float sums.

    Quantised models are left out: where values are rounded to steps, the last bit of a float sum
    decides between two of them, and what was computed in floats is compared poorly.
    """
    quantises = any(node.kind == "quantise" for node in graph.nodes)
    return plan.exact and not graph.stated and not quantises


def rtol_of(plan: Plan, graph: NetworkGraph) -> float:
    """How far a plan's outputs may be from its reference, relative to their range.

    int8 layers are exact. But where a value that float operators computed is quantised, its
    last bits now and then decide between two steps: only such plans get more room.
    """
    layers = {layer.index: plan.choice(layer.name) for layer in graph.layers}
    walk, made = LayoutWalk(graph), dict.fromkeys(graph.inputs, False)
    for node in graph.nodes:
        choice = layers[node.layer] if node.layer is not None else None
        placed = walk.step(node, choice.implementation if choice else None)
        if any(made[c.value] and is_int8(c.destination) for c in placed.conversions):
            return _ROUNDED_RTOL
        rounds = node.kind == "quantise" and is_int8(placed.writes)
        if rounds and any(made[v] for v in node.inputs):
            return _ROUNDED_RTOL
        made[node.output] = not is_int8(placed.writes)
    return 1e-3
