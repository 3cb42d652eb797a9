"""Exported program -> Relax, on top of TVM's importer, every result named after its node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from tvmx._tvm import relax, tvm
from tvmx.errors import ModelError, TvmxError
from tvmx.frontends._names import identifier
from tvmx.frontends._reason import RuleError, quoted, reason_of
from tvmx.frontends._refused import refuse_operators
from tvmx.frontends._torch_ops import refusal
from tvmx.frontends._torch_program import Array, quiet
from tvmx.frontends._torch_rules import RULES
from tvmx.ir import SourceNode, TensorSpec

_ANCHORS = {"relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d", "relax.matmul",
            "relax.nn.conv1d_transpose", "relax.nn.conv2d_transpose"}  # fmt: skip
_ANCHOR_SOURCES = ("conv", "linear", "mm", "matmul", "addmm", "bmm", "baddbmm", "einsum")


def import_program(
    program: torch.export.ExportedProgram,
    sources: dict[str, SourceNode],
    outputs: tuple[str, ...],
    path: Path,
) -> tuple[Any, tuple[TensorSpec, ...], dict[str, SourceNode]]:
    """Convert a program of static shapes to a Relax module with embedded weights.

    ``sources`` are those of the program's nodes, ``outputs`` the names of its results. Returns
    the module, the output specs and the source node of each Relax variable.

    Raises:
        UnsupportedOpError: operators TVM has no converter for, all of them at once.
        ModelError: a node cannot be converted; it is named with its operator.
    """
    with quiet():
        try:
            core = program.run_decompositions()
        except Exception as err:  # torch's shape functions raise whatever they like
            raise ModelError(
                f"{path}: torch cannot break the program into core operators: {quoted(err)}",
                hint="export the model again with this version of torch",
            ) from err
        importer = _Importer(sources, outputs, path)
        mod, specs = importer.run(core)
    return mod, specs, importer.found


class _Importer(ExportedProgramImporter):  # type: ignore[misc]
    """TVM's importer with names, typed errors and the converters of :mod:`_torch_rules`."""

    def __init__(
        self, sources: dict[str, SourceNode], outputs: tuple[str, ...], path: Path
    ) -> None:
        super().__init__()
        self._tvms = dict(self.convert_map)
        self.update_convert_map(dict.fromkeys(RULES, self._rule))
        self._sources = sources
        self._outputs = outputs
        self._path = path
        self._current: Any = None
        self._fed: set[Any] = set()
        self._known: dict[Any, torch.Tensor] = {}
        self.found: dict[str, SourceNode] = {}

    def run(self, core: torch.export.ExportedProgram) -> tuple[Any, tuple[TensorSpec, ...]]:
        """The module and its outputs; errors name the node they came up at."""
        nodes = list(core.graph.nodes)
        self._require_supported(nodes)
        try:
            return self._convert(core, nodes)
        except TvmxError:
            raise
        except Exception as err:  # whatever a converter runs into
            node = self._current
            where = f"node {self._source(node).name!r} ({_op(node)})" if node else "the graph"
            raise ModelError(
                f"{self._path}: {where} cannot be imported: {reason_of(err)}",
                hint="build the module from other operators, or report this node",
            ) from err

    def _require_supported(self, nodes: list[Any]) -> None:
        ops: dict[str, list[str]] = {}
        for node in nodes:
            if node.op == "call_function" and node.target.__name__ not in self.convert_map:
                names = ops.setdefault(node.target.__name__, [])
                names.append(self._source(node).name)
        refuse_operators(self._path, ops, refusal)

    def _convert(
        self, core: torch.export.ExportedProgram, nodes: list[Any]
    ) -> tuple[Any, tuple[TensorSpec, ...]]:
        stored, users, _ = self.create_input_vars(core)
        params = [relax.Var(identifier(name), var.ty) for name, var in users.items()]
        variables = {**dict(zip(users, params, strict=True)), **stored}
        constants = self._constants(core)
        builder = relax.BlockBuilder()
        self.block_builder = _NamingBuilder(builder, self)
        with builder.function("main", [*params, *(variables[name] for name in stored)]):
            with builder.dataflow():
                results = self._nodes(core, nodes, variables)
                result = builder.emit_output(
                    results[0] if len(results) == 1 else relax.Tuple(results)
                )
            builder.emit_func_output(result)
        mod = relax.transform.BindParams("main", constants)(builder.get())
        return mod, tuple(map(_spec, self._outputs, results))

    def _nodes(
        self, core: torch.export.ExportedProgram, nodes: list[Any], variables: dict[str, Any]
    ) -> list[Any]:
        stored = _stored(core)
        for node in nodes:
            if node.op == "placeholder":
                self.env[node] = variables[node.name]
                if node.name in stored:
                    self._known[node] = stored[node.name]
                else:
                    self._fed.add(node)
            elif node.op == "call_function":
                self._current = node
                if not self._fed.isdisjoint(node.all_input_nodes):
                    self._fed.add(node)
                self.env[node] = self.convert_map[node.target.__name__](node)
            elif node.op != "output":
                raise RuleError(f"a {node.op} in the graph")
        self._current = None
        return [self.env[value] for value in self._results(core, nodes[-1].args[0])]

    def _results(self, core: torch.export.ExportedProgram, values: tuple[Any, ...]) -> list[Any]:
        """The outputs without the new values of inputs that a forward method works on in place."""
        kinds = [spec.kind.name for spec in core.graph_signature.output_specs]
        if changes := set(kinds) - {"USER_OUTPUT", "USER_INPUT_MUTATION"}:
            listed = ", ".join(kind.replace("_", " ").lower() for kind in sorted(changes))
            raise ModelError(
                f"{self._path}: the network changes its own state ({listed})",
                hint="export model.eval(), or a module that keeps nothing between calls",
            )
        return [v for v, kind in zip(values, kinds, strict=True) if kind == "USER_OUTPUT"]

    def _constants(self, core: torch.export.ExportedProgram) -> dict[str, Any]:
        """Parameters, buffers and constants by the name of the variable they are bound to."""
        return {
            name: tvm.runtime.tensor(tensor.detach().cpu().contiguous().numpy())
            for name, tensor in _stored(core).items()
        }

    def constant(self, node: Any) -> Array | None:
        """What torch computes for a node that depends on no input of the network, else None."""
        if node in self._fed:
            return None
        array: Array = self._tensor(node).detach().cpu().contiguous().numpy()
        return array

    def _tensor(self, node: Any) -> Any:
        if node not in self._known:
            args = torch.fx.map_arg((node.args, node.kwargs), self._tensor)
            with torch.inference_mode():
                self._known[node] = node.target(*args[0], **args[1])
        return self._known[node]

    def _rule(self, node: Any) -> Any:
        name = node.target.__name__
        result = RULES[name](self, node)
        return self._tvms[name](node) if result is None else result

    def _source(self, node: Any) -> SourceNode:
        stack = node.meta.get("nn_module_stack") or {}
        path = next(iter(reversed(stack.values())), ("",))[0]
        return self._sources.get(path) or SourceNode(node.name, _op(node))

    # for _NamingBuilder

    def name_of(self, expr: Any) -> str:
        """Name for the result of ``expr``: the node's own for its main operator."""
        source = self._source(self._current)
        base = identifier(source.name)
        op = str(getattr(getattr(expr, "op", None), "name", "item"))
        if op in _ANCHORS or not any(part in source.op for part in _ANCHOR_SOURCES):
            return base
        return f"{base}_{op.rsplit('.', 1)[-1]}"

    def record(self, var: Any) -> None:
        """Remember that ``var`` came from the node being converted."""
        self.found.setdefault(var.name, self._source(self._current))


