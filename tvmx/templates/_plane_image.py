"""The image of a float convolution as planes: every channel's pixels are neighbours.

The copy turns NCHW<v>c around: v vectors of channels become v vectors of pixels. Kernels that
multiply by one lane of a vector then read v pixels of any single channel at once.
"""

from __future__ import annotations

from typing import Any

from tvmx.ir import ceil_div
from tvmx.templates._block_sparse import load, spread, store
from tvmx.templates._image import WordImage, Words, runs


class PlaneImage(WordImage):
    """A :class:`WordImage` of float32 NCHW<v>c data whose words lie [channel][row][column]."""

    def direct(self, n: Any, y: Any, x: Any) -> Words:
        """Raises TypeError: the data itself is not in planes."""
        raise TypeError("NCHW<v>c data is not in planes: it has no words to be read in place")

    def of_all(self) -> Any:
        """Emit the image of the whole batch, in a parallel loop; its buffer."""
        from tvmx._tvm import builder

        g, v, count = self.g, self.v, self.w.batch * self.g.in_blocks
        rows, columns = self.extent(g.out_height, g.out_width)
        image = builder.alloc_buffer((count * v * rows * columns,), "float32")
        with builder.parallel(0, count) as block, builder.serial(0, rows) as row:
            at = (block * v * rows + row) * columns
            n, c = block // g.in_blocks, block % g.in_blocks
            self._copy_planes(image, at, rows * columns, n, c, row, 0, columns)
        return image

    def within(self, image: Any, n: Any, y: Any, x: Any) -> Words:
        """The words of :meth:`of_all` from output pixel (y, x) of image ``n`` on."""
        from tvmx._tvm import builder

        g = self.g
        rows, columns = self.extent(g.out_height, g.out_width)
        row, column = (o * s for o, s in zip((y, x), g.image_step, strict=True))
        first = builder.Bind((n * (g.in_blocks * self.v * rows) + row) * columns + column)
        return Words(image, first, rows * columns, columns, 1, as_bytes=False)

    def of_task(self, n: Any, y: Any, x: Any, out_rows: int, out_columns: int) -> Words:
        """Emit the image of some output rows and columns from (y, x) on; its words."""
        from tvmx._tvm import builder, tirx

        g, v, step = self.g, self.v, self.g.image_step
        rows, columns = self.extent(out_rows, out_columns)
        image = builder.alloc_buffer((g.in_blocks * v * rows * columns,), "float32")
        with builder.serial(0, g.in_blocks) as block, builder.serial(0, rows) as row:
            at = (block * v * rows + row) * columns
            self._copy_planes(
                image, at, rows * columns, n, block, y * step[0] + row, x * step[1], columns
            )
        start = tirx.const(0, "int32")
        return Words(image, start, rows * columns, columns, 1, as_bytes=False)

    def _copy_planes(
        self, image: Any, at: Any, plane: int, n: Any, block: Any, row: Any, column: Any,
        columns: int,
    ) -> None:  # fmt: skip
        """Emit image row ``row`` of v planes, ``columns`` pixels from ``column`` on.

        The first plane's goes to ``at``, the others' to every ``plane`` elements behind.
        """
        from tvmx._tvm import builder, tirx

        w, g, v, step = self.w, self.g, self.v, self.g.source_step[1]
        top, left = w.padding[:2]
        source = builder.Bind(row * g.source_step[0] - top)
        # Image columns [head, tail) have their pixel in the data.
        head = min(ceil_div(left, step), columns)
        tail = max(head, min(columns, ceil_div(g.width + left, step)))

        def border(first: int, last: int) -> None:
            for c in range(v):
                for size, offset in runs(last - first, v):
                    zeros = spread(tirx.const(0, "float32"), size)
                    store(image, zeros, at + (c * plane + first + offset), lanes=size)

        def inside() -> None:
            border(0, head)
            border(tail, columns)
            first = ((n * g.in_blocks + block) * g.height + source) * g.width
            pixel = builder.Bind(first + column + (head * step - left))
            self._turn(image, at + head, plane, pixel, step, tail - head)

        if any(w.padding[::2]):
            with builder.If(tirx.all(source >= 0, source < g.height)):
                with builder.Then():
                    inside()
                with builder.Else():
                    border(0, columns)
        else:
            inside()

    def _turn(self, image: Any, at: Any, plane: int, pixel: Any, step: int, count: int) -> None:
        """Emit v planes of ``count`` pixels: squares of v x v, the last moved back to fit."""
        from tvmx._tvm import builder, tirx

        v = self.v
        if count < v:
            with builder.serial(0, count) as p:
                for c in range(v):
                    value = load(self.data, (pixel + p * step) * v + c)
                    store(image, value, at + c * plane + p)
            return
        with builder.serial(0, ceil_div(count, v)) as i:
            first = builder.Bind(tirx.min(i * v, count - v))
            near = [
                builder.Bind(load(self.data, (pixel + (first + p) * step) * v, lanes=v))
                for p in range(v)
            ]
            for c in range(v):
                lanes = [tirx.const(p * v + c, "int32") for p in range(v)]
                store(image, tirx.Shuffle(near, lanes), at + (c * plane + first), lanes=v)
