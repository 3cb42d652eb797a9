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

from typing import Any

from tvmx.ir import ROUNDINGS, Config, Space, blocked
from tvmx.targets import Target
from tvmx.templates import (
    ConvGeometry,
    Kernel,
    ScheduleTemplate,
    dot_form,
    most_pixels,
    refuse_few_channels,
    refuse_pointwise,
    refuse_sparsity,
    sparse_int8_kernel,
    sparse_space,
    sparsity_levels,
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
        return sparse_int8_kernel(workload, config, target)


def _refuse(workload: Any, target: Target) -> str | None:
    return refuse_pointwise(workload, "conv2d") or refuse_few_channels(
        workload, target.lanes("float32")
    )
