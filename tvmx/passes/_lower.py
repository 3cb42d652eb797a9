"""Lowering: Model x Plan -> IRModule whose layers are the plan's kernels.

Each layer becomes one ``call_tir`` of the kernel its template builds, constants packed here;
layout conversions appear only where :class:`tvmx.ir.LayoutWalk` puts them. Everything else goes
through Relax's legalisation and fusion and tvmx's default schedule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvmx._tvm import relax, te, tirx, tvm
from tvmx.errors import BuildError, TemplateError
from tvmx.ir import (
    Conversion,
    LayerChoice,
    LayoutWalk,
    Plan,
    block_of,
    physical_shape,
)
from tvmx.passes._default_schedule import schedule_rest
from tvmx.passes._layers import LayerStep, Network, OpStep
from tvmx.passes._layout_rules import emit_blocked
from tvmx.passes._lrn import Lrn, lrn_kernel

if TYPE_CHECKING:
    from tvmx.targets import Target
    from tvmx.templates import Kernel, Registry

_OPAQUE_PATTERN = 8  # relax's OpPatternKind::kOpaque: FuseOps leaves the kernel alone


@dataclass(frozen=True)
class Lowered:
    """A lowered module; ``hits`` of ``total`` layers run a template's kernel.

    ``conversions`` are the layout conversions that were inserted. ``weights_bytes`` counts
    the packed constants of the layers, per layer name.
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


