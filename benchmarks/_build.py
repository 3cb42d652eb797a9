"""The libraries a network is measured as; each function is meant for a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from benchmarks._results import Explored

if TYPE_CHECKING:
    from tvmx.explore import ExploreResult
    from tvmx.explore._context import Context

Array = npt.NDArray[Any]
TARGET = "host"
SEED = 0


@dataclass(frozen=True)
class Folder:
    """Where everything about one network lies."""

    path: Path

    @property
    def network(self) -> str:
        """Name of the light model."""
        return self.path.name

    @property
    def model(self) -> Path:
        """The ONNX file, random weights, softmax dropped."""
        return self.path / f"{self.network}.onnx"

    @property
    def defaults(self) -> Path:
        """Library of the baseline plan."""
        return self.path / "defaults.so"

    @property
    def explored(self) -> Path:
        """Library of the best explored plan."""
        return self.path / "explored.so"

    @property
    def run(self) -> Path:
        """The exploration's run folder."""
        return self.path / "run"

    @property
    def golden(self) -> Path:
        """Seeded inputs and what the reference makes of them."""
        return self.path / "golden.npz"

    @property
    def result(self) -> Path:
        """Figures so far."""
        return self.path / "result.json"

    def load_golden(self) -> tuple[dict[str, Array], list[Array]]:
        """Inputs by name and expected outputs, both in the model's order."""
        with np.load(self.golden, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
        inputs = {k.removeprefix("in:"): v for k, v in arrays.items() if k.startswith("in:")}
        return inputs, [v for k, v in arrays.items() if k.startswith("out:")]


def prepare_model(folder: Folder) -> None:
    """Write the model, unless it is there; the golden arrays come with the defaults."""
    from tvmx.testing.models import save_light_model

    if not folder.model.is_file():
        save_light_model(folder.network, folder.path, SEED)


def open_context(folder: Folder) -> Context:
    """The network cut into layers, for this machine."""
    from tvmx.explore._context import Context

    return Context.open(folder.model, {}, TARGET, ())


def build_defaults(folder: Folder) -> tuple[int, int]:
    """Build the baseline plan, write the golden arrays; returns layers hit and layers."""
    from tvmx.explore._reference import Reference, golden_inputs
    from tvmx.explore._whole import build_plan
    from tvmx.passes import baseline_plan

    context = open_context(folder)
    inputs = golden_inputs(context.model, SEED)
    outputs = Reference(context.model)(inputs)
    arrays = {f"in:{k}": v for k, v in inputs.items()}
    arrays |= {f"out:{i}": v for i, v in enumerate(outputs)}
    with folder.golden.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
    plan = baseline_plan(context.network, context.registry, context.target, SEED)
    built = build_plan(
        "defaults", plan, context.network, context.registry, context.target, folder.path
    )
    return built.lowered.hits, built.lowered.total


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

    mod = from_onnx(onnx.load(folder.model), keep_params_in_input=False)
    return _tvm.relax.build(mod, target=_tvm.make_target(load_target(TARGET)))
