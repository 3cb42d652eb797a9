"""The inner loop of float convolutions and matrix products: a register tile of multiply-adds.

Two forms, by what the target multiplies a vector with:

- *broadcast* (x86): a scalar of the data, spread while it is loaded;
- *lane* (Arm): one lane of a vector of neighbouring channels, so that one load serves as many
  multiply-adds by element as it has lanes. In-order cores gain most: loads and multiply-adds
  share their issue slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvmx.targets import Target
from tvmx.templates._block_sparse import Accumulators, load, spread
from tvmx.templates._intrinsics import spread_lane
from tvmx.templates._tiles import is_x86


@dataclass(frozen=True)
class FloatForm:
    """Floats as the words of :class:`tvmx.templates.ConvGeometry`: one channel each."""

    lanes: int
    by_lane: bool

    step = 1
    word = "float32"
    reads_data = True

    @property
    def splits(self) -> bool:
        """Whether pixels that a tile reads at once should be neighbours."""
        return self.by_lane

    @property
    def zero(self) -> Any:
        """What borders hold."""
        from tvmx._tvm import tirx

        return tirx.const(0, "float32")

    def words(self, channels: Any, count: int) -> Any:
        """``count`` words from as many channels: themselves."""
        del count
        return channels

    def planes(self, planes: Sequence[Any], count: int) -> Any:
        """``count`` words from the only plane of plain NCHW."""
        del count
        return planes[0]


def float_form(target: Target) -> FloatForm:
    """The form for a target."""
    return FloatForm(target.lanes("float32"), by_lane=not is_x86(target))


def multiply_block(
    sums: Accumulators,
    form: FloatForm,
    depth: int,
    pixels: Sequence[tuple[Any, Any]],
    weights: Callable[[Any], Sequence[Any]],
) -> None:
    """Emit ``sums[o * len(pixels) + p] += x[p][r] * weights(r)[o]`` for r below ``depth``.

    ``pixels`` are (flat buffer, index of r = 0); ``weights(r)`` gives one vector of ``lanes``
    output channels for each o.
    """
    from tvmx._tvm import builder

    def step(r: Any, value: Callable[[int], Any]) -> None:
        vectors = [builder.Bind(vector) for vector in weights(r)]
        for p in range(len(pixels)):
            x = value(p)
            for o, vector in enumerate(vectors):
                sums.add(o * len(pixels) + p, x * vector)

    def lane(near: Sequence[Any], number: int) -> Callable[[int], Any]:
        return lambda p: spread_lane(near[p], number, v)

    v = form.lanes
    if form.by_lane and depth % v == 0:
        for start in range(0, depth, v):
            near = [builder.Bind(load(buffer, at + start, lanes=v)) for buffer, at in pixels]
            for number in range(v):
                step(start + number, lane(near, number))
        return

    def scalar(r: Any) -> Callable[[int], Any]:
        return lambda p: builder.Bind(spread(load(pixels[p][0], pixels[p][1] + r), v))

    if depth == 1:
        step(0, scalar(0))
        return
    with builder.serial(0, depth) as r:
        step(r, scalar(r))


def multiply_rows(
    sums: Accumulators,
    form: FloatForm,
    rows: Sequence[tuple[Any, Any]],
    width: int,
    weights: Sequence[Any],
) -> None:
    """Emit the step of a reduction over planes: ``rows`` of ``width`` neighbouring pixels.

    ``sums[o * len(rows) * width + row * width + x] += pixel(row, x) * weights[o]``. ``rows`` are
    (flat buffer, index of x = 0).
    """
    from tvmx._tvm import builder

    v, pixels = form.lanes, len(rows) * width
    vectors = [builder.Bind(vector) for vector in weights]

    def add(pixel: int, value: Any) -> None:
        for o, vector in enumerate(vectors):
            sums.add(o * pixels + pixel, value * vector)

    for number, (buffer, at) in enumerate(rows):
        done = 0
        while form.by_lane and width >= v and done < width:
            first = min(done, width - v)
            near = builder.Bind(load(buffer, at + first, lanes=v))
            for lane in range(done - first, v):
                add(number * width + first + lane, spread_lane(near, lane, v))
            done = first + v
        for x in range(done, width):
            add(number * width + x, builder.Bind(spread(load(buffer, at + x), v)))
