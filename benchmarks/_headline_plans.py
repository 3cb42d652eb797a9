"""The networks of the headline, tvmx's plans for them, and the memory each plan takes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks._folder import SEED, Folder
from benchmarks._models import calibration_samples
from benchmarks._records import Record
from benchmarks._search_measured import DIGITS, Exploration
from benchmarks._sim_models import FULL_SIZE, SimFolder, write_layers, write_model

if TYPE_CHECKING:
    from tvmx.explore._context import Context
    from tvmx.ir import Plan
    from tvmx.numerics import QuantParams

FLOAT, INT8, EXPLORED = "float", "int8", "explored"
_FLOAT_BYTES = 4
_OF_THE_RANGE = 1e-3


class Sizes(Record):
    """Bytes: constants, planned activations, and what one kernel needs besides at most."""

    weights_bytes: int
    arena_bytes: int
    scratch_bytes: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights_bytes + self.arena_bytes + self.scratch_bytes


@dataclass(frozen=True)
class Wanted:
    """A plan of a network for a target; ``exploration`` is where an explored one comes from."""

    target: str
    plan: str
    exploration: Exploration | None = None


def write_network(folder: SimFolder, digits: Exploration) -> None:
    """Write the ONNX file, golden arrays and every layer's operands, unless they are there.

    ``digits`` has the trained network. For a process of its own.
    """
    if folder.network == DIGITS and not folder.golden.is_file():
        from tvmx.testing.models import onnx_reference

        digits.prepare()
        folder.path.mkdir(parents=True, exist_ok=True)
        shutil.copy(digits.model, folder.onnx)
        with np.load(digits.data, allow_pickle=False) as data:
            image = {"image": data["inputs"][:1]}
        folder.save_golden(image, onnx_reference(folder.onnx, image))
    write_model(folder, FULL_SIZE)
    write_layers(folder)


def sizes_path(place: Folder, plan: str) -> Path:
    """Where a plan's :class:`Sizes` are kept."""
    return place.path / f"{plan}.sizes.json"


def build_plans(folder: SimFolder, wanted: Sequence[Wanted]) -> None:
    """Build plans, with what they must output and their sizes. For a process of its own."""
    builder = _Builder(folder)
    for one in wanted:
        builder.build(one)


class _Builder:
    """Plans for one network; int8 is calibrated once, on this machine."""

    def __init__(self, folder: SimFolder) -> None:
        self._folder = folder
        self._given, self._right = folder.load_golden()
        self._calibrated: dict[int, QuantParams] | None = None

    def build(self, wanted: Wanted) -> None:
        """Build one library; its sizes are written last."""
        from tvmx.explore._whole import build_plan

        place = self._folder.for_target(wanted.target)
        place.path.mkdir(parents=True, exist_ok=True)
        context, plan = self._plan(wanted)
        if plan.exact:
            place.save_expected(wanted.plan, self._right, _OF_THE_RANGE)
        else:
            place.save_expected(wanted.plan, *self._simulated(context, plan))
        plan.save(place.plan(wanted.plan))
        built = build_plan(
            wanted.plan, plan, context.network, context.registry, context.target, place.path
        ).build
        Sizes(
            weights_bytes=built.weights_bytes, arena_bytes=built.arena_bytes,
            scratch_bytes=built.scratch_bytes,
        ).save(sizes_path(place, wanted.plan))  # fmt: skip

    def _plan(self, wanted: Wanted) -> tuple[Context, Plan]:
        from tvmx.passes import baseline_plan, int8_plan

        if wanted.exploration is not None:
            return _best(wanted.exploration, wanted.target)
        context = _open(self._folder.onnx, wanted.target)
        arguments = context.network, context.registry, context.target
        if wanted.plan == FLOAT:
            return context, baseline_plan(*arguments, SEED)
        return context, int8_plan(*arguments, self._params(), SEED)

    def _params(self) -> dict[int, QuantParams]:
        """By min-max, on the samples of the other benchmarks."""
        if self._calibrated is None:
            from tvmx.accuracy import Samples, calibrate

            context = _open(self._folder.onnx, "host")
            specs = {spec.name: spec for spec in context.model.inputs}
            arrays = calibration_samples(list(specs.values()))
            samples = Samples(dict(zip(specs, arrays, strict=True)))
            self._calibrated = calibrate(_simulator(context), samples, specs, "minmax")
        return self._calibrated

    def _simulated(self, context: Context, plan: Plan) -> tuple[list[Any], float]:
        from tvmx.explore._whole import rtol_of

        expected = _simulator(context).expected(plan, list(self._given.values()))
        return list(expected), rtol_of(plan, context.network.graph)


def _best(exploration: Exploration, target: str) -> tuple[Context, Plan]:
    """The best plan of an exploration that came to its end, in the network it was explored in."""
    from tvmx.store import Run

    result = exploration.finished()
    assert result is not None, exploration.run
    plan = Run.load(exploration.run).plan(result.candidates[result.best].name)
    return _open(exploration.model, target), plan


def _open(model: Path, target: str) -> Context:
    from tvmx.explore._context import Context

    return Context.open(model, {}, target, (), exact=False)


def _simulator(context: Context) -> Any:
    from tvmx.passes import Simulator
    from tvmx.targets import load_target

    return Simulator(context.network, load_target("host"))


@dataclass(frozen=True)
class Layers:
    """What im2col and a matrix product need of a network, besides the arena.

    ``macs`` of one inference; ``weights_bytes`` in float, biases included; ``column_bytes`` of the
    largest column matrix.
    """

    macs: int
    weights_bytes: int
    column_bytes: int

    @classmethod
    def of(cls, folder: SimFolder) -> Layers:
        """Of the operands that :func:`write_network` wrote."""
        with np.load(folder.layers, allow_pickle=False) as data:
            shapes = [data[name].tolist() for name in data.files if name.startswith("shape:")]
        macs = weights = column = 0
        for groups, outputs, inputs, _, _, height, width, ky, kx, sy, sx, top, left in shapes:
            depth, pixels = inputs * ky * kx, height * width
            macs += groups * outputs * depth * pixels
            weights += groups * outputs * (depth + 1) * _FLOAT_BYTES
            if (ky, kx, sy, sx, top, left) != (1, 1, 1, 1, 0, 0):
                column = max(column, depth * pixels * _FLOAT_BYTES)
        return cls(macs, weights, column)
