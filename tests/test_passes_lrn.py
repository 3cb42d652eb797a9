"""Local response normalisation: recognised, one kernel in either layout, right."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from tvmx._tvm import relax, tirx, tvm
from tvmx.build import build_network
from tvmx.frontends import load_model
from tvmx.ir import physical_shape, to_logical, to_physical
from tvmx.numerics import ChannelWindow
from tvmx.passes import baseline_plan, extract_layers, lower
from tvmx.passes._dataflow import op_name
from tvmx.passes._groups import free_vars
from tvmx.passes._lrn import Lrn, find_lrns
from tvmx.passes._lrn_kernel import lrn_kernel
from tvmx.targets import load_target
from tvmx.templates import Registry
from tvmx.testing.models import graph_model, onnx_reference


def lrn_model(channels: int, plane: tuple[int, int], **attributes: float) -> onnx.ModelProto:
    """conv -> LRN -> LRN -> conv; the first reads blocks, the second follows."""
    rng = np.random.default_rng(1)
    weights = {
        "w0": rng.standard_normal((channels, 3, 1, 1)).astype(np.float32),
        "w1": rng.standard_normal((5, channels, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], name="first"),
        helper.make_node("LRN", ["a"], ["b"], name="norm", **attributes),
        helper.make_node("LRN", ["b"], ["c"], name="again", **attributes),
        helper.make_node("Conv", ["c", "w1"], ["y"], name="second"),
    ]
    return graph_model(nodes, {"x": (1, 3, *plane)}, {"y": (1, 5, *plane)}, weights)


def run(model: onnx.ModelProto, folder: Path, plain: bool = False) -> tuple[float, list[str]]:
    """Error over the range, and the kernels that are no layer's."""
    path = folder / "model.onnx"
    onnx.save(model, path)
    network = extract_layers(load_model(path))
    host, registry = load_target("host"), Registry.with_builtin()
    plan = baseline_plan(network, registry, host)
    if plain:  # without a template the first layer writes the plain layout
        plan = plan.model_copy(update={"choices": plan.choices[1:]})
    lowered = lower(network, plan, registry, host)
    build = build_network(lowered.mod, host, folder / "model.so")
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(build.path)), tvm.cpu())
    shape = tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)
    x = 3 * np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    got = machine["main"](tvm.runtime.tensor(x)).numpy()
    (expected,) = onnx_reference(model, {"x": x})
    kernels = [
        var.name_hint for var, f in lowered.mod.functions.items() if isinstance(f, tirx.PrimFunc)
    ]
    return float(np.abs(got - expected).max() / np.ptp(expected)), kernels


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("channels", "plane", "attributes"),
    [
        (32, (9, 11), {"size": 5, "alpha": 0.7, "beta": 0.75, "bias": 1.0}),
        (19, (7, 5), {"size": 3, "alpha": 0.3, "beta": 0.5, "bias": 2.0}),
        (70, (4, 4), {"size": 25, "alpha": 1.5, "beta": 1.0, "bias": 0.5}),
        (16, (1, 17), {"size": 7, "alpha": 0.2, "beta": 0.6, "bias": 1.0}),
        (3, (33, 16), {"size": 9, "alpha": 0.2, "beta": 1.25, "bias": 1.0}),
        (32, (6, 6), {"size": 1, "alpha": 0.2, "beta": 0.25, "bias": 1.0}),
    ],
)
def test_it_is_one_right_kernel(
    channels: int, plane: tuple[int, int], attributes: dict[str, float], plain: bool, tmp_path: Path
) -> None:
    error, kernels = run(lrn_model(channels, plane, **attributes), tmp_path, plain)
    assert error < 1e-5
    assert sum(name.startswith("lrn") for name in kernels) == 1  # equal kernels are shared
    assert not [name for name in kernels if "power" in name or "avg_pool3d" in name]


def test_what_it_does_not_know_is_left_alone(tmp_path: Path) -> None:
    model = lrn_model(16, (5, 5), size=5, alpha=0.5, beta=0.75, bias=0.0)
    error, kernels = run(model, tmp_path)
    assert error < 1e-4
    assert not [name for name in kernels if name.startswith("lrn")]


def test_a_part_that_others_read_keeps_it_apart(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(lrn_model(16, (5, 5), size=5, alpha=0.5, beta=0.75, bias=1.0), path)
    bindings = list(load_model(path).mod["main"].body.blocks[0].bindings)
    uses = Counter(v for b in bindings for v in free_vars(b.value))
    assert len(find_lrns(bindings, uses)) == 2
    power = next(b.var for b in bindings if op_name(b.value) == "relax.power")
    uses[power] += 1
    assert len(find_lrns(bindings, uses)) == 1


@pytest.mark.parametrize("name", ["rpi3b+", "aarch64"])
def test_short_vectors(name: str) -> None:
    """Blocks of four channels and a window of eleven: several blocks to either side."""
    lrn = Lrn(None, (0,), (1, 10, 3, 6), ChannelWindow(11, 5, 0.1, 1.0, 0.75))
    target = load_target(name)
    for layout in ("NCHW4c", "NCHW"):
        func = lrn_kernel(lrn, layout, target)
        module = tvm.compile(tvm.IRModule({"main": func}), target={"kind": "llvm"})
        x = np.random.default_rng(0).standard_normal((1, 10, 3, 6)).astype(np.float32)
        # The padding lanes may hold anything finite.
        filled = np.concatenate([x, np.full((1, 2, 3, 6), 9, np.float32)], 1)
        data = x if layout == "NCHW" else to_physical(filled, layout)
        out = tvm.runtime.tensor(np.zeros(physical_shape(x.shape, layout), np.float32))
        module["main"](tvm.runtime.tensor(data), out)
        got = to_logical(out.numpy(), layout, 10)
        squares = np.pad(x.astype(np.float64) ** 2, ((0, 0), (5, 5), (0, 0), (0, 0)))
        total = sum(squares[:, k : k + 10] for k in range(11))
        np.testing.assert_allclose(got, x / (1 + 0.1 * total) ** 0.75, rtol=1e-5)
