"""Register tiles: which fit, and what they cost. The analytical model behind default configs.

A tile is ``blocks`` vectors of output channels times ``pixels`` pixels. Each step of the
reduction loads ``blocks`` weight vectors, broadcasts ``pixels`` scalars and does
``blocks * pixels`` multiply-adds into as many accumulators.
"""

from __future__ import annotations

from tvmx.targets import Target

_LATENCY_ACCUMULATORS = 8
"""Independent multiply-adds needed to hide their latency on the cores we target."""
_LOAD_SLOTS = 1.1
"""Slots that a load takes on x86, as a share of a multiply-add's."""


def divisors(n: int) -> list[int]:
    """All divisors of ``n`` in ascending order."""
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def is_x86(target: Target) -> bool:
    """Whether the target is an x86 machine (scalars broadcast for free from memory)."""
    return target.arch in ("x86_64", "i686")


def fits_registers(target: Target, blocks: int, pixels: int) -> bool:
    """Whether a tile's accumulators leave room for its operands, so that nothing spills.

    x86: accumulators, ``blocks`` weights, one broadcast and one spare register. Others: half
    of the registers, because LLVM hoists the loads of several steps there (measured on A53
    and A72 by llvm-mca: 16 accumulators are best, 24 spill).
    """
    accumulators = blocks * pixels
    if is_x86(target):
        return accumulators + blocks + 2 <= target.vector_registers and accumulators <= (
            target.vector_registers - 4
        )
    return accumulators <= target.vector_registers // 2


def max_accumulators(target: Target) -> int:
    """Accumulators of the largest tile that fits."""
    return max(p for p in range(1, target.vector_registers) if fits_registers(target, 1, p))


def tile_cycles(target: Target, blocks: int, pixels: int, depth: int) -> float:
    """Modelled cycles of one tile over ``depth`` reduction steps, set-up and store included.

    One multiply-add a cycle. On x86 every scalar is broadcast by a load of its own, from L1, where
    the weights come from further: a tile of one block takes 1.28 times as long as one of three
    (measured, AVX-512). Elsewhere one load brings the scalars of as many steps as it has lanes.
    Beyond two blocks weights come from more streams than small cores prefetch. In-order cores
    stall for most of a load's latency (fitted to llvm-mca's Cortex-A53).
    """
    accumulators = blocks * pixels
    if is_x86(target):
        loads = 3.0 * blocks + pixels + 2 * max(0, blocks - 3)
        streams, slots = 0.0, _LOAD_SLOTS
    else:
        loads, slots = blocks + pixels / target.lanes("float32"), 1.0
        streams = 2.0 * max(0, blocks - 2)
    if target.big.in_order:
        step = max(0.5 * accumulators + 5.5 * loads, _LATENCY_ACCUMULATORS) + streams
    else:
        step = max(accumulators, slots * loads + streams, _LATENCY_ACCUMULATORS) + loads / 8 + 1
    return depth * step + 3 * accumulators + 20


def line_cycles(target: Target, working_set: float, *, scattered: bool = False) -> float:
    """Modelled cycles to have the next cache line of data that is read again and again.

    ``working_set`` is the bytes touched before the same line is read again, infinite for what is
    read once. Caches count in part: pages fall into their sets unevenly, and other data passes
    through. ``scattered``: from more places in turn than prefetchers follow.
    """
    cluster = target.big
    if working_set <= cluster.l1d_kib * 1024 * 0.75:
        return 0.0
    if working_set <= cluster.l2_kib * 1024 * 0.6:
        return 4.0
    if is_x86(target):
        return 20.0 if scattered else 10.0
    return 100.0 if scattered else 20.0
