"""Networks under plans chosen by hand: imported, lowered, run in this process."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from tvmx.build import build_network
from tvmx.ir import LayerChoice, Plan
from tvmx.passes import Lowered, Network, choose, extract_layers, lower
from tvmx.targets import Cluster, Target, load_target
from tvmx.templates import Registry
from tvmx.testing.models import onnx_reference

Array = npt.NDArray[Any]


@cache
def registry() -> Registry:
    """The built-in templates."""
    found = Registry()
    found.load_builtin()
    return found


@cache
def host() -> Target:
    """This machine."""
    return load_target("host")


def narrow() -> Target:
    """This machine with vectors of four floats, as an Arm core has."""
    core = Cluster(core="any", count=1, clock_mhz=1000, in_order=False, l1d_kib=32, l2_kib=512)
    return host().model_copy(
        update={"name": "narrow", "vector_bits": 128, "vector_registers": 16, "clusters": (core,)}
    )


def network_of(proto: onnx.ModelProto) -> Network:
    """The model imported through a file, cut into layers."""
    from tvmx.frontends import load_model

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        return extract_layers(load_model(path))


def plan_of(
    network: Network, target: Target, templates: Mapping[str, str] | Sequence[int] = ()
) -> Plan:
    """A plan of default configs.

    ``templates`` maps layer names to template names, or gives per layer a number that picks
    among the legal ones; other layers get their first template.
    """
    choices: list[LayerChoice] = []
    for layer in network.graph.layers:
        legal = registry().legal(layer.workload, target)
        if not legal:
            continue
        if isinstance(templates, Mapping):
            wanted = templates.get(layer.name, legal[0].name)
            entry = next(e for e in legal if e.name == wanted)
        else:
            pick = templates[layer.index % len(templates)] if templates else 0
            entry = legal[pick % len(legal)]
        choices.append(choose(entry, layer, target))
    return Plan(model=network.model.digest, target=target.name, choices=tuple(choices))


def execute(mod: Any, target: Target, inputs: Sequence[Array]) -> list[Array]:
    """Outputs of a lowered module, built as for deployment and run twice."""
    from tvmx._tvm import relax, tvm

    with tempfile.TemporaryDirectory() as folder:
        built = build_network(mod, target, Path(folder) / "network.so")
        machine = relax.VirtualMachine(tvm.runtime.load_module(str(built.path)), tvm.cpu())
    tensors = [tvm.runtime.tensor(a) for a in inputs]
    outputs = []
    for _ in range(2):
        out = machine["main"](*tensors)
        every = [out] if isinstance(out, tvm.runtime.Tensor) else list(out)
        outputs.append([one.numpy().copy() for one in every])
    for first, second in zip(*outputs, strict=True):
        np.testing.assert_array_equal(first, second)  # the second found the first one's memory
    return outputs[0]


def inputs_of(proto: onnx.ModelProto, seed: int = 0) -> dict[str, Array]:
    """Normal inputs of a float model with static shapes."""
    rng = np.random.default_rng(seed)
    return {
        value.name: rng.standard_normal(
            [d.dim_value for d in value.type.tensor_type.shape.dim]
        ).astype(np.float32)
        for value in proto.graph.input
    }


def check_plan(
    proto: onnx.ModelProto,
    templates: Mapping[str, str] | Sequence[int] = (),
    target: Target | None = None,
    network: Network | None = None,
) -> Lowered:
    """Lower by the plan, run, and compare with ONNX Runtime within 1e-3 of the range."""
    target = target or host()
    network = network or network_of(proto)
    lowered = lower(network, plan_of(network, target, templates), registry(), target)
    feeds = inputs_of(proto)
    got = execute(lowered.mod, target, list(feeds.values()))
    assert_same(got, onnx_reference(proto, feeds))
    return lowered


def assert_same(got: Sequence[Array], want: Sequence[Array]) -> None:
    """Equal within 1e-3 of each reference's largest value."""
    assert len(got) == len(want)
    for index, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a.shape == b.shape, index
        assert np.isfinite(a).all(), f"output {index} is not finite"
        scale = max(float(np.abs(b).max()), 1e-6)
        error = float(np.abs(a - b).max()) / scale
        assert error < 1e-3, f"output {index} is off by {error:.2e} of its range"


def weight(rng: random.Random, *shape: int) -> Array:
    """Normal weights scaled by their fan-in."""
    values = np.random.default_rng(rng.randrange(2**32)).standard_normal(shape)
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    return (values / np.sqrt(fan_in)).astype(np.float32)
