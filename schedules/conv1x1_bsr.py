"""Block-sparse 1x1 convolution in NCHW<v>c: blocks of v output channels x 1 input channel.

In loops, for one image (v lanes are one vector register)::

    for oc, oh, ow, v:                                       # before
        for ic: out += x * w                                 # most blocks w[oc][ic][v] are zero

    parallel for task in (run of tiles, group of oc):        # after
        image[ic][pixel] = the pixels of the run             # pad = "task"
        for oc in the group, tile in the run:
            acc[pixels][v] = 0                               # registers
            for k in indptr[oc] .. indptr[oc + 1]:           # the blocks that were kept
                unrolled for pixels: acc += image[indices[k], pixel] * w[k] (vector)
            unrolled: out = clip(acc + bias + residual)

A tile is a run of pixels, of the whole image where the stride is 1, else ``oh_tile`` x ``ow_tile``
of them; a run has ``chunk`` tiles, or rows of tiles. With an image (of the task, or of all data:
pad = "root") pixels are operands by lane, see ``tvmx.templates.sparse_float_kernel``; without one
they are read where they are and spread. Tiles at a border are moved back to end there: the pixels
they share with their neighbours are computed twice, to the same bits.

Of a small layer the rows and their blocks may be unrolled (structure = "code")::

    for tile in the run: acc = 0; acc += image[7 + pixel] * w[0]; acc += image[19 + pixel] * w[1]
                         out = clip(acc + bias + residual)   # block row 0: it keeps two
    for tile in the run: ...                                 # block row 1

The image of a task should stay in the first-level cache, beside the weights of one block row, which
are read once for each tile.
"""

from __future__ import annotations

from typing import Any

from tvmx.ir import Config, Space, blocked
from tvmx.targets import Target
from tvmx.templates import (
    Kernel,
    ScheduleTemplate,
    is_x86,
    max_accumulators,
    refuse_few_channels,
    refuse_pointwise,
    refuse_sparsity,
    sparse_float_kernel,
    sparse_geometry,
    sparse_space,
    sparsity_levels,
)


class Conv1x1Bsr(ScheduleTemplate):
    """NCHW<v>c in and out, blocks of <v>x1; f32."""

    name = "conv1x1_bsr"
    op = "conv2d"
    sparse = True
    priority = 20

    def supports(self, workload: Any, target: Target) -> str | None:
        return _refuse(workload, target) or refuse_sparsity(workload, target.lanes("float32"))

    def sparsities(self, workload: Any, target: Target) -> tuple[str, ...]:
        if _refuse(workload, target):
            return ()
        return sparsity_levels(target.lanes("float32"), workload.out_channels, workload.in_channels)

    def layouts(self, workload: Any, target: Target) -> tuple[str, str]:
        layout = blocked(target.lanes("float32"))
        return (layout, layout)

    def space(self, workload: Any, target: Target) -> Space:
        pads = ["none"] if is_x86(target) else ["task", "root", "none"]
        g = sparse_geometry(workload, target, pads[0])
        return sparse_space(workload, g, target, max_accumulators(target), pads, code=True)

    def build(self, workload: Any, config: Config, target: Target) -> Kernel:
        self.space(workload, target).check(config, self.name)
        return sparse_float_kernel(workload, config, target)


def _refuse(workload: Any, target: Target) -> str | None:
    return refuse_pointwise(workload, "conv2d") or refuse_few_channels(
        workload, target.lanes("float32")
    )
