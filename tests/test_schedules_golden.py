"""The scheduled code of the float templates, in full: a change of theirs shows in review."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tvmx._resources import schedules_dir
from tvmx.ir import Conv2dWorkload, DenseWorkload, Epilogue
from tvmx.targets import load_target
from tvmx.templates import load_template

WORKLOADS = {
    "conv2d_direct": Conv2dWorkload(
        batch=1, in_channels=8, height=9, width=9, out_channels=16, kernel=(3, 3),
        padding=(1, 1, 1, 1),
        epilogue=Epilogue(bias=True, residual=True, clip_min=0.0, clip_max=6.0),
    ),
    "conv2d_winograd": Conv2dWorkload(
        batch=1, in_channels=8, height=8, width=8, out_channels=8, kernel=(3, 3),
        padding=(1, 1, 1, 1), epilogue=Epilogue(bias=True, clip_min=0.0),
    ),
    "conv2d_im2col": Conv2dWorkload(
        batch=1, in_channels=4, height=8, width=8, out_channels=8, kernel=(3, 3),
        strides=(2, 2), padding=(1, 1, 1, 1), epilogue=Epilogue(bias=True),
    ),
    "depthwise_nchwc": Conv2dWorkload(
        batch=1, in_channels=8, height=9, width=9, out_channels=8, kernel=(3, 3),
        padding=(1, 1, 1, 1), groups=8, epilogue=Epilogue(bias=True, clip_min=0.0, clip_max=6.0),
    ),
    "dense_packed": DenseWorkload(
        batch=1, in_features=32, out_features=10, epilogue=Epilogue(bias=True)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WORKLOADS)
def test_scheduled_code(name: str, golden: Callable[[str, str], None]) -> None:
    template, target = load_template(name, schedules_dir() / f"{name}.py"), load_target("rpi4")
    workload = WORKLOADS[name]
    default = template.space(workload, target).default
    func = template.build(workload, default, target).func
    header = f"# {name}: {workload.describe()}, {target.name}, {default!r}\n"
    golden(f"{name}.txt", header + func.script() + "\n")
