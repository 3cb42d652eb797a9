"""Layer extraction: group each anchor operator with its epilogue, on the IR that is deployed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tvmx._tvm import relax, tvm
from tvmx.errors import ModelError
from tvmx.ir import (
    ChannelValues,
    Conv2dWorkload,
    DenseWorkload,
    Epilogue,
    Layer,
    NetworkGraph,
    Node,
)
from tvmx.passes._dataflow import op_name
from tvmx.passes._layout_rules import classify
from tvmx.passes._lrn import Lrn, find_lrns
from tvmx.passes._operator import Operator, clip_bounds, operator_of

if TYPE_CHECKING:
    from tvmx.ir import Model

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LayerStep:
    """A layer as the lowering needs it: its Relax bindings and logical constants.

    ``weight`` is OIHW (or (out, in) for dense), ``bias`` is ``(out_channels,)`` or None.
    ``bindings`` are the original ones, emitted as they are where no template covers the layer.
    """

    layer: Layer
    bindings: tuple[Any, ...]
    weight: Array
    bias: Array | None


@dataclass(frozen=True)
class OpStep:
    """A Relax binding between layers; with ``lrn`` it is the last of several that are one.

    ``operator`` says what it computes where int8 can take its place.
    """

    binding: Any
    lrn: Lrn | None = None
    operator: Operator | None = None


@dataclass(frozen=True)
class Network:
    """A model cut into layers: the pure ``graph`` and, node by node, the Relax ``steps``.

    ``values[v]`` is the Relax variable of value ``v``. ``equalised`` are the factors that
    :mod:`tvmx.passes._equalise` applied to the constants of ``original``.
    """

    model: Model
    graph: NetworkGraph
    steps: tuple[LayerStep | OpStep, ...]
    values: tuple[Any, ...]
    equalised: tuple[ChannelValues, ...] = ()
    original: Network | None = None


def static_shape(expr: Any) -> tuple[int, ...] | None:
    """Static shape of a tensor-typed expression, None for tuples and shapes."""
    ty = expr.ty
    if not isinstance(ty, relax.TensorType) or ty.shape is None:
        return None
    values = getattr(ty.shape, "values", None)
    return None if values is None else tuple(int(v) for v in values)


def const_array(expr: Any) -> npt.NDArray[Any] | None:
    """The array of a Relax constant, None for anything else."""
    return expr.value.numpy() if isinstance(expr, tvm.ir.GenericConst) else None


def free_vars(expr: Any) -> list[Any]:
    """Variables an expression reads, in order, without repeats."""
    return list(dict.fromkeys(relax.analysis.free_vars(expr)))


@dataclass
class _Group:
    anchor: int
    members: list[int]
    weight: Array
    bias: Array | None = None
    residual: Any = None
    clip: tuple[float | None, float | None] | None = None


def extract_layers(model: Model) -> Network:
    """Cut a canonical model into layers and the operators between them.

    An anchor (2-d convolution or matrix product with constant weights) takes in the
    per-channel bias, residual add and clip that alone read its result, in that order.

    Raises:
        ModelError: the module is not in canonical form (one dataflow block).
    """
    func = model.mod["main"]
    blocks = [b for b in func.body.blocks if len(b.bindings)]
    if len(blocks) > 1:
        raise ModelError(f"{model.path}: control flow is not supported (more than one block)")
    bindings = list(blocks[0].bindings) if blocks else []
    uses = Counter(v for b in bindings for v in free_vars(b.value))
    uses.update(free_vars(func.body.body))
    readers = _single_readers(bindings, uses)
    groups = _find_groups(bindings, readers)
    return _assemble(model, func, bindings, groups, find_lrns(bindings, uses))


def _single_readers(bindings: list[Any], uses: Counter[Any]) -> dict[Any, int]:
    """Variable -> index of the one binding that reads it, once."""
    readers: dict[Any, int] = {}
    for index, binding in enumerate(bindings):
        for var in free_vars(binding.value):
            if uses[var] == 1:
                readers[var] = index
    return readers


def _find_groups(bindings: list[Any], readers: dict[Any, int]) -> list[_Group]:
    groups: list[_Group] = []
    taken: set[int] = set()
    # Backwards, so that of two convolutions joined by an add the later one absorbs it: the
    # other operand exists by then, and no live range grows.
    for index in reversed(range(len(bindings))):
        weight = _anchor_weight(bindings[index].value)
        if weight is None:
            continue
        group = _Group(index, [index], weight)
        current = index
        while True:
            reader = readers.get(bindings[current].var)
            if reader is None or reader in taken:
                break
            if not _absorb(group, bindings[current].var, bindings[reader].value):
                break
            group.members.append(reader)
            current = reader
        taken.update(group.members)
        groups.append(group)
    return sorted(groups, key=lambda g: g.anchor)


def _anchor_weight(call: Any) -> Array | None:
    """Logical weights if the call is an anchor, else None."""
    name = op_name(call)
    if name not in ("relax.nn.conv2d", "relax.matmul") or str(call.ty.dtype) != "float32":
        return None
    weight, data = const_array(call.args[1]), static_shape(call.args[0])
    if weight is None or data is None or isinstance(call.args[0], tvm.ir.GenericConst):
        return None
    if name == "relax.matmul":
        is_dense = len(data) == 2 and weight.ndim == 2
        return np.ascontiguousarray(weight.T) if is_dense else None
    attrs = call.attrs
    standard = (attrs.data_layout, attrs.kernel_layout) == ("NCHW", "OIHW")
    return weight if standard and weight.ndim == 4 else None


def _absorb(group: _Group, var: Any, call: Any) -> bool:
    """Try to take ``call``, the only reader of ``var``, into the epilogue."""
    name = op_name(call)
    if group.clip is not None:
        return False
    bounds = clip_bounds(call)
    if bounds is not None:
        group.clip = bounds
        return True
    if name != "relax.add":
        return False
    if not (call.args[0].same_as(var) or call.args[1].same_as(var)):
        return False
    other = call.args[1] if call.args[0].same_as(var) else call.args[0]
    constant = const_array(other)
    if constant is not None:
        if group.residual is not None:
            return False
        bias = per_channel(constant, static_shape(var) or ())
        if bias is None:
            return False
        group.bias = bias if group.bias is None else group.bias + bias
        return True
    if group.residual is not None or static_shape(other) != static_shape(var):
        return False
    if other.same_as(var):
        return False
    group.residual = other
    return True


def per_channel(constant: npt.NDArray[Any], shape: tuple[int, ...]) -> Array | None:
    """A constant broadcast along the channel axis (1) only, as ``(channels,)``; else None."""
    if len(shape) not in (2, 4) or constant.ndim > len(shape):
        return None
    full = (1,) * (len(shape) - constant.ndim) + constant.shape
    want = tuple(shape[1] if axis == 1 else 1 for axis in range(len(shape)))
    if full != want and constant.size != 1:
        return None
    return np.ascontiguousarray(np.broadcast_to(constant.reshape(-1), (shape[1],)), np.float32)


def _workload(call: Any, group: _Group) -> Conv2dWorkload | DenseWorkload:
    low, high = group.clip if group.clip else (None, None)
    epilogue = Epilogue(
        bias=group.bias is not None,
        residual=group.residual is not None,
        clip_min=low,
        clip_max=high,
    )
    shape = static_shape(call.args[0]) or ()
    if op_name(call) == "relax.matmul":
        return DenseWorkload(
            batch=shape[0], in_features=shape[1],
            out_features=group.weight.shape[0], epilogue=epilogue,
        )  # fmt: skip
    attrs = call.attrs
    top, left, bottom, right = (int(p) for p in attrs.padding)
    return Conv2dWorkload(
        batch=shape[0], in_channels=shape[1], height=shape[2], width=shape[3],
        out_channels=group.weight.shape[0],
        kernel=(group.weight.shape[2], group.weight.shape[3]),
        strides=(int(attrs.strides[0]), int(attrs.strides[1])),
        padding=(top, left, bottom, right),
        dilation=(int(attrs.dilation[0]), int(attrs.dilation[1])),
        groups=int(attrs.groups), epilogue=epilogue,
    )  # fmt: skip


def _assemble(
    model: Model, func: Any, bindings: list[Any], groups: list[_Group], lrns: dict[int, Lrn]
) -> Network:
    last_of = {group.members[-1]: group for group in groups}
    member = {i for group in groups for i in group.members}
    member |= {i for lrn in lrns.values() for i in lrn.members}
    ids: dict[Any, int] = {}
    shapes: list[tuple[int, ...]] = []

    def number(var: Any) -> int:
        if var not in ids:
            ids[var] = len(ids)
            shapes.append(static_shape(var) or ())
        return ids[var]

    inputs = tuple(number(p) for p in func.params)
    nodes: list[Node] = []
    steps: list[LayerStep | OpStep] = []
    layers: list[Layer] = []
    names: Counter[str] = Counter()
    for index, binding in enumerate(bindings):
        if index in lrns:
            lrn = lrns[index]
            nodes.append(Node("follow", (number(lrn.source),), number(binding.var), "lrn"))
            steps.append(OpStep(binding, lrn))
            continue
        if index in member and index not in last_of:
            continue
        if index in last_of:
            group = last_of[index]
            layer = _layer(model, bindings, group, len(layers), names)
            layers.append(layer)
            anchor = bindings[group.anchor].value
            reads = [anchor.args[0]] + ([group.residual] if group.residual is not None else [])
            operands = tuple(number(v) for v in reads)
            nodes.append(Node("layer", operands, number(binding.var), layer.op, layer.index))
            parts = tuple(bindings[i] for i in group.members)
            steps.append(LayerStep(layer, parts, group.weight, group.bias))
            continue
        variables = free_vars(binding.value)
        operands = tuple(number(v) for v in variables)
        name = op_name(binding.value) or type(binding.value).__name__
        operator = operator_of(binding, variables)
        kind, tied = classify(binding), operator is not None and operator.tied
        output = number(binding.var)
        nodes.append(Node(kind, operands, output, name, int8=operator is not None, tied=tied))
        steps.append(OpStep(binding, operator=operator))
    outputs = tuple(number(v) for v in free_vars(func.body.body))
    graph = NetworkGraph(tuple(layers), tuple(nodes), tuple(shapes), inputs, outputs)
    return Network(model, graph, tuple(steps), tuple(ids))


def _layer(
    model: Model, bindings: list[Any], group: _Group, index: int, names: Counter[str]
) -> Layer:
    sources = [model.sources.get(bindings[i].var.name) for i in group.members]
    named = [s for s in sources if s is not None]
    anchor = bindings[group.anchor]
    name = named[0].name if named else anchor.var.name
    names[name] += 1
    if names[name] > 1:
        name = f"{name}#{names[name]}"
    workload = _workload(anchor.value, group)
    depthwise = isinstance(workload, Conv2dWorkload) and workload.is_depthwise
    bias = 0 if group.bias is None else group.bias.size
    return Layer(
        index=index,
        name=name,
        op="depthwise_conv2d" if depthwise else workload.op,
        workload=workload,
        fused=tuple(dict.fromkeys(s.name for s in named[1:] if s != named[0])),
        parameters=int(group.weight.size) + int(bias),
    )
