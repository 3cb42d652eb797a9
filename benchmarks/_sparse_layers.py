"""The layers that block-sparse kernels are measured on, and every way to compute them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks._kernel_layers import Workload, chosen_layers
from tvmx.ir import BlockSparsity, Config, Conv2dWorkload, DenseWorkload, Epilogue
from tvmx.targets import Target
from tvmx.templates import Registry, TemplateEntry, matrix_of

LEVELS = (1, 50, 70, 80, 90, 95)
"""Percent of the blocks that are dropped; 1 is what a sparse kernel takes with all of them."""
_EPILOGUE = Epilogue(bias=True, clip_min=0.0)


def _conv(channels: int, size: int, out: int, stride: int = 1) -> Conv2dWorkload:
    return Conv2dWorkload(
        batch=1, in_channels=channels, height=size, width=size, out_channels=out, kernel=(1, 1),
        strides=(stride, stride), epilogue=_EPILOGUE,
    )  # fmt: skip


def _dense(inputs: int, outputs: int) -> DenseWorkload:
    return DenseWorkload(batch=1, in_features=inputs, out_features=outputs, epilogue=_EPILOGUE)


LAYERS: dict[str, Workload] = {
    "resnet 64-256 @56": _conv(64, 56, 256),
    "resnet 256-64 @56": _conv(256, 56, 64),
    "resnet 512-128 @28": _conv(512, 28, 128),
    "resnet 1024-256 @14": _conv(1024, 14, 256),
    "resnet 512-2048 @7": _conv(512, 7, 2048),
    "mobilenet 64-128 @56": _conv(64, 56, 128),
    "mobilenet 256-256 @28": _conv(256, 28, 256),
    "mobilenet 512-512 @14": _conv(512, 14, 512),
    "mobilenet 1024-1024 @7": _conv(1024, 7, 1024),
    "vgg19 dense 4096-4096": _dense(4096, 4096),
    "vgg19 dense 4096-1000": _dense(4096, 1000),
}
"""One of every stage: what is measured unless told otherwise."""
MORE: dict[str, Workload] = {
    "resnet 64-64 @56": _conv(64, 56, 64),
    "resnet 256-128 @56": _conv(256, 56, 128),
    "resnet 128-512 @28": _conv(128, 28, 512),
    "resnet 512-256 @28": _conv(512, 28, 256),
    "resnet 256-1024 @14": _conv(256, 14, 1024),
    "resnet 1024-512 @14": _conv(1024, 14, 512),
    "resnet 2048-512 @7": _conv(2048, 7, 512),
    "resnet 256-512 @56 /2": _conv(256, 56, 512, 2),
    "resnet 512-1024 @28 /2": _conv(512, 28, 1024, 2),
    "resnet 1024-2048 @14 /2": _conv(1024, 14, 2048, 2),
    "mobilenet 32-64 @112": _conv(32, 112, 64),
    "mobilenet 128-128 @56": _conv(128, 56, 128),
    "mobilenet 128-256 @28": _conv(128, 28, 256),
    "mobilenet 256-512 @14": _conv(256, 14, 512),
    "mobilenet 512-1024 @7": _conv(512, 7, 1024),
    "vgg19 dense 25088-4096": _dense(25088, 4096),
}
"""The other 1x1 layers of ResNet-50 and MobileNetV1, and VGG19's first dense one (411 MB)."""


def wanted_layers(text: str, *, every: bool) -> dict[str, Workload]:
    """The layers whose names hold one of the comma-separated texts; empty: all.

    ``every`` adds those of :data:`MORE`, which a text that names one does too.

    Raises:
        UsageError: a text that no name holds.
    """
    layers = LAYERS | MORE if every or text else LAYERS
    return chosen_layers(text, layers)


@dataclass(frozen=True)
class Way:
    """One way to compute a layer: a template's default config for a variant of it."""

    entry: TemplateEntry
    workload: Workload
    config: Config

    @property
    def key(self) -> str:
        """What the figures depend on beside machine and versions."""
        return f"{self.entry.name} {self.entry.fingerprint} {self.workload.digest} {self.config!r}"

    @property
    def name(self) -> str:
        """For messages and tables."""
        kind = "int8" if self.workload.dtype == "int8" else "f32"
        return f"{self.entry.name} {kind} {self.workload.sparsity}"

    @property
    def kept(self) -> float:
        """Share of the weight's blocks that are there."""
        sparsity = BlockSparsity.parse(self.workload.sparsity)
        if sparsity is None:
            return 1.0
        shape = matrix_of(self.workload)
        down, across = sparsity.blocks(*shape)
        return sparsity.kept(*shape) / (down * across)


def ways(workload: Workload, target: Target, levels: Sequence[int]) -> Iterator[Way]:
    """Every built-in template that computes the layer: dense ones, then sparse ones by level."""
    registry = Registry.with_builtin()
    blocks: dict[str, BlockSparsity] = {}
    for entry, how in registry.implementations(workload, target):
        sparsity = BlockSparsity.parse(how.sparsity)
        if sparsity is None:
            variant = how.variant(workload)
            yield Way(entry, variant, entry.template.space(variant, target).default)
        else:
            blocks[entry.name] = sparsity
    for name, shape in blocks.items():
        entry = registry.get(name)
        for level in levels:
            dtype = "int8" if entry.template.precision == "int8" else "float32"
            sparsity = BlockSparsity(shape.rows, shape.columns, level)
            variant = workload.variant(dtype, str(sparsity))
            yield Way(entry, variant, entry.template.space(variant, target).default)
