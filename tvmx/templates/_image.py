"""The image a convolution reads: words of one dot product (or floats), zero points around.

:class:`ConvGeometry` says how a convolution's pixels become words, :class:`WordImage` emits the
copy of all or some of the data, and :class:`Words` is where a tile finds them. A float is a word
of its own (:class:`tvmx.templates.FloatForm`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tvmx.ir import Conv2dWorkload, ceil_div
from tvmx.templates._block_sparse import load, spread, store
from tvmx.templates._float_tile import FloatForm
from tvmx.templates._int8 import data_zero_point
from tvmx.templates._intrinsics import DotForm

Form = TypeVar("Form", DotForm, FloatForm)


@dataclass(frozen=True)
class ConvGeometry(Generic[Form]):
    """Sizes of one convolution; a flat one has its pixels in a single row.

    ``in_blocks`` counts runs of channels whose ``block_words`` words are neighbours in the image.
    ``image_step`` is from one output pixel to the next there, (rows, columns); ``source_step``
    from one of its rows and columns to the next in the data. ``split``: the even columns of an
    image row come first, then the odd ones, so that pixels a stride of 2 apart are neighbours.
    """

    form: Form
    is_flat: bool
    plain: bool
    staged: bool
    groups: int
    in_blocks: int
    block_words: int
    out_blocks: int
    height: int
    width: int
    out_height: int
    out_width: int
    image_step: tuple[int, int]
    source_step: tuple[int, int]
    split: bool

    @classmethod
    def of(cls, w: Conv2dWorkload, form: Form, *, gather: bool = False) -> ConvGeometry[Form]:
        """``gather``: an image is made although the data could be read where it is."""
        v = form.lanes
        plain = w.in_channels < v
        is_flat = not plain and w.kernel == w.strides == (1, 1) and not any(w.padding)
        in_place = form.reads_data and not (plain and form.step > 1)
        staged = gather or any(w.padding) or not in_place
        compact = tuple(staged and k == 1 for k in w.kernel)
        in_block = form.step if plain else v
        split = (
            plain and form.splits and w.strides[1] == 2 and w.dilation[1] == 1 and w.kernel[1] > 1
        )
        if split:
            staged = True
        return cls(
            form=form, is_flat=is_flat, plain=plain, staged=staged, groups=w.groups,
            in_blocks=ceil_div(w.in_channels, in_block),
            block_words=in_block // form.step,
            out_blocks=ceil_div(w.out_channels, v),
            height=1 if is_flat else w.height,
            width=w.height * w.width if is_flat else w.width,
            out_height=1 if is_flat else w.out_height,
            out_width=w.out_height * w.out_width if is_flat else w.out_width,
            image_step=(
                1 if compact[0] else w.strides[0], 1 if compact[1] or split else w.strides[1],
            ),
            source_step=(w.strides[0] if compact[0] else 1, w.strides[1] if compact[1] else 1),
            split=split,
        )  # fmt: skip

    @property
    def group_in_blocks(self) -> int:
        return self.in_blocks // self.groups

    @property
    def group_out_blocks(self) -> int:
        return self.out_blocks // self.groups

    def tiles(self, oh_tile: int, ow_tile: int) -> tuple[int, int]:
        """Tiles in a column and in a row of the output."""
        return ceil_div(self.out_height, oh_tile), ceil_div(self.out_width, ow_tile)

    def units(self, oh_tile: int, ow_tile: int) -> int:
        """What ``chunk`` groups into tasks."""
        return self.tiles(oh_tile, ow_tile)[1 if self.is_flat else 0]

    @property
    def by_lane(self) -> bool:
        """Whether pixels' words are neighbours, as dots by one lane of a vector want them."""
        return self.form.reads_data and self.block_words == self.image_step[1] == 1

    @property
    def words(self) -> int:
        """Words of one image pixel, all channels."""
        return self.in_blocks * self.block_words


@dataclass(frozen=True)
class Words:
    """Where a tile's words are: a flat buffer, its first word, and strides in words."""

    buffer: Any
    start: Any
    block: int
    row: int
    column: int
    as_bytes: bool
    half: int = 0
    """Where the odd columns of a split row are."""

    def load(self, at: Any, count: int = 1) -> Any:
        """``count`` neighbouring words from word ``at`` on."""
        if not self.as_bytes:
            return load(self.buffer, at, lanes=count)
        from tvmx._tvm import tirx

        kind = "int32" if count == 1 else f"int32x{count}"
        return tirx.reinterpret(kind, load(self.buffer, at * 4, lanes=4 * count))


