"""The networks, written with seeded random weights, and the samples int8 is calibrated on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._folder import MOBILENETS, SEED, Array, Folder
from tvmx.errors import MeasureError

CALIBRATION = 8
"""Samples that both tvmx and ONNX Runtime find their int8 ranges on."""
_IMAGE = (1, 3, 224, 224)
_OPSET = 17
_SAME = 1e-4  # of the range: PyTorch and ONNX Runtime on the same weights


def known_networks() -> tuple[str, ...]:
    """Every network that can be measured."""
    from tvmx.testing.models import LIGHT_MODELS

    return (*LIGHT_MODELS, *MOBILENETS)


def prepare_model(folder: Folder) -> None:
    """Write the model, unless it is there. For a process of its own.

    Raises:
        MeasureError: ONNX Runtime and PyTorch do not agree on the exported network.
    """
    if folder.network in MOBILENETS:
        _write_mobilenet(folder)
    elif not folder.onnx.is_file():
        from tvmx.testing.models import save_light_model

        save_light_model(folder.network, folder.path, SEED)


def calibration_samples(specs: Sequence[Any]) -> list[Array]:
    """Seeded normal (CALIBRATION, *shape without the batch) per input, other than the golden's."""
    rng = np.random.default_rng(SEED + 1)
    return [rng.standard_normal((CALIBRATION, *spec.shape[1:]), dtype=np.float32) for spec in specs]


def _write_mobilenet(folder: Folder) -> None:
    """The archive for tvmx and, of the same module, the ONNX file for ONNX Runtime."""
    if folder.model.is_file() and folder.onnx.is_file():
        return
    from tvmx.testing import torch_models

    module = getattr(torch_models, folder.network)(seed=SEED)
    export_onnx(module, folder.onnx, _IMAGE)
    _check_twin(module, folder.onnx)
    torch_models.export_pt2(module, folder.model, _IMAGE)


def export_onnx(module: Any, path: Path, input_shape: Sequence[int]) -> None:
    """A torch module for one float32 input as ONNX; batch norms are folded into convolutions.

    By PyTorch's older exporter: the newer one needs a package of its own (onnxscript).
    """
    import torch

    with _quiet():
        torch.onnx.export(
            module.eval(), (torch.zeros(tuple(input_shape)),), str(path), dynamo=False,
            opset_version=_OPSET, input_names=["data"], output_names=["logits"],
        )  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _check_twin(module: Any, path: Path) -> None:
    """Raise MeasureError unless the ONNX file computes what the module does."""
    import torch

    from tvmx.testing.models import onnx_reference

    image = np.random.default_rng(SEED).standard_normal(_IMAGE, dtype=np.float32)
    with torch.inference_mode():
        want = module(torch.from_numpy(image)).numpy()
    (got,) = onnx_reference(path, {"data": image})
    error = float(np.abs(got - want).max() / np.ptp(want))
    if not error <= _SAME:
        path.unlink()
        raise MeasureError(f"{path.name}: {error:.1e} of the range away from the torch module")
