"""The benchmark's int8 and mixed plans: ONNX Runtime's quantisation, tvmx's, verified apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks._build import build_defaults, open_context
from benchmarks._folder import SEED, Folder
from benchmarks._models import calibration_samples, export_onnx
from benchmarks._ort_int8 import float_layers, modernised, optimised_nodes, quantise_model
from benchmarks._profile import is_kernel_of, profile_network
from benchmarks._quantised import Calibrated, build_quantised, layer_counts, mixed_plan
from benchmarks._stages import DEFAULTS, INT8, ORT, ORT_INT8, build_ort_int8, measure_main
from benchmarks.quantised_models import FORMS, measure
from tvmx.errors import MeasureError
from tvmx.explore._reference import golden_inputs
from tvmx.testing.models import graph_model, onnx_reference, residual_model


def saved(model: onnx.ModelProto, folder: Path, name: str = "small") -> Folder:
    (folder / name).mkdir()
    found = Folder(folder / name)
    onnx.save(model, found.onnx)
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A small residual network (19 channels: no multiple of the lanes), everything built."""
    folder = saved(residual_model(channels=19, size=20), tmp_path_factory.mktemp("bench"))
    build_defaults(folder)
    build_ort_int8(folder)
    return folder


def int8_capable(folder: Folder) -> list[str]:
    """Layers that some template computes in int8."""
    context = open_context(folder)
    return [
        layer.name
        for layer in context.covered
        if any(
            implementation.precision == "int8"
            for _, implementation in context.registry.implementations(
                layer.workload, context.target
            )
        )
    ]


def test_old_models_become_quantisable() -> None:
    shape = (1, 2, 3, 3)
    nodes = [helper.make_node("Sum", ["a", "b"], ["c"]), helper.make_node("Sum", ["a"], ["d"])]
    old = graph_model(nodes, {"a": shape, "b": shape}, {"c": shape, "d": shape}, opset=9)
    a, b = np.ones(shape, np.float32), np.full(shape, 2, np.float32)
    before = onnx_reference(old, {"a": a, "b": b})
    new = modernised(old)
    assert new.opset_import[0].version == 13
    assert [node.op_type for node in new.graph.node] == ["Add", "Sum"]
    for got, want in zip(onnx_reference(new, {"a": a, "b": b}), before, strict=True):
        np.testing.assert_array_equal(got, want)


def test_onnxruntime_computes_in_int8(built: Folder) -> None:
    nodes = optimised_nodes(built.onnx_int8)
    assert float_layers(nodes) == 0
    assert nodes["QLinearConv"] == 4
    assert nodes["QGemm"] == 1
    assert nodes["QLinearAdd"] == 1
    assert float_layers(optimised_nodes(built.onnx)) == 5


def test_onnxruntime_gets_u8_activations_and_s8_weights_per_channel(built: Folder) -> None:
    graph = onnx.load(built.onnx_int8).graph
    arrays = {i.name: i for i in graph.initializer}
    zeros = {
        arrays[node.input[2]].data_type for node in graph.node if node.op_type == "QuantizeLinear"
    }
    assert zeros == {TensorProto.UINT8}
    made_by = {node.output[0]: node for node in graph.node}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 4
    for node in convolutions:
        weight, scale, zero = made_by[node.input[1]].input
        assert arrays[weight].data_type == TensorProto.INT8
        assert list(arrays[scale].dims) == [19]
        assert not numpy_helper.to_array(arrays[zero]).any()


def test_quantised_model_is_near_the_float_one(tmp_path: Path) -> None:
    model = residual_model(channels=16)
    x = np.random.default_rng(SEED).standard_normal((1, 3, 12, 12)).astype(np.float32)
    folder = saved(model, tmp_path)
    quantise_model(folder.onnx, folder.onnx_int8, calibration_samples([x]))
    want, got = (onnx_reference(p, {"x": x})[0] for p in (folder.onnx, folder.onnx_int8))
    assert 0 < np.linalg.norm(got - want) / np.linalg.norm(want) < 0.2


