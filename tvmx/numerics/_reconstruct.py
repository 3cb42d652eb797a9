"""Pruning by what it does to a layer's output: blocks chosen and the others made up for them.

A layer computes W X; pruned weights V are to minimise

    |W X - V X|^2 + d |W - V|^2,        H = X X^T + d I,  d = damping * mean of the diagonal

over calibration samples X (columns). Rows of V are independent. With E a set of elements of a row w
that are to be zero, the others' best values and what is then lost follow from H alone (Hassibi and
Stork, "Second order derivatives for network pruning: optimal brain surgeon", NIPS 1992):

    loss = w_E ([H^-1]_EE)^-1 w_E / 2

Which blocks go is found greedily, as in E. Frantar and D. Alistarh, "Optimal Brain Compression"
(NeurIPS 2022): within the rows of a block, the block of least loss is taken out, the other elements
are updated, and H^-1 is that of what is left; a block's loss is the sum over its rows. The losses
along all such traces are then merged, so that rows keep more or fewer blocks. Where there are many
columns several blocks are taken out between updates, and traces run over parts of the columns. At
the end what is kept is solved for exactly, from all columns.

More columns than :data:`MOST_COLUMNS` are cut into segments that make up for themselves alone:
H is taken to be zero between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from tvmx.ir import BlockSparsity, ceil_div
from tvmx.numerics._prune import matrix_shape

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]

MOST_COLUMNS = 2304
"""Columns whose second moments are held as one matrix: 42 MB."""
DAMPING = 0.01
_TRACED = 512  # columns whose blocks compete along one trace, where there are many
_STEPS = 24  # about so many updates take a trace's blocks out
_FINE = 96  # traces of fewer blocks lose them one by one


@dataclass(frozen=True)
class Moments:
    """Second moments of a layer's input, in float64: segment after segment of its columns.

    ``segments[i]`` is (n + 1, n + 1): the sum over samples of y y^T, y being the n columns and a 1,
    for the bias. ``starts[i]`` is its first column. ``count`` is the number of samples.
    """

    segments: tuple[Float64, ...]
    starts: tuple[int, ...]
    count: int

    @classmethod
    def of(cls, samples: Array, starts: tuple[int, ...] = (0,)) -> Moments:
        """Of samples (count, columns)."""
        return cls.zeros(samples.shape[1], starts).plus(samples)

    @classmethod
    def zeros(cls, columns: int, starts: tuple[int, ...]) -> Moments:
        """Of no samples; ``starts`` as :func:`segment_starts` gives them."""
        widths = np.diff([*starts, columns])
        return cls(tuple(np.zeros((n + 1, n + 1)) for n in widths), starts, 0)

    def plus(self, samples: Array) -> Moments:
        """With more samples (count, columns)."""
        segments = []
        for moment, start in zip(self.segments, self.starts, strict=True):
            part = samples[:, start : start + len(moment) - 1].astype(np.float64)
            ones = np.concatenate([part, np.ones((len(part), 1))], axis=1)
            segments.append(moment + ones.T @ ones)
        return Moments(tuple(segments), self.starts, self.count + len(samples))


def segment_starts(columns: int, width: int = 1) -> tuple[int, ...]:
    """Where the segments of ``columns`` begin: at multiples of ``width`` (columns of a block)."""
    step = max(width, MOST_COLUMNS // width * width)
    return tuple(range(0, columns, step))


@dataclass(frozen=True)
class Reconstructed:
    """A pruned weight, in the original's shape and type, and what its bias is to be moved by.

    ``bias`` is float32 (out,), zeros where the layer has none.
    """

    weight: Array
    bias: npt.NDArray[np.float32]


def reconstruct(
    weight: Array, moments: Moments, sparsities: Sequence[BlockSparsity], *, bias: bool = True,
    damping: float = DAMPING, stop: Callable[[], bool] = lambda: False,
) -> dict[BlockSparsity, Reconstructed] | None:  # fmt: skip
    """Prune to several levels of one block shape; exactly ``kept`` blocks are kept of each.

    Without ``bias`` the layer's bias stays as it is. ``stop`` is asked before every row of blocks:
    None where it said yes, and the work is lost. Raises ValueError where the block shapes differ,
    or a segment of ``moments`` does not begin with a block.
    """
    if len({(s.rows, s.columns) for s in sparsities}) != 1:
        raise ValueError("levels of one block shape are reconstructed together")
    layer = _Layer(weight, moments, sparsities[0].rows, sparsities[0].columns, bias, damping, stop)
    traced = layer.trace()
    if traced is None:
        return None
    (order, places), result = traced, {}
    for sparsity in sparsities:
        total = len(order)
        gone = places[order[: total - sparsity.kept(*matrix_shape(weight))]]
        mask = np.ones((layer.down, layer.across), np.bool_)
        mask[gone[:, 0], gone[:, 1]] = False
        solved = layer.solve(mask)
        if solved is None:
            return None
        result[sparsity] = solved
    return result


def compensate(
    weight: Array, kept: npt.NDArray[np.bool_], moments: Moments, *, bias: bool = True,
    damping: float = DAMPING,
) -> Reconstructed:  # fmt: skip
    """The best values of the elements ``kept`` (of the weight's shape), the others zero."""
    layer = _Layer(weight, moments, 1, 1, bias, damping)
    solved = layer.solve(kept.reshape(layer.matrix.shape))
    assert solved is not None  # nothing stops it
    return solved


class _Layer:
    """A weight as a matrix in blocks, with what its inputs are like."""

    def __init__(
        self, weight: Array, moments: Moments, rows: int, columns: int, bias: bool, damping: float,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self._weight, self._bias, self._stop = weight, bias, stop
        self.matrix = weight.reshape(matrix_shape(weight)).astype(np.float64)
        self.rows, self.columns = rows, columns
        self.down, self.across = (ceil_div(n, b) for n, b in zip(
            self.matrix.shape, (rows, columns), strict=True))  # fmt: skip
        if any(start % columns for start in moments.starts):
            raise ValueError(f"segments at {moments.starts} cut blocks of {columns} columns")
        self._starts = moments.starts
        self._hessians = [_damped(moment, damping) for moment in moments.segments]

    def trace(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]] | None:
        """The order blocks go in, and (blocks, 2) their rows and columns; None if stopped."""
        losses, places = [], []
        for start, stop, inverse in self._inverses():
            for row in range(self.down):
                if self._stop():
                    return None
                part = self.matrix[row * self.rows : (row + 1) * self.rows, start:stop]
                loss, columns = _Trace(part, inverse, self.columns).run()
                losses.append(loss)
                rows = np.full(len(columns), row)
                places.append(np.stack([rows, columns + start // self.columns], axis=1))
        # Losses along a trace never fall, so that a stable sort keeps to its order.
        return np.argsort(np.concatenate(losses), kind="stable"), np.concatenate(places)

    def _inverses(self) -> Iterator[tuple[int, int, Float64]]:
        """Parts of the columns, from and to, with the inverse of their H."""
        step = max(self.columns, _TRACED // self.columns * self.columns)
        for hessian, start in zip(self._hessians, self._starts, strict=True):
            width = len(hessian) - 1
            for first in range(0, width, step):
                last = min(first + step, width)
                used = np.arange(first, last)
                used = np.append(used, width) if self._bias else used
                factor = linalg.cho_factor(
                    hessian[np.ix_(used, used)], lower=True, check_finite=False
                )
                inverse = linalg.cho_solve(factor, np.eye(len(used)), check_finite=False)
                yield start + first, start + last, inverse

    def solve(self, mask: npt.NDArray[np.bool_]) -> Reconstructed | None:
        """The best values of the blocks that stay; None if stopped."""
        out, inner = self.matrix.shape
        kept = mask.repeat(self.rows, axis=0).repeat(self.columns, axis=1)[:out, :inner]
        result, bias = np.zeros_like(self.matrix), np.zeros(out)
        for hessian, start in zip(self._hessians, self._starts, strict=True):
            stop = start + len(hessian) - 1
            for row in range(0, out, self.rows):
                if self._stop():
                    return None
                rows = slice(row, row + self.rows)
                chosen = np.flatnonzero(kept[row, start:stop])
                free = np.append(chosen, stop - start) if self._bias else chosen
                if not len(free):
                    continue
                pairs = hessian[np.ix_(free, free)]
                wanted = hessian[free, :-1] @ self.matrix[rows, start:stop].T
                found = linalg.solve(pairs, wanted, assume_a="pos", check_finite=False).T
                result[rows, start + chosen] = found[:, : len(chosen)]
                if self._bias:
                    bias[rows] += found[:, -1]
        shaped = result.astype(self._weight.dtype).reshape(self._weight.shape)
        return Reconstructed(np.ascontiguousarray(shaped), bias.astype(np.float32))


class _Trace:
    """Takes the blocks of one row of blocks out, one after the other.

    ``inverse`` may have one more row than there are columns: the bias, which always stays.
    """

    def __init__(self, weight: Float64, inverse: Float64, width: int) -> None:
        self._weight, self._inverse, self._width = weight, inverse, width
        inner = weight.shape[1]
        if len(inverse) > inner:
            self._weight = np.concatenate([weight, np.zeros((len(weight), 1))], axis=1)
        self._blocks = np.arange(ceil_div(inner, width))
        self._columns = np.arange(inner) // width  # the block each element is of
        self._free = len(inverse) - inner

    def run(self) -> tuple[Float64, npt.NDArray[np.intp]]:
        """What is lost when each block goes, never falling, and the blocks in that order."""
        count = len(self._blocks)
        losses, gone = [], []
        while len(self._blocks):
            step = 1 if count <= _FINE else max(1, count // _STEPS)
            scores = self._scores()
            least = np.argsort(scores, kind="stable")[:step]
            losses.append(scores[least])
            gone.append(self._blocks[least])
            self._remove(np.isin(self._columns, self._blocks[least]))
            self._blocks = np.delete(self._blocks, least)
        return np.maximum.accumulate(np.concatenate(losses)), np.concatenate(gone)

    def _scores(self) -> Float64:
        """What each block alone would lose, twice the loss above: it is only compared."""
        elements = len(self._columns)
        weight = self._weight[:, :elements]
        if self._width == 1:
            diagonal = np.diagonal(self._inverse)[:elements]
            found: Float64 = np.square(weight).sum(axis=0) / diagonal
            return found
        scores = np.empty(len(self._blocks))
        for index, block in enumerate(self._blocks):
            at = np.flatnonzero(self._columns == block)
            part = weight[:, at]
            solved = np.linalg.solve(self._inverse[np.ix_(at, at)], part.T)
            scores[index] = float(np.sum(part.T * solved))
        return scores

    def _remove(self, elements: npt.NDArray[np.bool_]) -> None:
        out = np.append(elements, np.zeros(self._free, np.bool_))
        stay, go = np.flatnonzero(~out), np.flatnonzero(out)
        cross = self._inverse[np.ix_(go, stay)]
        solved = np.linalg.solve(
            self._inverse[np.ix_(go, go)], np.concatenate([cross, self._weight[:, go].T], axis=1)
        )
        factors, moved = solved[:, : len(stay)], solved[:, len(stay) :]
        self._weight = self._weight[:, stay] - moved.T @ cross
        rest = self._inverse[stay][:, stay]
        rest -= cross.T @ factors
        self._inverse = rest
        self._columns = self._columns[~elements]


def _damped(moment: Float64, damping: float) -> Float64:
    """H: the damping keeps dead inputs from making it singular, and holds weights in place."""
    diagonal = np.diagonal(moment)[:-1]
    mean = float(diagonal.mean()) or 1.0
    result = moment.copy()
    at = np.arange(len(diagonal))
    result[at, at] += damping * mean
    if result[-1, -1] == 0.0:
        result[-1, -1] = 1.0
    return result
