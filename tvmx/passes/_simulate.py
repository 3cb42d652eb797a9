"""The network in NumPy and PyTorch: what a plan computes, without any of tvmx's kernels.

Values are kept as floats; those that a quantised model states in int8 are always whole steps of
their scale, so that nothing is lost.

int8 layers are simulated exactly, in integers. It calibrates, tells how sensitive layers are, and
is the reference that int8 and sparse candidates are checked against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx._tvm import make_target, relax, tvm
from tvmx.ir import (
    Conv2dWorkload,
    Implementation,
    LayoutWalk,
    Node,
    Plan,
    is_int8,
)
from tvmx.numerics import (
    LayerConstants,
    QuantParams,
    add_int8,
    avg_pool_int8,
    clip_int8,
    clip_to,
    concat_int8,
    corrected,
    dequantise,
    dynamic_params,
    dynamic_quantise,
    layer_constants,
    lookup_int8,
    lrn_int8,
    max_pool_int8,
    mean_int8,
    multiply_int8,
    quantise,
    requantise,
    rescale,
)
from tvmx.passes._dynamic_kernels import constants_of
from tvmx.passes._layers import LayerStep, Network, OpStep
from tvmx.passes._lower import finish_relax, rewire
from tvmx.passes._lrn import Lrn
from tvmx.passes._operator import Operator
from tvmx.passes._pruned import float_constants, planned
from tvmx.passes._quantise import corrections_of, layer_params, params_of, tie
from tvmx.targets import Target
from tvmx.templates import linear, reference

Array = npt.NDArray[Any]
Values = dict[int, Array]
"""Value number -> float array (calls, *shape of the value): several calls of the network.

