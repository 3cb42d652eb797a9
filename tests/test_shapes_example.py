"""examples/shapes.py: its pictures, and that it writes what its docstring promises."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def shapes() -> Iterator[ModuleType]:
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield importlib.import_module("shapes")
    finally:
        sys.path.remove(str(EXAMPLES))
        sys.modules.pop("shapes", None)


def test_pictures_follow_from_the_seed(shapes: ModuleType) -> None:
    images, labels = shapes.make_images(1100, seed=3)
    again, _ = shapes.make_images(1100, seed=3)
    others, _ = shapes.make_images(1100, seed=4)
    assert images.shape == (1100, 3, 32, 32) and images.dtype == np.float32
    assert np.array_equal(images, again)
    assert not set(map(bytes, images)) & set(map(bytes, others))
    assert images.min() >= 0 and images.max() <= 1
    assert np.array_equal(np.rint(images * 255).astype(np.float32) / np.float32(255), images)
    counts = np.bincount(labels)
    assert len(counts) == len(shapes.CLASSES) == 24 and counts.max() - counts.min() <= 1


def test_patterns_and_shapes_show(shapes: ModuleType) -> None:
    """A plain disc has one colour in its middle, a striped one two."""
    _depth, _marks = shapes._depth, shapes._marks
    axis = np.linspace(-1, 1, 65, dtype=np.float32)
    v, u = np.meshgrid(axis, axis, indexing="ij")
    grid = (np.stack([u] * 8), np.stack([v] * 8))
    area = (_depth(np.arange(8), *grid) > 0).mean(axis=(1, 2))
    assert ((area > 0.12) & (area < 0.7)).all() and len(set(area.round(3))) == 8
    still = np.zeros((3, 1, 1), np.float32)
    marks = _marks(np.arange(3), np.stack([u] * 3), np.stack([v] * 3), still, still + 5)
    assert marks[0].min() == 1
    assert 0.3 < marks[1].mean() < 0.7 and np.ptp(marks[1], axis=0).max() == 0  # along the stripes
    assert 0.3 < marks[2].mean() < 0.7 and np.ptp(marks[2], axis=0).max() == 1


def test_a_network_trained_very_little(
    shapes: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--images", "192", "--test-images", "96", "--epochs", "1", "--threads", "1"]
    assert shapes.main(["--out", str(tmp_path / "refused"), *options]) == 1
    assert "below 85%" in capsys.readouterr().err
    assert not list((tmp_path / "refused").iterdir())
    assert shapes.main(["--out", str(tmp_path), *options, "--required", "0"]) == 0
    with np.load(tmp_path / "shapes.npz") as arrays:
        assert arrays["calibration"].shape == (192, 3, 32, 32)
        assert arrays["inputs"].shape == (96, 3, 32, 32)
        assert arrays["labels"].shape == (96,) and arrays["labels"].dtype == np.int64
        images, labels = arrays["inputs"], arrays["labels"]
    model = onnx.load(tmp_path / "shapes.onnx")
    onnx.checker.check_model(model)
    kinds = {node.op_type for node in model.graph.node}
    assert {"Conv", "Clip", "Add", "GlobalAveragePool", "Gemm"} <= kinds
    session = ort.InferenceSession(tmp_path / "shapes.onnx", providers=["CPUExecutionProvider"])
    answers = [session.run(None, {"image": image[None]})[0].argmax() for image in images]
    told = capsys.readouterr().out
    assert f"test accuracy {np.mean(np.array(answers) == labels):.2%}" in told
