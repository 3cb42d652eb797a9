"""A cross-compiled bundle runs right on an emulated Cortex-A72, by its own run.py."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.simulated import guest_or_skip
from tvmx.deploy import load_bundle
from tvmx.explore import build_bundle
from tvmx.testing.models import residual_model

pytestmark = [pytest.mark.emulated, pytest.mark.slow]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convolutions, a depthwise one and a dense layer, with template defaults for rpi4."""
    folder = tmp_path_factory.mktemp("rpi4")
    onnx.save(residual_model(), folder / "residual.onnx")
    build_bundle(folder / "residual.onnx", "rpi4", folder / "bundle")
    return folder / "bundle"


def run(bundle: Path) -> subprocess.CompletedProcess[str]:
    """The bundle's runner under the arm64 Python, where tvmx cannot be imported."""
    guest = guest_or_skip()
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    environment = {**kept, **guest.environment()}
    # A core without dot product and half-precision arithmetic: such an instruction is a SIGILL
    # here as on the board, and qemu's own default core would hide it.
    environment |= {"QEMU_CPU": "cortex-a72", "TVM_USE_RUNTIME_LIB": "1"}
    once = ("--repeat", "1")
    return subprocess.run(
        ["qemu-aarch64", "-L", str(guest.root), str(guest.python), str(bundle / "run.py"), *once],
        capture_output=True, text=True, timeout=140, check=False, env=environment, cwd="/",
    )  # fmt: skip


def test_the_golden_output_is_met(bundle: Path) -> None:
    done = run(bundle)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "output 'y': error" in done.stdout
    assert "WRONG" not in done.stdout


def test_a_flipped_golden_output_is_detected(bundle: Path, tmp_path: Path) -> None:
    changed = tmp_path / "bundle"
    shutil.copytree(bundle, changed)
    loaded = load_bundle(bundle)
    arrays: dict[str, Any] = {f"input_{k}": v for k, v in loaded.golden_inputs().items()}
    arrays |= {f"output_{i}": -array for i, array in enumerate(loaded.golden_outputs())}
    np.savez(changed / "golden.npz", **arrays)
    done = run(changed)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "output 'y': error" in done.stdout
    assert "WRONG" in done.stdout
