"""The float tile of block-sparse convolutions: blocks of v output channels x 1 tap, v lanes.

A block is one vector of weights; it is multiplied by the pixels of a tile that its input channel
and kernel tap meet, in one of two forms (see ``tvmx.templates.FloatForm``):

- *lane* (Arm): the image holds planes (:class:`tvmx.templates.PlaneImage`), v neighbouring pixels
  of the channel are loaded at once and are operands by element;
- *broadcast*: single pixels are spread while they are loaded, from data that stays NCHW<v>c.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from tvmx.ir import BlockSparsity, Config, Conv2dWorkload
from tvmx.targets import Target
from tvmx.templates._base import Kernel
from tvmx.templates._block_sparse import (
    Accumulators,
    block_sparse_kernel,
    flat,
    for_kept_blocks,
    load,
    partial_sums,
    sparse_arguments,
    spread,
    store,
)
from tvmx.templates._direct import Part
from tvmx.templates._epilogue import apply_epilogue
from tvmx.templates._float_tile import FloatForm, float_form
from tvmx.templates._image import ConvGeometry, WordImage, Words
from tvmx.templates._intrinsics import spread_lane
from tvmx.templates._plane_image import PlaneImage
from tvmx.templates._sparse_conv import SparseConvEmitter


def sparse_geometry(w: Conv2dWorkload, target: Target, pad: str) -> ConvGeometry[FloatForm]:
    """Sizes of the convolution as it is computed with an image (or none: ``pad`` "none")."""
    form = float_form(target)
    return ConvGeometry.of(w, form, gather=form.by_lane and pad != "none")


def sparse_float_kernel(w: Conv2dWorkload, config: Config, target: Target) -> Kernel:
    """The kernel of a float32 variant in blocks of ``lanes`` x 1; knobs of the base class."""
    sparsity = BlockSparsity.parse(w.sparsity)
    assert sparsity is not None
    emitter = _Emitter(w, sparse_geometry(w, target, str(config["pad"])), config)
    return block_sparse_kernel(
        emitter.function(), sparsity, emitter.index_dtype, emitter.offsets, emitter.groups
    )


class _Emitter(SparseConvEmitter):
    def __init__(self, w: Conv2dWorkload, g: ConvGeometry[FloatForm], config: Config) -> None:
        self.planes = g.form.by_lane and config["pad"] != "none"
        super().__init__(w, g, config, 1 if self.planes else g.form.lanes)

    def _arguments(self) -> None:
        w, g, v = self.w, self.g, self.v
        shape = (w.batch, g.out_blocks, w.out_height, w.out_width, v)
        data = (w.batch, g.in_blocks, w.height, w.width, v)
        buffers = sparse_arguments(w, data, shape, self.index_dtype, self.groups)
        self.buffers, self.splits = buffers, buffers.splits
        self.out = flat(buffers.out)
        self.residual = None if buffers.residual is None else flat(buffers.residual)
        self.image = (PlaneImage if self.planes else WordImage)(w, g, flat(buffers.data))

    def _tile(
        self, words: Words, n: Any, c: Any, y: Any, x: Any, down: Any, across: Any, part: Part
    ) -> None:
        from tvmx._tvm import builder

        del part  # always all of it

        start = self._first_word(words, down, across)
        count = self.oh * self.ow
        sums = Accumulators(count, self.v, partial_sums(count, self.unroll))

        def step(block: Any, index: Any, position: int) -> None:
            first = builder.Bind(start + index)
            weights = builder.Bind(load(self.buffers.weight, block, 0, lanes=self.v))
            for number, value in self._pixels(words, first):
                sums.add(number, value * weights, position)

        for_kept_blocks(self.buffers, c, self.unroll, step)
        self._write(sums, n, c, y + down, x + across)

    def _pixels(self, words: Words, first: Any) -> Iterator[tuple[int, Any]]:
        """Every pixel of the tile, spread to a vector."""
        from tvmx._tvm import builder

        v, step = self.v, self.g.image_step
        for i in range(self.oh):
            row = i * step[0] * words.row
            done = 0
            while self.planes and step[1] == 1 and self.ow >= v and done < self.ow:
                at = min(done, self.ow - v)
                near = builder.Bind(load(words.buffer, first + (row + at), lanes=v))
                for lane in range(done - at, v):
                    yield i * self.ow + at + lane, spread_lane(near, lane, v)
                done = at + v
            for j in range(done, self.ow):
                value = load(words.buffer, first + (row + j * step[1] * words.column))
                yield i * self.ow + j, builder.Bind(spread(value, v))

    def _write(self, sums: Accumulators, n: Any, c: Any, y: Any, x: Any) -> None:
        """Emit the epilogue and the stores of one block row."""
        from tvmx._tvm import builder

        v, first = self.v, self._first_out(n, c, y, x)
        bias = None
        if self.buffers.bias is not None:
            bias = builder.Bind(load(self.buffers.bias, c, 0, lanes=v))
        for i in range(self.oh):
            for j in range(self.ow):
                at = first + (i * self.g.out_width + j) * v
                value = apply_epilogue(
                    sums.total(i * self.ow + j),
                    self.w.epilogue,
                    bias=lambda: bias,
                    residual=partial(load, self.residual, at, lanes=v),
                )
                store(self.out, value, at, lanes=v)
