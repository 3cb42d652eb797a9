"""float32 fused multiply-add in NumPy, to the bit what ``llvm.fma`` computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def fma(a: Any, b: Any, c: Any) -> npt.NDArray[np.float32]:
    """``a * b + c`` of float32 arrays that broadcast, rounded once, half to even.

    The product is exact in float64; the sum is rounded to odd there (Boldo and Melquiond,
    "Emulation of a FMA and correctly rounded sums", 2008), so that rounding again to float32
    gives what one rounding would.
    """
    first, second, addend = (np.asarray(x, np.float32).astype(np.float64) for x in (a, b, c))
    product = first * second
    total = np.asarray(product + addend)
    back = total - product
    error = (product - (total - back)) + (addend - back)  # Knuth's two-sum: exact
    inexact = np.isfinite(total) & (error != 0)
    even = (total.view(np.int64) & 1) == 0
    nudged = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    with np.errstate(over="ignore"):
        result: npt.NDArray[np.float32] = np.where(inexact & even, nudged, total).astype(np.float32)
    return result
