"""A synthetic kernel to tune: register tile, cache block, unrolling. Shared by the tune tests."""

from __future__ import annotations

import math

from tvmx.ir import Config, Conv2dWorkload, DenseWorkload, Space
from tvmx.targets import Cluster, Target

TARGET = Target(
    name="board", description="test", triple="aarch64-linux-gnu", cpu="cortex-a72",
    memory_mib=1024,
    clusters=(Cluster(core="a72", count=4, clock_mhz=1500, in_order=False, l1d_kib=32,
                      l2_kib=1024),),
)  # fmt: skip
CONV = Conv2dWorkload(
    batch=1, in_channels=64, height=28, width=28, out_channels=96, kernel=(3, 3),
    padding=(1, 1, 1, 1),
)  # fmt: skip
DENSE = DenseWorkload(batch=1, in_features=512, out_features=100)


def conv_space() -> Space:
    return Space(
        {
            "oc": [1, 2, 3, 4, 6, 8],
            "ow": [1, 2, 4, 6, 7, 8, 12, 14, 28],
            "ic": [4, 8, 16, 32, 64],
            "unroll": [False, True],
            "order": ["oc", "oh", "ow"],
        },
        {"oc": 2, "ow": 4, "ic": 16, "unroll": False, "order": "oc"},
    )


def small_space(points: int = 12) -> Space:
    return Space({"tile": list(range(1, points + 1))}, {"tile": min(4, points)})


def kernel_us(config: Config) -> float | None:
    """Loads against FMAs of a register tile, spills, ragged edges, cache; None: cannot compile."""
    oc, ow, ic = (config.int(name) for name in ("oc", "ow", "ic"))
    registers = oc * ow + oc + 1
    if registers > 70:
        return None
    cycles = max(oc * ow / 2 + 2, oc + ow / 2, 4.0) / (oc * ow)
    spills = 1 + 0.08 * max(0, registers - 32)
    ragged = math.ceil(24 / oc) * oc / 24 * math.ceil(28 / ow) * ow / 28
    cache = 1 + 0.25 * max(0.0, math.log2(ic * oc * 144 / 8192)) + 0.4 / ic
    unroll = (0.93 if ic <= 16 else 1.1) if config["unroll"] else 1.0
    order = {"oc": 1.0, "oh": 0.97, "ow": 1.12}[str(config["order"])]
    return CONV.macs / 6000 * cycles * spills * ragged * cache * unroll * order


def kernel_features(config: Config) -> dict[str, float]:
    """What a loop nest of that kernel would show; the cycles are a rough model of it."""
    oc, ow, ic = (config.int(name) for name in ("oc", "ow", "ic"))
    loads = 1 / oc + 1 / ow
    return {
        "loads": loads,
        "registers": float(oc * ow + oc + 1),
        "working_set": math.log2(ic * oc * 144),
        "waste": math.log2(math.ceil(24 / oc) * oc / 24 * math.ceil(28 / ow) * ow / 28),
        "depth": float(ic),
        "unrolled": float(bool(config["unroll"])),
        "order": {"oc": 0.0, "oh": 1.0, "ow": 2.0}[str(config["order"])],
        "cycles": math.log2(max(oc * ow / 2, oc + ow / 2) / (oc * ow)),
    }


def tile_features(config: Config) -> dict[str, float]:
    """Features of :func:`small_space`."""
    return {"tile": float(config.int("tile")), "cycles": 0.0}