A value that is a tuple (what Split makes) is a tuple of such arrays.
"""

_EXACT_TERMS = 2**24 // (128 * 127)
"""So many s8 products sum up exactly in float32."""


class Simulator:
    """Runs a network for several calls at once. ``host`` is this machine's target.

    ``corrections`` (by layer index) are added to the biases of int8 layers.
    """

    def __init__(
        self, network: Network, host: Target, corrections: Mapping[int, Array] | None = None
    ) -> None:
        self.network = network
        self.corrections = dict(corrections or {})
        self._graph = network.graph
        self._params = tie(network.graph, {})
        self.host = host
        self._machines: dict[int, Any] = {}
        self._constants: dict[Any, LayerConstants] = {}

    def with_corrections(self, corrections: Mapping[int, Array]) -> Simulator:
        """A simulator of the same network with other bias corrections."""
        other = Simulator(self.network, self.host, corrections)
        other._machines = self._machines
        return other

    def run(self, inputs: Sequence[Array]) -> Values:
        """All values of the network as the model states it; ``inputs`` are (calls, *shape)."""
        values: Values = dict(zip(self._graph.inputs, inputs, strict=True))
        for index, (node, step) in enumerate(
            zip(self._graph.nodes, self.network.steps, strict=True)
        ):
            operands = [values[v] for v in node.inputs]
            values[node.output] = self.stated(index, node, step, operands)
        return values

    def stated(self, index: int, node: Node, step: LayerStep | OpStep, operands: list[Any]) -> Any:
        """What the model says a node computes, floats in and out."""
        params = self._params
        if isinstance(step, OpStep) and step.dynamic:
            return _quantised_each(operands[0])
        if isinstance(step, LayerStep) and step.dynamic:
            return self.layer(node, step, None, operands, params)
        if isinstance(step, LayerStep) and step.layer.workload.epilogue.float_out:
            data = quantise(operands[0], params[node.inputs[0]])
            return self.layer(node, step, None, [data, *operands[1:]], params)
        if node.output not in self._graph.stated_values:
            return self._float(index, node, step, operands)
        if node.kind == "quantise":
            result = quantise(operands[0], params[node.output])
        else:
            pairs = zip(operands, node.inputs, strict=True)
            int8 = [quantise(x, params[v]) for x, v in pairs]
            if isinstance(step, LayerStep):
                result = self.layer(node, step, None, int8, params)
            else:
                assert step.operator is not None
                result = self.operator(node, step.operator, int8, params)
        return dequantise(result, params[node.output])

    def rerun(
        self, values: Values, choices: Mapping[int, Implementation],
        params: Mapping[int, QuantParams],
    ) -> Values:  # fmt: skip
        """The values with ``choices`` (layer index -> implementation) in force.

        ``values`` is what :meth:`run` returned; only what differs is computed. ``params`` must
        cover the values that int8 layers touch. Values that are int8 come back dequantised.
        """
        return _Rerun(self, values, choices, params).run()

    def outputs(self, values: Values) -> tuple[Array, ...]:
        """The network's outputs, (calls, *shape), in the model's order."""
        number = {var: index for index, var in enumerate(self.network.values)}
        result = self.network.model.mod["main"].body.body
        fields = list(result.fields) if isinstance(result, relax.Tuple) else [result]
        calls = len(next(iter(values.values())))
        found = []
        for field in fields:
            if isinstance(field, relax.Var):
                found.append(values[number[field]])
            else:
                constant = field.value.numpy()
                found.append(np.broadcast_to(constant, (calls, *constant.shape)))
        return tuple(found)

    def expected(self, plan: Plan, inputs: Sequence[Array]) -> tuple[Array, ...]:
        """Outputs of a plan for one call: ``inputs`` in the model's shapes.

        The plan's equalisation, corrections and pruned constants are in force, whatever those of
        the simulator.
        """
        network, graph = planned(self.network, plan), self._graph
        other = Simulator(network, self.host, corrections_of(plan, graph))
        other._machines = self._machines  # a plan's constants are those of layers only
        chosen = {la.index: plan.choice(la.name) for la in graph.layers}
        choices = {i: c.implementation for i, c in chosen.items() if c is not None}
        values = other.run([np.asarray(x)[None] for x in inputs])
        after = other.rerun(values, choices, params_of(graph, plan.activations))
        return tuple(out[0] for out in other.outputs(after))

    def layer(
        self, node: Node, step: LayerStep, implementation: Implementation | None,
        operands: list[Array], params: Mapping[int, QuantParams],
    ) -> Array:  # fmt: skip
        """One layer on float (or s8) operands (calls, *shape), (calls, *shape) out.

        The data of a dynamic layer is a tuple: s8 values, and scales and zero points by call.
        """
        if step.dynamic:
            return self._dynamic(step, operands)
        constants = self._layer_constants(node, step, implementation, params)
        workload, calls = _variant(step, implementation), len(operands[0])
        flat = [a.reshape(-1, *a.shape[2:]) for a in operands]
        residual = flat[1] if len(flat) > 1 else None
        if constants.requantise is None:
            out = reference(workload, flat[0], constants, residual)
        else:
            sums = _exact_sums(workload, flat[0], constants)
            assert constants.bias is not None
            bias = constants.bias.reshape((1, -1) + (1,) * (sums.ndim - 2))
            out = requantise(sums + bias, constants.requantise, residual)
        return out.reshape(calls, *workload.out_shape)

    def _dynamic(self, step: LayerStep, operands: list[Any]) -> Array:
        """A layer whose data has a scale and zero point of its own in each call."""
        workload, found = step.layer.workload, []
        for call, (data, scale, zero) in enumerate(zip(*operands[0], strict=True)):
            constants = constants_of(step, scale, int(zero))
            assert constants.requantise is not None and constants.bias is not None
            sums = _exact_sums(workload, data, constants)
            bias = constants.bias.reshape((1, -1) + (1,) * (sums.ndim - 2))
            residual = operands[1][call] if len(operands) > 1 else None
            found.append(requantise(sums + bias, constants.requantise, residual))
        return np.stack(found)

    def operator(
        self, node: Node, operator: Operator, operands: list[Array],
        known: Mapping[int, QuantParams],
    ) -> Array:  # fmt: skip
        """One operator between layers on s8 operands (calls, *shape), s8 out."""
        params, out = [known[v] for v in node.inputs], known[node.output]
        calls = len(operands[0])
        x = [a.reshape(-1, *a.shape[2:]) for a in operands]
        match operator.kind:
            case "add":
                low, high = clip_to(operator.low, operator.high, out)
                result = add_int8(x[0], params[0], x[1], params[1], out, low, high)
            case "multiply":
                result = multiply_int8(x[0], params[0], x[1], params[1], out)
            case "table":
                assert operator.chain is not None
                result = lookup_int8(x[0], operator.chain.table(params[0], out))
            case "concat":
                result = concat_int8(x, params, out)
            case "clip":
                scaled = rescale(x[0], params[0], out)
                result = clip_int8(scaled, *clip_to(operator.low, operator.high, out))
            case "mean":
                result = mean_int8(x[0], params[0], out)
            case "reshape":
                result = x[0]
            case "lrn":
                assert operator.lrn is not None
                result = lrn_int8(x[0], params[0], operator.lrn.window, out)
            case "integer":
                assert operator.group is not None
                result = operator.group.evaluate(x)
            case _:
                assert operator.pool is not None
                if operator.kind == "max_pool":
                    result = max_pool_int8(x[0], operator.pool)
                else:
                    result = avg_pool_int8(x[0], params[0], operator.pool, out)
        return result.reshape(calls, *self._graph.shapes[node.output])

    def _layer_constants(
        self, node: Node, step: LayerStep, implementation: Implementation | None,
        params: Mapping[int, QuantParams],
    ) -> LayerConstants:  # fmt: skip
        if isinstance(step.stated, LayerConstants):
            return step.stated
        if step.stated is not None or (implementation and implementation.precision == "int8"):
            workload = _variant(step, implementation)
            how = layer_params(node, params, step.layer.name, workload.epilogue.float_out)
            key: Any = (node.layer, how, workload.sparsity)
            if key not in self._constants:
                trained = float_constants(step, implementation)
                bias = corrected(trained.bias, self.corrections.get(step.layer.index))
                self._constants[key] = layer_constants(
                    workload, trained.weight, bias, how, step.stated
                )
            return self._constants[key]
        if implementation is None or implementation.exact:
            return LayerConstants(step.weight, step.bias)
        key = (node.layer, implementation.sparsity)
        if key not in self._constants:
            self._constants[key] = float_constants(step, implementation)
        return self._constants[key]

    def _float(self, index: int, node: Node, step: LayerStep | OpStep, operands: list[Any]) -> Any:
        if isinstance(step, LayerStep):
            return self.layer(node, step, None, operands, {})
        if step.lrn is not None:
            return _lrn(step.lrn, operands[0])
        return self._compiled(index, node, step, operands)

    def _compiled(self, index: int, node: Node, step: OpStep, operands: list[Any]) -> Any:
        """An operator between layers as the imported model states it, compiled alone."""
        if index not in self._machines:
            self._machines[index] = self._compile(node, step)
        run = self._machines[index]["main"]
        calls = len(_fields(operands[0])[0]) if operands else 1
        results = [run(*(_argument(a, call) for a in operands)) for call in range(calls)]
        if isinstance(results[0], tvm.runtime.Tensor):
            return np.stack([result.numpy() for result in results])
        return tuple(np.stack([t.numpy() for t in parts]) for parts in zip(*results, strict=True))

    def _compile(self, node: Node, step: OpStep) -> Any:
        source = [self.network.values[v] for v in node.inputs]
        params = [relax.Var(f"x{i}", v.ty) for i, v in enumerate(source)]
        functions = {
            v: f for v, f in self.network.model.mod.functions.items() if v.name_hint != "main"
        }
        bb = relax.BlockBuilder(tvm.IRModule(functions))
        with bb.function("main", params=params):
            with bb.dataflow():
                value = rewire(step.binding.value, dict(zip(source, params, strict=True)))
                out = bb.emit_output(bb.emit(value))
            bb.emit_func_output(out)
        mod = finish_relax(bb.finalize(), self.host)
        return relax.VirtualMachine(relax.build(mod, make_target(self.host)), tvm.cpu())


class _Rerun:
    """One pass over the network with some layers changed."""

    def __init__(
        self, simulator: Simulator, values: Values, choices: Mapping[int, Implementation],
        params: Mapping[int, QuantParams],
    ) -> None:  # fmt: skip
        self._simulator, self._choices = simulator, choices
        self._params = tie(simulator.network.graph, params)
        self._float: Values = dict(values)
        self._int8: Values = {}
        self._changed: set[int] = set()

    def run(self) -> Values:
        simulator, network = self._simulator, self._simulator.network
        walk = LayoutWalk(network.graph)
        for index, (node, step) in enumerate(zip(network.graph.nodes, network.steps, strict=True)):
            chosen = self._choices.get(node.layer) if node.layer is not None else None
            placed = walk.step(node, chosen)
            plain = chosen is None or chosen.exact
            if plain and not self._changed & set(node.inputs):
                continue
            forms = zip(node.inputs, placed.reads, strict=True)
            operands = [self._get(v, is_int8(form)) for v, form in forms]
            int8 = is_int8(placed.writes)
            if isinstance(step, OpStep) and step.dynamic:
                result, int8 = simulator.stated(index, node, step, operands), False
            elif node.kind == "quantise":
                # Where nothing is computed here, it is in the conversions of those that read it.
                result, int8 = quantise(operands[0], self._params[node.output]), True
            elif chosen is None and not int8:
                result = simulator.stated(index, node, step, operands)
            elif isinstance(step, LayerStep):
                result = simulator.layer(node, step, chosen, operands, self._params)
            else:
                assert step.operator is not None
                result = simulator.operator(node, step.operator, operands, self._params)
            self._put(node.output, result, int8)
        return self._float

    def _get(self, value: int, int8: bool) -> Array:
        if not int8 or isinstance(self._float[value], tuple):
            return self._float[value]
        if value not in self._int8:
            self._int8[value] = quantise(self._float[value], self._params[value])
        return self._int8[value]

    def _put(self, value: int, result: Array, int8: bool) -> None:
        self._changed.add(value)
        if int8:
            self._int8[value] = result
            self._float[value] = dequantise(result, self._params[value])
        else:
            self._float[value] = result


def _variant(step: LayerStep, implementation: Implementation | None) -> Any:
    """A layer's workload as it is computed."""
    workload = step.layer.workload
    return workload if implementation is None else implementation.variant(workload)