def convert_layout(data: Any, shape: tuple[int, ...], source: str, destination: str) -> Any:
    """TE compute that moves ``data`` (logical ``shape``, NCHW) between two layouts."""
    channels = shape[1]
    v, w = block_of(source), block_of(destination)

    def read(n: Any, c: Any, y: Any, x: Any) -> Any:
        return data[n, c, y, x] if v is None else data[n, c // v, y, x, c % v]

    out = physical_shape(shape, destination)
    if w is None:
        return te.compute(out, read, name="convert_layout")

    def blocked(n: Any, b: Any, y: Any, x: Any, i: Any) -> Any:
        channel = b * w + i
        if channels % w == 0:
            return read(n, channel, y, x)
        # A select on a legal read, not a test around it: the lanes stay a vector.
        value = read(n, tirx.min(channel, channels - 1), y, x)
        return tirx.Select(channel < channels, value, tirx.const(0, data.dtype))

    return te.compute(out, blocked, name="convert_layout")


class _Lowering:
    def __init__(self, network: Network, plan: Plan, registry: Registry, target: Target) -> None:
        self.network, self.plan, self.registry, self.target = network, plan, registry, target
        self.bb = relax.BlockBuilder(tvm.IRModule(_prim_funcs(network.model.mod)))
        self.walk = LayoutWalk(network.graph)
        self.env: dict[tuple[int, str], Any] = {}
        self.kernels: dict[str, tuple[Kernel, Any]] = {}
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
                result = self.bb.emit_output(_Rewire(table).visit_expr(source.body.body))
            self.bb.emit_func_output(result)
        mod = self.bb.finalize()
        total = len(graph.layers)
        return Lowered(mod, self.hits, total, tuple(self.conversions), self.weights_bytes)

    def _node(self, node: Any, step: LayerStep | OpStep) -> None:
        choice = self.plan.choice(step.layer.name) if isinstance(step, LayerStep) else None
        placement = self.walk.step(node, choice.implementation if choice else None)
        self._convert(placement.conversions)
        operands = [
            self.env[v, layout] for v, layout in zip(node.inputs, placement.reads, strict=True)
        ]
        if isinstance(step, LayerStep) and choice is not None:
            value = self._layer(step, choice, operands)
        else:
            value = self._other(node, step, operands, placement.reads)
        self.env[node.output, placement.writes] = value

    def _convert(self, conversions: tuple[Conversion, ...]) -> None:
        for c in conversions:
            source = self.env[c.value, c.source]
            call = self.bb.call_te(
                lambda x, c=c: convert_layout(x, c.shape, c.source, c.destination),
                source, primfunc_name_hint="convert_layout",
            )  # fmt: skip
            self.env[c.value, c.destination] = self.bb.emit(call)
            self.conversions.append(c)

    def _layer(self, step: LayerStep, choice: LayerChoice, operands: list[Any]) -> Any:
        workload = step.layer.workload
        if choice.workload != workload.digest:
            raise BuildError(
                f"the plan's choice for layer {step.layer.name!r} is for another workload "
                f"({choice.workload}, the model has {workload.digest})",
                hint="replay a plan only on the model it was made for",
            )
        kernel, var = self._kernel(step, choice)
        weight = kernel.pack_weight(step.weight)
        constants = [weight]
        if step.bias is not None:
            constants.append(kernel.pack_bias(step.bias))
        self.weights_bytes[step.layer.name] = sum(c.nbytes for c in constants)
        args = [operands[0], *(relax.const(c) for c in constants), *operands[1:]]
        shape = physical_shape(workload.out_shape, choice.implementation.layout)
        self.hits += 1
        return self.bb.emit(relax.call_tir(var, args, relax.TensorType(shape, "float32")))

    def _kernel(self, step: LayerStep, choice: LayerChoice) -> tuple[Kernel, Any]:
        impl = choice.implementation
        key = f"{choice.workload}|{impl.model_dump_json()}|{choice.knobs.key()}"
        if key not in self.kernels:
            template = self.registry.get(impl.template).template
            try:
                kernel = template.build(step.layer.workload, choice.knobs, self.target)
            except TemplateError as err:
                raise type(err)(f"layer {step.layer.name!r}: {err.message}", hint=err.hint) from err
            self.kernels[key] = (kernel, self._add(kernel.func, impl.template))
        return self.kernels[key]

    def _add(self, func: Any, name: str) -> Any:
        """Add a scheduled kernel as it is: no pass touches it any more."""
        func = func.without_attr("global_symbol")
        func = func.with_attrs({"tirx.is_scheduled": True, "op_pattern": _OPAQUE_PATTERN})
        return self.bb.add_func(func, name)

    def _lrn(self, lrn: Lrn, data: Any, layout: str) -> Any:
        var = self._add(lrn_kernel(lrn, layout, self.target), "lrn")
        return self.bb.emit(
            relax.call_tir(
                var, [data], relax.TensorType(physical_shape(lrn.shape, layout), "float32")
            )
        )

    def _other(
        self, node: Any, step: LayerStep | OpStep, operands: list[Any], reads: tuple[str, ...]
    ) -> Any:
        originals = [self.network.values[v] for v in node.inputs]
        table = dict(zip(originals, operands, strict=True))
        blocked = next((r for r in reads if block_of(r)), None)
        if isinstance(step, OpStep) and step.lrn is not None:
            return self._lrn(step.lrn, operands[0], reads[0])
        if isinstance(step, OpStep) and blocked and node.kind in ("follow", "concat"):
            return self.bb.emit(emit_blocked(self.bb, step.binding.value, table, blocked))
        if blocked:  # flatten of full blocks: memory order is already (N, C)
            shape = self.network.graph.shapes[node.output]
            return self.bb.emit(relax.op.reshape(operands[0], shape))
        bindings = step.bindings if isinstance(step, LayerStep) else (step.binding,)
        value = None
        for binding in bindings:
            value = self.bb.emit(_Rewire(table).visit_expr(binding.value))
            table[binding.var] = value
        return value


def _prim_funcs(mod: Any) -> dict[Any, Any]:
    return {v: f for v, f in mod.functions.items() if isinstance(f, tirx.PrimFunc)}


def lower(network: Network, plan: Plan, registry: Registry, target: Target) -> Lowered:
    """Lower a model by a plan; every PrimFunc of the result is scheduled for ``target``.

    Raises:
        BuildError: the plan is for another model, or hits no layer at all.
        TemplateError: a template refuses the plan's config.
    """
    lowered = _Lowering(network, plan, registry, target).run()
    if lowered.total and not lowered.hits:
        raise BuildError(
            f"none of the {lowered.total} layers of {network.model.path} is covered by a template",
            hint="`tvmx schedules` lists the templates and what they support",
        )
    mod = finish_relax(lowered.mod, target)
    return Lowered(mod, lowered.hits, lowered.total, lowered.conversions, lowered.weights_bytes)


def finish_relax(mod: Any, target: Target) -> Any:
    """Legalise, fuse and schedule what is left of high-level Relax."""
    t = relax.transform
    passes = [
        t.LegalizeOps(),
        t.AnnotateTIROpPattern(),
        t.FuseOps(),
        t.FuseTIR(),
        t.DeadCodeElimination(),
    ]
    return schedule_rest(tvm.transform.Sequential(passes)(mod), target)


__all__ = ["Lowered", "convert_layout", "finish_relax", "lower"]
