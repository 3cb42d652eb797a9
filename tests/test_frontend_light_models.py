"""The onnx package's light models: made meaningful, imported, canonical."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from tvmx.errors import UsageError
from tvmx.frontends import load_model
from tvmx.testing.models import light_model, onnx_reference, save_light_model

IMAGE = (1, 3, 224, 224)


def counts(path: Path) -> Counter[str]:
    model = load_model(path)
    assert all(i.shape == IMAGE for i in model.inputs)
    assert {b.var.name for b in model.mod["main"].body.blocks[0].bindings} <= set(model.sources)
    return Counter(
        b.value.op.name.rsplit(".", 1)[-1] for b in model.mod["main"].body.blocks[0].bindings
    )


def test_resnet50(tmp_path: Path) -> None:
    assert counts(save_light_model("resnet50", tmp_path)) == {
        "conv2d": 53, "add": 53 + 16 + 1, "relu": 49, "max_pool2d": 1, "avg_pool2d": 1,
        "reshape": 1, "matmul": 1,
    }  # fmt: skip


def test_squeezenet_matches_onnxruntime(tmp_path: Path) -> None:
    import tvm
    from tvm import relax

    path = save_light_model("squeezenet", tmp_path)
    assert counts(path) == {
        "conv2d": 26, "add": 26, "relu": 26, "max_pool2d": 3, "concat": 8, "mean": 1,
    }  # fmt: skip
    model = load_model(path)
    image = np.random.default_rng(1).standard_normal(IMAGE, dtype=np.float32)
    machine = relax.VirtualMachine(tvm.compile(model.mod, "llvm"), tvm.cpu())
    result = machine["main"](tvm.runtime.tensor(image)).numpy()
    (expected,) = onnx_reference(path, {model.inputs[0].name: image})
    assert result.shape == expected.shape == model.outputs[0].shape
    assert expected.std() > 0.1
    np.testing.assert_allclose(result, expected, atol=1e-5 * np.ptp(expected))


def test_shipped_weights_import_too(tmp_path: Path) -> None:
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    assert counts(folder / "light_squeezenet.onnx")["conv2d"] == 26


def test_weights_follow_the_seed() -> None:
    one, same, other = (light_model("shufflenet", seed) for seed in (0, 0, 1))
    assert one == same
    assert one != other
    assert {node.op_type for node in one.graph.node}.isdisjoint({"ConstantOfShape", "Softmax"})
    assert [value.name for value in one.graph.input] == ["gpu_0/data_0"]


@pytest.mark.parametrize("name", ["shufflenet", "squeezenet"])
def test_activations_stay_near_one(name: str) -> None:
    proto = light_model(name)
    inner = [n.output[0] for n in proto.graph.node if n.op_type in ("Relu", "Conv")]
    for value in inner:
        proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(value))
    image = np.random.default_rng(1).standard_normal(IMAGE, dtype=np.float32)
    results = onnx_reference(proto, {proto.graph.input[0].name: image})
    scales = [float(np.sqrt((r**2).mean())) for r in results]
    assert len(scales) > 40
    assert 0.05 < min(scales) <= max(scales) < 20


def test_unknown_light_model() -> None:
    with pytest.raises(UsageError, match="squeezenet"):
        light_model("lenet")
