"""What the probe's kernels leave in their buffers, by NumPy: nothing here knows TVM."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tvmx.templates import DotForm

Words = npt.NDArray[np.int32]


def predict_fma(buffer: Words, *, steps: int, seeds: int, factor: float) -> Words:
    """The bits of ``sum + sum * factor``, ``steps`` times over, from each element's seed.

    No element may be negative.
    """
    sums = (buffer & seeds).astype(np.float32)
    x = np.float32(factor)
    for _ in range(steps):
        sums += sums * x
    return sums.view(np.int32)


def predict_dot(buffer: Words, form: DotForm, *, chains: int, steps: int) -> Words:
    """The sums after ``steps`` dot products with their own bytes; the weights stay."""
    size = chains * form.parts * form.lanes
    sums = buffer[:size].reshape(chains, form.parts, form.lanes).copy()
    weights = buffer[size:].view(np.int8).reshape(-1, form.lanes * form.step).astype(np.int32)
    add = _STEPS.get(form.name, _whole_words)
    for _ in range(steps):
        sums += add(sums, weights)
    return np.concatenate([sums.ravel(), buffer[size:]])


def _unsigned_bytes(sums: Words, weights: Words) -> Words:
    """VNNI: the data is unsigned."""
    chains, _, lanes = sums.shape
    products = sums.view(np.uint8).reshape(chains, 1, lanes, 4) * weights.reshape(lanes, 4)
    return _add(products)


def _signed_bytes(sums: Words, weights: Words) -> Words:
    chains, _, lanes = sums.shape
    products = sums.view(np.int8).reshape(chains, 1, lanes, 4) * weights.reshape(lanes, 4)
    return _add(products)


def _two_words(sums: Words, weights: Words) -> Words:
    """Smlal: both halves of a pair of words and weights, neighbours added, in int16 each."""
    chains = len(sums)
    products = sums.view(np.int8).reshape(chains, 2, 16) * weights.reshape(2, 16)
    both = products.sum(axis=1, dtype=np.int32).astype(np.int16)
    return _add(both.reshape(chains, 2, 4, 2))


def _pairs(sums: Words, weights: Words) -> Words:
    """Pmadd: neighbours of int16."""
    chains, _, lanes = sums.shape
    products = sums.view(np.int16).reshape(chains, 1, lanes, 2) * weights.reshape(lanes, 2)
    return _add(products)


def _whole_words(sums: Words, weights: Words) -> Words:
    return sums * weights


def _add(products: npt.NDArray[np.int32] | npt.NDArray[np.int16]) -> Words:
    total: Words = products.sum(axis=-1, dtype=np.int32)
    return total


_STEPS = {
    "vnni512": _unsigned_bytes,
    "vnni256": _unsigned_bytes,
    "sdot": _signed_bytes,
    "smlal": _two_words,
    "pmadd": _pairs,
}
