"""Three small networks with data, for a process of its own each."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

NETWORKS = ("digits", "squeezenet", "mobilenet_v1")
_SIZE, _SEED = 96, 0
_CALIBRATION, _SAMPLES = 8, 64


def prepare(folder: Path) -> None:
    """Write ``model.onnx`` or ``model.pt2`` and ``data.npz`` to the folder, unless they are there.

    The digits network is trained; the others have random weights, and noise as samples, so their
    accuracy means nothing but agreement.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "data.npz").is_file():
        return
    if folder.name == "digits":
        _digits(folder)
        return
    shape = (1, 3, _SIZE, _SIZE)
    (_squeezenet if folder.name == "squeezenet" else _mobilenet)(folder, shape)
    rng = np.random.default_rng(_SEED)
    arrays = {
        "calibration": rng.standard_normal((_CALIBRATION, *shape[1:]), dtype=np.float32),
        "inputs": rng.standard_normal((_SAMPLES, *shape[1:]), dtype=np.float32),
    }
    with (folder / "data.npz").open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]


def model_of(folder: Path) -> Path:
    """The network's file."""
    return folder / ("model.pt2" if folder.name == "mobilenet_v1" else "model.onnx")


def _digits(folder: Path) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
    import digits

    if digits.main(["--out", str(folder)]):
        raise SystemExit("the digits network could not be trained")
    (folder / "digits.onnx").rename(folder / "model.onnx")
    (folder / "digits.npz").rename(folder / "data.npz")


def _squeezenet(folder: Path, shape: tuple[int, ...]) -> None:
    """The light model for smaller images: nothing in it depends on their size."""
    import onnx

    from tvmx.testing.models import light_model

    model = light_model("squeezenet", _SEED)
    weights = {tensor.name for tensor in model.graph.initializer}
    (image,) = (value for value in model.graph.input if value.name not in weights)
    for dimension, size in zip(image.type.tensor_type.shape.dim, shape, strict=True):
        dimension.dim_value = size
    del model.graph.value_info[:]
    onnx.save(onnx.shape_inference.infer_shapes(model, strict_mode=True), folder / "model.onnx")


def _mobilenet(folder: Path, shape: tuple[int, ...]) -> None:
    from tvmx.testing import torch_models

    module = torch_models.mobilenet_v1(seed=_SEED)
    torch_models.export_pt2(module, folder / "model.pt2", shape)
