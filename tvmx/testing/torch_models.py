"""MobileNetV1 and MobileNetV2 as PyTorch modules, and their export to ``.pt2`` archives.

Weights are random but seeded, and batch norms hold the statistics of what arrives at them for
normal inputs: every layer's output before its activation has mean 0 and variance 1 per channel,
so that ReLU6 clips little, nothing dies out and int8 has a range worth keeping.

Importing this module imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

__all__ = ["MobileNetV1", "MobileNetV2", "export_pt2", "mobilenet_v1", "mobilenet_v2"]

_V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2),
       (1024, 1))  # fmt: skip
"""Output channels and stride of each separable block (Howard et al. 2017, table 1)."""

_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
       (6, 320, 1, 1))  # fmt: skip
"""Expansion, output channels, repeats, first stride (Sandler et al. 2018, table 2)."""


def _channels(count: int, width: float) -> int:
    """``count`` scaled by ``width``, a multiple of 8 and never 10 % below the exact number."""
    exact = count * width
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    parts: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*parts, *([nn.ReLU6(inplace=True)] if relu else []))


class MobileNetV1(nn.Module):
    """Depthwise separable convolutions; input float32 (N, 3, H, W), output ``classes`` logits.

    At width 1 and 224 x 224: 28 layers, 569 million MACs, 4.2 million weights.
    """

    def __init__(self, width: float = 1.0, classes: int = 1000) -> None:
        super().__init__()
        channels = _channels(32, width)
        blocks: list[nn.Module] = [_conv(3, channels, 3, 2)]
        for count, stride in _V1:
            outputs = _channels(count, width)
            blocks.append(
                nn.Sequential(
                    _conv(channels, channels, 3, stride, groups=channels),
                    _conv(channels, outputs, 1),
                )
            )
            channels = outputs
        self.features = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes)."""
        logits: torch.Tensor = self.classifier(self.pool(self.features(image)).flatten(1))
        return logits


class _InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        parts = [_conv(inputs, hidden, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *parts,
            _conv(hidden, hidden, 3, stride, groups=hidden),
            _conv(hidden, outputs, 1, relu=False),
        )

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.conv(data)
        return data + result if self.residual else result


class MobileNetV2(nn.Module):
    """Inverted residuals; input float32 (N, 3, H, W), output ``classes`` logits.

    At width 1 and 224 x 224: 53 layers, 301 million MACs, 3.5 million weights.
    """

    def __init__(self, width: float = 1.0, classes: int = 1000) -> None:
        super().__init__()
        channels = _channels(32, width)
        blocks: list[nn.Module] = [_conv(3, channels, 3, 2)]
        for expansion, count, repeats, first in _V2:
            outputs = _channels(count, width)
            for index in range(repeats):
                stride = first if index == 0 else 1
                blocks.append(_InvertedResidual(channels, outputs, stride, expansion))
                channels = outputs
        last = _channels(1280, max(1.0, width))
        self.features = nn.Sequential(*blocks, _conv(channels, last, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes)."""
        logits: torch.Tensor = self.classifier(self.pool(self.features(image)).flatten(1))
        return logits


def mobilenet_v1(
    width: float = 1.0, resolution: int = 224, classes: int = 1000, seed: int = 0
) -> nn.Module:
    """MobileNetV1 in evaluation mode with seeded random weights, settled at ``resolution``."""
    return _settled(MobileNetV1(width, classes), resolution, seed)


def mobilenet_v2(
    width: float = 1.0, resolution: int = 224, classes: int = 1000, seed: int = 0
) -> nn.Module:
    """MobileNetV2 in evaluation mode with seeded random weights, settled at ``resolution``."""
    return _settled(MobileNetV2(width, classes), resolution, seed)


def _settled(module: nn.Module, resolution: int, seed: int) -> nn.Module:
    """Draw the weights, then let each batch norm take the statistics of a normal batch."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                fan_in = part.weight[0].numel()
                drawn = torch.randn(part.weight.shape, generator=random)
                part.weight.copy_(drawn * (2 / fan_in) ** 0.5)
            if isinstance(part, nn.Linear):
                part.bias.copy_(torch.randn(part.bias.shape, generator=random) / 10)
            if isinstance(part, nn.BatchNorm2d):
                part.weight.copy_(torch.rand(part.weight.shape, generator=random) * 0.5 + 0.75)
                part.bias.copy_(torch.randn(part.bias.shape, generator=random) / 4)
                part.momentum = None  # the average of what was seen: of this one batch
        module.train()
        # The last maps are 32 times smaller: statistics take some hundred of their pixels.
        batch = max(4, 256 // max(1, resolution // 32) ** 2)
        module(torch.randn(batch, 3, resolution, resolution, generator=random))
        module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def export_pt2(module: nn.Module, path: str | Path, input_shape: Sequence[int]) -> Path:
    """Export ``module`` for one float32 input of a static shape, as ``torch.export`` saves it.

    The module is put into evaluation mode. Returns ``path``, which must end in ``.pt2``.
    """
    example = torch.zeros(tuple(input_shape))
    program = torch.export.export(module.eval(), (example,))
    torch.export.save(program, str(path))
    return Path(path)
