"""A Relay QNN file from the file to the board's bundle: whole numbers come out as they should.

A small one: what real Relay computed is compared in ``test_frontend_relay.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.explorations import scripted
from tests.relay_files import Writer, call, params_file, var
from tests.test_frontend_relay_qnn import int_conv, requantize
from tvmx.cli._main import app
from tvmx.frontends.relay._graph import Function

pytestmark = pytest.mark.slow
RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (1, 6, 9, 8)).astype(np.uint8)
W = RNG.integers(-127, 128, (8, 6, 3, 3)).astype(np.int8)
B = RNG.integers(-5000, 5000, 8).astype(np.int32)


def tvmx(*words: str | Path) -> Any:
    done = CliRunner().invoke(app, [str(word) for word in (*words, "--json")])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def saved(folder: Path) -> tuple[Path, str, Path]:
    """The module, whole numbers throughout, and its parameters."""
    data, weight, bias = var("data", X), var("conv_weight", W), var("conv_bias", B)
    sums = call("qnn.conv2d", data, weight, 10, 0, 0.5, 0.25, padding=(1, 1, 1, 1), channels=8,
                kernel_size=(3, 3), out_dtype="int32")  # fmt: skip
    body = call("qnn.requantize", call("nn.bias_add", sums, bias), 0.125, 0, 70.0, -3,
                out_dtype="int8", axis=1)  # fmt: skip
    module, params = folder / "net.relay.json", folder / "net.params"
    module.write_text(Writer().module({"main": Function((data, weight, bias), body)}))
    params.write_bytes(params_file({"conv_weight": W, "conv_bias": B}))
    return module, "--params", params


def expected() -> Any:
    sums = int_conv(X, 10, W, 0, 1) + B.reshape(8, 1, 1)
    return requantize(sums, 0.125, 0, 70.0, -3, "int8")


def test_explored_exported_and_run(tmp_path: Path) -> None:
    """Explored on a scripted device (``test_explore_real.py`` has real ones); run as it is."""
    words = saved(tmp_path)
    told = tvmx("import", *words)
    assert told["int8_layers"] == len(told["layers"]) == 1
    run, bundle, out = tmp_path / "run", tmp_path / "bundle", tmp_path / "out.npz"
    with scripted():
        found = tvmx("explore", *words, "--target", "host", "--trials", "1", "--out", run)
    assert found["failures"] == 0
    tvmx("export", run, "--out", bundle)
    (chosen,) = json.loads((bundle / "plan.json").read_text())["choices"]
    assert chosen["implementation"]["stated"]
    assert chosen["implementation"]["precision"] == "int8"
    np.savez(tmp_path / "in.npz", data=X)
    tvmx("run", bundle, "--input", tmp_path / "in.npz", "--output", out)
    want = expected()
    with np.load(out) as file:
        np.testing.assert_array_equal(file["output_0"], want)
    assert np.unique(want).size > 50
