"""The layers that kernels are measured on, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tvmx.errors import UsageError
from tvmx.ir import Conv2dWorkload, DenseWorkload, Epilogue

Workload = Conv2dWorkload | DenseWorkload
_EPILOGUE = Epilogue(bias=True, clip_min=0.0)


def _conv(channels: int, size: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> (
    Conv2dWorkload
):  # fmt: skip
    return Conv2dWorkload(
        batch=1, in_channels=channels, height=size, width=size, out_channels=out,
        kernel=(kernel, kernel), strides=(stride, stride), padding=(kernel // 2,) * 4,
        groups=groups, epilogue=_EPILOGUE,
    )  # fmt: skip


def _depthwise(channels: int, size: int, kernel: int, stride: int = 1) -> Conv2dWorkload:
    return _conv(channels, size, channels, kernel, stride, channels)


def _dense(batch: int, inputs: int, outputs: int) -> DenseWorkload:
    return DenseWorkload(batch=batch, in_features=inputs, out_features=outputs, epilogue=_EPILOGUE)


LAYERS: dict[str, Workload] = {
    "resnet first 7x7": _conv(3, 224, 64, 7, 2),
    "resnet 3x3 @56": _conv(64, 56, 64, 3),
    "resnet 3x3 @28": _conv(128, 28, 128, 3),
    "resnet 3x3 @14": _conv(256, 14, 256, 3),
    "resnet 3x3 @7": _conv(512, 7, 512, 3),
    "resnet 1x1 @56 in": _conv(256, 56, 64, 1),
    "resnet 1x1 @56 out": _conv(64, 56, 256, 1),
    "resnet 1x1 @28": _conv(512, 28, 128, 1),
    "resnet 1x1 @14": _conv(1024, 14, 256, 1),
    "resnet 1x1 @7": _conv(512, 7, 2048, 1),
    "resnet 1x1/2 @56": _conv(256, 56, 512, 1, 2),
    "vgg 3x3 @224": _conv(64, 224, 64, 3),
    "vgg 3x3 @28": _conv(512, 28, 512, 3),
    "resnext 3x3 g32": _conv(128, 56, 128, 3, groups=32),
    "depthwise 3x3 @112": _depthwise(32, 112, 3),
    "depthwise 3x3 @56": _depthwise(128, 56, 3),
    "depthwise 3x3/2 @56": _depthwise(128, 56, 3, 2),
    "depthwise 3x3 @14": _depthwise(512, 14, 3),
    "depthwise 5x5 @28": _depthwise(120, 28, 5),
    "depthwise 5x5/2 @28": _depthwise(240, 28, 5, 2),
    "dense 1x2048x1000": _dense(1, 2048, 1000),
    "dense 1x4096x4096": _dense(1, 4096, 4096),
    "dense 1x9216x4096": _dense(1, 9216, 4096),
    "dense 16x1024x1024": _dense(16, 1024, 1024),
}
"""ResNet-50's, VGG's and MobileNets' shapes, all with bias and relu."""


def chosen_layers(text: str, layers: dict[str, Workload] = LAYERS) -> dict[str, Workload]:
    """Those whose names hold one of the comma-separated texts; empty: all.

    Raises:
        UsageError: a text that no name holds.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if not any(part in name for name in layers):
            raise UsageError(f"no layer {part!r}; there are {', '.join(layers)}")
    return {n: w for n, w in layers.items() if not parts or any(p in n for p in parts)}


def write_onnx(workload: Workload, weight: Any, bias: Any, path: Path) -> None:
    """The layer as an ONNX file: one Conv or Gemm, and a Relu."""
    import onnx
    from onnx.helper import make_node

    from tvmx.testing.models import graph_model

    if isinstance(workload, Conv2dWorkload):
        node = make_node(
            "Conv", ["x", "w", "b"], ["sum"], strides=workload.strides, pads=workload.padding,
            group=workload.groups, dilations=workload.dilation,
        )  # fmt: skip
    else:
        node = make_node("Gemm", ["x", "w", "b"], ["sum"], transB=1)
    nodes = [node, make_node("Relu", ["sum"], ["y"])]
    shapes = ({"x": workload.data_shape}, {"y": workload.out_shape})
    onnx.save(graph_model(nodes, *shapes, {"w": weight, "b": bias}), path)