def _fields(value: Any) -> Sequence[Array]:
    return value if isinstance(value, tuple) else (value,)


def _argument(value: Any, call: int) -> Any:
    """A tensor, or tensors for a tuple, of one call."""
    # ascontiguousarray would give a scalar an axis.
    tensors = [tvm.runtime.tensor(np.array(a[call], order="C")) for a in _fields(value)]
    return tensors if isinstance(value, tuple) else tensors[0]


def _quantised_each(data: Array) -> tuple[Array, Array, Array]:
    """s8 values, scales and zero points of each call, from its own range."""
    params = [dynamic_params(one) for one in data]
    values = [dynamic_quantise(one, *how) for one, how in zip(data, params, strict=True)]
    scales, zeros = zip(*params, strict=True)
    return np.stack(values), np.array(scales, np.float32), np.array(zeros, np.int32)


def _exact_sums(workload: Any, data: Array, constants: LayerConstants) -> Array:
    """int64 accumulators of an int8 layer, by float32 arithmetic on exactly representable sums."""
    assert constants.requantise is not None
    zero, weight = float(constants.requantise.data_zero_point), constants.weight
    terms = int(np.prod(weight.shape[2:]))
    step = max(1, _EXACT_TERMS // terms)
    channels = weight.shape[1]
    if channels * terms <= _EXACT_TERMS:
        return _part(workload, data, weight, zero)
    if terms > _EXACT_TERMS or (isinstance(workload, Conv2dWorkload) and workload.groups > 1):
        return linear(workload, data.astype(np.float64), weight.astype(np.float64), None, zero
                      ).astype(np.int64)  # fmt: skip
    total: Array | None = None
    for start in range(0, channels, step):
        part = slice(start, start + step)
        sums = _part(workload, data[:, part], weight[:, part], zero)
        total = sums if total is None else total + sums
    assert total is not None
    return total


def _part(workload: Any, data: Array, weight: Array, zero: float) -> Array:
    out = linear(workload, data.astype(np.float32), weight.astype(np.float32), None, zero)
    return out.astype(np.int64)


def _lrn(lrn: Lrn, data: Array) -> Array:
    """Local response normalisation of (calls, n, c, h, w)."""
    channels, window = data.shape[2], lrn.window
    after = window.size - 1 - window.before
    squares = np.pad(np.square(data), [(0, 0)] * 2 + [(window.before, after)] + [(0, 0)] * 2)
    total = sum(squares[:, :, i : i + channels] for i in range(window.size))
    result: Array = data / (window.bias + window.scale * total) ** window.beta
    return result.astype(np.float32)