@pytest.mark.parametrize("form", FORMS)
def test_quantised_models_are_run_with_their_own_numbers(form: str, tmp_path: Path) -> None:
    folder = saved(residual_model(channels=16), tmp_path)
    result = measure(folder, form, rounds=1)
    assert result.int8_layers == result.layers == 5
    assert result.within_one == 1.0 and result.equal > 0.97 and result.elements == 50
    assert {series.name for series in result.rounds.series} == {"tvmx", "onnxruntime"}


def test_calibration_sees_other_samples_than_the_golden(built: Folder) -> None:
    model = open_context(built).model
    (samples,) = calibration_samples(model.inputs)
    np.testing.assert_array_equal(samples, calibration_samples(model.inputs)[0])
    golden = golden_inputs(model, SEED)["x"]
    assert samples.shape[1:] == golden.shape[1:]
    assert not any(np.array_equal(sample, golden[0]) for sample in samples)


def test_torch_modules_have_an_onnx_twin(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 5, 3, 2, 1, bias=False), torch.nn.BatchNorm2d(5), torch.nn.ReLU6(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(5, 4),
    )  # fmt: skip
    module.train()
    module(torch.randn(8, 3, 9, 9))
    path = tmp_path / "twin.onnx"
    export_onnx(module, path, (1, 3, 9, 9))
    x = torch.randn(1, 3, 9, 9)
    with torch.inference_mode():
        want = module(x).numpy()
    (got,) = onnx_reference(path, {"data": x.numpy()})
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_mixed_plans_mix(built: Folder) -> None:
    calibrated = Calibrated(built)
    context, params = calibrated.context, calibrated.params
    plans = [mixed_plan(context, params, seed) for seed in range(8)]
    assert plans[0] == mixed_plan(context, params, 0)
    assert len({plan.digest for plan in plans}) > 1
    for plan in plans:
        assert [c.layer for c in plan.choices] == [la.name for la in context.covered]
        assert sum(layer_counts(plan).values()) == len(plan.choices)
    offered = {
        implementation
        for layer in context.covered
        for _, implementation in context.registry.implementations(
            layer.workload, context.target,
            float_out=layer.index in context.network.graph.read_in_float,
        )
    }  # fmt: skip
    drawn = {c.implementation for plan in plans for c in plan.choices}
    assert drawn <= offered
    for trait in ("precision", "layout"):
        assert {getattr(i, trait) for i in drawn} == {getattr(i, trait) for i in offered}
    assert {i.sparsity == "dense" for i in drawn} == {True, False}


def test_the_whole_comparison(built: Folder) -> None:
    quantised, mixed = build_quantised(built, True)
    assert mixed is not None
    assert mixed.max_error <= mixed.limit
    assert mixed.deviation > 0
    assert sum(mixed.layers.values()) == 5
    int8 = sum(n for how, n in quantised.layers.items() if how.startswith("int8"))
    assert int8 == len(int8_capable(built)) >= 4
    rounds = measure_main(built, 2, False)
    assert {s.name for s in rounds.series} == {ORT, ORT_INT8, DEFAULTS, INT8}
    deviations = {s.name: s.deviation for s in rounds.series}
    assert deviations[ORT] < 1e-5
    assert deviations[DEFAULTS] < 1e-5
    assert 1e-3 < deviations[INT8] < 0.2
    assert 1e-3 < deviations[ORT_INT8] < 0.2

    profile = profile_network(built, "int8")
    assert sum(row.calls for row in profile.layers) == 5
    assert sum(row.calls for row in profile.layers if row.precision == "int8") == int8
    assert all(row.float_us and row.float_us > 0 for row in profile.layers)
    assert profile_network(built).layers[0].float_us is None

    wrong = [-array for array in built.load_expected(INT8)]
    built.save_expected(INT8, wrong, built.load_limit(INT8))
    with pytest.raises(MeasureError, match="int8"):
        measure_main(built, 2, False)


def test_kernels_are_told_by_their_templates() -> None:
    names = {"conv2d_int8", "conv2d_direct"}
    assert all(is_kernel_of(k, names) for k in ("conv2d_int8", "conv2d_int83", "conv2d_direct_1"))
    others = ("conv2d_int", "conv2d", "max_pool_int8", "conv2d_int8_packed", "fused_conv2d_direct")
    assert not any(is_kernel_of(k, names) for k in others)
