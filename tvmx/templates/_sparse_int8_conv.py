"""The int8 tile of block-sparse convolutions: blocks of v output x ``step`` input channels.

A block holds all taps of its channels, each of them one dot product of a pixel's word with v
weights (see ``_sparse_int8``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.ir import Config, Conv2dWorkload
from tvmx.targets import Target
from tvmx.templates._base import Kernel
from tvmx.templates._block_sparse import flat, load, spread, store
from tvmx.templates._direct import Part
from tvmx.templates._image import ConvGeometry, WordImage, Words, runs
from tvmx.templates._int8 import finished
from tvmx.templates._intrinsics import DotForm, concat, dot_form, repeat, spread_lane
from tvmx.templates._sparse_conv import SparseConvEmitter
from tvmx.templates._sparse_int8 import (
    DotSums,
    Int8Arguments,
    int8_sparse_kernel,
    sum_dots,
    taps_of,
)


def sparse_int8_kernel(w: Conv2dWorkload, config: Config, target: Target) -> Kernel:
    """The kernel of an int8 variant in blocks of ``lanes`` x (``step`` * taps)."""
    form, taps = dot_form(target), taps_of(w)
    g = ConvGeometry.of(w, form, gather=config["pad"] != "none")
    emitter = _Emitter(w, g, config, target)

    def encode(blocks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return emitter.offsets(blocks * taps)

    return int8_sparse_kernel(
        emitter.function(), w, form, emitter.index_dtype, encode, emitter.groups
    )


class _Emitter(SparseConvEmitter):
    """The int8 tile and what is around it."""

    def __init__(
        self, w: Conv2dWorkload, g: ConvGeometry[DotForm], config: Config, target: Target
    ) -> None:
        super().__init__(w, g, config, g.block_words, g.form.step)
        self.form, self.target = g.form, target
        self.taps = [int(at) for at in self.offsets(np.arange(taps_of(w)))]

    def _arguments(self) -> None:
        w, g, v = self.w, self.g, self.v
        data = (w.batch, g.in_blocks, w.height, w.width, v)
        out = (w.batch, g.out_blocks, w.out_height, w.out_width, v)
        self.a = Int8Arguments(w, self.form, data, out, self.index_dtype, self.groups)
        self.splits, self.out = self.a.splits, flat(self.a.out)
        self.residual = None if self.a.residual is None else flat(self.a.residual)
        self.image = WordImage(w, g, flat(self.a.data), self.a.params)

    def _tile(
        self, words: Words, n: Any, c: Any, y: Any, x: Any, down: Any, across: Any, part: Part
    ) -> None:
        from tvmx._tvm import builder

        del part  # always all of it
        start = self._first_word(words, down, across)

        def pixels(indices: Sequence[Any]) -> Iterator[tuple[int, list[Any]]]:
            return self._pixel_words(words, [builder.Bind(start + i) for i in indices])

        sums = sum_dots(self.a, c, self.form, self.oh * self.ow, self.unroll, pixels, self.taps)
        self._write(sums, n, c, y + down, x + across)

    def _pixel_words(self, words: Words, starts: list[Any]) -> Iterator[tuple[int, list[Any]]]:
        """Per pixel of the tile its words (one per start), each broadcast to a vector."""
        from tvmx._tvm import builder

        v, step = self.v, self.g.image_step
        for i in range(self.oh):
            row, done = i * step[0] * words.row, 0
            while self.g.by_lane and self.ow >= 4 and done < self.ow:
                first = min(done, self.ow - 4)
                four = [builder.Bind(words.load(s + (row + first), 4)) for s in starts]
                for lane in range(done - first, 4):
                    yield (
                        i * self.ow + first + lane,
                        [spread_lane(vector, lane, v) for vector in four],
                    )
                done = first + 4
            for j in range(done, self.ow):
                at = row + j * step[1] * words.column
                yield (
                    i * self.ow + j,
                    [builder.Bind(spread(words.load(s + at), v)) for s in starts],
                )

    def _write(self, sums: DotSums, n: Any, c: Any, y: Any, x: Any) -> None:
        """Emit the requantisation of the tile's sums and their stores, 16 bytes at once."""
        from tvmx._tvm import builder

        g, v = self.g, self.v
        first = self._first_out(n, c, y, x)
        bias = builder.Bind(load(self.a.bias, c, 0, lanes=v))
        scales = self.a.scales(c, v)
        for i in range(self.oh):
            for count, j in runs(self.ow, max(1, 16 // v)):
                at, lanes = first + (i * g.out_width + j) * v, count * v
                totals = [sums.total(i * self.ow + j + k) for k in range(count)]
                residual = None
                if self.residual is not None:
                    residual = load(self.residual, at, lanes=lanes)
                result = finished(
                    concat(totals, v) + repeat(bias, v, count),
                    tuple(repeat(scale, v, count) for scale in scales),
                    self.a.params, self.target, residual, lanes, self.w.epilogue,
                )  # fmt: skip
                store(self.out, result, at, lanes=lanes)
