"""Importing exported programs: what is computed, under which names, against torch itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner, Result

from tests.network_plans import execute, host, plan_of, registry
from tvmx.cli._main import app
from tvmx.explore._reference import Reference, golden_inputs
from tvmx.frontends import load_model
from tvmx.frontends._torch_ops import SUPPORTED
from tvmx.passes import Network, extract_layers, lower
from tvmx.testing.torch_models import (
    MobileNetV1,
    MobileNetV2,
    export_pt2,
    mobilenet_v1,
    mobilenet_v2,
)

Array = npt.NDArray[Any]


class Function(nn.Module):
    """A module of one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs)


def initialised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Seeded weights and batch-norm statistics that are not neutral."""
    torch.manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
            part.reset_parameters()
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
            for tensor, low in ((part.running_mean, -1), (part.running_var, 0.5)):
                assert tensor is not None
                tensor.uniform_(low, 2)
            if part.affine:
                nn.init.uniform_(part.weight, -1, 2)
                nn.init.uniform_(part.bias, -1, 2)
    return module.eval()


def export(module: nn.Module, folder: Path, *shapes: Sequence[int], **options: Any) -> Path:
    """Save the module's program for inputs of these shapes."""
    program = torch.export.export(module.eval(), tuple(torch.zeros(s) for s in shapes), **options)
    torch.export.save(program, str(folder / "net.pt2"))
    return folder / "net.pt2"


def check(module: nn.Module, folder: Path, *shapes: Sequence[int]) -> Network:
    """Import, lower by the baseline plan, run; within 1e-4 of the range of torch's output."""
    path = export(module, folder, *shapes)
    rng = np.random.default_rng(1)
    feeds = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    with torch.inference_mode():
        # Copies: modules may work in place.
        want = module(*(torch.from_numpy(feed.copy()) for feed in feeds))
    wanted = [w.numpy() for w in ([want] if isinstance(want, torch.Tensor) else want)]
    network = extract_layers(load_model(path))
    assert [spec.shape for spec in network.model.outputs] == [w.shape for w in wanted]
    lowered = lower(network, plan_of(network, host()), registry(), host())
    for got, expected in zip(execute(lowered.mod, host(), feeds), wanted, strict=True):
        scale = np.ptp(expected) or float(np.abs(expected).max())
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * scale)
    return network


