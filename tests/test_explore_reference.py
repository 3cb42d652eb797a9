"""The float references explore checks networks against."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tvmx.explore._reference import Reference, golden_inputs
from tvmx.frontends import load_model
from tvmx.testing.models import multi_io_model, onnx_reference, residual_model


def _without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def hidden(name: str, *rest: Any) -> Any:
        return None if name == "onnxruntime" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", hidden)


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("make", [residual_model, multi_io_model])
def test_both_references_agree_with_onnx_runtime(
    make: Any, installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = make()
    path = tmp_path / "net.onnx"
    onnx.save(proto, path)
    if not installed:
        _without_onnxruntime(monkeypatch)
    model = load_model(path)
    reference = Reference(model)
    assert reference.name.startswith("onnxruntime" if installed else "TVM")
    inputs = golden_inputs(model, seed=3)
    found, expected = reference(inputs), onnx_reference(proto, inputs)
    assert len(found) == len(expected) == len(model.outputs)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4 * np.ptp(theirs))
