"""The frame of a direct convolution, in float or int8: tasks, the image of each, and its tiles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

from tvmx.ir import Config, Conv2dWorkload, ceil_div
from tvmx.templates._image import ConvGeometry, WordImage, Words


@dataclass(frozen=True)
class Part:
    """Some of the input blocks that a tile sums over, and where its sums are between parts.

    ``blocks`` input blocks from ``first`` on. The first part starts from zero, the last writes the
    output; between them the sums are in ``sums``, a flat buffer, from ``at`` on.
    """

    first: Any
    blocks: int
    starts: bool = True
    ends: bool = True
    sums: Any = None
    at: Any = None


class DirectEmitter(ABC):
    """Writes a kernel statement by statement; a subclass says what its arguments and a tile are.

    The config has ``oc_tile``, ``oh_tile``, ``ow_tile``, ``order`` ("row" or "oc"), ``chunk``,
    ``pad`` ("root", "task" or "none") and, where a subclass supports it, ``ic_chunk``: input
    channels that all tiles of a task sum over before they go on to the next ones, so that the
    weights of these are read from L1 by all tiles but the first. 0: all at once.
    """

    image: WordImage

    def __init__(self, w: Conv2dWorkload, g: ConvGeometry[Any], config: Config) -> None:
        self.w, self.g, self.v = w, g, g.form.lanes
        self.oc, self.oh, self.ow = (config.int(k) for k in ("oc_tile", "oh_tile", "ow_tile"))
        self.by_row, self.pad = config["order"] == "row", config["pad"]
        chunk = config.int("chunk")
        self.tile_rows, self.tile_columns = g.tiles(self.oh, self.ow)
        if g.is_flat:
            self.tile_columns = chunk
        else:
            self.tile_rows = chunk
        self.rows = min(self.tile_rows * self.oh, g.out_height)
        self.columns = min(self.tile_columns * self.ow, g.out_width)
        self.tasks = ceil_div(g.units(self.oh, self.ow), chunk)
        self.part = config.int("ic_chunk") if "ic_chunk" in config else 0
        self.part = self.part // g.block_words or g.group_in_blocks
        self.oc_tiles = ceil_div(g.out_blocks, self.oc)

    def function(self) -> Any:
        """The kernel as a PrimFunc."""
        from tvmx._tvm import IRBuilder, builder

        w = self.w
        with IRBuilder() as ir, builder.prim_func(s_tir=True):
            builder.func_name("main")
            builder.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
            self._arguments()
            whole = self.image.of_all() if self.pad == "root" else None
            if self.by_row:
                with builder.parallel(0, w.batch * self.tasks) as task:
                    n = builder.Bind(task // self.tasks)
                    y, x = self._origin(task % self.tasks)
                    words = self._words(whole, n, y, x)
                    with builder.serial(0, self.oc_tiles) as co:
                        self._tiles(words, n, co, y, x)
            else:
                with builder.parallel(0, w.batch * self.oc_tiles * self.tasks) as task:
                    n = builder.Bind(task // (self.oc_tiles * self.tasks))
                    co = builder.Bind(task // self.tasks % self.oc_tiles)
                    y, x = self._origin(task % self.tasks)
                    self._tiles(self._words(whole, n, y, x), n, co, y, x)
        return ir.get()

    @abstractmethod
    def _arguments(self) -> None:
        """Emit the arguments; sets :attr:`image`."""

    @abstractmethod
    def _tile(
        self, words: Words, n: Any, c: Any, y: Any, x: Any, down: Any, across: Any, part: Part
    ) -> None:
        """Emit one tile of a part: from output block ``c`` on, at (y + down, x + across)."""

    def _origin(self, task: Any) -> tuple[Any, Any]:
        """First output row and column of a task."""
        from tvmx._tvm import builder, tirx

        g = self.g
        zero = tirx.const(0, "int32")
        if g.is_flat:
            return zero, builder.Bind(tirx.min(task * self.columns, g.out_width - self.columns))
        return builder.Bind(tirx.min(task * self.rows, g.out_height - self.rows)), zero

    def _words(self, whole: Any, n: Any, y: Any, x: Any) -> Words:
        """The pixels of the task whose first output pixel is (y, x)."""
        if self.pad == "none":
            return self.image.direct(n, y, x)
        if self.pad == "root":
            return self.image.within(whole, n, y, x)
        return self.image.of_task(n, y, x, self.rows, self.columns)

    def _tiles(self, words: Words, n: Any, co: Any, y: Any, x: Any) -> None:
        """Emit the tiles of a task for one run of output blocks."""
        from tvmx._tvm import builder, tirx

        c = builder.Bind(tirx.min(co * self.oc, self.g.out_blocks - self.oc))
        blocks = self.g.group_in_blocks
        parts = ceil_div(blocks, self.part)
        if parts == 1:
            self._pass(words, n, c, y, x, Part(0, blocks))
            return
        size = self.tile_rows * self.tile_columns * self._sums
        sums = builder.alloc_buffer((size,), "float32")
        self._pass(words, n, c, y, x, Part(0, self.part, ends=False, sums=sums))
        if parts > 2:
            with builder.serial(1, parts - 1) as number:
                first = builder.Bind(number * self.part)
                middle = Part(first, self.part, starts=False, ends=False, sums=sums)
                self._pass(words, n, c, y, x, middle)
        first = (parts - 1) * self.part
        self._pass(words, n, c, y, x, Part(first, blocks - first, starts=False, sums=sums))

    @property
    def _sums(self) -> int:
        """Sums of one tile."""
        return self.oc * self.oh * self.ow * int(self.v)

    def _pass(self, words: Words, n: Any, c: Any, y: Any, x: Any, part: Part) -> None:
        """Emit one part of the tiles of a task."""
        from tvmx._tvm import builder, tirx

        with builder.serial(0, self.tile_rows) as i:
            down = builder.Bind(tirx.min(i * self.oh, self.rows - self.oh))
            with builder.serial(0, self.tile_columns) as j:
                across = builder.Bind(tirx.min(j * self.ow, self.columns - self.ow))
                at = (i * self.tile_columns + j) * self._sums
                self._tile(words, n, c, y, x, down, across, replace(part, at=at))
