"""Programs quantised by PyTorch's PT2E flow: true int8 layers, against torch's run of them."""

from __future__ import annotations

import json
import operator
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.network_plans import execute, host, plan_of, registry
from tvmx.errors import CorruptModelError, ModelError, UnsupportedOpError
from tvmx.frontends import load_model, torch_runner
from tvmx.passes import Network, extract_layers, lower

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch.ao.quantization.fx._decomposed
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )
    from torchao.testing.pt2e._xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

Array = npt.NDArray[Any]
ops = torch.ops.quantized_decomposed
S8, U8 = (-128, 127, torch.int8), (0, 255, torch.uint8)
QUANTISERS: dict[str, Callable[[], Any]] = {
    "s8": lambda: XNNPACKQuantizer().set_global(get_symmetric_quantization_config(True)),
    "u8": lambda: X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config()),
}


def conv(inputs: int, outputs: int, kernel: int, groups: int = 1, stride: int = 1) -> list[Any]:
    padding = kernel // 2
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(outputs)]


class Mixed(nn.Module):
    """A residual block, a depthwise convolution, a concatenation, pools, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv(3, 16, 3, stride=2), nn.ReLU())
        self.body = nn.Conv2d(16, 16, 3, 1, 1)
        self.depthwise = nn.Sequential(*conv(16, 16, 3, 16), nn.ReLU6())
        self.head = nn.Conv2d(32, 24, 1)
        self.classifier = nn.Linear(24, 10)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = functional.max_pool2d(self.stem(image), 2)
        x = functional.relu(self.body(x) + x)
        x = functional.relu(self.head(torch.cat([x, self.depthwise(x)], 1)))
        y = functional.adaptive_avg_pool2d(functional.avg_pool2d(x, 2), 1)
        return self.classifier(y.flatten(1)), x


class Inverted(nn.Module):
    """MobileNetV2's block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 4 * inputs
        self.residual = inputs == outputs and stride == 1
        self.layers = nn.Sequential(
            *conv(inputs, wide, 1), nn.ReLU6(), *conv(wide, wide, 3, wide, stride), nn.ReLU6(),
            *conv(wide, outputs, 1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


def mobile() -> nn.Module:
    """MobileNetV2 in small: 12 layers."""
    return nn.Sequential(
        *conv(3, 8, 3, stride=2), nn.ReLU6(), Inverted(8, 8, 1), Inverted(8, 12, 2),
        Inverted(12, 12, 1), *conv(12, 48, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(48, 100),
    )  # fmt: skip


def settled(module: nn.Module, shape: Sequence[int]) -> nn.Module:
    """In evaluation mode; batch norms have the statistics of what arrives at them."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.reset_parameters()
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():
        module.train()(torch.randn(8, *shape[1:]))
    return module.eval()


def save(module: nn.Module, folder: Path, *inputs: torch.Tensor) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(module, inputs), str(folder / "net.pt2"))
    return folder / "net.pt2"


def converted(
    module: nn.Module, quantiser: str, folder: Path, shape: Sequence[int],
    fold: bool = True, whole_biases: bool = False,
) -> Path:  # fmt: skip
    """The module through the whole of PT2E's flow, calibrated with noise, and saved."""
    torch.manual_seed(1)
    example = torch.randn(tuple(shape))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        exported = torch.export.export(module, (example,)).module()
        prepared = prepare_pt2e(exported, QUANTISERS[quantiser]())
        for _ in range(4):
            prepared(torch.randn(tuple(shape)))
        result = convert_pt2e(prepared, fold_quantize=fold)
        if whole_biases:
            round_biases(result)
    return save(result, folder, example)


def round_biases(result: torch.fx.GraphModule) -> None:
    """Make float biases multiples of data scale * weight scale, as int32 biases are."""
    for node in result.graph.nodes:
        if node.target in (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default):
            data, weight, bias = node.args[:3]
            scale = operator.attrgetter(weight.args[1].target)(result).double() * data.args[1]
            values = operator.attrgetter(bias.target)(result)
            values.copy_(torch.round(values.double() / scale) * scale)


def both(path: Path, *feeds: Array) -> tuple[Network, list[Array], tuple[Array, ...]]:
    """The network by layers, its outputs lowered by the baseline plan, and torch's."""
    network = extract_layers(load_model(path))
    specs = network.model.inputs
    rng = np.random.default_rng(5)
    feeds = feeds or tuple(rng.standard_normal(s.shape).astype(np.float32) for s in specs)
    lowered = lower(network, plan_of(network, host()), registry(), host())
    wanted = torch_runner(path, {})({s.name: x for s, x in zip(specs, feeds, strict=True)})
    return network, execute(lowered.mod, host(), feeds), wanted


def floats(network: Network) -> list[str]:
    """Layers that are not computed in int8."""
    return [x.name for x in network.graph.layers if x.workload.dtype != "int8"]


def check_network(path: Path) -> Network:
    """Within one step of torch's program on 99.9 % of each output's elements."""
    network, found, wanted = both(path)
    scales = {value.value: value.scale for value in network.graph.stated}
    for got, want, output in zip(found, wanted, network.graph.outputs, strict=True):
        assert got.shape == want.shape
        # Of a float output the last step before it.
        step = scales.get(output, network.graph.stated[-1].scale)
        assert (np.abs(got - want) <= 1.001 * step).mean() >= 0.999
        assert np.ptp(want) > 50 * step, "a constant would prove nothing"
    return network


# networks

IMAGE = (1, 3, 32, 32)
# The u8 quantiser leaves some pools and every output in float: the layers before them make that.
MIXED = [
    ("s8", True, False, []),
    ("s8", False, True, []),
    ("u8", True, False, ["head", "classifier"]),
]


@pytest.mark.parametrize("quantiser, fold, whole, float_out", MIXED)
def test_mixed_network(
    quantiser: str, fold: bool, whole: bool, float_out: list[str], tmp_path: Path
) -> None:
    path = converted(settled(Mixed(), IMAGE), quantiser, tmp_path, IMAGE, fold, whole)
    network = check_network(path)
    assert floats(network) == []
    epilogues = {layer.name: layer.workload.epilogue for layer in network.graph.layers}
    assert [name for name, how in epilogues.items() if how.float_out] == float_out
    in_float = [how.float_bias for how in epilogues.values() if how.bias and not how.float_out]
    assert in_float == [not whole] * len(in_float) and in_float
    names = [layer.name for layer in network.graph.layers]
    assert names == ["stem.0", "body", "depthwise.0", "head", "classifier"]
    # The sum is part of the convolution unless the quantiser has both rounded.
    assert network.graph.layers[1].workload.epilogue.residual == (quantiser == "u8")
    kinds = {node.op: node.int8 for node in network.graph.nodes if node.layer is None}
    assert kinds["concat"] and kinds["max_pool"]


@pytest.mark.parametrize("quantiser, float_out", [("s8", []), ("u8", ["11"])])
def test_mobile_network(quantiser: str, float_out: list[str], tmp_path: Path) -> None:
    network = check_network(converted(settled(mobile(), IMAGE), quantiser, tmp_path, IMAGE))
    assert floats(network) == []
    assert [x.name for x in network.graph.layers if x.workload.epilogue.float_out] == float_out
    assert len(network.graph.layers) == 12


def test_looking_at_a_model_loads_neither_torch_nor_tvm(tmp_path: Path) -> None:
    path = save(Layer(), tmp_path, torch.zeros(1, 4, 6, 6))
    script = (
        "import sys\nfrom tvmx.frontends import check_model\n"
        f"print(check_model({str(path)!r})[0].describe())\n"
        "print(sorted({'torch', 'torchao', 'tvm'} & set(sys.modules)))\n"
        "from tvmx.frontends import load_model, torch_runner\n"
        f"load_model({str(path)!r}), torch_runner({str(path)!r}, {{}})\n"
        "print('torchao' in sys.modules)"
    )
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.stdout.splitlines() == ["x float32[1,4,6,6]", "[]", "False"], done.stderr


# single operators


class Layer(nn.Module):
    """One convolution of 4 to 6 channels between int8 values, by the operators' own names."""

    def __init__(self, lowest: int = -127, **given: Any) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        weight = torch.randint(-127, 128, (6, 4, 3, 3), generator=random, dtype=torch.int8)
        weight[2, 1, 0, 0] = lowest
        self.register_buffer("weight", weight)
        self.register_buffer("scales", torch.linspace(0.002, 0.004, 6))
        self.register_buffer("zeros", torch.zeros(6, dtype=torch.int64))
        self.given = {"data": (0.0251, -3, *S8), "out": (0.0613, 5, *S8)} | given

    def filter(self) -> torch.Tensor:
        return ops.dequantize_per_channel(self.weight, self.scales, self.zeros, 0, *S8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        data, out = self.given["data"], self.given["out"]
        x = ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *data), *data)
        x = functional.conv2d(x, self.filter(), None, 1, 1)
        return ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *out), *out)


