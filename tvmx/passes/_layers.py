"""Layer extraction: group each anchor operator with its epilogue, on the IR that is deployed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tvmx._tvm import relax, tvm
from tvmx.errors import ModelError
from tvmx.ir import (
    ChannelValues,
    Conv2dWorkload,
    Layer,
    NetworkGraph,
    Node,
    NodeKind,
    StatedValue,
)
from tvmx.numerics import LayerConstants, StatedWeight
from tvmx.passes._dataflow import const, dtype_of, op_name
from tvmx.passes._dynamic import DynamicLayer, Dynamics, real_anchor
from tvmx.passes._groups import (
    Group,
    find_groups,
    free_vars,
    single_readers,
    static_shape,
    workload_of,
)
from tvmx.passes._integer_layer import IntegerLayer
from tvmx.passes._integers import PARAMS, Integers, operator_in
from tvmx.passes._layout_rules import classify
from tvmx.passes._lrn import Lrn, find_lrns
from tvmx.passes._operator import Operator, lrn_operator, operator_of
from tvmx.passes._qdq import OperatorGroup, Qdq

if TYPE_CHECKING:
    from tvmx.ir import Model

Array = npt.NDArray[np.float32]
_FOLLOW = frozenset({"add", "multiply", "clip", "table", "lrn"})
_ANY_SCALE = frozenset({"max_pool", "reshape"})  # the same in float and int8, to the bit


@dataclass(frozen=True)
class LayerStep:
    """A layer as the lowering needs it: its Relax bindings and logical constants.

    ``weight`` is OIHW (or (out, in) for dense), ``bias`` is ``(out_channels,)`` or None.
    ``bindings`` are the original ones, emitted as they are where no template covers the layer.
    ``stated`` is the weight of a layer that the model states in int8, or all constants of one that
    it states in whole numbers throughout. ``pruned`` are constants for sparse implementations, by
    sparsity: see :mod:`tvmx.passes._pruned`. ``dynamic``: its data is quantised at run time, with a
    scale and zero point of each run's own.
    """

    layer: Layer
    bindings: tuple[Any, ...]
    weight: Array
    bias: Array | None
    stated: StatedWeight | LayerConstants | None = None
    pruned: Mapping[str, LayerConstants] = field(default_factory=dict)
    dynamic: bool = False


@dataclass(frozen=True)
class OpStep:
    """A Relax binding between layers; with ``lrn`` it is the last of several that are one.

    ``operator`` says what it computes where int8 can take its place. ``dynamic``: it quantises,
    with a scale and zero point found from the data.
    """

    binding: Any
    lrn: Lrn | None = None
    operator: Operator | None = None
    dynamic: bool = False


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

    @property
    def dynamic_layers(self) -> int:
        """Layers whose data is quantised at run time."""
        return sum(isinstance(step, LayerStep) and step.dynamic for step in self.steps)

    @property
    def integer_products_elsewhere(self) -> int:
        """Convolutions and products of whole numbers that are no layers."""
        return sum(
            isinstance(step, OpStep)
            and op_name(step.binding.value) in ("relax.nn.conv2d", "relax.matmul")
            and dtype_of(step.binding.var) == "int32"
            for step in self.steps
        )


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
    qdq = Qdq(bindings, [func.body.body])
    readers = single_readers(bindings, uses)
    dynamics = Dynamics(bindings, readers, [func.body.body])
    groups = find_groups(bindings, readers, qdq, dynamics)
    taken = {i for group in groups for i in (*group.members, group.last)}
    lrns = find_lrns(bindings, uses)
    operators = {group.members[-1]: group for group in qdq.operators(uses, taken, lrns)}
    lrns = {last: lrn for last, lrn in lrns.items() if last not in _members(operators)}
    integers = Integers(bindings, [func.body.body])
    return _Assembly(model, bindings, qdq, integers, dynamics, groups, operators, lrns).network()


def _members(operators: Mapping[int, OperatorGroup]) -> set[int]:
    return {i for group in operators.values() for i in group.members}


class _Assembly:
    """Numbers values and lines up nodes and steps."""

    def __init__(
        self, model: Model, bindings: list[Any], qdq: Qdq, integers: Integers, dynamics: Dynamics,
        groups: list[Group], operators: dict[int, OperatorGroup], lrns: dict[int, Lrn],
    ) -> None:  # fmt: skip
        self._model, self._bindings = model, bindings
        self._qdq, self._integers = qdq, integers
        self._groups = {group.last: group for group in groups}
        self._operators, self._lrns, self._dynamics = operators, lrns, dynamics
        inside = {i for group in groups for i in (*group.members, group.last)}
        inside |= {i for lrn in lrns.values() for i in lrn.members}
        inside |= _members(operators)
        self._inside = inside | qdq.skipped | integers.members | dynamics.members
        self._read_as_float = self._float_reads() if qdq.params else set()
        self._ids: dict[Any, int] = {}
        self._shapes: list[tuple[int, ...]] = []
        self._nodes: list[Node] = []
        self._steps: list[LayerStep | OpStep] = []
        self._layers: list[Layer] = []
        self._names: Counter[str] = Counter()

    def network(self) -> Network:
        model = self._model
        func = model.mod["main"]
        inputs = tuple(self._number(p) for p in func.params)
        for param in func.params:
            self._enter_integers(param)
        for index, binding in enumerate(self._bindings):
            self._step(index, binding)
        outputs = tuple(self._number(v) for v in free_vars(func.body.body))
        qdq = self._qdq
        stated = tuple(
            StatedValue(self._ids[var], params.scale, params.zero_point, params.unsigned)
            for q, params in qdq.params.items()
            if (var := qdq.canonical[q]) in self._ids
        )
        stated += tuple(
            StatedValue(self._ids[var], PARAMS.scale, PARAMS.zero_point)
            for var in self._integers.canonical.values()
            if var in self._ids
        )
        graph = NetworkGraph(
            tuple(self._layers), tuple(self._nodes), tuple(self._shapes), inputs, outputs,
            stated=stated,
        )  # fmt: skip
        return Network(model, graph, tuple(self._steps), tuple(self._ids))

    def _number(self, var: Any) -> int:
        if var not in self._ids:
            self._ids[var] = len(self._ids)
            self._shapes.append(static_shape(var) or ())
        return self._ids[var]

    def _step(self, index: int, binding: Any) -> None:
        if index in self._dynamics.values:
            data, made = self._dynamics.values[index]
            node = Node("quantise", (self._number(data),), self._number(made), "dynamic_quantise",
                        int8=True)  # fmt: skip
            self._put(node, OpStep(binding, dynamic=True))
        if index in self._lrns:
            self._lrn(binding, self._lrns[index])
        elif index in self._groups:
            self._layer(self._groups[index])
        elif index in self._operators:
            self._operator(self._operators[index])
        elif index in self._integers.layers:
            self._integer_layer(self._integers.layers[index])
        elif index in self._integers.operators:
            self._integer_operator(index)
        elif binding.var in self._qdq.params:
            self._quantise(binding)
        elif binding.var in self._qdq.entered:
            self._enter(binding)
        elif index not in self._inside:
            self._other(binding)
        if binding.var in self._qdq.raw:
            self._requantise(binding)
        self._enter_integers(binding.var)
        if binding.var in self._integers.raw:
            call = self._integers.exit(binding.var)
            self._other(relax.VarBinding(binding.var, call))

    def _put(self, node: Node, step: LayerStep | OpStep) -> None:
        self._nodes.append(node)
        self._steps.append(step)

    def _layer(self, group: Group) -> None:
        bindings = self._bindings
        layer = self._describe(group)
        self._layers.append(layer)
        anchor = bindings[group.anchor].value
        dynamic = group.dynamic
        reads = [anchor.args[0] if dynamic is None else dynamic.value]
        reads += [group.residual] if group.residual is not None else []
        made = bindings[group.members[-1]].var
        if group.quantising is not None:
            made = self._qdq.canonical[bindings[group.quantising].var]
        operands = tuple(self._number(v) for v in reads)
        first = 1 if dynamic is None else len(dynamic.members)
        last = bindings[group.members[first - 1]].var
        parts = (_plain(bindings[group.anchor], group.weight, dynamic, last),)
        parts += tuple(bindings[i] for i in group.members[first:])
        self._put(
            Node("layer", operands, self._number(made), layer.op, layer.index),
            LayerStep(layer, parts, group.weight, group.bias, group.stated,
                      dynamic=dynamic is not None),
        )  # fmt: skip

    def _lrn(self, binding: Any, lrn: Lrn) -> None:
        # Where the model states its data alone in int8, it states that it computes in float here.
        operator = None if self._qdq.stated(lrn.source) else lrn_operator(lrn)
        source, made = self._number(lrn.source), self._number(binding.var)
        node = Node("follow", (source,), made, "lrn", int8=operator is not None)
        self._put(node, OpStep(binding, lrn, operator))

    def _operator(self, group: OperatorGroup) -> None:
        """One that the model states in int8."""
        q = self._bindings[group.members[-1]].var
        operands = tuple(self._number(v) for v in group.reads)
        follows = group.operator.kind in _FOLLOW
        kind = "follow" if follows else classify(group.binding)
        node = Node(kind, operands, self._number(self._qdq.canonical[q]), group.operator.kind,
                    int8=True)  # fmt: skip
        self._put(node, OpStep(group.binding, operator=group.operator))

    def _integer_layer(self, found: IntegerLayer) -> None:
        """One that the model states in whole numbers."""
        canonical, bias = self._integers.canonical, found.constants.bias
        weight = found.constants.weight.astype(np.float32)
        group = Group(found.anchor, list(found.members), weight, bias if found.bias else None,
                      stated=found.constants, rounding=found.rounding,
                      padding=found.padding)  # fmt: skip
        layer = self._describe(group)
        self._layers.append(layer)
        made = self._bindings[found.members[-1]].var
        operands = (self._number(canonical[found.source]),)
        self._put(
            Node("layer", operands, self._number(canonical[made]), layer.op, layer.index),
            LayerStep(layer, self._integers.as_written(found), weight, None, found.constants),
        )

    def _integer_operator(self, index: int) -> None:
        """Whole numbers between layers."""
        group, canonical = self._integers.operators[index], self._integers.canonical
        operator, binding = operator_in(group), self._bindings[index]
        kind: NodeKind = "concat" if group.concatenates and len(group.shape) == 4 else "follow"
        if operator.kind == "reshape":
            kind = classify(binding)
        operands = tuple(self._number(canonical[q]) for q in group.sources)
        self._put(
            Node(kind, operands, self._number(canonical[group.output]), operator.kind, int8=True),
            OpStep(binding, operator=operator),
        )

    def _enter_integers(self, q: Any) -> None:
        """A value of a byte that something else makes, for integer layers to read."""
        if q not in self._integers.entering:
            return
        data = relax.DataflowVar(f"{q.name}_float", self._integers.canonical[q].ty)
        binding = relax.VarBinding(data, self._integers.entry(q))
        self._other(binding)
        made = self._number(self._integers.canonical[q])
        self._put(Node("quantise", (self._number(data),), made, "quantise"), OpStep(binding))

    def _quantise(self, binding: Any) -> None:
        """A value that no int8 kernel makes."""
        self._to_int8(binding.value.args[0], self._qdq.canonical[binding.var], binding)

    def _enter(self, binding: Any) -> None:
        """A network input that is int8 itself."""
        data = self._qdq.entered[binding.var]
        self._other(relax.VarBinding(data, binding.value))
        self._to_int8(data, binding.var, binding)

    def _to_int8(self, data: Any, var: Any, binding: Any) -> None:
        """``data`` becomes the stated value ``var``: for those that read it, where all do."""
        read_as_float = self._qdq.quantised[var] in self._qdq.raw or var in self._read_as_float
        node = Node("quantise", (self._number(data),), self._number(var), "quantise",
                    int8=read_as_float)  # fmt: skip
        self._put(node, OpStep(binding))

    def _requantise(self, binding: Any) -> None:
        """A network output that is int8 itself."""
        var = self._qdq.canonical[binding.var]
        call = relax.Call(binding.value.op, [var, *binding.value.args[1:]], binding.value.attrs)
        again = relax.VarBinding(binding.var, call)
        node = Node("opaque", (self._number(var),), self._number(binding.var), "requantise")
        self._put(node, OpStep(again))

    def _float_reads(self) -> set[Any]:
        """What the network returns, or anything but stated layers and operators reads.

        Layers with a float output count: where no template covers them they read float.
        """
        stated = [g for g in self._groups.values() if g.stated and not g.float_out]
        int8 = {i for g in stated for i in g.members}
        int8 |= _members(self._operators)
        found = set(free_vars(self._model.mod["main"].body.body))
        for index, binding in enumerate(self._bindings):
            if index not in int8:
                found.update(free_vars(binding.value))
        return found

    def _other(self, binding: Any) -> None:
        variables = free_vars(binding.value)
        operands = tuple(self._number(v) for v in variables)
        name = op_name(binding.value) or type(binding.value).__name__
        operator = operator_of(binding, variables)
        if variables and all(self._qdq.stated(v) for v in variables):
            # The model states that it computes in float here.
            operator = operator if operator and operator.kind in _ANY_SCALE else None
        kind, tied = classify(binding), operator is not None and operator.tied
        output = self._number(binding.var)
        self._put(
            Node(kind, operands, output, name, int8=operator is not None, tied=tied),
            OpStep(binding, operator=operator),
        )

    def _describe(self, group: Group) -> Layer:
        sources = [self._model.sources.get(self._bindings[i].var.name) for i in group.members]
        named = [s for s in sources if s is not None]
        anchor = self._bindings[group.anchor]
        name = named[0].name if named else anchor.var.name
        self._names[name] += 1
        if self._names[name] > 1:
            name = f"{name}#{self._names[name]}"
        workload = workload_of(anchor.value, group)
        depthwise = isinstance(workload, Conv2dWorkload) and workload.is_depthwise
        bias = 0 if group.bias is None else group.bias.size
        return Layer(
            index=len(self._layers),
            name=name,
            op="depthwise_conv2d" if depthwise else workload.op,
            workload=workload,
            fused=tuple(dict.fromkeys(s.name for s in named[1:] if s != named[0])),
            parameters=int(group.weight.size) + int(bias),
        )


def _plain(binding: Any, weight: Array, dynamic: DynamicLayer | None, made: Any) -> Any:
    """An anchor with a float constant as its weight, which may be a quantised one.

    One whose data is ``dynamic`` makes the float variable ``made`` of dequantised data.
    """
    call = binding.value
    if dynamic is not None:
        return relax.VarBinding(made, real_anchor(call, dynamic.value, weight))
    if isinstance(call.args[1], tvm.ir.GenericConst):
        return binding
    matrix = weight.T if op_name(call) == "relax.matmul" else weight
    args = [call.args[0], const(matrix), *call.args[2:]]
    return relax.VarBinding(binding.var, relax.Call(call.op, args, call.attrs, call.ty_args))
