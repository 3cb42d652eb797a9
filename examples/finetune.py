"""Prune an example network in blocks, fine-tune what is left, and save it for tvmx.

    python examples/finetune.py FOLDER/shapes.onnx --out FOLDER [--level 70] [--block 16x1]
    tvmx explore FOLDER/shapes.pruned.pt2 --data FOLDER/shapes.npz --target host

The network is one that ``examples/shapes.py`` or ``examples/digits.py`` has written: its weights,
batch norms folded in, are read back into PyTorch. Blocks of its convolutions (without groups) and
dense layers are then taken out by magnitude, a few more every so often, until ``--level`` percent
are gone; in between and afterwards the rest is trained, and after every step the masks are applied
again. What is written,

``shapes.pruned.pt2`` (``digits.pruned.pt2``)
    the network as ``torch.export`` saves it, zeros in place

arrives sparse in tvmx: the zero blocks are found, and sparse kernels may be used without any
further loss, with or without data. A block is R output channels x C inputs; inputs of a kernel
wider than a pixel are its taps, channel by channel. Take the lanes of the target's vectors for R:
16 on a host with AVX-512, 8 with AVX2, 4 on Arm.

Torch, numpy and onnx, nothing of tvmx. Under ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import digits  # type: ignore[import-not-found]
import numpy as np
import onnx
import shapes  # type: ignore[import-not-found]
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor, nn

_FEWEST_BLOCKS = 64  # layers of fewer are left alone
_FEWEST_CHANNELS = 8  # what a first layer reads, and less than any other
_RAMP = 0.5  # of the steps: while masks grow
_REMASK = 20  # steps between two masks

Layer = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class Task:
    """An example network, the pictures to train on, and those to test with."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def open_task(path: Path, images: int, test_images: int, seed: int) -> Task:
    """The network in an ONNX file of one of the two examples; its pictures follow from the seed."""
    if path.stem.startswith("shapes"):
        train = shapes.make_images(images, seed=2 * seed)
        test = shapes.make_images(test_images, seed=2 * seed + 1)
        arrays = [torch.from_numpy(array) for array in (*train, *test)]
        return Task(load_weights(shapes.ShapesNet(), path), *arrays)
    data = digits.load_data(seed)
    return Task(
        load_weights(digits.DigitsNet(), path), data.train_images[:images],
        data.train_labels[:images], data.test_images[:test_images], data.test_labels[:test_images],
    )  # fmt: skip


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """``model`` without batch norms, with the weights of an ONNX file that was exported from it.

    Layers come in the same order in both.
    """
    graph = onnx.load(path).graph
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    layers = [m for m in model.modules() if isinstance(m, Layer)]
    if len(nodes) != len(layers):
        raise SystemExit(f"error: {path} has {len(nodes)} layers, the network {len(layers)}")
    for node, layer in zip(nodes, layers, strict=True):
        weight, bias = (torch.from_numpy(np.array(arrays[name])) for name in node.input[1:3])
        if weight.shape != layer.weight.shape:
            raise SystemExit(f"error: {path}: {node.name} is {tuple(weight.shape)}")
        layer.weight = nn.Parameter(weight)
        layer.bias = nn.Parameter(bias)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    return model.eval()