class ByTensors(Layer):
    """Scales and zero points are tensors; the weight is quantised per tensor, in u8."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = (self.weight.int() + 128).to(torch.uint8)
        self.register_buffer("scale", torch.tensor(0.0251))
        self.register_buffer("zero", torch.tensor(128))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        params = (self.scale, self.zero, *U8)
        x = ops.dequantize_per_tensor.tensor(ops.quantize_per_tensor.tensor(x, *params), *params)
        weight = ops.dequantize_per_tensor.tensor(self.weight, self.scale / 10, self.zero, *U8)
        x = functional.conv2d(x, weight, None, 1, 1)
        params = (self.scale * 3, self.zero, *U8)
        return ops.dequantize_per_tensor.tensor(ops.quantize_per_tensor.tensor(x, *params), *params)


class IntegerBias(Layer):
    """The bias is int32, quantised per channel by the product of the scales."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", torch.tensor([977, -12345, 0, 3, 4000, -5], dtype=torch.int32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        data, out = self.given["data"], self.given["out"]
        x = ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *data), *data)
        kind = (-(2**31), 2**31 - 1, torch.int32)
        bias = ops.dequantize_per_channel(self.bias, self.scales * data[0], self.zeros, 0, *kind)
        x = functional.conv2d(x, self.filter(), bias, 1, 1)
        return ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *out), *out)


