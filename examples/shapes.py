"""Train a small MobileNetV2 on made pictures of 24 classes and save what tvmx needs.

    python examples/shapes.py --out FOLDER [--seed S]

writes two files into FOLDER:

``shapes.onnx``
    the trained network, batch 1, float32 ``image`` [1, 3, 32, 32] -> ``logits`` [1, 24]
``shapes.npz``
    ``calibration`` float32 [512, 3, 32, 32] from the training pictures,
    ``inputs`` float32 [10000, 3, 32, 32] and ``labels`` int64 [10000], never trained on

The pictures are made from the seed: eight shapes, each plain, striped or chequered, in random
colours, sizes, places and directions, on a background of another colour gradient, with blots of
clutter over them and noise. Nothing is downloaded, and a good network errs on some of them, so that
what int8 or pruning cost can be seen.

The script stands alone: torch and numpy, nothing of tvmx. The network is that of M. Sandler et al.,
"MobileNetV2: inverted residuals and linear bottlenecks" (CVPR 2018), made small.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor, nn

SIZE = 32
SHAPES = ("disc", "triangle", "square", "pentagon", "star", "cross", "ring", "crescent")
PATTERNS = ("plain", "striped", "chequered")
CLASSES = tuple(f"{pattern} {shape}" for shape in SHAPES for pattern in PATTERNS)

_CHUNK = 1000
_BLOTS = 3
_NOISE = 0.10

Array = npt.NDArray[Any]

TRAIN_IMAGES = 24_000
TEST_IMAGES = 10_000
CALIBRATION_IMAGES = 512
REQUIRED_ACCURACY = 0.85
OPSET = 17

STAGES = ((1, 16, 1, 1), (4, 24, 2, 2), (4, 32, 2, 2), (4, 64, 2, 2), (4, 96, 1, 1))
"""Expansion, channels, blocks and the stride of the first block."""


def make_images(count: int, seed: int) -> tuple[Array, npt.NDArray[np.int64]]:
    """``count`` pictures (count, 3, 32, 32) in [0, 1], eight bits deep, and their labels.

    All classes are equally frequent, up to one.
    """
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(count) % len(CLASSES)).astype(np.int64)
    parts = [_draw(labels[start : start + _CHUNK], generator) for start in range(0, count, _CHUNK)]
    return np.concatenate(parts), labels


def _draw(labels: npt.NDArray[np.int64], generator: np.random.Generator) -> Array:
    count = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Array:
        return generator.uniform(low, high, (count, *shape)).astype(np.float32)

    axis = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    scale, angle = uniform(0.42, 0.75, 1, 1), uniform(0, 2 * np.pi, 1, 1)
    room = 1 - scale
    u, v = _turn(
        (x - uniform(-1, 1, 1, 1) * room) / scale, (y - uniform(-1, 1, 1, 1) * room) / scale, angle
    )
    inside = _soft(_depth(labels // len(PATTERNS), u, v), 0.12)
    marks = _marks(labels % len(PATTERNS), u, v, uniform(0, 2 * np.pi, 1, 1), uniform(4, 6, 1, 1))

    def colour() -> Array:
        return uniform(0, 1, 3, 1, 1)

    first = colour()
    second = _apart(first, colour())
    ink = marks[:, None] * first + (1 - marks[:, None]) * second
    ground = colour() + (x * uniform(-0.3, 0.3, 1, 1) + y * uniform(-0.3, 0.3, 1, 1))[:, None]
    picture = inside[:, None] * ink + (1 - inside[:, None]) * ground
    for _ in range(_BLOTS):
        size = uniform(0.08, 0.22, 1, 1)
        away = np.hypot(x - uniform(-1, 1, 1, 1), y - uniform(-1, 1, 1, 1))
        blot = _soft(1 - away / size, 0.3)[:, None]
        picture = blot * colour() + (1 - blot) * picture
    picture += generator.normal(0, _NOISE, picture.shape).astype(np.float32)
    eight_bits: Array = np.rint(np.clip(picture, 0, 1) * 255).astype(np.float32) / np.float32(255)
    return eight_bits


def _turn(u: Array, v: Array, angle: Array) -> tuple[Array, Array]:
    cos, sin = np.cos(angle), np.sin(angle)
    return u * cos - v * sin, u * sin + v * cos


def _soft(depth: Array, width: float) -> Array:
    """From 0 outside to 1 inside, over an edge of that width."""
    inside: Array = np.clip(depth / width + 0.5, 0, 1)
    return inside


def _depth(shape: npt.NDArray[np.int64], u: Array, v: Array) -> Array:
    """How far each point is inside its shape of unit radius, about; negative outside."""
    radius, direction = np.hypot(u, v), np.arctan2(v, u)

    def polygon(corners: int) -> Array:
        slice_ = 2 * np.pi / corners
        edge: Array = np.cos(np.pi / corners) / np.cos(direction % slice_ - np.pi / corners)
        return np.subtract(edge, radius)

    along = np.abs((direction % (2 * np.pi / 5)) / (np.pi / 5) - 1)  # 1 at the tips of a star
    arms = np.minimum(0.34 - np.abs(u), 1 - np.abs(v)), np.minimum(0.34 - np.abs(v), 1 - np.abs(u))
    depths = (
        0.9 - radius,
        polygon(3),
        polygon(4),
        polygon(5),
        0.42 + 0.58 * along**1.5 - radius,
        np.maximum(*arms),
        0.28 - np.abs(radius - 0.68),
        np.minimum(0.92 - radius, np.hypot(u - 0.45, v) - 0.62),
    )
    found: Array = np.choose(shape[:, None, None], depths)
    return found


def _marks(pattern: npt.NDArray[np.int64], u: Array, v: Array, angle: Array, pitch: Array) -> Array:
    """1 where the first colour is, 0 where the second."""
    a, b = _turn(u, v, angle)
    across, down = np.sin(a * pitch * np.pi / 2), np.sin(b * pitch * np.pi / 2)
    found: Array = np.choose(
        pattern[:, None, None],
        (np.ones_like(across), _soft(across, 0.5), _soft(across * down, 0.4)),
    )
    return found


def _apart(first: Array, second: Array) -> Array:
    """The second colour, moved away where the two are hard to tell apart."""
    near = np.abs(first - second).max(axis=1, keepdims=True) < 0.35
    return np.where(near, (first + 0.5) % 1, second)


class ConvBnRelu6(nn.Sequential):
    """A convolution with "same" padding, batch normalisation and ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, groups: int = 1
    ) -> None:
        conv = nn.Conv2d(
            inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
        super().__init__(OrderedDict(conv=conv, norm=nn.BatchNorm2d(outputs), relu=nn.ReLU6()))


class InvertedResidual(nn.Module):
    """Pointwise expansion, depthwise 3x3, linear pointwise projection; a shortcut where it fits."""

    def __init__(self, inputs: int, outputs: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        steps: list[tuple[str, nn.Module]] = []
        if expansion > 1:
            steps.append(("expand", ConvBnRelu6(inputs, hidden, kernel=1)))
        steps += [
            ("depthwise", ConvBnRelu6(hidden, hidden, stride=stride, groups=hidden)),
            ("project", nn.Conv2d(hidden, outputs, 1, bias=False)),
            ("norm", nn.BatchNorm2d(outputs)),
        ]
        self.body = nn.Sequential(OrderedDict(steps))
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut behind the projection, without an activation."""
        out: Tensor = self.body(x)
        return x + out if self.shortcut else out


class ShapesNet(nn.Module):
    """A MobileNetV2 of ten million multiply-adds for pictures of 32x32."""

    def __init__(self) -> None:
        super().__init__()
        channels = 16
        blocks: list[nn.Module] = [ConvBnRelu6(3, channels)]
        for expansion, outputs, count, stride in STAGES:
            for number in range(count):
                step = stride if number == 0 else 1
                blocks.append(InvertedResidual(channels, outputs, expansion=expansion, stride=step))
                channels = outputs
        blocks.append(ConvBnRelu6(channels, 256, kernel=1))
        self.features = nn.Sequential(*blocks)
        self.classify = nn.Linear(256, len(CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of every picture."""
        x = F.adaptive_avg_pool2d(self.features(image), 1).flatten(1)
        return self.classify(x)  # type: ignore[no-any-return]


def train(
    model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, seed: int, batch: int = 64
) -> None:
    """Train in place with AdamW and a one-cycle learning rate; prints a line for each epoch."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=2e-2)
    steps = epochs * -(-len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps)
    for epoch in range(epochs):
        model.train()
        start, total = time.perf_counter(), 0.0
        order = torch.randperm(len(images), generator=generator)
        for first in range(0, len(images), batch):
            chosen = order[first : first + batch]
            loss = F.cross_entropy(model(_flipped(images[chosen], generator)), labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        print(
            f"epoch {epoch + 1} of {epochs}: loss {total / len(images):.3f}, "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )
    model.eval()


def _flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """A batch turned over at random: the classes do not mind."""
    across, down = torch.rand(2, generator=generator).tolist()
    axes = [axis for axis, coin in ((3, across), (2, down)) if coin < 0.5]
    return images.flip(axes) if axes else images


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch: int = 500) -> float:
    """Return the share of ``images`` that ``model`` classifies as ``labels``."""
    correct = 0
    for start in range(0, len(images), batch):
        found = model(images[start : start + batch]).argmax(1)
        correct += int((found == labels[start : start + batch]).sum())
    return correct / len(images)


def save_onnx(model: nn.Module, path: Path) -> None:
    """Write ``model`` with batch 1, input ``image`` and output ``logits``."""
    with warnings.catch_warnings():
        # This exporter needs nothing but torch; its successor would need onnxscript.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model,
            (torch.zeros(1, 3, SIZE, SIZE),),
            path,
            input_names=["image"],
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=False,
        )


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Train and save the shapes example network.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything (default 0)")
    parser.add_argument("--epochs", type=int, default=6, help="passes over the training pictures")
    parser.add_argument("--images", type=int, default=TRAIN_IMAGES, help="training pictures")
    parser.add_argument("--test-images", type=int, default=TEST_IMAGES, help="held-out pictures")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default 2)")
    parser.add_argument(
        "--required", type=float, default=REQUIRED_ACCURACY, help="least test accuracy to save"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Train, check, save and summarise; return the process's exit code."""
    options = parse_arguments(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(options.threads)

    # Seeds apart, so that no test picture is a training picture.
    images, labels = make_images(options.images, seed=2 * options.seed)
    test_images, test_labels = make_images(options.test_images, seed=2 * options.seed + 1)
    model = ShapesNet()
    start = time.perf_counter()
    train(
        model, torch.from_numpy(images), torch.from_numpy(labels),
        epochs=options.epochs, seed=options.seed,
    )  # fmt: skip
    seconds = time.perf_counter() - start

    reached = accuracy(model, torch.from_numpy(test_images), torch.from_numpy(test_labels))
    print(
        f"shapes network: {sum(p.numel() for p in model.parameters()):,} parameters\n"
        f"trained {options.epochs} epochs on {len(labels)} pictures of {len(CLASSES)} classes "
        f"in {seconds:.0f} s (seed {options.seed})\n"
        f"test accuracy {reached:.2%} on {len(test_labels)} pictures"
    )
    if reached < options.required:
        print(
            f"error: test accuracy {reached:.2%} is below {options.required:.0%}; nothing was "
            "saved. Try more --epochs or another --seed.",
            file=sys.stderr,
        )
        return 1
    save_onnx(model, options.out / "shapes.onnx")
    np.savez_compressed(
        options.out / "shapes.npz",
        calibration=images[:CALIBRATION_IMAGES], inputs=test_images, labels=test_labels,
    )  # fmt: skip
    print(f"wrote {options.out / 'shapes.onnx'}\nwrote {options.out / 'shapes.npz'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