def prunable(model: nn.Module, rows: int, columns: int) -> dict[str, Layer]:
    """The layers that are pruned, by name."""
    found: dict[str, Layer] = {}
    for name, module in model.named_modules():
        if not isinstance(module, Layer) or getattr(module, "groups", 1) != 1:
            continue
        out, inner = len(module.weight), module.weight[0].numel()
        blocks = -(-out // rows) * -(-inner // columns)
        if blocks >= _FEWEST_BLOCKS and module.weight.shape[1] >= _FEWEST_CHANNELS:
            found[name] = module
    return found


@torch.no_grad()
def block_mask(weight: Tensor, rows: int, columns: int, level: float) -> Tensor:
    """1 where a weight stays, 0 in the weakest ``level`` percent of its blocks."""
    out, inner = len(weight), weight[0].numel()
    down, across = -(-out // rows), -(-inner // columns)
    padded = F.pad(weight.reshape(out, inner), (0, across * columns - inner, 0, down * rows - out))
    strength = padded.square().reshape(down, rows, across, columns).sum(dim=(1, 3)).flatten()
    mask = torch.ones_like(strength)
    mask[strength.argsort(stable=True)[: int(down * across * level / 100)]] = 0
    wide = mask.reshape(down, across).repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return wide[:out, :inner].reshape(weight.shape)


class Masks:
    """Keeps pruned blocks at zero while the network is trained."""

    def __init__(self, model: nn.Module, rows: int, columns: int) -> None:
        self.layers = prunable(model, rows, columns)
        self._block = (rows, columns)
        self._masks: dict[str, Tensor] = {}

    def prune(self, level: float) -> None:
        """Take blocks out until ``level`` percent are gone; blocks that are zero go first."""
        for name, layer in self.layers.items():
            self._masks[name] = block_mask(layer.weight, *self._block, level)
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Set what was pruned to zero again."""
        for name, mask in self._masks.items():
            self.layers[name].weight.mul_(mask)


def fine_tune(
    model: nn.Module, task: Task, masks: Masks, *, level: float, epochs: int, seed: int,
    rate: float, batch: int = 64,
) -> None:  # fmt: skip
    """Train in place with AdamW and a one-cycle rate, under masks that grow to ``level``."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-3)
    per_epoch = -(-len(task.images) // batch)
    total = epochs * per_epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rate, total_steps=total, pct_start=0.1
    )
    model.train()
    done = 0
    for epoch in range(epochs):
        start, lost = time.perf_counter(), 0.0
        order = torch.randperm(len(task.images), generator=generator)
        for first in range(0, len(task.images), batch):
            share = min(1.0, done / (_RAMP * total))
            if done % _REMASK == 0 and done <= _RAMP * total + _REMASK:
                masks.prune(level * (1 - (1 - share) ** 3))
            chosen = order[first : first + batch]
            loss = F.cross_entropy(model(task.images[chosen]), task.labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            masks.apply()
            done += 1
            lost += loss.item() * len(chosen)
        print(
            f"epoch {epoch + 1} of {epochs}: loss {lost / len(task.images):.3f}, "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )
    masks.prune(level)
    model.eval()


def zero_share(layers: dict[str, Layer]) -> float:
    """Share of the layers' weights that is zero."""
    zeros = sum(int((layer.weight == 0).sum()) for layer in layers.values())
    return zeros / sum(layer.weight.numel() for layer in layers.values())


def save_program(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write ``model`` for batch 1 as torch.export does."""
    torch.export.save(torch.export.export(model.eval(), (example,)), path)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Prune and fine-tune an example network.")
    parser.add_argument("model", type=Path, help="shapes.onnx or digits.onnx of the examples")
    parser.add_argument("--out", type=Path, required=True, help="folder for the .pt2 file")
    parser.add_argument("--level", type=int, default=70, help="percent of the blocks (default 70)")
    parser.add_argument("--block", default="16x1", help="output channels x inputs (default 16x1)")
    parser.add_argument("--epochs", type=int, default=3, help="passes over the training pictures")
    parser.add_argument("--images", type=int, default=12_000, help="training pictures, at most")
    parser.add_argument("--test-images", type=int, default=2_000, help="test pictures, at most")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the network that was written")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Prune, fine-tune, save and say what it cost; return the process's exit code."""
    options = parse_arguments(arguments)
    rows, columns = map(int, options.block.split("x"))
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    task = open_task(options.model, options.images, options.test_images, options.seed)
    accuracy: Callable[[nn.Module, Tensor, Tensor], float] = shapes.accuracy

    def tested(model: nn.Module) -> float:
        return 100 * accuracy(model, task.test_images, task.test_labels)

    dense = tested(task.model)
    plain = copy.deepcopy(task.model)
    Masks(plain, rows, columns).prune(options.level)
    pruned = tested(plain)
    masks = Masks(task.model, rows, columns)
    start = time.perf_counter()
    fine_tune(
        task.model, task, masks, level=options.level, epochs=options.epochs, seed=options.seed,
        rate=options.rate,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    tuned = tested(task.model)
    path = options.out / f"{options.model.stem}.pruned.pt2"
    save_program(task.model, task.test_images[:1], path)
    print(
        f"{len(masks.layers)} layers, {zero_share(masks.layers):.1%} of their weights zero in "
        f"{options.block} blocks; {len(task.labels)} pictures, {seconds:.0f} s\n"
        f"test accuracy on {len(task.test_labels)} pictures: dense {dense:.2f} %, "
        f"pruned {pruned:.2f} %, fine-tuned {tuned:.2f} %\n"
        f"wrote {path}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
