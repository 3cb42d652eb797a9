"""Plans made without search: the baseline, and the same decision carried to another target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmx import __version__
from tvmx._tvm import VERSION
from tvmx.errors import BuildError
from tvmx.ir import Config, LayerChoice, Plan

if TYPE_CHECKING:
    from tvmx.ir import Layer
    from tvmx.passes._layers import Network
    from tvmx.targets import Target
    from tvmx.templates import Registry, TemplateEntry


def versions() -> dict[str, str]:
    """The versions a plan and every journal record carry."""
    return {"tvmx": __version__, "tvm": VERSION}


def choose(
    entry: TemplateEntry, layer: Layer, target: Target, config: Config | None = None
) -> LayerChoice:
    """A layer's choice of one template, at ``config`` or the template's default."""
    knobs = config if config is not None else entry.template.space(layer.workload, target).default
    return LayerChoice(
        layer=layer.name,
        workload=layer.workload.digest,
        implementation=entry.implementation(layer.workload, target),
        config=knobs.to_dict(),
    )


def baseline_plan(network: Network, registry: Registry, target: Target, seed: int = 0) -> Plan:
    """Every layer float, dense, in its first template at the default config.

    Layers that no template supports are left out: they run tvmx's default schedule.
    """
    choices = []
    for layer in network.graph.layers:
        entry = registry.default(layer.workload, target)
        if entry is not None:
            choices.append(choose(entry, layer, target))
    return Plan(
        model=network.model.digest, target=target.name, choices=tuple(choices), seed=seed,
        versions=versions(), note="baseline: float, dense, template defaults",
    )  # fmt: skip


def transfer_plan(plan: Plan, network: Network, registry: Registry, target: Target) -> Plan:
    """The plan's precision, sparsity and templates on another target, at that target's defaults.

    A template that does not support a workload there gives way to the target's default one.
    """
    choices = []
    for layer in network.graph.layers:
        old = plan.choice(layer.name)
        legal = registry.legal(layer.workload, target)
        same = [e for e in legal if old and e.name == old.implementation.template]
        choices += [choose(entry, layer, target) for entry in (same or legal)[:1]]
    return Plan(
        model=plan.model, target=target.name, choices=tuple(choices), seed=plan.seed,
        versions=versions(), note=f"carried over from {plan.target}, defaults of {target.name}",
    )  # fmt: skip


def check_replay(plan: Plan, network: Network, registry: Registry) -> None:
    """Raise :class:`BuildError` where replaying ``plan`` would not rebuild the same library."""
    if plan.model != network.model.digest:
        raise BuildError(
            f"the plan was made for model {plan.model}, "
            f"{network.model.path} is {network.model.digest}",
            hint="replay it on its own model file, with the same --shape",
        )
    for choice in plan.choices:
        entry = registry.get(choice.implementation.template)
        if entry.fingerprint != choice.implementation.fingerprint:
            raise BuildError(
                f"layer {choice.layer!r}: template {entry.name!r} ({entry.path}) has changed since "
                f"the plan was made",
                hint="explore again, or restore the template file",
            )
