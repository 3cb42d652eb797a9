"""Train a small convolutional network on scikit-learn's digits and save what tvmx needs.

    python examples/digits.py --out FOLDER [--seed S]

writes two files into FOLDER:

``digits.onnx``
    the trained network, batch 1, float32 ``image`` [1, 1, 32, 32] -> ``logits`` [1, 10]
``digits.npz``
    ``calibration`` float32 [256, 1, 32, 32] from the training split,
    ``inputs`` float32 [N, 1, 32, 32] and ``labels`` int64 [N], the whole test split

The script stands alone: torch, numpy and scikit-learn, nothing of tvmx. It takes well
under a minute on two cores, needs no download, and the same seed gives the same network
on the same machine.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

IMAGE_SIZE = 32
CALIBRATION_IMAGES = 256
TEST_SHARE = 0.3
REQUIRED_ACCURACY = 0.97
OPSET = 17


class ConvBnRelu(nn.Sequential):
    """A convolution with "same" padding, batch normalisation and ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, groups: int = 1
    ) -> None:
        conv = nn.Conv2d(
            inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
        super().__init__(OrderedDict(conv=conv, norm=nn.BatchNorm2d(outputs), relu=nn.ReLU()))


class Separable(nn.Sequential):
    """Depthwise 3x3, then pointwise 1x1: the MobileNet building block."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        depthwise = ConvBnRelu(inputs, inputs, stride=stride, groups=inputs)
        pointwise = ConvBnRelu(inputs, outputs, kernel=1)
        super().__init__(OrderedDict(depthwise=depthwise, pointwise=pointwise))


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut: the ResNet building block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvBnRelu(channels, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut before the last ReLU."""
        return F.relu(x + self.norm(self.second(self.first(x))))


class DigitsNet(nn.Module):
    """Sixteen million multiply-adds: plain, strided, depthwise, pointwise, residual, dense."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBnRelu(1, 16)  # 32x32
        self.down = ConvBnRelu(16, 48, stride=2)  # 16x16
        self.residual = Residual(48)
        self.separable = Separable(48, 96)
        self.pool = nn.MaxPool2d(2)  # 8x8
        self.reduce = Separable(96, 128, stride=2)  # 4x4
        self.mix = ConvBnRelu(128, 128)
        self.hidden = nn.Linear(128, 64)
        self.classify = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Return the ten logits of every image."""
        x = self.residual(self.down(self.stem(image)))
        x = self.mix(self.reduce(self.pool(self.separable(x))))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.classify(F.relu(self.hidden(x)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Digits:
    """The data set, upscaled to 32x32 and split; images in [0, 1]."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_data(seed: int) -> Digits:
    """Load the 1,797 digits, upscale 8x8 to 32x32, and split them evenly by class."""
    pixels, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(pixels.astype(np.float32) / 16).reshape(-1, 1, 8, 8)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    images = F.interpolate(small, size=size, mode="bilinear", align_corners=False)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_SHARE, stratify=labels, random_state=seed
    )
    target = torch.from_numpy(labels.astype(np.int64))
    return Digits(images[train], target[train], images[test], target[test])


def train(
    model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, seed: int, batch: int = 64
) -> None:
    """Train in place with AdamW, a one-cycle learning rate and shifts of up to two pixels."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    steps = epochs * -(-len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(images), batch):
            chosen = order[start : start + batch]
            dy, dx = torch.randint(-2, 3, (2,), generator=generator).tolist()
            shifted = images[chosen].roll((dy, dx), dims=(2, 3))
            loss = F.cross_entropy(model(shifted), labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of ``images`` that ``model`` classifies as ``labels``."""
    correct: Tensor = model(images).argmax(1) == labels
    return correct.float().mean().item()


def count_macs(model: nn.Module) -> int:
    """Count the multiply-adds of the convolutions and dense layers for one image."""
    macs = 0

    def count(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        weight = layer.weight
        assert isinstance(weight, Tensor)
        macs += output[0].numel() * weight[0].numel()

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model(torch.zeros(1, 1, IMAGE_SIZE, IMAGE_SIZE))
    for hook in hooks:
        hook.remove()
    return macs


def save_onnx(model: nn.Module, path: Path) -> None:
    """Write ``model`` with batch 1, input ``image`` and output ``logits``."""
    with warnings.catch_warnings():
        # This exporter needs nothing but torch; its successor would need onnxscript.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model,
            (torch.zeros(1, 1, IMAGE_SIZE, IMAGE_SIZE),),
            path,
            input_names=["image"],
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=False,
        )


def save_data(digits: Digits, path: Path) -> None:
    """Write calibration images, test inputs and test labels."""
    np.savez_compressed(
        path,
        calibration=digits.train_images[:CALIBRATION_IMAGES].numpy(),
        inputs=digits.test_images.numpy(),
        labels=digits.test_labels.numpy(),
    )


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Train and save the digits example network.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything (default 0)")
    parser.add_argument("--epochs", type=int, default=8, help="passes over the training images")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Train, check, save and summarise; return the process's exit code."""
    options = parse_arguments(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(True)
    # Threads that wait for each other after every small operator cost ten times as much as
    # they bring as soon as anything else runs on the machine.
    torch.set_num_threads(1)

    digits = load_data(options.seed)
    model = DigitsNet()
    start = time.perf_counter()
    train(model, digits.train_images, digits.train_labels, epochs=options.epochs, seed=options.seed)
    seconds = time.perf_counter() - start

    reached = accuracy(model, digits.test_images, digits.test_labels)
    print(
        f"digits network: {count_macs(model) / 1e6:.1f} million multiply-adds, "
        f"{sum(p.numel() for p in model.parameters()):,} parameters\n"
        f"trained {options.epochs} epochs on {len(digits.train_labels)} images "
        f"in {seconds:.1f} s (seed {options.seed})\n"
        f"test accuracy {reached:.2%} on {len(digits.test_labels)} images"
    )
    if reached < REQUIRED_ACCURACY:
        print(
            f"error: test accuracy {reached:.2%} is below {REQUIRED_ACCURACY:.0%}; nothing was "
            "saved. Try more --epochs or another --seed.",
            file=sys.stderr,
        )
        return 1
    save_onnx(model, options.out / "digits.onnx")
    save_data(digits, options.out / "digits.npz")
    print(f"wrote {options.out / 'digits.onnx'}\nwrote {options.out / 'digits.npz'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
