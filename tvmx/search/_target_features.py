"""A target as the few numbers a policy is conditioned on."""

from __future__ import annotations

import math

from tvmx.targets import Target

_INT8_RATES = {"vnni512": 3.0, "vnni256": 3.0, "pmadd": 2.0, "sdot": 3.6, "smlal": 1.2, "none": 1.0}
"""int8 products in the time of a float32 one, about, as kernels reach it."""


def target_features(target: Target) -> dict[str, float]:
    """For :attr:`tvmx.ir.CostTable.target`; each between 0 and 1."""
    return target_numbers(
        target.vector_bits, target.big.in_order, target.big.l2_kib, _INT8_RATES[target.int8_dot]
    )


def target_numbers(
    vector_bits: int, in_order: bool, l2_kib: int, int8_rate: float
) -> dict[str, float]:
    """The same of a core described by hand: bits of a vector, KiB of L2, int8 over float32 rate."""
    return {
        "vector": math.log2(vector_bits) / 10,
        "in_order": float(in_order),
        "l2": min(1.0, math.log2(max(1, l2_kib)) / 14),
        "int8_rate": min(1.0, int8_rate / 4),
    }
