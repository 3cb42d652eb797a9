"""Block-sparse int8 1x1 convolution in NCHW<v>c: blocks of one dot product.

With v int32 to a vector register; a *word* is the 32 bits of a pixel that a dot product reads
(``step`` neighbouring channels, see ``tvmx.templates.DotForm``), a block v output channels x
``step`` input channels: 4x4 on Arm, 16x4 with AVX-512 VNNI. In loops, for one image::

    for oc, oh, ow: out = requantise(sum over ic of x * w)          # before; most blocks are zero

    parallel for task in (run of tiles, group of oc):        # after
        image = the words this task reads                    # pad = "task"
        for oc in the group, tile in the run:
            acc[pixels][v] = 0                               # int32, registers
            for k in indptr[oc] .. indptr[oc + 1]:           # the blocks that were kept
                unrolled for pixels: acc += dot(word[indices[k], pixel] (broadcast), w[k])
            unrolled: out = requantise(acc + bias, residual)

Where words are bytes as they are in memory (Arm, stride 1) they are read there (pad = "none"), or
copied for the task, so that they are in few lines of the first-level cache. Tiles, runs and groups
are those of ``conv1x1_bsr``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tvmx._tvm import builder
from tvmx.ir import ROUNDINGS, Config, Conv2dWorkload, Space, blocked
from tvmx.targets import Target
from tvmx.templates import (
    ConvGeometry,
    DotForm,
    DotSums,
    Int8Arguments,
    Kernel,
    Part,
    ScheduleTemplate,
    SparseConvEmitter,
    WordImage,
    Words,
    concat,
    dot_form,
    finished,
    flat,
    int8_sparse_kernel,
    load,
    most_pixels,
    refuse_few_channels,
    refuse_pointwise,
    refuse_sparsity,
    repeat,
    runs,
    sparse_space,
    sparsity_levels,
    spread,
    spread_lane,
    store,
    sum_dots,
)


class Conv1x1BsrInt8(ScheduleTemplate):
    """NCHW<v>c in and out, blocks of <v>x<step>; int8."""

    name = "conv1x1_bsr_int8"
    op = "conv2d"
    precision = "int8"
    sparse = True
    roundings = ROUNDINGS
    float_epilogue = True
    priority = 20

    def supports(self, workload: Any, target: Target) -> str | None:
        form = dot_form(target)
        return _refuse(workload, target) or refuse_sparsity(workload, form.lanes, form.step, "int8")

    def sparsities(self, workload: Any, target: Target) -> tuple[str, ...]:
        if _refuse(workload, target):
            return ()
        form = dot_form(target)
        return sparsity_levels(form.lanes, workload.out_channels, workload.in_channels, form.step)

    def layouts(self, workload: Any, target: Target) -> tuple[str, str]:
        layout = blocked(target.lanes("float32"))
        return (layout, layout)

    def space(self, workload: Any, target: Target) -> Space:
        form = dot_form(target)
        g = ConvGeometry.of(workload, form)
        pads = ["task", "root"] if g.staged else ["none", "task"]
        return sparse_space(workload, g, target, most_pixels(target, form), pads)

    def build(self, workload: Any, config: Config, target: Target) -> Kernel:
        self.space(workload, target).check(config, self.name)
        form = dot_form(target)
        g = ConvGeometry.of(workload, form, gather=config["pad"] != "none")
        emitter = _Emitter(workload, g, config, target)
        return int8_sparse_kernel(
            emitter.function(), workload, form, emitter.index_dtype, emitter.offsets,
            emitter.groups,
        )  # fmt: skip


def _refuse(workload: Any, target: Target) -> str | None:
    return refuse_pointwise(workload, "conv2d") or refuse_few_channels(
        workload, target.lanes("float32")
    )


class _Emitter(SparseConvEmitter):
    """The int8 tile and what is around it."""

    def __init__(
        self, w: Conv2dWorkload, g: ConvGeometry[DotForm], config: Config, target: Target
    ) -> None:
        super().__init__(w, g, config, g.block_words, g.form.step)
        self.form, self.target = g.form, target

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
        del part  # always all of it
        start = self._first_word(words, down, across)

        def pixels(indices: Sequence[Any]) -> Iterator[tuple[int, list[Any]]]:
            return self._pixel_words(words, [builder.Bind(start + i) for i in indices])

        sums = sum_dots(self.a, c, self.form, self.oh * self.ow, self.unroll, pixels)
        self._write(sums, n, c, y + down, x + across)

    def _pixel_words(self, words: Words, starts: list[Any]) -> Iterator[tuple[int, list[Any]]]:
        """Per pixel of the tile its words (one per start), each broadcast to a vector."""
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
