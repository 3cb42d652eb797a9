"""Train a small MobileNetV2 on made pictures of 24 classes and save what tvmx needs.

    python examples/shapes.py --out FOLDER [--seed S]

writes two files into FOLDER:

``shapes.onnx``
    the trained network, batch 1, float32 ``image`` [1, 3, 32, 32] -> ``logits`` [1, 24]
``shapes.npz``
    ``calibration`` float32 [512, 3, 32, 32] from the training pictures,
    ``inputs`` float32 [10000, 3, 32, 32] and ``labels`` int64 [10000], never trained on

The pictures come from ``shape_images.py`` beside this file: nothing is downloaded, and they are
hard enough that the float network errs now and then, so that what int8 or pruning cost can be seen.
The script needs torch and numpy, nothing of tvmx. The network is that of M. Sandler et al.,
"MobileNetV2: inverted residuals and linear bottlenecks" (CVPR 2018), made small.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from shape_images import CLASSES, SIZE, make_images
from torch import Tensor, nn

TRAIN_IMAGES = 24_000
TEST_IMAGES = 10_000
CALIBRATION_IMAGES = 512
REQUIRED_ACCURACY = 0.85
OPSET = 17

STAGES = ((1, 16, 1, 1), (4, 24, 2, 2), (4, 32, 2, 2), (4, 64, 2, 2), (4, 96, 1, 1))
"""Expansion, channels, blocks and the stride of the first block."""


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
        steps = [] if expansion == 1 else [("expand", ConvBnRelu6(inputs, hidden, kernel=1))]
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
