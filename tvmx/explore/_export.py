"""Bundles from a model without search, or from an explored run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tvmx.deploy import Figure, Manifest, Sizes, TensorSpec, installed_versions, write_bundle
from tvmx.errors import RunMismatchError, StoreError, UsageError
from tvmx.explore._context import Context
from tvmx.explore._golden import Golden, load_golden
from tvmx.explore._pick import pick_candidate
from tvmx.explore._prune_weights import weight_files, with_weights
from tvmx.explore._reference import Reference, golden_inputs
from tvmx.explore._request import BundleSummary, CandidateSummary, ExploreResult, Progress, Silent
from tvmx.explore._so_far import SoFar
from tvmx.explore._whole import SIMULATION, BuiltPlan, as_reference, build_plan, rtol_of
from tvmx.ir import DataSource, Plan
from tvmx.passes import baseline_plan, check_replay, transfer_plan
from tvmx.store import Run
from tvmx.targets import load_target


def build_bundle(
    model: Path, target: str, out: Path, *, shapes: dict[str, tuple[int, ...]] | None = None,
    params: Path | None = None, plan: Path | None = None, schedules: Sequence[Path] = (),
    seed: int = 0, progress: Progress | None = None,
) -> BundleSummary:  # fmt: skip
    """Compile a model without search: template defaults, or the replay of a plan.

    Raises ModelError, BuildError (also for a plan of another model or target), UnwritableError.
    """
    progress = progress or Silent()
    progress.stage("import")
    context = Context.open(model, shapes or {}, target, schedules, params=params)
    if plan is None:
        chosen = baseline_plan(context.network, context.registry, context.target, seed)
    else:
        chosen = Plan.load(plan)
        check_replay(chosen, context.network, context.registry)
        context = replace(context, network=with_weights(plan.parent, chosen, context.network))
        if chosen.target != context.target.name:
            raise UsageError(
                f"{plan} was made for target {chosen.target!r}, not {context.target.name!r}",
                hint=f"--target {chosen.target}, "
                f"or `tvmx export RUN --target {context.target.name}`",
            )
    progress.stage("reference")
    reference, inputs = Reference(context.model), golden_inputs(context.model, seed)
    golden = Golden(inputs, reference(inputs), reference.name)
    notes = ["built without search: nothing was measured"]
    return _write(context, chosen, golden, out, (), notes, False, progress)


def export_run(
    run: Path, out: Path, *, pick: str = "best", target: str | None = None,
    schedules: Sequence[Path] = (), progress: Progress | None = None,
) -> BundleSummary:  # fmt: skip
    """Write a bundle of an explored run's candidate.

    ``pick`` is ``best``, ``memory`` (least weights plus arena), ``baseline``, an index into the
    result's candidates, or a rule (:class:`tvmx.explore._pick.Rule`). While the run is not over,
    and where it was interrupted, ``best`` is the best plan so far. For another target than the
    explored one precision, sparsity and templates are kept, configs are that target's defaults, and
    the manifest says it was not measured there.

    Raises:
        StoreError: ``run`` is no run, or has nothing to export yet.
        UsageError: no such candidate.
        RunMismatchError: the model file has changed since.
    """
    progress = progress or Silent()
    folder = Run.load(run)
    chosen = _chosen(folder, pick)
    settings = folder.settings
    progress.stage("import")
    paths = [Path(p) for p in settings.schedule_paths] + list(schedules)
    context = Context.open(
        Path(settings.model_path), dict(settings.shapes), target or settings.target,
        list(dict.fromkeys(p.resolve() for p in paths)),
        params=Path(settings.params_path) if settings.params_path else None,
    )  # fmt: skip
    if context.model.digest != settings.model:
        raise RunMismatchError(
            f"{settings.model_path} has changed since run {run} was made "
            f"(digest {context.model.digest}, then {settings.model})",
            hint="explore again, or restore the model file",
        )
    plan, notes = chosen.plan, chosen.notes
    check_replay(plan, context.network, context.registry)
    network = with_weights(folder.plan_folder, plan, context.network)
    context = replace(context, network=network)
    same = context.target.name == settings.target
    if not same:
        plan = transfer_plan(plan, context.network, context.registry, context.target)
        notes = [f"not measured on this target; explored on {settings.target}"]
    figures = chosen.figures if same else ()
    measured = same and chosen.measured
    return _write(
        context, plan, load_golden(folder), out, figures, notes, measured, progress,
        settings.data_source,
    )  # fmt: skip


class _Chosen(NamedTuple):
    """What to export of a run; ``measured`` whole, on a real device."""

    plan: Plan
    notes: list[str]
    figures: tuple[Figure, ...]
    measured: bool


def _chosen(folder: Run, pick: str) -> _Chosen:
    outcome = folder.result()
    if outcome is None:
        return _so_far(folder, pick)
    result = ExploreResult.model_validate(outcome)
    candidate = pick_candidate(result, pick)
    plan = folder.plan(candidate.name)
    if plan.digest != candidate.plan:
        raise StoreError(
            f"run {folder.path} is being explored again: its {candidate.name} is another plan now",
            hint="export again when that `tvmx explore` has ended",
        )
    figures = _figures(result, candidate)
    return _Chosen(plan, list(result.notes), figures, not result.simulated)


def _so_far(folder: Run, pick: str) -> _Chosen:
    """The best plan of a run that is not over."""
    found = SoFar.load(folder)
    again = f"`tvmx explore ... --out {folder.path}` goes on with it"
    if found is None:
        raise StoreError(
            f"run {folder.path} has no result yet, and its baseline was not measured", hint=again
        )
    if pick != "best":
        raise StoreError(
            f"run {folder.path} has no result yet to pick {pick!r} from; --pick best exports the "
            "best plan so far",
            hint=again,
        )
    return _Chosen(found.plan, [found.told], (), measured=False)


def _golden_of(context: Context, plan: Plan, golden: Golden) -> Golden:
    """Golden outputs of the plan: an int8 or sparse one does not compute the reference's."""
    if as_reference(plan, context.network.graph):
        return golden
    from tvmx.passes import Simulator

    simulator = Simulator(context.network, load_target("host"))
    ordered = [golden.inputs[spec.name] for spec in context.model.inputs]
    return Golden(golden.inputs, simulator.expected(plan, ordered), SIMULATION)


