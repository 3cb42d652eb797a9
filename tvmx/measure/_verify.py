"""Is the output right? Decided before any latency counts."""

from __future__ import annotations

import numpy as np

from tvmx.ir import block_of, to_logical
from tvmx.measure._jobs import Array


class WrongOutputError(Exception):
    """Not part of the public tree: becomes a ``wrong-output`` measurement."""

    def __init__(self, message: str, max_error: float | None = None) -> None:
        super().__init__(message)
        self.max_error = max_error


def relative_error(actual: Array, expected: Array) -> float:
    """max|actual - expected| over (max - min of expected); over max|expected| if that is 0.

    A range that is less than a thousandth of max|expected| counts as so much: rounding errors are
    as large as the values, not as their differences.
    """
    if expected.size == 0:
        return 0.0
    wide = np.result_type(expected.dtype, np.float32 if expected.dtype.kind == "f" else np.float64)
    reference = expected.astype(wide, copy=False)
    error = float(np.max(np.abs(actual.astype(wide, copy=False) - reference)))
    span, size = float(reference.max() - reference.min()), float(np.abs(reference).max())
    return error / (max(span, size / 1000) if span else size or 1.0)


def check_output(
    actual: Array,
    expected: Array | None,
    rtol: float,
    *,
    layout: str = "NCHW",
    channels: int | None = None,
    what: str = "output",
) -> float | None:
    """Return the relative error, or raise :class:`WrongOutputError` saying what is wrong.

    NaN and infinities are wrong everywhere, in padding lanes too: 0 x NaN would reach a result.
    """
    if not np.isfinite(actual).all():
        bad = int(actual.size - np.isfinite(actual).sum())
        raise WrongOutputError(
            f"{what}: {bad} of {actual.size} values are NaN, infinite or unwritten"
        )
    if expected is None:
        return None
    if actual.shape != expected.shape:
        raise WrongOutputError(f"{what}: shape {actual.shape}, expected {expected.shape}")
    if block_of(layout) and channels is not None:
        actual = to_logical(actual, layout, channels)
        expected = to_logical(expected, layout, channels)
    error = relative_error(actual, expected)
    if not error <= rtol:
        raise WrongOutputError(f"{what}: error {error:.3g} of the range, allowed {rtol:g}", error)
    return error
