"""Plans made without search: the baseline, and the same decision carried to another target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tvmx import __version__
from tvmx._tvm import VERSION
from tvmx.errors import BuildError
from tvmx.ir import DENSE, BlockSparsity, Config, LayerChoice, Plan
from tvmx.numerics import own_level
from tvmx.passes._pruned import constants_named
from tvmx.passes._quantise import activations_of

if TYPE_CHECKING:
    from tvmx.ir import Implementation, Layer
    from tvmx.numerics import LayerConstants, QuantParams
    from tvmx.passes._layers import Network
    from tvmx.targets import Target
    from tvmx.templates import Registry, TemplateEntry


def versions() -> dict[str, str]:
    """The versions a plan and every journal record carry."""
    return {"tvmx": __version__, "tvm": VERSION}


def choose(
    entry: TemplateEntry, layer: Layer, target: Target, config: Config | None = None,
    implementation: Implementation | None = None,
) -> LayerChoice:  # fmt: skip
    """A layer's choice of one template, at ``config`` or the template's default.

    ``implementation`` tells the variant (type, sparsity); None means as the model states it.
    """
    if implementation is None:
        implementation = entry.stated(layer.workload, target)
    variant = implementation.variant(layer.workload)
    knobs = config if config is not None else entry.template.space(variant, target).default
    return LayerChoice(
        layer=layer.name,
        workload=layer.workload.digest,
        implementation=implementation,
        config=knobs.to_dict(),
    )


def baseline_plan(network: Network, registry: Registry, target: Target, seed: int = 0) -> Plan:
    """Every layer as the model states it, in its first template at the default config.

    Layers that no template supports are left out: they run tvmx's default schedule.
    """
    choices = []
    for layer in network.graph.layers:
        entry = registry.default(layer.workload, target)
        if entry is not None:
            choices.append(choose(entry, layer, target))
    return Plan(
        model=network.model.digest, target=target.name, choices=tuple(choices), seed=seed,
        versions=versions(), note="baseline: layers as the model states them, template defaults",
    )  # fmt: skip


def _options(
    registry: Registry, network: Network, layer: Layer, target: Target
) -> list[tuple[TemplateEntry, Implementation]]:
    in_float = layer.index in network.graph.read_in_float
    return registry.implementations(layer.workload, target, float_out=in_float)


def int8_plan(
    network: Network, registry: Registry, target: Target, params: Mapping[int, QuantParams],
    seed: int = 0,
) -> Plan:  # fmt: skip
    """Every layer int8 where a template supports it, else as in the baseline; template defaults.

    ``params`` are the calibrated scales and zero points by value.
    """
    choices = []
    for layer in network.graph.layers:
        options = _options(registry, network, layer, target)
        int8 = [o for o in options if o[1].precision == "int8"]
        for entry, implementation in (int8 or options)[:1]:
            choices.append(choose(entry, layer, target, implementation=implementation))
    return Plan(
        model=network.model.digest, target=target.name, choices=tuple(choices), seed=seed,
        activations=activations_of(params), versions=versions(),
        note="int8 wherever a template supports it, template defaults",
    )  # fmt: skip


def transfer_plan(plan: Plan, network: Network, registry: Registry, target: Target) -> Plan:
    """The plan's precision, sparsity and templates on another target, at that target's defaults.

    The same template where it supports the layer there, else another of the same precision and
    level of sparsity (blocks follow the target's lanes), else the target's float default. Weights
    pruned by reconstruction stay as they are: in blocks of 4x1, those of 16x1 are as sparse.

    Raises:
        BuildError: weights pruned by reconstruction are dense in the blocks that the other
            target's templates take, or not there.
    """
    choices = []
    constants = constants_named(network, plan)
    for layer in network.graph.layers:
        old = plan.choice(layer.name)
        options = _options(registry, network, layer, target)
        if not options:
            continue
        wanted = old.implementation if old else options[0][1]
        if old is not None and old.weights:
            options = _fitting(options, old, constants[old.weights], network, target)
        alike = [o for o in options if _alike(o[1], wanted)] or options
        same = [o for o in alike if o[1].template == wanted.template]
        entry, implementation = (same or alike)[0]
        choice = choose(entry, layer, target, implementation=implementation)
        if old is not None and old.weights:
            choice = choice.model_copy(update={"weights": old.weights})
        choices.append(choice)
    return Plan(
        model=plan.model, target=target.name, choices=tuple(choices), seed=plan.seed,
        activations=plan.activations, equalisation=plan.equalisation,
        corrections=plan.corrections, versions=versions(),
        note=f"carried over from {plan.target}, defaults of {target.name}",
    )  # fmt: skip


def _fitting(
    options: list[tuple[TemplateEntry, Implementation]], old: LayerChoice,
    constants: LayerConstants, network: Network, target: Target,
) -> list[tuple[TemplateEntry, Implementation]]:  # fmt: skip
    """The options that run a layer's pruned weights as they are, at the level of their blocks."""
    wanted = BlockSparsity.parse(old.implementation.sparsity)
    found: dict[tuple[str, str, str], tuple[TemplateEntry, Implementation]] = {}
    for entry, how in options:
        blocks = BlockSparsity.parse(how.sparsity)
        if wanted is None or blocks is None or how.precision != old.implementation.precision:
            continue
        level = own_level(constants.weight, blocks.rows, blocks.columns)
        parts = wanted.rows % blocks.rows == 0 and wanted.columns % blocks.columns == 0
        # A last block of few rows counts as much as a full one: levels differ for parts, too.
        if level and (parts or level >= wanted.level):
            sparsity = str(BlockSparsity(blocks.rows, blocks.columns, level))
            key = (how.template, how.layout, sparsity)
            found[key] = (entry, how.model_copy(update={"sparsity": sparsity}))
    if not found:
        raise BuildError(
            f"layer {old.layer!r} was pruned by reconstruction in blocks of "
            f"{wanted or DENSE}, which no template of target {target.name} takes",
            hint=f"explore for it: `tvmx explore {network.model.path} --target "
            f"{target.name} ...`, or pick a plan without pruned layers",
        )
    return list(found.values())


def _alike(implementation: Implementation, wanted: Implementation) -> bool:
    """Same precision, same share of blocks dropped."""
    levels = [BlockSparsity.parse(i.sparsity) for i in (implementation, wanted)]
    dropped = [level.level if level else 0 for level in levels]
    return implementation.precision == wanted.precision and dropped[0] == dropped[1]


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
