"""The float tile of block-sparse convolutions: blocks of v output channels x 1 tap, v lanes.

A block is one vector of weights; it is multiplied by the pixels of a tile that its input channel
and kernel tap meet, in one of two forms (see ``tvmx.templates.FloatForm``):

- *lane* (Arm): the image holds planes (:class:`tvmx.templates.PlaneImage`), v neighbouring pixels
  of the channel are loaded at once and are operands by element;
- *broadcast*: single pixels are spread while they are loaded, from data that stays NCHW<v>c.

The blocks of a row are a loop over data, or (structure = "code") statements one behind the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from tvmx.ir import BlockSparsity, Config, Conv2dWorkload
from tvmx.numerics import BlockRows
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
from tvmx.templates._sparse_code import IN_CODE, CodeSums, kernel_in_code
from tvmx.templates._sparse_conv import SparseConvEmitter


def sparse_geometry(w: Conv2dWorkload, target: Target, pad: str) -> ConvGeometry[FloatForm]:
    """Sizes of the convolution as it is computed with an image (or none: ``pad`` "none")."""
    form = float_form(target)
    return ConvGeometry.of(w, form, gather=form.by_lane and pad != "none")


def sparse_float_kernel(w: Conv2dWorkload, config: Config, target: Target) -> Kernel:
    """The kernel of a float32 variant in blocks of ``lanes`` x 1; knobs of the base class."""
    sparsity, geometry = (
        BlockSparsity.parse(w.sparsity), sparse_geometry(w, target, str(config["pad"])),
    )  # fmt: skip
    assert sparsity is not None
    if config["structure"] == IN_CODE:
        return kernel_in_code(w, lambda kept: _InCode(w, geometry, config, kept).function())
    emitter = _Emitter(w, geometry, config)
    return block_sparse_kernel(
        emitter.function(), sparsity, emitter.index_dtype, emitter.offsets, emitter.groups
    )


class _Emitter(SparseConvEmitter):
    in_code = False

    def __init__(self, w: Conv2dWorkload, g: ConvGeometry[FloatForm], config: Config) -> None:
        self.planes = g.form.by_lane and config["pad"] != "none"
        super().__init__(w, g, config, 1 if self.planes else g.form.lanes)

    def _arguments(self) -> None:
        w, g, v = self.w, self.g, self.v
        shape = (w.batch, g.out_blocks, w.out_height, w.out_width, v)
        data = (w.batch, g.in_blocks, w.height, w.width, v)
        buffers = sparse_arguments(
            w, data, shape, self.index_dtype, self.groups, in_code=self.in_code
        )
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

    def _held(self, value: Any) -> Any:
        """What is used several times: a variable."""
        from tvmx._tvm import builder

        return builder.Bind(value)

    def _pixels(self, words: Words, first: Any) -> Iterator[tuple[int, Any]]:
        """Every pixel of the tile, spread to a vector."""
        v, step = self.v, self.g.image_step
        for i in range(self.oh):
            row = i * step[0] * words.row
            done = 0
            while self.planes and step[1] == 1 and self.ow >= v and done < self.ow:
                at = min(done, self.ow - v)
                near = self._held(load(words.buffer, first + (row + at), lanes=v))
                for lane in range(done - at, v):
                    yield i * self.ow + at + lane, spread_lane(near, lane, v)
                done = at + v
            for j in range(done, self.ow):
                value = load(words.buffer, first + (row + j * step[1] * words.column))
                yield i * self.ow + j, self._held(spread(value, v))

    def _write(self, sums: Accumulators | CodeSums, n: Any, c: Any, y: Any, x: Any) -> None:
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


class _InCode(_Emitter):
    """Every block row is code of its own, for the blocks of ``kept``."""

    in_code = True

    def __init__(
        self, w: Conv2dWorkload, g: ConvGeometry[FloatForm], config: Config, kept: BlockRows
    ) -> None:
        super().__init__(w, g, config)
        self.indptr = kept.indptr
        self.blocks = self.offsets(kept.indices.astype(np.int64))

    def _rows(self, words: Words, n: Any, group: Any, y: Any, x: Any) -> None:
        del group  # the only one
        # Through a view: of the image itself TVM finds out for every access which part it reads,
        # which takes milliseconds each.
        view = replace(words, buffer=flat(words.buffer))
        for row in range(self.g.out_blocks):
            self._row(view, n, row, y, x)

    def _tile(
        self, words: Words, n: Any, c: Any, y: Any, x: Any, down: Any, across: Any, part: Part
    ) -> None:
        from tvmx._tvm import builder

        del part  # always all of it
        start = self._first_word(words, down, across)
        sums = CodeSums(self.oh * self.ow, self.v)
        for block in range(int(self.indptr[c]), int(self.indptr[c + 1])):
            weights = builder.Bind(load(self.buffers.weight, block, 0, lanes=self.v))
            for number, value in self._pixels(words, start + int(self.blocks[block])):
                sums.add(number, value * weights)
        self._write(sums, n, c, y + down, x + across)

    def _held(self, value: Any) -> Any:
        """As an expression: LLVM finds what is the same, TVM's passes take long over variables."""
        return value
