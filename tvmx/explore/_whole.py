"""Whole networks: a plan lowered, compiled and made measurable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from tvmx.build import NetworkBuild, build_network
from tvmx.ir import Plan
from tvmx.measure import NetworkJob
from tvmx.passes import Lowered, lower

if TYPE_CHECKING:
    from tvmx.passes import Network
    from tvmx.targets import Target
    from tvmx.templates import Registry

Array = npt.NDArray[Any]


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
    built: BuiltPlan, inputs: dict[str, Array], expected: tuple[Array, ...] | None = None
) -> NetworkJob:
    """The measurable candidate of a built plan."""
    return NetworkJob(library=built.build.path, inputs=inputs, expected=expected, label=built.name)
