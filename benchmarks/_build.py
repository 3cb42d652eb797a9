"""The libraries a network is measured as; each function is meant for a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks._folder import SEED, TARGET, Folder
from benchmarks._results import Explored

if TYPE_CHECKING:
    from tvmx.explore import ExploreResult
    from tvmx.explore._context import Context


def open_context(folder: Folder, exact: bool = True) -> Context:
    """The network cut into layers, for this machine; ``exact``: float and dense only."""
    from tvmx.explore._context import Context

    return Context.open(folder.model, {}, TARGET, (), exact=exact)


def build_defaults(folder: Folder) -> dict[str, int]:
    """Build the baseline plan, write the golden arrays; returns fields of the network's result."""
    from tvmx.explore._reference import golden_inputs
    from tvmx.explore._whole import build_plan
    from tvmx.passes import baseline_plan
    from tvmx.testing.models import onnx_reference

    context = open_context(folder)
    inputs = golden_inputs(context.model, SEED)
    # The ONNX file may name its inputs otherwise; their order is the same.
    feeds = dict(zip(_onnx_inputs(folder), inputs.values(), strict=True))
    folder.save_golden(inputs, onnx_reference(folder.onnx, feeds))
    plan = baseline_plan(context.network, context.registry, context.target, SEED)
    plan.save(folder.plan("defaults"))
    built = build_plan(
        "defaults", plan, context.network, context.registry, context.target, folder.path
    )
    return {
        "layers": built.lowered.total, "layers_hit": built.lowered.hits,
        "weights_bytes": built.build.weights_bytes, "arena_bytes": built.build.arena_bytes,
    }  # fmt: skip


def _onnx_inputs(folder: Folder) -> list[str]:
    import onnx

    graph = onnx.load(folder.onnx, load_external_data=False).graph
    return [value.name for value in graph.input]


def explore_network(folder: Folder, budget_s: float, fresh: bool, say: Callable[[str], None]) -> (
    Explored
):  # fmt: skip
    """Explore, or go on where it stopped, and build the best plan."""
    from tvmx.explore import ExploreRequest, explore
    from tvmx.explore._whole import build_plan
    from tvmx.store import Run

    found = None if fresh else _finished(folder, budget_s)
    result: ExploreResult = found or explore(
        ExploreRequest(
            model=folder.model, target=TARGET, out=folder.run, budget_s=budget_s, fresh=fresh,
            seed=SEED,
        ),
        _Stages(say),
    )  # fmt: skip
    best = result.candidates[result.best].name
    context = open_context(folder)
    build_plan(
        "explored", Run.load(folder.run).plan(best), context.network, context.registry,
        context.target, folder.path,
    )  # fmt: skip
    return Explored(
        best=best, is_baseline=result.best == result.baseline,
        measurements=result.measurements, seconds=round(result.seconds, 1),
    )  # fmt: skip


def _finished(folder: Folder, budget_s: float) -> ExploreResult | None:
    """The result of an exploration that came to its end with this budget or a larger one."""
    from tvmx.explore import ExploreResult
    from tvmx.store import Run

    if not (folder.run / "settings.json").is_file():
        return None
    run = Run.load(folder.run)
    content = run.result()
    if content is None or (run.settings.budget_s or 0.0) < budget_s:
        return None
    return ExploreResult.model_validate(content)


class _Stages:
    """A ``tvmx.explore.Progress`` that says the stages' names."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def stage(self, name: str) -> None:
        """A new stage begins."""
        self._say(f"explore: {name}")

    def update(
        self, done: float, total: float, *, best_us: float | None, baseline_us: float | None,
        seconds_left: float | None,
    ) -> None:  # fmt: skip
        """Nothing: one line per stage is enough here."""

    def message(self, text: str) -> None:
        """One line worth keeping."""
        self._say(text)


def build_untuned(folder: Folder) -> Any:
    """TVM alone: its ONNX importer and ``relax.build`` with the default pipeline, in memory."""
    import onnx
    from tvm.relax.frontend.onnx import from_onnx

    from tvmx import _tvm
    from tvmx.targets import load_target

    mod = from_onnx(onnx.load(folder.onnx), keep_params_in_input=False)
    return _tvm.relax.build(mod, target=_tvm.make_target(load_target(TARGET)))
