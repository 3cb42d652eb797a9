"""examples/digits.py: what it writes is what its docstring promises."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "examples" / "digits.py"


@pytest.fixture(scope="module")
def digits() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("digits_example", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def written(digits: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two files, of a network that was trained very little."""
    folder = tmp_path_factory.mktemp("digits")
    torch.manual_seed(0)
    data = digits.load_data(0)
    model = digits.DigitsNet()
    digits.train(model, data.train_images[:256], data.train_labels[:256], epochs=2, seed=0)
    digits.save_onnx(model, folder / "digits.onnx")
    digits.save_data(data, folder / "digits.npz")
    torch.save(model.state_dict(), folder / "weights.pt")
    return folder


def test_arrays(written: Path) -> None:
    with np.load(written / "digits.npz") as arrays:
        assert set(arrays) == {"calibration", "inputs", "labels"}
        calibration, inputs, labels = (arrays[k] for k in ("calibration", "inputs", "labels"))
    assert calibration.shape == (256, 1, 32, 32)
    assert calibration.dtype == inputs.dtype == np.float32
    assert inputs.shape == (len(labels), 1, 32, 32)
    assert labels.shape == (540,)
    assert labels.dtype == np.int64
    assert set(labels.tolist()) == set(range(10))
    assert inputs.min() >= 0
    assert inputs.max() <= 1


def test_calibration_images_are_not_test_images(written: Path) -> None:
    with np.load(written / "digits.npz") as arrays:
        tested = {image.tobytes() for image in arrays["inputs"]}
        assert not any(image.tobytes() in tested for image in arrays["calibration"])


def test_onnx_runtime_agrees_with_torch(digits: ModuleType, written: Path) -> None:
    model = digits.DigitsNet()
    model.load_state_dict(torch.load(written / "weights.pt"))
    model.eval()
    with np.load(written / "digits.npz") as arrays:
        inputs, labels = arrays["inputs"], arrays["labels"]
    session = ort.InferenceSession(written / "digits.onnx")
    got = np.concatenate([session.run(["logits"], {"image": x[None]})[0] for x in inputs])
    with torch.no_grad():
        want = model(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)
    reached = digits.accuracy(model, torch.from_numpy(inputs), torch.from_numpy(labels))
    assert (got.argmax(1) == labels).mean() == pytest.approx(reached, abs=2 / len(labels))


def test_the_network_has_every_kind_of_layer(written: Path) -> None:
    model = onnx.load(written / "digits.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version >= 13
    (image,), (logits,) = model.graph.input, model.graph.output
    assert image.name == "image"
    assert [d.dim_value for d in image.type.tensor_type.shape.dim] == [1, 1, 32, 32]
    assert logits.name == "logits"
    assert [d.dim_value for d in logits.type.tensor_type.shape.dim] == [1, 10]

    attributes = [
        {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        for node in model.graph.node
        if node.op_type == "Conv"
    ]
    kinds = {(a["kernel_shape"][0], a["strides"][0], a["group"] > 1) for a in attributes}
    assert {(3, 1, False), (3, 2, False), (3, 1, True), (3, 2, True), (1, 1, False)} <= kinds
    ops = {node.op_type for node in model.graph.node}
    assert {"Add", "Relu", "MaxPool", "GlobalAveragePool", "Gemm"} <= ops
    assert "BatchNormalization" not in ops


def test_size(digits: ModuleType) -> None:
    assert 5e6 < digits.count_macs(digits.DigitsNet()) < 20e6


def test_same_seed_same_network(digits: ModuleType) -> None:
    data = digits.load_data(3)

    def weights() -> torch.Tensor:
        torch.manual_seed(3)
        model = digits.DigitsNet()
        digits.train(model, data.train_images[:64], data.train_labels[:64], epochs=2, seed=3)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(weights(), weights())


def test_too_little_training_is_an_error(
    digits: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda _: None)  # process-wide
    monkeypatch.setattr(digits, "train", lambda model, *_, **__: model.eval())
    assert digits.main(["--out", str(tmp_path / "new")]) == 1
    assert "below 97%" in capsys.readouterr().err
    assert not list((tmp_path / "new").iterdir())
