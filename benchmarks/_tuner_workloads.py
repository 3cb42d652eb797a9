"""The workloads the tuner is compared on, all float32 with bias, batch 1 but for the dense."""

from __future__ import annotations

from tvmx.errors import UsageError
from tvmx.ir import Conv2dWorkload, DenseWorkload, Epilogue

Workload = Conv2dWorkload | DenseWorkload
_RELU = Epilogue(bias=True, clip_min=0.0)


def _conv(
    channels: int, out_channels: int, size: int, kernel: int, stride: int = 1, groups: int = 1
) -> Conv2dWorkload:
    return Conv2dWorkload(
        batch=1, in_channels=channels, height=size, width=size, out_channels=out_channels,
        kernel=(kernel, kernel), strides=(stride, stride), padding=(kernel // 2,) * 4,
        groups=groups, epilogue=_RELU,
    )  # fmt: skip


WORKLOADS: dict[str, Workload] = {
    "resnet50-3x3": _conv(64, 64, 56, 3),
    "resnet50-1x1": _conv(256, 64, 56, 1),
    "depthwise": _conv(128, 128, 56, 3, groups=128),
    "first-layer": _conv(3, 64, 224, 7, stride=2),
    "vgg-3x3": _conv(256, 256, 56, 3),
    # Of one row the weights are read once: memory bounds every config alike, and the template
    # has fewer of them than there are measurements. Sixteen rows leave something to find.
    "dense": DenseWorkload(
        batch=16, in_features=1024, out_features=1024, epilogue=Epilogue(bias=True)
    ),
}
"""By the names of ``--workloads``, in the order they are measured."""

HELD_OUT: dict[str, Workload] = {
    "squeezenet-3x3": _conv(48, 192, 27, 3),
    "resnet50-1x1-deep": _conv(512, 2048, 7, 1),
    "mobilenet-1x1": _conv(128, 128, 56, 1),
    "depthwise-5x5": _conv(240, 240, 28, 5, groups=240),
    "vgg-3x3-deep": _conv(512, 512, 14, 3),
    "dense-wide": DenseWorkload(
        batch=8, in_features=512, out_features=2048, epilogue=Epilogue(bias=True)
    ),
}
"""Workloads that no setting of the tuner was chosen on; only what ``--workloads`` names is run."""

ALL = WORKLOADS | HELD_OUT


def workload_of(name: str) -> Workload:
    """The workload of that name. Raises UsageError."""
    if name not in ALL:
        raise UsageError(f"no workload {name!r}; there are {', '.join(ALL)}")
    return ALL[name]
