"""Cross-layer equalisation: channels of like ranges, in the same float function.

Nagel et al., "Data-free quantization through weight equalization and bias correction" (ICCV 2019),
section 4.1: where a layer's output goes to one other layer through operators f with
f(s x) = s f(x) for s > 0, output channel i of the first may be divided by any s_i and input channel
i of the second multiplied by it. s_i = sqrt(r1_i / r2_i) makes their ranges r1_i and r2_i equal.

Two things differ from the paper. The range r1_i of the first layer counts its bias, since here
weights are quantised per channel and it is the activations that share a scale: otherwise a channel
of small weights and a large bias would be blown up. And pairs whose clip has an upper bound (ReLU6)
are left alone: the paper replaces ReLU6 by ReLU, which changes the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx._tvm import relax
from tvmx.errors import BuildError
from tvmx.ir import ChannelValues, Conv2dWorkload
from tvmx.numerics import LayerConstants
from tvmx.passes._dataflow import op_name
from tvmx.passes._groups import const_array, per_channel, static_shape
from tvmx.passes._layers import LayerStep, Network, OpStep

Array = npt.NDArray[Any]

_ROUNDS = 40
_SETTLED = 1e-3  # relative change of every factor at which iterating ends
_HOMOGENEOUS = frozenset({"max_pool", "avg_pool", "mean", "clip", "reshape"})


@dataclass(frozen=True)
class _Pair:
    """Indices of the steps of two layers."""

    first: int
    second: int


def equalisation(network: Network) -> tuple[ChannelValues, ...]:
    """What the output channels of layers are to be divided by; only layers that change.

    Pairs overlap (convolution, depthwise, convolution), so that they are gone through in order
    until nothing changes.
    """
    pairs = list(_pairs(network))
    steps = {i: _layer(network, i) for pair in pairs for i in (pair.first, pair.second)}
    weights = {i: step.weight.astype(np.float64) for i, step in steps.items()}
    biases = {i: None if s.bias is None else s.bias.astype(np.float64) for i, s in steps.items()}
    factors = {pair.first: np.ones(len(weights[pair.first])) for pair in pairs}
    for _ in range(_ROUNDS):
        settled = True
        for pair in pairs:
            first, second = pair.first, pair.second
            s = _factor(weights[first], biases[first], weights[second], steps[second])
            factors[first] *= s
            weights[first], biases[first] = _divided(weights[first], biases[first], s)
            weights[second] = _multiplied(weights[second], steps[second], s)
            settled &= bool(np.abs(s - 1).max() < _SETTLED)
        if settled:
            break
    return tuple(
        ChannelValues.of(steps[i].layer.name, s) for i, s in factors.items() if (s != 1).any()
    )


def equalised(network: Network, factors: Sequence[ChannelValues]) -> Network:
    """The network with the layers' output channels divided by ``factors``, their readers scaled.

    ``network`` may have been equalised before: factors are always applied to the original one,
    which none give back.

    Raises:
        BuildError: there is no such layer, it has other channels, or no layer to make up for it.
    """
    if tuple(factors) == network.equalised:
        return network
    source = network.original or network
    if not factors:
        return source
    pairs = {_layer(source, p.first).layer.name: p for p in _pairs(source)}
    steps = list(source.steps)
    for channels in factors:
        s, pair = channels.array, pairs.get(channels.layer)
        if pair is None or len(s) != len(_layer(source, pair.first).weight) or (s <= 0).any():
            raise BuildError(
                f"the plan scales {len(s)} output channels of layer {channels.layer!r}, which "
                "the network does not allow",
                hint="replay a plan only on the model it was made for",
            )
        first, second = steps[pair.first], steps[pair.second]
        assert isinstance(first, LayerStep) and isinstance(second, LayerStep)
        divided = {
            name: LayerConstants(*_divided(c.weight, c.bias, s)) for name, c in first.pruned.items()
        }
        multiplied = {
            name: LayerConstants(_multiplied(c.weight, second, s), c.bias)
            for name, c in second.pruned.items()
        }
        steps[pair.first] = replace(
            _with_constants(first, *_divided(first.weight, first.bias, s), s), pruned=divided
        )
        steps[pair.second] = replace(
            _with_constants(second, _multiplied(second.weight, second, s), second.bias, None),
            pruned=multiplied,
        )
    return replace(source, steps=tuple(steps), equalised=tuple(factors), original=source)


def _layer(network: Network, index: int) -> LayerStep:
    step = network.steps[index]
    assert isinstance(step, LayerStep)
    return step


def _pairs(network: Network) -> Iterator[_Pair]:
    for index, step in enumerate(network.steps):
        if isinstance(step, LayerStep) and _scales(step):
            second = _reader(network, network.graph.nodes[index].output)
            if second is not None:
                yield _Pair(index, second)


def _scales(step: LayerStep) -> bool:
    """Whether dividing weight and bias divides the layer's output."""
    epilogue = step.layer.workload.epilogue
    if step.stated is not None:
        return False
    return not epilogue.residual and _homogeneous(epilogue.clip_min, epilogue.clip_max)


