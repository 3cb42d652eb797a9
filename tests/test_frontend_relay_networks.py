"""All networks of TVM's ``relay.testing``, imported and deployed, against PyTorch.

Narrow and of small images, where the structure allows it. PyTorch computes each from the same
weights, by code of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests import relay_networks as networks
from tests.network_plans import execute, host, registry
from tests.relay_files import Array
from tvmx.frontends import load_model
from tvmx.passes import baseline_plan, extract_layers, lower


class Torch:
    """Layers by their names, on NCHW; weights in another order of dimensions are permuted."""

    def __init__(self, params: dict[str, Array], layout: str = "NCHW") -> None:
        self._params = {name: torch.from_numpy(array) for name, array in params.items()}
        self._nhwc = layout == "NHWC"

    def conv(self, x: Tensor, name: str, s: int = 1, p: int | tuple[int, int] = 0,
             groups: int = 1) -> Tensor:  # fmt: skip
        weight = self._params[f"{name}_weight"]
        if self._nhwc:
            weight = weight.permute((2, 3, 0, 1) if groups > 1 else (3, 2, 0, 1))
        return functional.conv2d(x, weight, self._params.get(f"{name}_bias"), s, p, 1, groups)

    def norm(self, x: Tensor, name: str, eps: float = 1e-5, scale: bool = True) -> Tensor:
        gamma, beta, mean, var = (
            self._params[f"{name}_{part}"]
            for part in ("gamma", "beta", "moving_mean", "moving_var")
        )
        return functional.batch_norm(x, mean, var, gamma if scale else None, beta, eps=eps)

    def dense(self, x: Tensor, name: str, bias: str = "") -> Tensor:
        held = self._params.get(bias or f"{name}_bias")
        return functional.linear(x, self._params[f"{name}_weight"], held)

    def deconv(self, x: Tensor, name: str) -> Tensor:
        weight = self._params[f"{name}_weight"]
        weight = weight.permute(3, 2, 0, 1) if self._nhwc else weight
        return functional.conv_transpose2d(x, weight, stride=2, padding=1)


def resnet(t: Torch, x: Tensor, units: Sequence[int], convs: int) -> Tensor:
    def active(x: Tensor, name: str) -> Tensor:
        return functional.relu(t.norm(x, name, 2e-5))

    x = t.conv(t.norm(x, "bn_data", 2e-5, scale=False), "conv0", 2, 3)
    x = functional.max_pool2d(active(x, "bn0"), 3, 2, 1)
    for stage, count in enumerate(units, start=1):
        for index in range(1, count + 1):
            name = f"stage{stage}_unit{index}"
            y = first = active(x, f"{name}_bn1")
            stride = 2 if stage > 1 and index == 1 else 1
            for k in range(1, convs + 1):
                if k > 1:
                    y = active(y, f"{name}_bn{k}")
                wide = convs == 2 or k == 2
                y = t.conv(y, f"{name}_conv{k}", stride if k == 1 else 1, int(wide))
            x = y + (t.conv(first, f"{name}_sc", stride) if index == 1 else x)
    x = active(x, "bn1").mean((2, 3))
    return functional.softmax(t.dense(x, "fc1"), -1)


def mobilenet(t: Torch, x: Tensor, first_rows: bool = False) -> Tensor:
    x = t.conv(x, "conv_block_1_conv", 2, 1)
    if first_rows:  # the batch norm is along the second axis of NHWC
        x = t.norm(x.transpose(1, 2), "conv_block_1_bn").transpose(1, 2)
    else:
        x = t.norm(x, "conv_block_1_bn")
    x = functional.relu(x)
    for index in range(1, 14):
        name = f"separable_conv_block_{index}"
        x = t.conv(x, name, 2 if index in (2, 4, 6, 12) else 1, 1, x.shape[1])
        x = functional.relu(t.norm(x, f"{name}_bn1"))
        x = functional.relu(t.norm(t.conv(x, f"{name}_conv2"), f"{name}_bn2"))
    return functional.softmax(t.dense(x.mean((2, 3)), "fc"), -1)


def squeezenet(t: Torch, x: Tensor, pools_before: Sequence[int], kernel: int) -> Tensor:
    x = functional.relu(t.conv(x, "conv1", 2, kernel // 2))
    for index in range(1, 9):
        if index in pools_before:
            x = functional.max_pool2d(x, 3, 2)
        name = f"fire{index}"
        x = functional.relu(t.conv(x, f"{name}_input_conv"))
        left, right = t.conv(x, f"{name}_left_conv"), t.conv(x, f"{name}_right_conv", 1, 1)
        x = functional.relu(torch.cat([left, right], 1))
    return functional.softmax(functional.relu(t.conv(x, "conv_final")).mean((2, 3)), -1)


def densenet(t: Torch, x: Tensor, blocks: Sequence[int]) -> Tensor:
    def active(x: Tensor, name: str) -> Tensor:
        return functional.relu(t.norm(x, name))

    x = functional.max_pool2d(active(t.conv(x, "conv1", 2, 3), "batch1"), 3, 2, 1)
    for i, count in enumerate(blocks):
        made = []
        for j in range(count):
            x = t.conv(active(x, f"batch_1_{i}_{j}"), f"conv2d_1_{i}_{j}")
            x = t.conv(active(x, f"batch_2_{i}_{j}"), f"conv2d_2_{i}_{j}", 1, 1)
            made.append(x)
        x = torch.cat(made, 1)
        if i < len(blocks) - 1:
            x = functional.avg_pool2d(t.conv(active(x, f"batch_t_{i}"), f"conv_t_{i}"), 2)
    return t.dense(functional.avg_pool2d(active(x, "batch2"), 7).flatten(1), "dense")


def vgg(t: Torch, x: Tensor, batch_norm: bool) -> Tensor:
    for i, count in enumerate((1, 1, 2, 2, 2), start=1):
        for j in range(1, count + 1):
            x = t.conv(x, f"conv{i}_{j}", 1, 1)
            x = functional.relu(t.norm(x, f"bn{i}_{j}") if batch_norm else x)
        x = functional.max_pool2d(x, 2)
    x = x.flatten(1)
    for name in ("fc6", "fc7"):
        x = functional.relu(t.dense(x, name))
    return functional.softmax(t.dense(x, "fc8"), -1)


def dcgan(t: Torch, x: Tensor, nhwc: bool = False) -> Tensor:
    x = functional.relu(t.dense(x, "dense"))
    x = x.reshape(1, 4, 4, -1).permute(0, 3, 1, 2) if nhwc else x.reshape(1, -1, 4, 4)
    for name in ("g2", "g3", "g4"):
        x = t.deconv(x, f"{name}_deconv")
        x = functional.relu(t.norm(x, f"{name}_batch_norm", 1e-5 + 1e-12, scale=False))
    return torch.tanh(t.deconv(x, "g5_deconv"))


def mlp(t: Torch, x: Tensor) -> Tensor:
    x = functional.relu(t.dense(functional.relu(t.dense(x.flatten(1), "fc1")), "fc2"))
    return functional.softmax(t.dense(x, "fc3"), -1)


def dqn(t: Torch, x: Tensor) -> Tensor:
    for name, stride in (("conv1", 4), ("conv2", 2), ("conv3", 1)):
        x = functional.relu(t.conv(x, name, stride))
    return t.dense(functional.relu(t.dense(x.flatten(1), "dense1")), "dense2")


def inception_v3(t: Torch, x: Tensor) -> Tensor:
    def conv(x: Tensor, name: str, s: int = 1, p: int | tuple[int, int] = 0) -> Tensor:
        return functional.relu(
            t.norm(t.conv(x, f"{name}_conv1", s, p), f"{name}_bn", 2e-5, scale=False)
        )

    def chain(x: Tensor, *steps: tuple[str, int | tuple[int, int]]) -> Tensor:
        for name, padding in steps:
            x = conv(x, name, 1, padding)
        return x

    def projected(x: Tensor, m: str, kind: str = "avg") -> Tensor:
        pool = (
            functional.avg_pool2d(x, 3, 1, 1)
            if kind == "avg"
            else functional.max_pool2d(x, 3, 1, 1)
        )
        return conv(pool, f"{m}_tower_2_conv")

    wide, high = (0, 3), (3, 0)
    x = chain(conv(x, "conv", 2), ("conv_1", 0), ("conv_2", 1))
    x = chain(functional.max_pool2d(x, 3, 2), ("conv_3", 0), ("conv_4", 0))
    x = functional.max_pool2d(x, 3, 2)
    for m in ("mixed", "mixed_1", "mixed_2"):
        five = chain(x, (f"{m}_tower_conv", 0), (f"{m}_tower_conv_1", 2))
        three = chain(x, *zip([f"{m}_tower_1_conv{k}" for k in ("", "_1", "_2")], (0, 1, 1),
                              strict=True))  # fmt: skip
        x = torch.cat([conv(x, f"{m}_conv"), five, three, projected(x, m)], 1)
    m = "mixed_3"
    three = chain(x, (f"{m}_tower_conv", 0), (f"{m}_tower_conv_1", 1))
    three = conv(three, f"{m}_tower_conv_2", 2)
    x = torch.cat([conv(x, f"{m}_conv", 2), three, functional.max_pool2d(x, 3, 2)], 1)
    for m in ("mixed_4", "mixed_5", "mixed_6", "mixed_7"):
        seven = chain(x, (f"{m}_tower_conv", 0), (f"{m}_tower_conv_1", wide),
                      (f"{m}_tower_conv_2", high))  # fmt: skip
        long = chain(x, *zip([f"{m}_tower_1_conv{k}" for k in ("", "_1", "_2", "_3", "_4")],
                             (0, high, wide, high, wide), strict=True))  # fmt: skip
        x = torch.cat([conv(x, f"{m}_conv"), seven, long, projected(x, m)], 1)
    m = "mixed_8"
    three = conv(conv(x, f"{m}_tower_conv"), f"{m}_tower_conv_1", 2)
    seven = chain(x, (f"{m}_tower_1_conv", 0), (f"{m}_tower_1_conv_1", wide),
                  (f"{m}_tower_1_conv_2", high))  # fmt: skip
    x = torch.cat([three, conv(seven, f"{m}_tower_1_conv_3", 2), functional.max_pool2d(x, 3, 2)], 1)
    for m, kind in (("mixed_9", "avg"), ("mixed_10", "max")):
        short = conv(x, f"{m}_tower_conv")
        long = chain(x, (f"{m}_tower_1_conv", 0), (f"{m}_tower_1_conv_1", 1))
        parts = [conv(x, f"{m}_conv")]
        for value, tower in ((short, "tower"), (long, "tower_1")):
            parts.append(conv(value, f"{m}_{tower}_mixed_conv", 1, (0, 1)))
            parts.append(conv(value, f"{m}_{tower}_mixed_conv_1", 1, (1, 0)))
        x = torch.cat([*parts, projected(x, m, kind)], 1)
    x = functional.avg_pool2d(x, 8, 1).flatten(1)
    return functional.softmax(t.dense(x, "fc1", "fc2_bias"), -1)


def deployed_and_expected(
    net: networks.Net, reference: Callable[[Torch, Tensor], Tensor], folder: Path
) -> tuple[Array, Array]:
    """What tvmx computes from the files by the default plan, and what PyTorch does."""
    layers, result = net
    module, params = layers.files(result)
    file = folder / "net.relay.json"
    file.write_text(module)
    (folder / "net.params").write_bytes(params)
    network = extract_layers(load_model(file, params=folder / "net.params"))
    lowered = lower(network, baseline_plan(network, registry(), host()), registry(), host())
    data = np.random.default_rng(1).standard_normal(layers.data.shape).astype(np.float32)
    (got,) = execute(lowered.mod, host(), [data])
    moved = layers.layout == "NHWC" and data.ndim == 4
    x = torch.from_numpy(data)
    with torch.inference_mode():
        want = reference(Torch(layers.params, layers.layout), x.permute(0, 3, 1, 2) if moved else x)
    if layers.layout == "NHWC" and want.ndim == 4:
        want = want.permute(0, 2, 3, 1)
    return got, want.numpy()


SMALL = (1, 1, 1, 1)
CASES: dict[str, tuple[Callable[[], networks.Net], Callable[[Torch, Tensor], Tensor]]] = {
    "resnet18": (lambda: networks.resnet(18, 40, 8, classes=20, units=(2, 1, 1, 1)),
                 lambda t, x: resnet(t, x, (2, 1, 1, 1), 2)),
    "resnet50": (lambda: networks.resnet(50, 40, 16, classes=20, units=(2, 1, 1, 1)),
                 lambda t, x: resnet(t, x, (2, 1, 1, 1), 3)),
    "resnet18, NHWC": (
        lambda: networks.resnet(18, 40, 8, layout="NHWC", classes=20, units=SMALL),
        lambda t, x: resnet(t, x, SMALL, 2)),
    "mobilenet": (lambda: networks.mobilenet(64, 0.125, classes=20), mobilenet),
    "mobilenet, NHWC": (lambda: networks.mobilenet(64, 0.125, layout="NHWC", classes=20),
                        lambda t, x: mobilenet(t, x, first_rows=True)),
    "squeezenet 1.0": (lambda: networks.squeezenet("1.0", 64, 8, classes=20),
                       lambda t, x: squeezenet(t, x, (1, 4, 8), 7)),
    "squeezenet 1.1": (lambda: networks.squeezenet("1.1", 64, 8, classes=20),
                       lambda t, x: squeezenet(t, x, (1, 3, 5), 3)),
    "densenet": (lambda: networks.densenet(8, 4, (2, 3, 2, 2), classes=20, batch=1),
                 lambda t, x: densenet(t, x, (2, 3, 2, 2))),
    "inception_v3": (lambda: networks.inception_v3(16, classes=20), inception_v3),
    "vgg": (lambda: networks.vgg(32, False, 16, classes=20), lambda t, x: vgg(t, x, False)),
    "vgg, batch norms": (lambda: networks.vgg(32, True, 16, classes=20),
                         lambda t, x: vgg(t, x, True)),
    "dcgan": (lambda: networks.dcgan(8), dcgan),
    "dcgan, NHWC": (lambda: networks.dcgan(8, "NHWC"), lambda t, x: dcgan(t, x, nhwc=True)),
    "mlp": (networks.mlp, mlp),
    "dqn": (networks.dqn, dqn),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_network_of_relay_testing(name: str, tmp_path: Path) -> None:
    net, reference = CASES[name]
    got, want = deployed_and_expected(net(), reference, tmp_path)
    assert got.shape == want.shape
    assert np.ptp(want) > 0.01
    assert (want > want.min() + 0.05 * np.ptp(want)).sum() >= 5, "one answer would prove little"
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.ptp(want))
