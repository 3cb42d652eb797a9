"""Lowering: Model x Plan -> IRModule whose layers are the plan's kernels.

Each layer becomes one ``call_tir`` of the kernel its template builds, constants quantised, pruned
and packed here; conversions of layout and type appear only where :class:`tvmx.ir.LayoutWalk` puts
them. Everything else goes through Relax's legalisation and fusion and tvmx's default schedule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmx._tvm import relax, tirx, tvm
from tvmx.errors import BuildError, TemplateError
from tvmx.ir import (
    Conversion,
    LayerChoice,
    LayoutWalk,
    Node,
    Plan,
    block_of,
    dtype_of,
    is_int8,
    physical_shape,
    stored_as,
)
from tvmx.numerics import LayerConstants, clip_to, corrected, layer_constants
from tvmx.passes import _int8_ops as int8
from tvmx.passes._default_schedule import schedule_rest
from tvmx.passes._dynamic_kernels import (
    constants_of,
    dynamic_dequantise_te,
    dynamic_quantise_te,
    range_kernel,
    run_time_constants,
)
from tvmx.passes._layers import LayerStep, Network, OpStep
from tvmx.passes._layout_rules import emit_blocked
from tvmx.passes._lrn import Lrn
from tvmx.passes._lrn_kernel import lrn_kernel
from tvmx.passes._memory_marks import IN_PLACE, OPAQUE, mark_concats
from tvmx.passes._operator import Operator
from tvmx.passes._pruned import float_constants, planned
from tvmx.passes._quantise import check_activations, corrections_of, layer_params, params_of
from tvmx.passes._vector_math import LEGALIZE

if TYPE_CHECKING:
    from tvmx.targets import Target
    from tvmx.templates import Kernel, Registry


@dataclass(frozen=True)
class Lowered:
    """A lowered module; ``hits`` of ``total`` layers run a template's kernel.

    ``conversions`` are the conversions of layout and type that were inserted. ``weights_bytes``
    counts the packed constants of the layers, per layer name.
    """

    mod: Any
    hits: int
    total: int
    conversions: tuple[Conversion, ...]
    weights_bytes: dict[str, int]


@relax.expr_functor.mutator
class _Rewire(relax.PyExprMutator):  # type: ignore[misc]
    """Replaces variables by what they were lowered to."""

    def __init__(self, table: dict[Any, Any]) -> None:
        super().__init__()
        self._table = table

    def visit_var_(self, op: Any) -> Any:
        return self._table.get(op, op)

    def visit_dataflow_var_(self, op: Any) -> Any:
        return self._table.get(op, op)


class _Lowering:
    def __init__(self, network: Network, plan: Plan, registry: Registry, target: Target) -> None:
        self.network, self.plan, self.registry, self.target = network, plan, registry, target
        self.bb = relax.BlockBuilder(tvm.IRModule(_prim_funcs(network.model.mod)))
        self.walk = LayoutWalk(network.graph)
        check_activations(plan, network.graph)
        self.params = params_of(network.graph, plan.activations)
        self.corrections = corrections_of(plan, network.graph)
        self.env: dict[tuple[int, str], Any] = {}
        self.built: dict[str, Kernel] = {}
        self.kernels: dict[str, tuple[Kernel, Any]] = {}
        self.ranges: dict[int, Any] = {}  # scale and zero point of values that find theirs
        self.conversions: list[Conversion] = []
        self.weights_bytes: dict[str, int] = {}
        self.hits = 0

    def run(self) -> Lowered:
        graph, source = self.network.graph, self.network.model.mod["main"]
        params = [relax.Var(p.name, p.ty) for p in source.params]
        for value, param in zip(graph.inputs, params, strict=True):
            self.env[value, "NCHW"] = param
        with self.bb.function("main", params=params, attrs=dict(source.attrs or {})):
            with self.bb.dataflow():
                for node, step in zip(graph.nodes, self.network.steps, strict=True):
                    self._node(node, step)
                self._convert(self.walk.finish())
                table = {self.network.values[v]: self.env[v, "NCHW"] for v in graph.outputs}
                result = self.bb.emit_output(rewire(source.body.body, table))
            self.bb.emit_func_output(result)
        mod = self.bb.finalize()
        total = len(graph.layers)
        return Lowered(mod, self.hits, total, tuple(self.conversions), self.weights_bytes)

    def _node(self, node: Node, step: LayerStep | OpStep) -> None:
        choice = self.plan.choice(step.layer.name) if isinstance(step, LayerStep) else None
        how = choice.implementation if choice else None
        at_run_time = isinstance(step, LayerStep) and step.dynamic
        if choice is not None and how is not None and how.precision == "int8" and not at_run_time:
            # Before a conversion needs them.
            layer_params(node, self.params, choice.layer, how.float_out)
        placement = self.walk.step(node, how)
        self._convert(placement.conversions)
        operands = [
            self.env[v, layout] for v, layout in zip(node.inputs, placement.reads, strict=True)
        ]
        if isinstance(step, LayerStep) and choice is not None:
            value = self._layer(node, step, choice, operands)
        else:
            value = self._other(node, step, operands, placement.reads)
        self.env[node.output, placement.writes] = value

    def _convert(self, conversions: tuple[Conversion, ...]) -> None:
        for c in conversions:
            source, to = self.env[c.value, c.source], c.destination
            params, ranges = self.params.get(c.value), self.ranges.get(c.value)
            back = ranges is not None and not is_int8(to)
            if back:  # for a layer that no template covers: its bytes, then numbers
                to = stored_as(to, "int8")
            call = self.bb.call_te(
                lambda x, c=c, to=to, p=params: int8.convert(x, c.shape, c.source, to, p),
                source, primfunc_name_hint=conversion_name(c),
            )  # fmt: skip
            result = self.bb.emit(call)
            if back:
                made = self.bb.call_te(
                    dynamic_dequantise_te, result, ranges, primfunc_name_hint="dequantise"
                )
                result = self.bb.emit(made)
            self.env[c.value, c.destination] = result
            self.conversions.append(c)

    def _layer(self, node: Node, step: LayerStep, choice: LayerChoice, operands: list[Any]) -> Any:
        workload = step.layer.workload
        if choice.workload != workload.digest:
            raise BuildError(
                f"the plan's choice for layer {step.layer.name!r} is for another workload "
                f"({choice.workload}, the model has {workload.digest})",
                hint="replay a plan only on the model it was made for",
            )
        own = self._constants(node, step, choice)
        kernel, var = self._kernel(step, choice, own)
        if step.dynamic:
            ranges = self.ranges[node.inputs[0]]
            found = run_time_constants(
                self.bb, kernel, step, ranges, choice.implementation.template
            )
        else:
            packed = kernel.constants(own)
            found = [relax.const(c) for c in packed], sum(c.nbytes for c in packed)
        constants, self.weights_bytes[step.layer.name] = found
        args = [operands[0], *constants, *operands[1:]]
        shape = physical_shape(workload.out_shape, choice.implementation.layout)
        self.hits += 1
        result = relax.TensorType(shape, choice.implementation.out_dtype)
        return self.bb.emit(relax.call_tir(var, args, result))

    def _constants(self, node: Node, step: LayerStep, choice: LayerChoice) -> LayerConstants:
        """Logical constants: as trained or pruned, and quantised with the plan's scales."""
        how = choice.implementation
        if how.precision != "int8":
            return float_constants(step, how)
        if isinstance(step.stated, LayerConstants):
            return step.stated
        if step.dynamic:
            return constants_of(step, np.float32(1), 0)  # of any range: those of a run replace them
        params = layer_params(node, self.params, step.layer.name, how.float_out)
        trained = float_constants(step, how)
        bias = corrected(trained.bias, self.corrections.get(step.layer.index))
        workload = how.variant(step.layer.workload)
        return layer_constants(workload, trained.weight, bias, params, step.stated)

    def _kernel(
        self, step: LayerStep, choice: LayerChoice, own: LayerConstants
    ) -> tuple[Kernel, Any]:
        """The kernel of a layer, shared by all whose weights its code is for."""
        impl = choice.implementation
        workload = impl.variant(step.layer.workload)
        key = f"{choice.workload}|{impl.model_dump_json()}|{choice.knobs.key()}"
        if key not in self.built:
            template = self.registry.get(impl.template).template
            try:
                self.built[key] = template.build(workload, choice.knobs, self.target)
            except TemplateError as err:
                raise type(err)(f"layer {step.layer.name!r}: {err.message}", hint=err.hint) from err
        kernel = self.built[key].of(own)
        key = f"{key}|{kernel.structure}"
        if key not in self.kernels:
            func = kernel.func
            if workload.epilogue.residual and kernel.in_place:
                func = func.with_attr(IN_PLACE, [len(func.params) - 2])
            self.kernels[key] = (kernel, self._add(func, impl.template))
        return self.kernels[key]

    def _add(self, func: Any, name: str) -> Any:
        """Add a scheduled kernel as it is: no pass touches it any more."""
        func = func.without_attr("global_symbol")
        func = func.with_attrs({"tirx.is_scheduled": True, "op_pattern": OPAQUE})
        return self.bb.add_func(func, name)

    def _lrn(self, node: Node, lrn: Lrn, data: Any, form: str) -> Any:
        params = (self.params[node.inputs[0]], self.params[node.output]) if is_int8(form) else None
        var = self._add(lrn_kernel(lrn, form, self.target, params), "lrn")
        result = relax.TensorType(physical_shape(lrn.shape, form), dtype_of(form))
        return self.bb.emit(relax.call_tir(var, [data], result))

    def _int8(self, node: Node, operator: Operator, operands: list[Any], form: str) -> Any:
        """An operator between layers on int8 inputs in format ``form``."""
        graph, params = self.network.graph, [self.params[v] for v in node.inputs]
        out = self.params[node.output]
        if operator.kind == "reshape":
            return self.bb.emit(relax.op.reshape(operands[0], graph.shapes[node.output]))
        if operator.lrn is not None:
            return self._lrn(node, operator.lrn, operands[0], form)
        if operator.group is not None:
            return operator.group.emit(self.bb, operands, form)
        if operator.chain is not None:
            operands = [operands[0], relax.const(operator.chain.table(params[0], out))]

        def compute(*x: Any) -> Any:
            match operator.kind:
                case "add":
                    low, high = clip_to(operator.low, operator.high, out)
                    return int8.add_te(x[0], params[0], x[1], params[1], out, low, high)
                case "multiply":
                    return int8.multiply_te(x[0], params[0], x[1], params[1], out)
                case "table":
                    return int8.table_te(x[0], x[1])
                case "concat":
                    return int8.concat_te(x, params, out, form)
                case "clip":
                    low, high = clip_to(operator.low, operator.high, out)
                    return int8.clip_te(int8.rescale_te(x[0], params[0], out), low, high)
                case "mean":
                    return int8.mean_te(x[0], params[0], out)
            assert operator.pool is not None
            if operator.kind == "max_pool":
                return int8.max_pool_te(x[0], operator.pool)
            return int8.avg_pool_te(x[0], params[0], operator.pool, out)

        name = f"{operator.kind}_int8"
        return self.bb.emit(self.bb.call_te(compute, *operands, primfunc_name_hint=name))

    def _quantise(self, node: Node, value: Any) -> Any:
        params = self.params[node.output]
        return self._elementwise(lambda x: int8.quantise_te(x, params), value, "quantise")

    def _dynamic_quantise(self, node: Node, value: Any, form: str) -> Any:
        shape = self.network.graph.shapes[node.inputs[0]]
        var = self._add(range_kernel(shape, form, self.target), "range")
        ranges = self.bb.emit(relax.call_tir(var, [value], relax.TensorType((2,), "float32")))
        self.ranges[node.output] = ranges
        hint = "dynamic_quantise"
        call = self.bb.call_te(dynamic_quantise_te, value, ranges, primfunc_name_hint=hint)
        return self.bb.emit(call)

    def _elementwise(self, compute: Any, value: Any, name: str) -> Any:
        return self.bb.emit(self.bb.call_te(compute, value, primfunc_name_hint=name))

    def _stated(self, node: Node, step: LayerStep, operands: list[Any]) -> Any:
        """A layer the model states in int8 and no template covers: float between int8 values."""
        table = {}
        for value, operand in zip(node.inputs, operands, strict=True):
            params = self.params[value]
            table[self.network.values[value]] = self._elementwise(
                lambda q, p=params: int8.dequantise_te(q, p), operand, "dequantise"
            )
        result = None
        for binding in step.bindings:
            result = self.bb.emit(rewire(binding.value, table))
            table[binding.var] = result
        return self._quantise(node, result)

    def _other(
        self, node: Node, step: LayerStep | OpStep, operands: list[Any], reads: tuple[str, ...]
    ) -> Any:
        originals = [self.network.values[v] for v in node.inputs]
        if isinstance(step, OpStep) and step.dynamic:
            return self._dynamic_quantise(node, operands[0], reads[0])
        if node.kind == "quantise":
            return self._quantise(node, operands[0]) if node.int8 else operands[0]
        stated = node.output in self.network.graph.stated_values
        if isinstance(step, LayerStep) and stated:
            return self._stated(node, step, operands)
        table = dict(zip(originals, operands, strict=True))
        blocked = next((r for r in reads if block_of(r)), None)
        if isinstance(step, OpStep) and step.operator and is_int8(reads[0]):
            return self._int8(node, step.operator, operands, reads[0])
        if isinstance(step, OpStep) and step.lrn is not None:
            return self._lrn(node, step.lrn, operands[0], reads[0])
        if isinstance(step, OpStep) and blocked and node.kind in ("follow", "concat"):
            return self.bb.emit(emit_blocked(self.bb, step.binding.value, table, blocked))
        if blocked:  # flatten of full blocks: memory order is already (N, C)
            shape = self.network.graph.shapes[node.output]
            return self.bb.emit(relax.op.reshape(operands[0], shape))
        bindings = step.bindings if isinstance(step, LayerStep) else (step.binding,)
        value = None
        for binding in bindings:
            value = self.bb.emit(rewire(binding.value, table))
            table[binding.var] = value
        return value