def _homogeneous(low: float | None, high: float | None) -> bool:
    return low in (None, 0.0) and high in (None, 0.0)


def _reader(network: Network, value: int) -> int | None:
    """The step of the only layer that reads a value as its data, behind homogeneous operators."""
    graph = network.graph
    while value not in graph.outputs and value not in graph.stated_values:
        readers = [i for i, node in enumerate(graph.nodes) if value in node.inputs]
        if len(readers) != 1:
            return None
        node, step = graph.nodes[readers[0]], network.steps[readers[0]]
        if isinstance(step, LayerStep):
            is_data = node.inputs[0] == value and node.inputs.count(value) == 1
            return readers[0] if is_data and step.stated is None else None
        if not _keeps_channels(step, graph.shapes[value], graph.shapes[node.output]):
            return None
        value = node.output
    return None


def _keeps_channels(step: OpStep, shape: tuple[int, ...], out: tuple[int, ...]) -> bool:
    """Whether an operator scales with each channel (axis 1) of its input."""
    operator = step.operator
    if step.lrn is not None or operator is None or operator.kind not in _HOMOGENEOUS:
        return False
    if operator.kind == "clip":
        return _homogeneous(operator.low, operator.high)
    return shape[:2] == out[:2] if operator.kind == "reshape" else True


def _factor(first: Array, bias: Array | None, second: Array, reader: LayerStep) -> Array:
    r1 = np.abs(first).reshape(len(first), -1).max(axis=1)
    if bias is not None:
        r1 = np.maximum(r1, np.abs(bias))
    r2 = np.abs(_by_input(second, reader)).max(axis=(1, 3)).reshape(-1)
    alive = (r1 > 0) & (r2 > 0)
    factor: Array = np.sqrt(np.where(alive, r1, 1.0) / np.where(alive, r2, 1.0))
    return factor


def _by_input(weight: Array, reader: LayerStep) -> Array:
    """(groups, outputs of one, inputs of one, taps): input channels are those of axes 0 and 2."""
    workload = reader.layer.workload
    groups = workload.groups if isinstance(workload, Conv2dWorkload) else 1
    return weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)


def _divided(weight: Array, bias: Array | None, s: Array) -> tuple[Array, Array | None]:
    scaled = weight / s.reshape((-1,) + (1,) * (weight.ndim - 1))
    return scaled, None if bias is None else bias / s


def _multiplied(weight: Array, reader: LayerStep, s: Array) -> Array:
    parts = _by_input(weight, reader)
    result: Array = (parts * s.reshape(len(parts), 1, -1, 1)).reshape(weight.shape)
    return result


def _with_constants(
    step: LayerStep, weight: Array, bias: Array | None, divisor: Array | None
) -> LayerStep:
    """The step with these constants, in its bindings too: what no template covers runs those."""
    bindings = tuple(
        relax.VarBinding(b.var, _rebound(b.value, weight, divisor)) for b in step.bindings
    )
    return replace(step, weight=weight, bias=bias, bindings=bindings)


def _rebound(call: Any, weight: Array, divisor: Array | None) -> Any:
    name = op_name(call)
    if name in ("relax.nn.conv2d", "relax.matmul"):
        constant = weight if name == "relax.nn.conv2d" else np.ascontiguousarray(weight.T)
        return relax.Call(call.op, [call.args[0], relax.const(constant)], call.attrs, call.ty_args)
    constants = [const_array(a) for a in call.args] if name == "relax.add" else []
    if divisor is None or all(c is None for c in constants):
        return call
    at = next(i for i, c in enumerate(constants) if c is not None)
    shape = static_shape(call.args[1 - at]) or ()
    bias = per_channel(constants[at], shape)  # type: ignore[arg-type]
    assert bias is not None
    args = list(call.args)
    args[at] = relax.const((bias / divisor).reshape((-1,) + (1,) * (len(shape) - 2)))
    return relax.Call(call.op, args, call.attrs, call.ty_args)
