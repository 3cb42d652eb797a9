"""The frame of a block-sparse convolution: tasks of even work, and where a block's pixels are.

In loops, for one image::

    parallel for task in (run of tiles, group of block rows):
        image = the pixels this task reads                     # pad = "task"
        for row in the group, tile in the run:
            the tile: sums over the blocks that the row keeps, epilogue, stores

A run is ``chunk`` tiles where the image is a single row of pixels, else ``chunk`` rows of tiles.
The borders of the ``groups`` lie where each has about as many blocks. order = "run" has the groups
of a run one behind the other; order = "group" the runs of a group, so that weights which no cache
holds whole are read from memory once.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.ir import Config, Conv2dWorkload, ceil_div
from tvmx.templates._block_sparse import for_group, index_dtype
from tvmx.templates._direct import DirectEmitter, Part
from tvmx.templates._image import ConvGeometry, Words


class SparseConvEmitter(DirectEmitter):
    """Writes a kernel statement by statement; a subclass says what its arguments and a tile are.

    The config has ``oh_tile``, ``ow_tile``, ``chunk``, ``pad`` ("root", "task" or "none"),
    ``groups``, ``order`` and ``unroll``. ``word_channels`` channels make a word of the image, and
    ``block_words`` words of a pixel are neighbours there.
    """

    splits: Any

    def __init__(
        self, w: Conv2dWorkload, g: ConvGeometry[Any], config: Config, block_words: int,
        word_channels: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(w, g, Config({**config, "oc_tile": 1, "order": "row"}))
        self.groups, self.unroll = config.int("groups"), config.int("unroll")
        self.order = config["order"]
        self.block_words, self.word_channels = block_words, word_channels

    def function(self) -> Any:
        """The kernel as a PrimFunc."""
        from tvmx._tvm import IRBuilder, builder

        with IRBuilder() as ir, builder.prim_func(s_tir=True):
            builder.func_name("main")
            builder.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
            self._arguments()
            whole = self.image.of_all() if self.pad == "root" else None
            runs, groups = self.w.batch * self.tasks, self.groups
            with builder.parallel(0, runs * groups) as task:
                by_run = self.order == "run"
                run = builder.Bind(task // groups if by_run else task % runs)
                group = builder.Bind(task % groups if by_run else task // runs)
                n = builder.Bind(run // self.tasks)
                y, x = self._origin(run % self.tasks)
                words = self._words(whole, n, y, x)
                assert (words.block, words.row, words.column) == self.strides
                self._rows(words, n, group, y, x)
        return ir.get()

    def _rows(self, words: Words, n: Any, group: Any, y: Any, x: Any) -> None:
        """Emit the block rows of a group, over all tiles of a task."""
        with for_group(self.splits, group) as row:
            self._row(words, n, row, y, x)

    def _row(self, words: Words, n: Any, row: Any, y: Any, x: Any) -> None:
        """Emit one block row over all tiles of a task."""
        self._pass(words, n, row, y, x, Part(0, self.g.in_blocks))

    @abstractmethod
    def _arguments(self) -> None:
        """Emit the arguments; sets :attr:`image` and :attr:`splits`."""

    @property
    def strides(self) -> tuple[int, int, int]:
        """Words from one block of channels, row and column of the image to the next."""
        g, q = self.g, self.block_words
        if self.pad == "none":
            return g.height * g.width * q, g.width * q, q
        span = (g.out_height, g.out_width) if self.pad == "root" else (self.rows, self.columns)
        rows, columns = (
            (extent - 1) * step + (kernel - 1) * dilation + 1
            for extent, step, kernel, dilation in zip(
                span, g.image_step, self.w.kernel, self.w.dilation, strict=True
            )
        )
        return rows * columns * q, columns * q, q

    def offsets(self, columns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Words from a tile's first pixel to what block columns of the weight matrix meet.

        Columns are (input channel / ``word_channels``, kernel row, kernel column).
        """
        block, row, column = self.strides
        height, width = self.w.kernel
        word, tap = columns // (height * width), columns % (height * width)
        down, across = self.w.dilation
        found: npt.NDArray[np.int64] = (
            word // self.block_words * block + word % self.block_words
            + tap // width * down * row + tap % width * across * column
        )  # fmt: skip
        return found

    @property
    def index_dtype(self) -> str:
        """Type of the indices that :meth:`offsets` gives."""
        height, width = self.w.kernel
        count = ceil_div(self.w.in_channels, self.word_channels) * height * width
        return index_dtype(int(self.offsets(np.arange(count)).max()))

    def _first_word(self, words: Words, down: Any, across: Any) -> Any:
        """Emit where the tile's first pixel is, in words."""
        from tvmx._tvm import builder

        step = self.g.image_step
        return builder.Bind(
            words.start + down * (step[0] * words.row) + across * (step[1] * words.column)
        )

    def _first_out(self, n: Any, row: Any, y: Any, x: Any) -> Any:
        """Emit the element of the flat output that is the tile's first."""
        from tvmx._tvm import builder

        g = self.g
        pixel = ((n * g.out_blocks + row) * g.out_height + y) * g.out_width + x
        return builder.Bind(pixel * self.v)