class _NamingBuilder:
    """A block builder that names every result after the node being converted."""

    def __init__(self, builder: Any, importer: _Importer) -> None:
        self._builder = builder
        self._importer = importer

    def emit(self, expr: Any, name_hint: str = "") -> Any:
        """Bind ``expr``, and first the calls nested in it; returns the variable."""
        if isinstance(expr, relax.Var):
            return expr
        if isinstance(expr, relax.Call):
            args = [self.emit(arg) if isinstance(arg, relax.Call) else arg for arg in expr.args]
            expr = relax.Call(expr.op, args, expr.attrs, expr.ty_args)
        var = self._builder.emit(expr, name_hint=self._importer.name_of(expr))
        self._importer.record(var)
        return var

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builder, name)


def _stored(core: torch.export.ExportedProgram) -> dict[str, Any]:
    """Parameters, buffers and constants by the name of their graph input."""
    found = {}
    for spec in core.graph_signature.input_specs:
        if spec.kind.name != "USER_INPUT":
            tensor = core.state_dict.get(str(spec.target))
            found[spec.arg.name] = core.constants[str(spec.target)] if tensor is None else tensor
    return found


def _op(node: Any) -> str:
    return str(node.target.__name__).split(".")[0]


def _spec(name: str, result: Any) -> TensorSpec:
    shape = tuple(int(size) for size in result.ty.shape.values)
    return TensorSpec(name, shape, str(result.ty.dtype))
