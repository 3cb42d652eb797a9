"""A Relay QNN file from the file to the board's bundle: what real Relay computed comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.relay_files import DATA
from tvmx.cli._main import app

pytestmark = [pytest.mark.rpc, pytest.mark.slow]
WORDS = (DATA / "qnn_block.relay.json", "--params", DATA / "qnn_block.params")


def tvmx(*words: str | Path) -> Any:
    done = CliRunner().invoke(app, [str(word) for word in (*words, "--json")])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_explored_exported_and_run(tmp_path: Path) -> None:
    told = tvmx("import", *WORDS)
    assert told["int8_layers"] == len(told["layers"]) == 2
    run, bundle, out = tmp_path / "run", tmp_path / "bundle", tmp_path / "out.npz"
    tvmx("explore", *WORDS, "--target", "host", "--trials", "2", "--out", run)
    tvmx("export", run, "--out", bundle)
    chosen = [
        c["implementation"] for c in json.loads((bundle / "plan.json").read_text())["choices"]
    ]
    assert [c["stated"] and c["precision"] == "int8" for c in chosen] == [True, True]
    assert tvmx("run", bundle)["checked"]
    with np.load(DATA / "qnn_block.npz") as file:
        np.savez(tmp_path / "in.npz", data=file["input_data"])
        want = file["output_0"]
    tvmx("run", bundle, "--input", tmp_path / "in.npz", "--output", out)
    with np.load(out) as file:
        # Whole numbers until the last multiplication, which rounds once.
        np.testing.assert_allclose(file["output_0"], want, rtol=2e-7, atol=0)
