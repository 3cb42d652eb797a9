"""Plans that change a network's numbers: all int8, and a random mixture of everything."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Literal

from benchmarks._build import open_context
from benchmarks._candidates import Expectation, relative_l2, verify, vm_candidate
from benchmarks._folder import SEED, TARGET, Folder
from benchmarks._models import calibration_samples
from benchmarks._results import Mixed, Quantised

if TYPE_CHECKING:
    from tvmx.build import NetworkBuild
    from tvmx.explore._context import Context
    from tvmx.ir import Implementation, Layer, LayerChoice, Plan
    from tvmx.numerics import QuantParams
    from tvmx.passes import Simulator

INT8, MIXED = "int8", "mixed"
_METHOD: Literal["minmax"] = "minmax"  # as ONNX Runtime's calibration here


class Calibrated:
    """A network with the ranges of its values: what int8 and mixed plans are made from."""

    def __init__(self, folder: Folder) -> None:
        from tvmx.accuracy import Samples, calibrate
        from tvmx.passes import Simulator
        from tvmx.targets import load_target

        self.folder = folder
        self.context: Context = open_context(folder, exact=False)
        self.simulator: Simulator = Simulator(self.context.network, load_target(TARGET))
        specs = {spec.name: spec for spec in self.context.model.inputs}
        arrays = calibration_samples(list(specs.values()))
        samples = Samples(dict(zip(specs, arrays, strict=True)))
        self.params: dict[int, QuantParams] = calibrate(self.simulator, samples, specs, _METHOD)

    def build(self, name: str, plan: Plan) -> NetworkBuild:
        """Build a plan; keep it and what it must output."""
        from tvmx.explore._whole import build_plan, rtol_of

        folder, context = self.folder, self.context
        plan.save(folder.plan(name))
        inputs, _ = folder.load_golden()
        expected = self.simulator.expected(plan, list(inputs.values()))
        folder.save_expected(name, expected, rtol_of(plan, context.network.graph))
        return build_plan(
            name, plan, context.network, context.registry, context.target, folder.path
        ).build


def build_quantised(folder: Folder, mixed: bool) -> tuple[Quantised, Mixed | None]:
    """Build the int8 plan and, if wanted, build and verify a mixed one. For its own process.

    Raises:
        MeasureError: the mixed plan's output is wrong.
    """
    from tvmx.passes import int8_plan

    calibrated = Calibrated(folder)
    context = calibrated.context
    plan = int8_plan(context.network, context.registry, context.target, calibrated.params, SEED)
    built = calibrated.build(INT8, plan)
    quantised = Quantised(
        layers=layer_counts(plan), method=_METHOD,
        weights_bytes=built.weights_bytes, arena_bytes=built.arena_bytes,
    )  # fmt: skip
    return quantised, _verify_mixed(calibrated) if mixed else None


def plan_expectation(folder: Folder, name: str) -> Expectation:
    """What a built plan must output, by the simulation, and how close."""
    return Expectation(folder.load_expected(name), folder.load_limit(name))


def mixed_plan(context: Context, params: dict[int, QuantParams], seed: int) -> Plan:
    """A random implementation for every layer, default configs.

    Each layer draws first between float, int8 and block-sparse, as far as a template supports
    them, then among the implementations of that kind: sparsity levels would outnumber the rest.
    """
    from tvmx.ir import Plan
    from tvmx.passes import activations_of, versions

    rng = random.Random(seed)
    choices = [_draw(context, layer, rng) for layer in context.covered]
    return Plan(
        model=context.network.model.digest, target=context.target.name, choices=tuple(choices),
        activations=activations_of(params), seed=seed, versions=versions(),
        note="every layer's implementation drawn at random",
    )  # fmt: skip


def _draw(context: Context, layer: Layer, rng: random.Random) -> LayerChoice:
    from tvmx.passes import choose

    in_float = layer.index in context.network.graph.read_in_float
    options = context.registry.implementations(layer.workload, context.target, float_out=in_float)
    kind = rng.choice(sorted({_kind(implementation) for _, implementation in options}))
    entry, implementation = rng.choice([o for o in options if _kind(o[1]) == kind])
    return choose(entry, layer, context.target, implementation=implementation)


def _kind(implementation: Implementation) -> str:
    if implementation.exact:
        return "float"
    return "int8" if implementation.precision == "int8" else "sparse"


def layer_counts(plan: Plan) -> dict[str, int]:
    """Layers per precision, sparsity and layout, such as ``int8 NCHW16c: 20``."""
    counts: Counter[str] = Counter()
    for choice in plan.choices:
        how = choice.implementation
        sparsity = "" if how.sparsity == "dense" else f" {how.sparsity}"
        counts[f"{how.precision}{sparsity} {how.layout}"] += 1
    return dict(sorted(counts.items()))


def _verify_mixed(calibrated: Calibrated) -> Mixed:
    plan = mixed_plan(calibrated.context, calibrated.params, SEED)
    calibrated.build(MIXED, plan)
    folder = calibrated.folder
    inputs, floats = folder.load_golden()
    expectation = plan_expectation(folder, MIXED)
    candidate = vm_candidate(
        MIXED, folder.library(MIXED), list(inputs.values()), expectation
    )  # verified at once: it is never timed
    error = verify(candidate)
    return Mixed(
        seed=SEED, layers=layer_counts(plan), max_error=error, limit=expectation.limit,
        deviation=relative_l2(candidate.outputs(), floats),
    )  # fmt: skip
