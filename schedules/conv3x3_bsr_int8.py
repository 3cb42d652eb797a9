"""Block-sparse int8 convolution of several taps, NCHW<v>c: blocks of channels with all their taps.

With v int32 to a vector register; a *word* is the 32 bits of a pixel that a dot product reads
(``step`` neighbouring channels, see ``tvmx.templates.DotForm``), a block v output channels x
``step`` input channels x all taps: 4 x 4 x 9 for a 3x3 kernel on Arm, which is 4x36 of the weight
as the matrix (output channels, input channels * taps). In loops, for one image::

    for oc, oh, ow:                                          # before
        out = requantise(sum over ic, kh, kw of x * w)       # most blocks are zero

    parallel for task in (run of rows of tiles, group of oc):    # after
        image = the words this task reads, zero points around    # pad = "task"
        for oc in the group, tile in the run:
            acc[pixels][v] = 0                               # int32, registers
            for k in indptr[oc] .. indptr[oc + 1]:           # the blocks that were kept
                unrolled for taps, pixels:
                    acc += dot(word[indices[k] + tap, pixel] (broadcast), w[k][tap])
            unrolled: out = requantise(acc + bias, residual)

A block is looked up once for all its taps. Tiles, runs and groups are those of ``conv1x1_bsr``.
"""

from __future__ import annotations

from typing import Any

from tvmx.ir import ROUNDINGS, Config, Space, blocked
from tvmx.targets import Target
from tvmx.templates import (
    ConvGeometry,
    Kernel,
    ScheduleTemplate,
    dot_form,
    matrix_of,
    most_pixels,
    refuse_few_channels,
    refuse_sparsity,
    sparse_int8_kernel,
    sparse_space,
    sparsity_levels,
    taps_of,
)

MOST_TAPS = 25
UNROLLS = (1, 2)


class Conv3x3BsrInt8(ScheduleTemplate):
    """NCHW<v>c in and out, blocks of <v>x(<step> * taps), kernels of 2 to 25 taps; int8."""

    name = "conv3x3_bsr_int8"
    op = "conv2d"
    precision = "int8"
    sparse = True
    roundings = ROUNDINGS
    float_epilogue = True
    priority = 20

    def supports(self, workload: Any, target: Target) -> str | None:
        reason = _refuse(workload, target)
        if reason is not None:
            return reason
        return refuse_sparsity(workload, *_block(workload, target), "int8")

    def sparsities(self, workload: Any, target: Target) -> tuple[str, ...]:
        if _refuse(workload, target):
            return ()
        rows, columns = _block(workload, target)
        return sparsity_levels(rows, *matrix_of(workload), columns)

    def layouts(self, workload: Any, target: Target) -> tuple[str, str]:
        layout = blocked(target.lanes("float32"))
        return (layout, layout)

    def space(self, workload: Any, target: Target) -> Space:
        form = dot_form(target)
        g = ConvGeometry.of(workload, form)
        pads = ["task", "root"] if g.staged else ["none", "task"]
        limit = most_pixels(target, form)
        return sparse_space(workload, g, target, limit, pads, unrolls=UNROLLS)

    def build(self, workload: Any, config: Config, target: Target) -> Kernel:
        self.space(workload, target).check(config, self.name)
        return sparse_int8_kernel(workload, config, target)


def _block(workload: Any, target: Target) -> tuple[int, int]:
    """Rows and columns of a block of the weight's matrix."""
    form = dot_form(target)
    return form.lanes, form.step * taps_of(workload)


def _refuse(workload: Any, target: Target) -> str | None:
    """Why a layer is no convolution of several taps over whole blocks of channels, or None."""
    if workload.op != "conv2d":
        return f"computes conv2d, not {workload.op}"
    if not 1 < taps_of(workload) <= MOST_TAPS:
        height, width = workload.kernel
        return f"computes kernels of 2 to {MOST_TAPS} taps, not {height}x{width}"
    if workload.groups > 1:
        return f"computes one group, not {workload.groups}"
    return refuse_few_channels(workload, target.lanes("float32"))
