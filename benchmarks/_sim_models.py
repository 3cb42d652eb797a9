"""What the runners on a simulated core are given, all made from one ONNX file per network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks._folder import MOBILENETS, SEED, Array, Folder
from benchmarks._models import calibration_samples, export_onnx
from benchmarks._sim_guest import LAYER_FIELDS
from tvmx.errors import MeasureError, UsageError

if TYPE_CHECKING:
    import onnx

    from tvmx.explore._context import Context
    from tvmx.ir import Plan
    from tvmx.numerics import QuantParams

DEFAULTS, INT8 = "defaults", "int8"
FULL_SIZE = 224
_STRIDE = 32  # of the networks' last maps


@dataclass(frozen=True)
class SimFolder(Folder):
    """One network at one image size. tvmx too is given the ONNX file."""

    @property
    def model(self) -> Path:
        """See :class:`Folder`."""
        return self.onnx

    @property
    def golden(self) -> Path:
        """The file of :meth:`load_golden`."""
        return self.path / "golden.npz"

    @property
    def layers(self) -> Path:
        """Operands of every convolution and dense layer."""
        return self.path / "layers.npz"

    def for_target(self, target: str) -> Folder:
        """Where tvmx's libraries and plans for a target lie."""
        return Folder(self.path / target)


def write_model(folder: SimFolder, size: int) -> None:
    """Write the ONNX file and golden arrays unless they are there. For a process of its own.

    ``size`` is the image's, a multiple of 32. Raises UsageError for another.
    """
    if folder.onnx.is_file() and folder.golden.is_file():
        return
    import onnx

    from tvmx.testing.models import light_model, onnx_reference

    if size < _STRIDE or size % _STRIDE:
        raise UsageError(f"images of {size} pixels: give a multiple of {_STRIDE}")
    folder.path.mkdir(parents=True, exist_ok=True)
    shape = (1, 3, size, size)
    if folder.network in MOBILENETS:
        from tvmx.testing import torch_models

        module = getattr(torch_models, folder.network)(resolution=size, seed=SEED)
        export_onnx(module, folder.onnx, shape)
    else:
        model = light_model(folder.network, SEED)
        onnx.save(resized(model, size) if size != FULL_SIZE else model, folder.onnx)
    (name,) = (value.name for value in onnx.load(folder.onnx).graph.input)
    image = np.random.default_rng(SEED).standard_normal(shape, dtype=np.float32)
    folder.save_golden({name: image}, onnx_reference(folder.onnx, {name: image}))


def resized(model: onnx.ModelProto, size: int) -> onnx.ModelProto:
    """A light model for smaller images: its input, and the mean over the last map."""
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    for node in model.graph.node:
        for attribute in node.attribute:
            last = [FULL_SIZE // _STRIDE] * 2
            if node.op_type == "AveragePool" and list(attribute.ints) == last:
                attribute.ints[:] = [size // _STRIDE] * 2
    return model


def write_layers(folder: SimFolder) -> None:
    """Write the operands of every layer in the float network, unless they are there.

    Arrays ``shape:i`` (see ``LAYER_FIELDS``), ``data:i``, ``weight:i``; what must come out,
    without the bias, is kept as the expectation ``layers``.
    """
    if folder.layers.is_file():
        return
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from tvmx.testing.models import onnx_reference

    model = onnx.load(folder.onnx)
    graph = model.graph
    weights = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    names = list(dict.fromkeys(n for node in nodes for n in (node.input[0], node.output[0])))
    known = {value.name for value in (*graph.output, *graph.input)}
    given, final = folder.load_golden()
    outputs = [n for n in names if n not in known]
    kept = [value.name for value in graph.output]
    graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs)
    values = dict(zip([*kept, *outputs], onnx_reference(model, given), strict=True)) | given
    arrays: dict[str, Array] = {}
    expected = []
    for index, node in enumerate(nodes):
        layer = _layer(node, weights, values)
        arrays |= {f"{field}:{index}": array for field, array in layer.items()}
        out = values[node.output[0]]
        bias = weights[node.input[2]] if len(node.input) > 2 else np.zeros(1, np.float32)
        expected.append((out - bias.reshape(1, -1, *(1,) * (out.ndim - 2))).ravel())
    assert np.allclose(values[kept[0]], final[0])
    folder.save_expected("layers", expected, 1e-3)
    with folder.layers.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]


