"""The analytical model of register tiles, against what was measured on the cores."""

from __future__ import annotations

import pytest

from tvmx._resources import schedules_dir
from tvmx.ir import Conv2dWorkload
from tvmx.targets import Cluster, Target, load_target
from tvmx.templates import (
    divisors,
    fits_registers,
    is_x86,
    load_template,
    max_accumulators,
    tile_cycles,
)

AVX512 = Target(
    name="avx512", description="", triple="x86_64-linux-gnu", cpu="x86-64-v4", vector_bits=512,
    memory_mib=1024,
    clusters=(
        Cluster(core="v4", count=2, clock_mhz=3000, in_order=False, l1d_kib=32, l2_kib=1024),
    ),
)  # fmt: skip
ARM = ["rpi3b+", "rpi4", "rpi5", "jetson-nano", "odroid-c4"]


def conv(**fields: object) -> Conv2dWorkload:
    base = {
        "batch": 1, "in_channels": 64, "height": 56, "width": 56, "out_channels": 64,
        "kernel": (3, 3), "padding": (1, 1, 1, 1),
    }  # fmt: skip
    return Conv2dWorkload.model_validate({**base, **fields})


@pytest.mark.parametrize("n", [1, 2, 12, 49, 97, 360])
def test_divisors(n: int) -> None:
    assert divisors(n) == [d for d in range(1, n + 1) if n % d == 0]


def test_register_budgets() -> None:
    assert is_x86(AVX512) and not is_x86(load_target("rpi4"))
    assert max_accumulators(AVX512) == 28
    assert max_accumulators(load_target("rpi4")) == 16
    assert fits_registers(AVX512, 2, 14)
    assert not fits_registers(AVX512, 4, 7), "28 accumulators, 4 weights, 1 broadcast: one too many"
    assert not fits_registers(load_target("rpi4"), 3, 8), "24 accumulators spill on Cortex-A72"


def test_ever_larger_tiles_cost_less_per_multiply_add() -> None:
    per_step = [tile_cycles(AVX512, 1, p, 1000) / p for p in (1, 4, 8, 16, 28)]
    assert per_step == sorted(per_step, reverse=True)


@pytest.mark.parametrize("name", ARM)
@pytest.mark.parametrize(
    "workload",
    [conv(), conv(in_channels=256, kernel=(1, 1), padding=(0,) * 4), conv(height=14, width=14)],
    ids=lambda w: w.describe(),
)
def test_arm_defaults_hold_fourteen_to_sixteen_sums(name: str, workload: Conv2dWorkload) -> None:
    template = load_template("conv2d_direct", schedules_dir() / "conv2d_direct.py")
    default = template.space(workload, load_target(name)).default
    sums = default.int("oc_tile") * default.int("oh_tile") * default.int("ow_tile")
    assert 14 <= sums <= 16
