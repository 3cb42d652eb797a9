"""Block-sparse convolution of more than one tap in NCHW<v>c: blocks of v output channels x 1 tap.

In loops, for one image (v lanes are one vector register)::

    for oc, oh, ow, v:                                       # before
        for ic, kh, kw: out += x * w                         # most w[oc][ic, kh, kw] are zero

    parallel for task in (run of rows of tiles, group of oc):    # after
        image[ic][row][column] = the pixels of the run, zeros around     # pad = "task"
        for oc in the group, tile in the run:
            acc[pixels][v] = 0                               # registers
            for k in indptr[oc] .. indptr[oc + 1]:           # the blocks that were kept
                unrolled for pixels: acc += image[indices[k] + pixel] * w[k] (vector)
            unrolled: out = clip(acc + bias + residual)

The weight is the matrix (output channels, input channels * taps); an index is where a block's
channel and tap are in the image, so that every tap of every channel may be kept or not, and the
loop is that of a 1x1 convolution. Tiles, runs, groups and the two ways to multiply are those of
``conv1x1_bsr``.
"""

from __future__ import annotations

from typing import Any

from tvmx.ir import Config, Space, blocked
from tvmx.targets import Target
from tvmx.templates import (
    Kernel,
    ScheduleTemplate,
    is_x86,
    matrix_of,
    max_accumulators,
    refuse_few_channels,
    refuse_sparsity,
    sparse_float_kernel,
    sparse_geometry,
    sparse_space,
    sparsity_levels,
)


class Conv3x3Bsr(ScheduleTemplate):
    """NCHW<v>c in and out, blocks of <v>x1 tap, any kernel of several taps; f32."""

    name = "conv3x3_bsr"
    op = "conv2d"
    sparse = True
    priority = 20

    def supports(self, workload: Any, target: Target) -> str | None:
        return _refuse(workload, target) or refuse_sparsity(workload, target.lanes("float32"))

    def sparsities(self, workload: Any, target: Target) -> tuple[str, ...]:
        if _refuse(workload, target):
            return ()
        return sparsity_levels(target.lanes("float32"), *matrix_of(workload))

    def layouts(self, workload: Any, target: Target) -> tuple[str, str]:
        layout = blocked(target.lanes("float32"))
        return (layout, layout)

    def space(self, workload: Any, target: Target) -> Space:
        g = sparse_geometry(workload, target, "task")
        in_place = is_x86(target) and not g.staged
        pads = ["none"] if in_place else ["task", "root"]
        return sparse_space(workload, g, target, max_accumulators(target), pads, code=True)

    def build(self, workload: Any, config: Config, target: Target) -> Kernel:
        self.space(workload, target).check(config, self.name)
        return sparse_float_kernel(workload, config, target)


def _refuse(workload: Any, target: Target) -> str | None:
    """Why a layer is no convolution of several taps over whole blocks of channels, or None."""
    if workload.op != "conv2d":
        return f"computes conv2d, not {workload.op}"
    if workload.kernel == (1, 1):
        return "computes kernels of several taps, not 1x1"
    if workload.groups > 1:
        return f"computes one group, not {workload.groups}"
    return refuse_few_channels(workload, target.lanes("float32"))