class Integers(Layer):
    """The network's input and output are int8 themselves."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = ops.dequantize_per_tensor(x, *self.given["data"])
        x = functional.conv2d(x, self.filter(), None, 1, 1)
        return ops.quantize_per_tensor(x, *self.given["out"])


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "plain": Layer,
    "u8": lambda: Layer(data=(0.0251, 125, *U8), out=(0.0613, 133, *U8)),
    "one -128 in a channel": lambda: Layer(-128),
    "narrower ranges": lambda: Layer(
        data=(0.0251, -3, -100, 90, torch.int8), out=(0.0613, 7, 7, 200, torch.uint8)
    ),
    "four bits": lambda: Layer(data=(0.413, 1, -8, 7, torch.int8)),
    "scales as tensors": ByTensors,
    "int32 bias": IntegerBias,
}


@pytest.mark.parametrize("name", LAYERS)
def test_one_layer_is_exact(name: str, tmp_path: Path) -> None:
    network, (got,), (want,) = both(save(LAYERS[name](), tmp_path, torch.zeros(1, 4, 6, 6)))
    assert floats(network) == []
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    assert len(np.unique(want)) > 30


def test_integer_inputs_and_outputs(tmp_path: Path) -> None:
    path = save(Integers(), tmp_path, torch.zeros(1, 4, 6, 6, dtype=torch.int8))
    x = np.random.default_rng(0).integers(-128, 128, (1, 4, 6, 6), dtype=np.int8)
    network, (got,), (want,) = both(path, x)
    assert floats(network) == []
    assert got.dtype == np.int8
    np.testing.assert_array_equal(got, want)


def test_channels_with_several_lowest_weights_stay_float(tmp_path: Path) -> None:
    module = Layer(-128)
    module.get_buffer("weight")[2, 1, 0, 1] = -128
    network, (got,), (want,) = both(save(module, tmp_path, torch.zeros(1, 4, 6, 6)))
    assert len(floats(network)) == 1, "two products with them overflow the int16 of smlal"
    np.testing.assert_allclose(got, want, rtol=0, atol=0.0614)


# what cannot be imported


def edited(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The archive with ``change`` made to the arguments, by name, of its first quantising node."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in records if name.endswith("models/model.json"))
    document = json.loads(records[name])
    nodes = document["graph_module"]["graph"]["nodes"]
    node = next(n for n in nodes if ".quantize_per_tensor." in n["target"])
    change({given["name"]: given["arg"] for given in node["inputs"]})
    records[name] = json.dumps(document).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "name, value, why",
    [
        ("scale", {"as_float": "NaN"}, "has the scale nan, which is no positive finite number"),
        ("scale", {"as_float": "Infinity"}, "has the scale inf,"),
        ("scale", {"as_float": 0.0}, r"has the scale 0\.0,"),
        ("scale", {"as_float": -0.5}, r"has the scale -0\.5,"),
        ("scale", {"as_float": 1e-60}, "has the scale 1e-60,"),
        ("zero_point", {"as_int": 128}, "has the zero point 128 and the range -128 to 127"),
        ("quant_min", {"as_int": 127}, "has the zero point -3 and the range 127 to 127"),
        ("quant_max", {"as_int": 255}, "has the range -128 to 255, which int8 does not hold"),
        ("dtype", {"as_scalar_type": 3}, "quantises to int16; int8 and uint8 can be imported"),
        ("dtype", {"as_scalar_type": 77}, "quantises to number 77"),
    ],
)
def test_corrupted_numbers(name: str, value: Any, why: str, tmp_path: Path) -> None:
    def corrupt(arguments: dict[str, Any]) -> None:
        arguments[name].clear()
        arguments[name].update(value)

    path = edited(save(Layer(), tmp_path, torch.zeros(1, 4, 6, 6)), corrupt)
    with pytest.raises(ModelError, match=rf"'quantize_per_tensor' \(.*\) {why}") as caught:
        load_model(path)
    assert caught.value.hint


def test_an_argument_that_is_missing(tmp_path: Path) -> None:
    path = save(Layer(), tmp_path, torch.zeros(1, 4, 6, 6))
    with pytest.raises(CorruptModelError, match="damaged"):
        load_model(edited(path, lambda args: args["quant_min"].clear()))


@pytest.mark.parametrize("value", [float("nan"), 0.0, -0.5])
def test_corrupted_scales_of_a_weight(value: float, tmp_path: Path) -> None:
    module = Layer()
    module.get_buffer("scales")[3] = value
    with pytest.raises(ModelError, match=r"'dequantize_per_channel' .* scale is no positive"):
        load_model(save(module, tmp_path, torch.zeros(1, 4, 6, 6)))


class PerChannel(Layer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        params = (self.scales[:4], self.zeros[:4], 1, *S8)
        return ops.dequantize_per_channel(ops.quantize_per_channel(x, *params), *params)


class FromInput(Layer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        params = (x.abs().amax() / 127, self.zeros[0], *S8)
        return ops.dequantize_per_tensor.tensor(ops.quantize_per_tensor.tensor(x, *params), *params)


class Dynamic(Layer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale, zero = ops.choose_qparams.tensor(x, -128, 127, 1e-6, torch.int8)
        x = ops.quantize_per_tensor.tensor(x, scale, zero, *S8)
        return ops.dequantize_per_tensor.tensor(x, scale, zero, *S8)


class PerToken(Layer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale, zero = ops.choose_qparams_per_token_asymmetric(x, torch.int8)
        x = ops.quantize_per_token(x, scale, zero, *S8)
        return ops.dequantize_per_token(x, scale, zero, *S8, torch.float32)


@pytest.mark.parametrize(
    "module, error, why, hint",
    [
        (PerChannel, ModelError, "quantises a value per channel", "weights alone"),
        (FromInput, ModelError, "scale or zero point that depends on the inputs", "is_dynamic"),
        (Dynamic, UnsupportedOpError, r"choose_qparams\.tensor", "dynamic quantisation"),
        (PerToken, UnsupportedOpError, "per_token", "dynamic quantisation"),
        (lambda: Layer(data=(0.01, 0, -32768, 32767, torch.int16)), ModelError,
         "quantises to int16", "8 bits"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported(
    module: Callable[[], nn.Module], error: type[ModelError], why: str, hint: str, tmp_path: Path
) -> None:
    path = save(module(), tmp_path, torch.zeros(1, 4, 6, 6))
    with pytest.raises(error, match=why) as caught:
        load_model(path)
    assert hint in (caught.value.hint or "")