class WordImage:
    """Emits the words of a convolution's data.

    ``data`` is flat, s8 with ``params`` as in ``_int8``, or float32.
    """

    def __init__(
        self, w: Conv2dWorkload, g: ConvGeometry[Any], data: Any, params: Any = None
    ) -> None:
        self.w, self.g, self.form, self.v = w, g, g.form, g.form.lanes
        self.data, self.params = data, params

    def extent(self, rows: int, columns: int) -> tuple[int, int]:
        """Image rows and columns that so many output rows and columns read."""
        (kh, kw), (dh, dw), (sh, sw) = self.w.kernel, self.w.dilation, self.g.image_step
        if self.g.split:
            sw = self.w.strides[1]
        return (rows - 1) * sh + (kh - 1) * dh + 1, (columns - 1) * sw + (kw - 1) * dw + 1

    def of_all(self) -> Any:
        """Emit the image of the whole batch, in a parallel loop; its buffer."""
        from tvmx._tvm import builder, tirx

        g, count = self.g, self.w.batch * self.g.in_blocks
        rows, columns = self.extent(g.out_height, g.out_width)
        image = builder.alloc_buffer((count * rows * columns * g.block_words,), self.form.word)
        zero = tirx.const(0, "int32")
        with builder.parallel(0, count) as plane, builder.serial(0, rows) as row:
            at = (plane * rows + row) * columns * g.block_words
            self._copy_row(image, at, plane // g.in_blocks, plane % g.in_blocks, row, zero, columns)
        return image

    def direct(self, n: Any, y: Any, x: Any) -> Words:
        """The data itself as words, from what output pixel (y, x) of image ``n`` reads on."""
        from tvmx._tvm import builder

        g, q, plane = self.g, self.g.block_words, self.g.height * self.g.width
        row, column = (o * s for o, s in zip((y, x), g.image_step, strict=True))
        first = n * (g.in_blocks * plane) + (row * g.width + column)
        start = builder.Bind(first * q)
        as_bytes = self.form.word != str(self.data.dtype)
        return Words(self.data, start, plane * q, g.width * q, q, as_bytes=as_bytes)

    def within(self, image: Any, n: Any, y: Any, x: Any) -> Words:
        """The words of :meth:`of_all` from output pixel (y, x) of image ``n`` on."""
        from tvmx._tvm import builder

        g, q = self.g, self.g.block_words
        rows, columns = self.extent(g.out_height, g.out_width)
        row, column = (o * s for o, s in zip((y, x), g.image_step, strict=True))
        first = n * (g.in_blocks * rows * columns) + row * columns + column
        start = builder.Bind(first * q)
        half = ceil_div(columns, 2)
        return Words(image, start, rows * columns * q, columns * q, q, as_bytes=False, half=half)

    def of_task(self, n: Any, y: Any, x: Any, out_rows: int, out_columns: int) -> Words:
        """Emit the image of some output rows and columns from (y, x) on; its words."""
        from tvmx._tvm import builder, tirx

        g, q, step = self.g, self.g.block_words, self.g.image_step
        rows, columns = self.extent(out_rows, out_columns)
        image = builder.alloc_buffer((g.in_blocks * rows * columns * q,), self.form.word)
        with builder.serial(0, g.in_blocks) as block, builder.serial(0, rows) as row:
            at = (block * rows + row) * columns * q
            self._copy_row(image, at, n, block, y * step[0] + row, x * step[1], columns)
        start = tirx.const(0, "int32")
        half = ceil_div(columns, 2)
        return Words(image, start, rows * columns * q, columns * q, q, as_bytes=False, half=half)

    def _copy_row(
        self, image: Any, at: Any, n: Any, block: Any, row: Any, column: Any, columns: int
    ) -> None:
        """Emit one row of the image: ``columns`` pixels from image pixel (row, column) on."""
        from tvmx._tvm import builder, tirx

        w, g = self.w, self.g
        q, step = g.block_words, g.source_step[1]
        top, left = w.padding[:2]
        source = builder.Bind(row * g.source_step[0] - top)
        # Image columns [head, tail) have their pixel in the data.
        head = min(ceil_div(left, step), columns)
        tail = max(head, min(columns, ceil_div(g.width + left, step)))
        fill = self._fill() if any(w.padding) else None

        if self.g.split:
            self._copy_row_split(image, at, (n * w.in_channels + block) * g.height, source, columns)
            return

        def border(first: int, last: int) -> None:
            for size, offset in runs((last - first) * q, 16):
                store(image, spread(fill, size), at + first * q + offset, lanes=size)

        def inside() -> None:
            border(0, head)
            border(tail, columns)
            first = column + (head * step - left)
            self._copy_pixels(image, at + head * q, n, block, source, first, tail - head)

        if any(w.padding[::2]):
            with builder.If(tirx.all(source >= 0, source < g.height)):
                with builder.Then():
                    inside()
                with builder.Else():
                    for size, offset in runs(columns * q, 16):
                        store(image, spread(fill, size), at + offset, lanes=size)
        else:
            inside()

    def _copy_row_split(self, image: Any, at: Any, plane: Any, row: Any, columns: int) -> None:
        """Emit one image row of words that are single channels, even columns first."""
        from tvmx._tvm import builder, tirx

        g, left = self.g, self.w.padding[1]
        half = ceil_div(columns, 2)
        if any(self.w.padding):
            for size, offset in runs(columns, 16):
                store(image, spread(self._fill(), size), at + offset, lanes=size)
        with builder.If(tirx.all(row >= 0, row < g.height)), builder.Then():
            for odd in (0, 1):
                # Image columns 2i + odd have their pixel in the data from i = first on.
                first = max(0, ceil_div(left - odd, 2))
                last = ceil_div(min(columns, g.width + left) - odd, 2)
                source = builder.Bind((plane + row) * g.width + (2 * first + odd - left))
                with builder.serial(0, max(0, last - first)) as i:
                    pixel = load(self.data, source + 2 * i)
                    store(image, pixel, at + (odd * half + first) + i)

    def _fill(self) -> Any:
        """A word of the border."""
        if isinstance(self.form, FloatForm):
            return self.form.zero
        return self.form.fill(data_zero_point(self.params))

    def _copy_pixels(
        self, image: Any, at: Any, n: Any, block: Any, row: Any, column: Any, pixels: int
    ) -> None:
        """Emit the copy of ``pixels`` pixels of one data row."""
        from tvmx._tvm import builder

        g, q, step = self.g, self.g.block_words, self.g.source_step[1]
        if g.plain:
            self._interleave(image, at, n, block, row, column, pixels)
            return
        first = builder.Bind(
            (((n * g.in_blocks + block) * g.height + row) * g.width + column) * self.v
        )
        bytes_per_word = self.form.step

        def copy(word: Any, channel: Any, count: int) -> None:
            raw = load(self.data, first + channel, lanes=count * bytes_per_word)
            store(image, self.form.words(raw, count), at + word, lanes=count)

        if step > 1:
            with builder.serial(0, pixels) as p:
                copy(p * q, p * (step * self.v), q)
        else:
            _in_vectors(pixels * q, 16, lambda i, count: copy(i, i * bytes_per_word, count))

    def _interleave(
        self, image: Any, at: Any, n: Any, block: Any, row: Any, column: Any, pixels: int
    ) -> None:
        """Emit the words of plain channels: ``step`` of them from as many planes."""
        from tvmx._tvm import builder

        w, g, size = self.w, self.g, self.form.step
        step = g.source_step[1]

        def emit(first: int, present: int) -> None:
            def copy(i: Any, count: int) -> None:
                planes = [
                    load(
                        self.data,
                        ((n * w.in_channels + first + c) * g.height + row) * g.width
                        + column
                        + i * step,
                        lanes=count,
                    )
                    for c in range(present)
                ]
                store(image, self.form.planes(planes, count), at + i, lanes=count)

            if step > 1:
                with builder.serial(0, pixels) as p:
                    copy(p, 1)
            else:
                _in_vectors(pixels, 16, copy)

        for index in range(g.in_blocks):
            with builder.If(block == index), builder.Then():
                emit(index * size, min(size, w.in_channels - index * size))


def runs(total: int, most: int) -> Iterator[tuple[int, int]]:
    """(size, offset) of power-of-two runs of at most ``most`` that make up ``total``."""
    offset = 0
    while offset < total:
        size = min(most, 1 << ((total - offset).bit_length() - 1))
        yield size, offset
        offset += size


def _in_vectors(total: int, lanes: int, emit: Callable[[Any, int], None]) -> None:
    """Emit ``emit(offset, count)`` over ``total`` elements, the last vector moved back to fit."""
    from tvmx._tvm import builder, tirx

    if total < lanes:
        for size, offset in runs(total, lanes):
            emit(offset, size)
        return
    with builder.serial(0, ceil_div(total, lanes)) as i:
        emit(builder.Bind(tirx.min(i * lanes, total - lanes)), lanes)