def rewire(expr: Any, table: dict[Any, Any]) -> Any:
    """``expr`` with its variables replaced by ``table``."""
    return _Rewire(table).visit_expr(expr)


def conversion_name(c: Conversion) -> str:
    """What a conversion does, as the name of its kernel."""
    if is_int8(c.source) == is_int8(c.destination):
        return "convert_layout"
    return "quantise" if is_int8(c.destination) else "dequantise"


def _prim_funcs(mod: Any) -> dict[Any, Any]:
    return {v: f for v, f in mod.functions.items() if isinstance(f, tirx.PrimFunc)}


def lower(network: Network, plan: Plan, registry: Registry, target: Target) -> Lowered:
    """Lower a model by a plan; every PrimFunc of the result is scheduled for ``target``.

    Raises:
        BuildError: the plan is for another model, or hits no layer at all; TVM cannot lower
            an operator.
        TemplateError: a template refuses the plan's config.
    """
    lowered = _Lowering(planned(network, plan), plan, registry, target).run()
    if lowered.total and not lowered.hits:
        raise BuildError(
            f"none of the {lowered.total} layers of {network.model.path} is covered by a template",
            hint="`tvmx schedules` lists the templates and what they support",
        )
    try:
        mod = finish_relax(lowered.mod, target)
    except Exception as err:  # TVM raises errors of its own and Python's alike
        text = " ".join(str(err).split())[:600]
        path = network.model.path
        raise BuildError(f"cannot lower {path} for target {target.name!r}: {text}") from err
    return Lowered(mod, lowered.hits, lowered.total, lowered.conversions, lowered.weights_bytes)


def finish_relax(mod: Any, target: Target) -> Any:
    """Legalise, fuse and schedule what is left of high-level Relax."""
    t = relax.transform
    mod = mark_concats(mod)
    passes = [
        t.LegalizeOps(LEGALIZE),
        t.AnnotateTIROpPattern(),
        t.FuseOps(),
        t.FuseTIR(),
        t.DeadCodeElimination(),
    ]
    return schedule_rest(tvm.transform.Sequential(passes)(mod), target)


__all__ = ["Lowered", "conversion_name", "finish_relax", "lower", "rewire"]