def anchors(module: nn.Module) -> list[str]:
    """Paths of the convolutions and linear layers of a module."""
    return [name for name, m in module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def layer_names(network: Network) -> list[str]:
    return [layer.name for layer in network.graph.layers]


# networks


@pytest.mark.parametrize("build", [mobilenet_v1, mobilenet_v2])
def test_mobilenets(build: Callable[..., nn.Module], tmp_path: Path) -> None:
    module = build(0.25, 64)
    path = export_pt2(module, tmp_path / "saved.pt2", (1, 3, 64, 64))
    assert load_model(path).inputs[0].describe() == "image float32[1,3,64,64]"
    network = check(module, tmp_path, (1, 3, 64, 64))
    assert layer_names(network) == anchors(module)
    # Batch norms are in the weights and relu6 in the layers: the rest is pooling.
    others = [node.op for node in network.graph.nodes if node.kind != "layer"]
    assert sorted(others) == ["relax.mean", "relax.reshape"]
    assert all(layer.workload.epilogue.bias for layer in network.graph.layers)


@pytest.mark.parametrize(
    "network, macs, layers", [(MobileNetV1, 568_740_352, 28), (MobileNetV2, 300_774_272, 53)]
)
def test_full_mobilenets_have_the_published_size(
    network: type[nn.Module], macs: int, layers: int
) -> None:
    with torch.device("meta"):
        module, image = network().eval(), torch.zeros(1, 3, 224, 224)
    counted: list[int] = []

    def count(part: nn.Module, inputs: Any, out: torch.Tensor) -> None:
        weight = part.get_parameter("weight")
        counted.append(weight[0].numel() * out[0].numel())

    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.register_forward_hook(count)
    module(image)
    assert (sum(counted), len(counted)) == (macs, layers)


def watch(module: nn.Module) -> list[torch.Tensor]:
    """Outputs of the batch norms, filled in by the next run."""
    seen: list[torch.Tensor] = []
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.register_forward_hook(lambda m, i, out: seen.append(out.clone()))
    return seen


def test_mobilenets_have_sane_seeded_activations() -> None:
    for build in (mobilenet_v1, mobilenet_v2):
        one, again, other = (build(0.25, 32, seed=seed) for seed in (0, 0, 1))
        image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
        seen = watch(one)
        out = one(image)
        assert torch.equal(out, again(image))
        assert not torch.equal(out, other(image))
        assert 0.1 < float(out.std()) < 10
        assert all(0.2 < float(value.std()) < 5 for value in seen)
        assert not torch.equal(out[0], out[1])


class Residual(nn.Module):
    """Groups, dilation, asymmetric padding, concat, both poolings, a squeeze-and-excite gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.LeakyReLU(0.1))
        self.left = nn.Conv2d(12, 12, 3, padding=2, dilation=2, groups=4, bias=False)
        self.right = nn.Conv2d(12, 12, (3, 2), bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.squeeze = nn.Linear(24, 5)
        self.excite = nn.Conv2d(5, 24, 1)
        self.swish = nn.Hardswish(inplace=True)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(24 * 6, 7))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image)
        x = x + functional.relu6(self.left(x))
        y = self.right(functional.pad(x, (1, 0, 2, 0)))
        x = self.norm(torch.cat([x, y], 1))
        gate = self.squeeze(x.mean((2, 3))).relu_().view(-1, 5, 1, 1)
        x = self.swish(x) * torch.sigmoid(self.excite(gate))
        x = functional.max_pool2d(x, 3, 2, 1) + functional.avg_pool2d(
            x, 3, 2, 1, count_include_pad=False
        )
        return self.head(functional.adaptive_avg_pool2d(x, (2, 3)))


@pytest.mark.parametrize("batch", [1, 2])
def test_residual_network(batch: int, tmp_path: Path) -> None:
    module = initialised(Residual())
    network = check(module, tmp_path, (batch, 3, 16, 24))
    assert layer_names(network) == anchors(module)
    sources = {source.name: source.op for source in network.model.sources.values()}
    assert sources["swish"] == "hardswish"
    assert sources["head.2"] == "linear"
    assert "cat" in sources


def test_mlp(tmp_path: Path) -> None:
    layers = [nn.Linear(13, 20), nn.ReLU(), nn.Linear(20, 20, bias=False), nn.BatchNorm1d(20),
              nn.Tanh(), nn.Linear(20, 3)]  # fmt: skip
    module = initialised(nn.Sequential(*layers))
    network = check(module, tmp_path, (2, 13))
    assert layer_names(network) == ["0", "2", "5"]
    assert network.graph.layers[1].fused == ("3",)


def test_shared_module_and_several_inputs_and_outputs(tmp_path: Path) -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding="same")

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
            a, b = self.conv(left), self.conv(right)
            return {"sum": a + b, "left": a}

    module = initialised(Twins())
    path = export(module, tmp_path, (1, 3, 6, 5), (1, 3, 6, 5))
    model = load_model(path)
    assert [spec.name for spec in model.inputs] == ["left", "right"]
    assert [parameter.name for parameter in model.mod["main"].params] == ["left", "right"]
    assert len({spec.name for spec in model.outputs}) == 2
    assert layer_names(extract_layers(model)) == ["conv", "conv#2"]
    feeds = golden_inputs(model, 0)
    want = module(*(torch.from_numpy(feed) for feed in feeds.values()))
    got = Reference(model)(feeds)
    assert all(np.array_equal(g, w.detach()) for g, w in zip(got, want.values(), strict=True))


# operators

IMAGE = (2, 6, 8, 12)
OPERATORS: dict[str, Callable[..., Any]] = {
    "activations": lambda x: (
        functional.silu(x) + functional.gelu(x) + functional.hardsigmoid(x)
        + functional.mish(x) + functional.elu(x) + functional.softplus(x)
        + functional.celu(x) + functional.selu(x) + functional.softsign(x)
        + functional.gelu(x, approximate="tanh") + functional.logsigmoid(x)
    ),
    "hardtanh": lambda x: functional.hardtanh(x, -0.5, 0.25) + x.clamp(min=0.1) + x.clamp(max=1),
    "in place, on the input": lambda x: x.exp_() + x.mul_(2),
    "in place": lambda x: functional.relu6((x + 1).mul_(2).sub_(0.5), inplace=True).div_(3),
    "rows": lambda x: functional.max_pool1d(
        functional.conv1d(x.flatten(2), torch.ones(4, 6, 3), padding="same"), 2
    ),
    "softmax": lambda x: (functional.softmax(x, 1), functional.log_softmax(x, -1)),
    "pools": lambda x: (
        functional.max_pool2d(x, 2), functional.max_pool2d(x, 3, 2, ceil_mode=True),
        functional.max_pool2d(x, (2, 3), 1, (1, 0), 2), functional.avg_pool2d(x, 2),
        functional.avg_pool2d(x, 3, 2, 1), functional.avg_pool2d(x, (3, 1), (1, 2), (1, 0)),
        functional.adaptive_max_pool2d(x, 1), functional.adaptive_max_pool2d(x, (4, 3)),
        functional.adaptive_avg_pool2d(x, (3, 5)), x.amax((2, 3)), x.mean(1, keepdim=True),
    ),
    "average that ends past the edge": lambda x: functional.avg_pool2d(x, 3, 2, ceil_mode=True),
    "resize": lambda x: (
        functional.interpolate(x, scale_factor=2), functional.interpolate(x, size=(12, 9)),
        functional.interpolate(x, scale_factor=2, mode="bilinear"),
        functional.interpolate(x, size=(5, 7), mode="bilinear", align_corners=True),
    ),
    "shapes": lambda x: (
        x.permute(0, 2, 3, 1), x.transpose(1, 3).reshape(2, -1), x[:, 1:-1, ::2, -3],
        x.select(1, -1), x.unsqueeze(1).expand(2, 3, 6, 8, 12), torch.stack([x, x], 2),
        x.flatten(2).squeeze(), torch.cat(x.chunk(3, 1)[::-1], 1),
        torch.cat(x.split(4, 1)[::-1], 1),
        functional.pixel_shuffle(functional.pixel_unshuffle(x, 2), 2),
        torch.channel_shuffle(x, 3), x.repeat(1, 2, 1, 1), x.unbind(2)[3], x.flip(3),
    ),
    "padding": lambda x: (
        functional.pad(x, (1, 2, 0, 3), value=0.5), functional.pad(x, (0, 1)),
        functional.pad(x, (2, 1, 1, 1), mode="reflect"),
        functional.pad(x, (2, 1, 1, 1), mode="replicate"),
    ),
    "arithmetic": lambda x: (
        (x * 2 - 1) / 3 + (1 - x) ** 2, torch.maximum(x, -x) - torch.minimum(x, x * x),
        x.abs().sqrt() + x.exp() + x.neg(), torch.rsqrt(x * x + 1), torch.where(x > 0, x, 0.1 * x),
        x.std(1), x.var((2, 3), correction=0), x.sum(), (x >= 0.5).to(torch.float32),
        x.reciprocal() + x.sign() + x.floor() + x.sin() + x.erf() + torch.log1p(x.abs()),
        x * torch.full_like(x, 2) + torch.ones(12) - x.argmax(3, keepdim=True),
    ),
    "products": lambda x: (
        x @ x.transpose(2, 3), torch.einsum("nchw,ndhw->ncd", x, x),
        torch.bmm(x.flatten(2), x.flatten(2).transpose(1, 2)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str, tmp_path: Path) -> None:
    check(Function(OPERATORS[name]), tmp_path, IMAGE)


MODULES: dict[str, nn.Module] = {
    "norms": nn.Sequential(
        nn.GroupNorm(3, 6), nn.InstanceNorm2d(6, affine=True), nn.BatchNorm2d(6, affine=False),
        nn.LayerNorm(12),
    ),
    "prelu": nn.PReLU(6, 0.3),
    "transposed": nn.ConvTranspose2d(6, 4, 3, 2, 1, output_padding=1),
    "linear on rows": nn.Linear(12, 5),
    "glu": nn.Sequential(nn.Conv2d(6, 8, 1), nn.GLU(1)),
    "dropouts": nn.Sequential(nn.Dropout2d(), nn.AlphaDropout(), nn.Identity(), nn.Conv2d(6, 2, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str, tmp_path: Path) -> None:
    check(initialised(MODULES[name]), tmp_path, IMAGE)


def test_every_admitted_operator_is_torchs_and_can_be_converted() -> None:
    from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

    from tvmx.frontends._torch_rules import RULES

    table = torch.export.default_decompositions()
    decomposed = {str(op).removeprefix("aten.") for op in table}
    converted = {*ExportedProgramImporter().convert_map, *RULES}
    for name in SUPPORTED:
        packet, overload = name.split(".")
        op = getattr(getattr(torch.ops.aten, packet), overload)
        # In-place forms become the others when the program is made functional.
        assert not op._schema.is_mutable or hasattr(torch.ops.aten, packet.rstrip("_")), name
        known = name in decomposed | converted or op._can_decompose()
        assert known or op._schema.is_mutable, name


# the product around it


def test_reference_is_the_program_run_by_torch(tmp_path: Path) -> None:
    module = initialised(Residual())
    model = load_model(export(module, tmp_path, (1, 3, 16, 24)))
    reference = Reference(model)
    assert reference.name == f"torch {torch.__version__}"
    feeds = golden_inputs(model, 4)
    (found,) = reference(feeds)
    with torch.inference_mode():
        wanted = module(torch.from_numpy(feeds["image"]))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_import_build_and_run_on_the_command_line(tmp_path: Path) -> None:
    path = export(initialised(Residual()), tmp_path, (1, 3, 16, 24))
    shown = invoke("import", path, "--json")
    assert shown.exit_code == 0, shown.output
    data = json.loads(shown.stdout)
    assert data["frontend"] == "torch"
    assert [layer["name"] for layer in data["layers"]] == anchors(Residual())
    bundle = tmp_path / "bundle"
    built = invoke("build", path, "--target", "host", "--out", bundle)
    assert built.exit_code == 0, built.output
    ran = invoke("run", bundle, "--json")
    assert ran.exit_code == 0, ran.output
    assert torch.__version__ in (bundle / "manifest.json").read_text()


def test_looking_at_a_model_loads_neither_torch_nor_tvm(tmp_path: Path) -> None:
    path = export(initialised(Residual()), tmp_path, (1, 3, 16, 24))
    script = (
        "import sys\nfrom tvmx.frontends import check_model, model_digest\n"
        f"print(check_model({str(path)!r})[0].describe(), model_digest({str(path)!r}))\n"
        "print(sorted({'torch', 'tvm'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    seen, loaded = done.stdout.splitlines()
    assert seen == f"image float32[1,3,16,24] {load_model(path).digest}"
    assert loaded == "[]"
