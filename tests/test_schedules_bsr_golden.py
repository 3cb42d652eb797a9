"""The code of the block-sparse templates, in full: a change of theirs shows in review."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.test_schedules_bsr import load
from tvmx.ir import Config, Conv2dWorkload, DenseWorkload, Epilogue
from tvmx.targets import load_target
from tvmx.templates import IN_CODE, IN_DATA

RELU6 = Epilogue(bias=True, residual=True, clip_min=0.0, clip_max=6.0)
POINTWISE = Conv2dWorkload(
    batch=1, in_channels=8, height=6, width=6, out_channels=16, kernel=(1, 1), epilogue=RELU6
)
STRIDED = Conv2dWorkload(
    batch=1, in_channels=8, height=9, width=9, out_channels=8, kernel=(3, 3), strides=(2, 2),
    padding=(1, 0, 1, 1), epilogue=Epilogue(bias=True, clip_min=0.0),
)  # fmt: skip
MATRIX = DenseWorkload(batch=1, in_features=32, out_features=10, epilogue=Epilogue(bias=True))
CODE: dict[str, tuple[Conv2dWorkload | DenseWorkload, str, dict[str, str | int]]] = {
    "dense_bsr": (MATRIX, "4x1@80", {}),
    "dense_bsr unrolled": (MATRIX, "4x1@90", {"structure": IN_CODE}),
    "dense_bsr_int8": (MATRIX, "4x4@80", {}),
    "conv1x1_bsr": (POINTWISE, "4x1@80", {}),
    "conv1x1_bsr unrolled": (POINTWISE, "4x1@90", {"structure": IN_CODE, "groups": 1}),
    "conv1x1_bsr_nchw": (POINTWISE, "4x1@80", {}),
    "conv1x1_bsr_int8": (POINTWISE, "4x4@80", {}),
    "conv3x3_bsr": (STRIDED, "4x1@80", {}),
    "conv3x3_bsr_int8": (STRIDED, "4x36@50", {}),
}


@pytest.mark.parametrize("name", CODE)
def test_code(name: str, golden: Callable[[str, str], None]) -> None:
    layer, sparsity, knobs = CODE[name]
    template, target = load(name.partition(" ")[0]), load_target("rpi4")
    workload = layer.variant("int8" if template.precision == "int8" else "float32", sparsity)
    default = template.space(workload, target).default
    config = Config(
        {**default, **({"structure": IN_DATA} if "structure" in default else {}), **knobs}
    )
    func = template.build(workload, config, target).func
    header = f"# {name}: {workload.describe()}, {target.name}, {config!r}\n"
    golden(f"{name.replace(' ', '_')}.txt", header + func.script() + "\n")