def _figures(result: ExploreResult, c: CandidateSummary) -> tuple[Figure, ...]:
    where = {
        "device": result.device.split(",")[0],
        "identity": result.device,
        "simulated": result.simulated,
    }
    found = [
        Figure(
            metric="latency", value=c.latency_us, unit="us", spread=c.spread_us,
            threads=result.threads, paired_with="baseline",
            note="median and interquartile range over interleaved rounds", **where,
        ),
        Figure(
            metric="latency ratio to baseline", value=c.ratio, unit="1",
            threads=result.threads, paired_with="baseline",
            note="median over rounds of this / baseline", **where,
        ),
    ]  # fmt: skip
    if c.accuracy is not None:
        found.append(
            Figure(
                metric=c.accuracy_kind, value=c.accuracy, unit="%", note="held-out half", **where
            )
        )
    return tuple(found)


def _write(
    context: Context, plan: Plan, golden: Golden, out: Path, figures: tuple[Figure, ...],
    notes: list[str], measured: bool, progress: Progress, data: DataSource | None = None,
) -> BundleSummary:  # fmt: skip
    progress.stage("compile")
    golden = _golden_of(context, plan, golden)
    with tempfile.TemporaryDirectory(prefix="tvmx-bundle-") as scratch:
        built = build_plan(
            "model", plan, context.network, context.registry, context.target, Path(scratch)
        )
        manifest = _manifest(context, built, golden, figures, notes, measured)
        manifest = manifest.model_copy(update={"data": data})
        bundle = write_bundle(
            out, built.build.path, manifest, golden.inputs, golden.outputs, plan,
            beside_plan=weight_files(plan, context.network),
        )  # fmt: skip
    sizes = manifest.sizes
    return BundleSummary(
        path=str(bundle.path), target=context.target.name, layers_hit=built.lowered.hits,
        layers=built.lowered.total, library_bytes=sizes.library_bytes,
        weights_bytes=sizes.weights_bytes, arena_bytes=sizes.arena_bytes,
        scratch_bytes=sizes.scratch_bytes, measured_on_target=measured, notes=notes,
    )  # fmt: skip


def _manifest(
    context: Context, built: BuiltPlan, golden: Golden, figures: tuple[Figure, ...],
    notes: list[str], measured: bool,
) -> Manifest:  # fmt: skip
    model, target, build = context.model, context.target, built.build
    return Manifest(
        model=model.path.name, model_digest=model.digest, plan_digest=built.plan.digest,
        target=target.name, triple=target.triple, cpu=target.cpu, features=target.features,
        glibc=target.glibc, versions=installed_versions(),
        inputs=tuple(TensorSpec(name=s.name, shape=s.shape, dtype=s.dtype) for s in model.inputs),
        outputs=tuple(TensorSpec(name=s.name, shape=s.shape, dtype=s.dtype) for s in model.outputs),
        sizes=Sizes(
            library_bytes=build.bytes, weights_bytes=build.weights_bytes,
            arena_bytes=build.arena_bytes, scratch_bytes=build.scratch_bytes,
        ),
        figures=figures, measured_on_target=measured,
        rtol=rtol_of(built.plan, context.network.graph),
        notes=(*notes, f"golden outputs computed by {golden.reference}"),
    )  # fmt: skip
