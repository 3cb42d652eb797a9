"""Cost tables that a formula fills in: the graphs of real networks, the latencies of no device.

What runs of ``tvmx explore`` leave in their tables depends on what they were given: without data
there is little more than one float implementation a layer. These tables have all kinds: direct,
Winograd and im2col kernels, int8, four levels of sparsity, plain and blocked layouts. A roofline
with each kind's efficiency gives the latency, and seeded noise what no formula foresees. Their
ratios are near those of the measured tables; no figure of theirs says anything about a board.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tvmx.ir import (
    Conv2dWorkload,
    CostTable,
    DenseWorkload,
    Implementation,
    Layer,
    LayerCosts,
    NetworkGraph,
    transition_key,
    value_bytes,
)
from tvmx.search import target_numbers

Workload = Conv2dWorkload | DenseWorkload
_LEVELS = (50, 70, 80, 90)
_NOISE = 0.15  # standard deviation of the log of a latency


@dataclass(frozen=True)
class Core:
    """A core: float32 peak in MACs per us, int8 relative to it, bandwidth in bytes per us.

    ``winograd`` is what Winograd reaches of the peak, ``sparse`` the same of sparse kernels,
    ``overhead_us`` what every kernel takes besides.
    """

    name: str
    lanes: int
    macs_per_us: float
    int8: float
    bytes_per_us: float
    direct: float = 0.75
    winograd: float = 0.5
    im2col: float = 0.5
    depthwise: float = 0.25
    sparse: float = 0.5
    overhead_us: float = 2.0
    in_order: bool = False
    l2_kib: int = 1024


CORES = {
    core.name: core
    for core in (
        Core("host", 16, 80_000, 2.5, 12_000, direct=0.8, winograd=0.45, sparse=0.35),
        Core("a53", 4, 4_800, 1.1, 2_500, direct=0.65, winograd=0.45, overhead_us=5, in_order=True),
        Core("a72", 4, 12_000, 1.2, 4_000, overhead_us=3),
        Core("a76", 4, 19_000, 3.6, 8_000, l2_kib=512),
    )
}


def drawn_core(seed: int) -> Core:
    """A core that nobody builds: every figure at random, within what the named ones span."""
    rng = random.Random(seed)
    base = rng.choice(list(CORES.values()))
    scaled = {
        name: getattr(base, name) * math.exp(rng.gauss(0, 0.25))
        for name in ("macs_per_us", "int8", "bytes_per_us", "overhead_us")
    }
    shares = {
        name: min(0.95, getattr(base, name) * math.exp(rng.gauss(0, 0.15)))
        for name in ("direct", "winograd", "im2col", "depthwise", "sparse")
    }
    return replace(base, name=f"drawn{seed}", **scaled, **shares)


def modelled_table(graph: NetworkGraph, core: Core, seed: int = 0) -> CostTable:
    """The table of a network on a core. Equal arguments give equal tables."""
    rows = tuple(_row(layer, core, seed) for layer in graph.layers)
    forms = ["NCHW", f"NCHW{core.lanes}c"]
    forms += [f"{form}/s8" for form in forms]
    transitions = {
        transition_key(shape, source, made): _conversion_us(shape, source, made, core, seed)
        for shape in sorted({s for s in graph.shapes if len(s) in (2, 4)})
        for source, made in itertools.permutations(forms if len(shape) == 4 else _plain(forms), 2)
    }
    workloads = {layer.workload.digest: layer.workload for layer in graph.layers}
    target = target_numbers(32 * core.lanes, core.in_order, core.l2_kib, core.int8)
    return CostTable(
        layers=rows, transitions=transitions, workloads=workloads, graph=graph, target=target
    )


def _plain(forms: list[str]) -> list[str]:
    return [form for form in forms if form.startswith("NCHW/") or form == "NCHW"]


def _row(layer: Layer, core: Core, seed: int) -> LayerCosts:
    load = layer.workload
    found = list(_implementations(load, core))
    rng = _rng(layer.name, seed)
    # How much a layer minds: most hardly, a few a lot.
    int8 = 0.01 * math.exp(rng.gauss(0, 1))
    sparse = 0.5 * math.exp(rng.gauss(0, 1))
    return LayerCosts(
        layer=layer.name,
        workload=load.digest,
        implementations=tuple(found),
        latency_us=tuple(_latency_us(load, i, core, seed) for i in found),
        weights_bytes=tuple(_weights_bytes(load, i) for i in found),
        accuracy_drop=tuple(
            round(int8 if i.precision == "int8" else sparse * (1 - _density(i)) ** 3, 6)
            if not i.exact else 0.0
            for i in found
        ),
        baseline=0,
    )  # fmt: skip


def _implementations(load: Workload, core: Core) -> Iterator[Implementation]:
    """The baseline first."""
    blocked = f"NCHW{core.lanes}c"
    levels = [f"{core.lanes}x1@{level}" for level in _LEVELS]

    def made(template: str, layout: str, reads: str = "", **how: str) -> Implementation:
        return Implementation.model_validate(
            {"template": template, "layout": layout, "data_layout": reads or layout, **how}
        )

    if isinstance(load, DenseWorkload):
        yield made("dense_packed", "NC")
        yield made("dense_int8", "NC", precision="int8")
        yield from (made("dense_bsr", "NC", sparsity=level) for level in levels)
        return
    if load.is_depthwise:
        yield made("depthwise_nchwc", blocked)
        yield made("depthwise_int8", blocked, precision="int8")
        return
    reads = blocked if load.in_channels % core.lanes == 0 else "NCHW"
    yield made("conv2d_direct", blocked, reads)
    yield made("conv2d_im2col", "NCHW")
    yield made("conv2d_int8", blocked, reads, precision="int8")
    if load.groups == 1 and load.kernel == (3, 3) and load.strides == (1, 1) and reads == blocked:
        yield made("conv2d_winograd", blocked)
    if load.groups == 1 and load.kernel == (1, 1) and load.strides == (1, 1) and reads == blocked:
        for level in levels:
            yield made("conv1x1_bsr", blocked, sparsity=level)
            yield made("conv1x1_bsr_nchw", "NCHW", sparsity=level)


def _latency_us(load: Workload, how: Implementation, core: Core, seed: int) -> float:
    share = {
        "conv2d_winograd": core.winograd * 2.25, "conv2d_im2col": core.im2col,
        "depthwise_nchwc": core.depthwise, "depthwise_int8": core.depthwise,
        "conv1x1_bsr": core.sparse, "conv1x1_bsr_nchw": core.sparse * 0.9,
        "dense_bsr": core.sparse,
    }.get(how.template, core.direct)  # fmt: skip
    rate = core.macs_per_us * share * (core.int8 if how.precision == "int8" else 1.0)
    size = 1 if how.precision == "int8" else 4
    moved = size * (math.prod(load.data_shape) + math.prod(load.out_shape))
    if isinstance(load, Conv2dWorkload):
        # Rows shorter than a tile, and few channels to sum over, leave lanes and loads idle.
        rate *= load.out_width / (load.out_width + 2) * load.in_channels / (load.in_channels + 8)
        if how.template == "conv2d_im2col":
            moved += 8 * math.prod(load.data_shape) * math.prod(load.kernel)
        if how.template == "conv2d_winograd":
            moved += 4 * 4 * (math.prod(load.data_shape) + math.prod(load.out_shape))
    moved += _weights_bytes(load, how)
    us = max(load.macs * _density(how) / rate, moved / core.bytes_per_us) + core.overhead_us
    rng = _rng(load.digest, core.name, how.label(), seed)
    return float(us * math.exp(rng.gauss(0, _NOISE)))


def _weights_bytes(load: Workload, how: Implementation) -> int:
    if isinstance(load, DenseWorkload):
        count = load.in_features * load.out_features
    else:
        count = load.out_channels * load.in_channels // load.groups * math.prod(load.kernel)
    if how.precision == "int8":
        return count
    if how.template == "conv2d_winograd":
        return 4 * count * 16 // 9
    return int(4 * count * _density(how) * (1 if how.exact else 1.1))


def _conversion_us(shape: tuple[int, ...], source: str, made: str, core: Core, seed: int) -> float:
    moved = value_bytes(shape, source) + value_bytes(shape, made)
    rng = _rng(shape, source, made, core.name, seed)
    return float(1.5 * moved / core.bytes_per_us * math.exp(rng.gauss(0, _NOISE)))


def _density(how: Implementation) -> float:
    return 1 - int(how.sparsity.partition("@")[2] or 0) / 100


def _rng(*key: object) -> random.Random:
    return random.Random(hashlib.sha256(repr(key).encode()).digest())