def _layer(
    node: onnx.NodeProto, weights: Mapping[str, Array], values: Mapping[str, Array]
) -> dict[str, Array]:
    data, weight = values[node.input[0]], weights[node.input[1]]
    given: dict[str, Any] = {a.name: list(a.ints) or a.i for a in node.attribute}
    if node.op_type == "Gemm":
        weight = weight if given.get("transB") else weight.T
        data, weight = data.reshape(1, -1, 1, 1), weight[:, :, None, None]
    out = values[node.output[0]].reshape(1, len(weight), -1)
    groups, strides = given.get("group", 1), given.get("strides", [1, 1])
    top, left, bottom, right = given.get("pads", [0, 0, 0, 0])
    height = (data.shape[2] + top + bottom - weight.shape[2]) // strides[0] + 1
    width = (data.shape[3] + left + right - weight.shape[3]) // strides[1] + 1
    if height * width != out.shape[2]:  # dilated, or padded automatically
        raise MeasureError(f"layer {node.name!r} is none that im2col is written for")
    shape = (
        groups, len(weight) // groups, weight.shape[1], data.shape[2], data.shape[3], height, width,
        weight.shape[2], weight.shape[3], *strides, top, left,
    )  # fmt: skip
    assert len(shape) == len(LAYER_FIELDS)
    return {"shape": np.array(shape), "data": data, "weight": np.ascontiguousarray(weight)}


def build_libraries(folder: SimFolder, targets: Sequence[str], precisions: Sequence[str]) -> None:
    """Build tvmx's plans for boards unless they are there. For a process of its own.

    ``precisions`` are ``defaults`` (float) and ``int8``. int8 is calibrated once, on this machine.
    """
    missing = [
        (target, precision)
        for target in targets
        for precision in precisions
        if not folder.for_target(target).library(precision).is_file()
    ]
    if not missing:
        return
    made = _Plans(folder)
    for target, precision in missing:
        made.build(target, precision)


class _Plans:
    """Plans for one network; what does not depend on the target is found once."""

    def __init__(self, folder: SimFolder) -> None:
        self._folder = folder
        self._given, self._right = folder.load_golden()
        self._calibrated: tuple[Any, dict[int, QuantParams]] | None = None

    def build(self, target: str, precision: str) -> None:
        """Build one library; what it must output is written before it."""
        from tvmx.explore._whole import build_plan, rtol_of
        from tvmx.passes import baseline_plan, int8_plan

        context = self._open(target)
        place = self._folder.for_target(target)
        place.path.mkdir(parents=True, exist_ok=True)
        arguments = context.network, context.registry, context.target
        plan: Plan
        if precision == DEFAULTS:
            plan = baseline_plan(*arguments, SEED)
            place.save_expected(precision, self._right, 1e-3)
        else:
            simulator, params = self._calibrate()
            plan = int8_plan(*arguments, params, SEED)
            expected = simulator.expected(plan, list(self._given.values()))
            place.save_expected(precision, expected, rtol_of(plan, context.network.graph))
        plan.save(place.plan(precision))
        build_plan(precision, plan, *arguments, place.path)

    def _open(self, target: str) -> Context:
        from tvmx.explore._context import Context

        return Context.open(self._folder.model, {}, target, (), exact=False)

    def _calibrate(self) -> tuple[Any, dict[int, QuantParams]]:
        """By min-max, as ONNX Runtime's int8 here."""
        if self._calibrated is None:
            from tvmx.accuracy import Samples, calibrate
            from tvmx.passes import Simulator

            context = self._open("host")
            simulator = Simulator(context.network, context.target)
            specs = {spec.name: spec for spec in context.model.inputs}
            arrays = calibration_samples(list(specs.values()))
            samples = Samples(dict(zip(specs, arrays, strict=True)))
            self._calibrated = simulator, calibrate(simulator, samples, specs, "minmax")
        return self._calibrated
