"""Direct convolution in parts of its input channels, and what its default configs are."""

from __future__ import annotations

import pytest

from tvmx._resources import schedules_dir
from tvmx.errors import IllegalConfigError
from tvmx.ir import Config, Conv2dWorkload, Epilogue
from tvmx.targets import Target, load_target
from tvmx.templates import load_template, tile_cycles
from tvmx.testing.templates import evaluate_template

TEMPLATE = load_template("conv2d_direct", schedules_dir() / "conv2d_direct.py")


def like(workload: Conv2dWorkload, **changes: object) -> Conv2dWorkload:
    return Conv2dWorkload(**{**dict(workload), **changes})


POINTWISE = Conv2dWorkload(
    batch=1, in_channels=176, height=9, width=7, out_channels=33, kernel=(1, 1),
    epilogue=Epilogue(bias=True, residual=True, clip_min=0.0),
)  # fmt: skip
CASES = {
    "1x1": POINTWISE,
    "1x1, batch 2, stride 2": like(POINTWISE, batch=2, strides=(2, 2)),
    "3x3, stride 2, uneven padding": like(
        POINTWISE, kernel=(3, 3), strides=(2, 2), padding=(0, 1, 1, 0)
    ),
    "3x3, groups": like(
        POINTWISE, in_channels=320, out_channels=64, groups=2, kernel=(3, 3), padding=(1, 1, 1, 1)
    ),
    "one pixel": like(POINTWISE, height=1, width=1),
}


def with_knobs(workload: Conv2dWorkload, target: Target, **knobs: object) -> Config:
    default = TEMPLATE.space(workload, target).default
    return Config({**default.to_dict(), **knobs})  # type: ignore[arg-type]


@pytest.mark.parametrize("case", [name for name in CASES if name != "one pixel"])
@pytest.mark.parametrize("ic_chunk", [64, 128])
def test_parts_of_the_input_channels_add_up(case: str, ic_chunk: int) -> None:
    """176 input channels, and 160 a group: the last part is shorter."""
    target, workload = load_target("host"), CASES[case]
    space = TEMPLATE.space(workload, target)
    for pad in space.knobs["pad"]:
        points = [p for p in space.points() if (p["ic_chunk"], p["pad"]) == (ic_chunk, pad)]
        for config in points[:: max(1, len(points) // 3)]:
            result = evaluate_template(TEMPLATE, workload, target, config)
            assert result.relative < 1e-6, (case, config)


def test_one_tile_has_nothing_to_gain_from_parts() -> None:
    target, workload = load_target("host"), CASES["one pixel"]
    config = with_knobs(workload, target, ic_chunk=64)
    with pytest.raises(IllegalConfigError, match="ic_chunk=64"):
        TEMPLATE.build(workload, config, target)


def test_deep_layers_are_summed_in_parts_by_default() -> None:
    """Weights of a tile: 256 KiB of ResNet's 2048 channels against 8 KiB of 64."""
    target = load_target("rpi4")
    deep = Conv2dWorkload(
        batch=1, in_channels=2048, height=7, width=7, out_channels=512, kernel=(1, 1)
    )
    assert TEMPLATE.space(deep, target).default["ic_chunk"] != 0
    shallow = like(deep, in_channels=64, height=56, width=56)
    assert TEMPLATE.space(shallow, target).default["ic_chunk"] == 0


def test_x86_tiles_of_one_block_are_modelled_slower() -> None:
    """Their loads take the slots: 727 us against 567 for the same work, measured on AVX-512."""
    target = load_target("host")
    per_sum = {
        (oc, ow): tile_cycles(target, oc, ow, 64) / (oc * ow) for oc, ow in ((1, 12), (3, 4))
    }
    assert per_sum[1, 12] > 1.05 * per_sum[3, 4]
