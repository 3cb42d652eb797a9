"""A checked Relay program -> Relax, every result named after its operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tvmx._tvm import relax, tvm
from tvmx.errors import CorruptModelError, ModelError, TvmxError
from tvmx.frontends._names import identifier
from tvmx.frontends._reason import reason_of
from tvmx.frontends.relay import (
    _rules_elementwise,
    _rules_image,
    _rules_nn,
    _rules_qnn,
    _rules_shape,
)
from tvmx.frontends.relay._attrs import Attrs
from tvmx.frontends.relay._emit import Emitter
from tvmx.frontends.relay._flatten import Program, Result, Step, Value
from tvmx.frontends.relay._graph import Array, Constant, Var
from tvmx.frontends.relay._nhwc import back, in_order
from tvmx.frontends.relay._rules_nn import Rule
from tvmx.ir import SourceNode, TensorSpec
from tvmx.passes._dataflow import const, dtype_of, shape_of

RULES: dict[str, Rule] = {
    **_rules_nn.RULES,
    **_rules_image.RULES,
    **_rules_shape.RULES,
    **_rules_elementwise.RULES,
    **_rules_qnn.RULES,
}


def import_program(
    program: Program, inputs: tuple[TensorSpec, ...], path: Path
) -> tuple[Any, tuple[TensorSpec, ...], dict[str, SourceNode]]:
    """Convert a program whose operators are all supported.

    Returns the module, the output specs and the source of each Relax variable.

    Raises:
        ModelError: an operator cannot be converted; it is named.
        CorruptModelError: results that are not there.
    """
    return _Importer(program, inputs, path).run()


class _Importer:
    def __init__(self, program: Program, inputs: tuple[TensorSpec, ...], path: Path) -> None:
        self._program, self._path = program, path
        self._specs = inputs
        self._params = [
            relax.Var(name, relax.TensorType(spec.shape, spec.dtype))
            for name, spec in zip(_unique(inputs), inputs, strict=True)
        ]
        self._builder = relax.BlockBuilder()
        names = {param.name for param in self._params}
        self._emitter = Emitter(self._builder, names, _weights(program))
        self._inputs = dict(zip(program.inputs, self._params, strict=True))
        self._constants: dict[Constant, Any] = {}
        self._results: list[Any] = []

    def run(self) -> tuple[Any, tuple[TensorSpec, ...], dict[str, SourceNode]]:
        """The module, its outputs and where its variables come from."""
        with self._builder.function("main", self._params):
            try:
                with self._builder.dataflow():
                    for step in self._program.steps:
                        self._results.append(self._convert(step))
                    outputs = self._outputs()
                    whole = outputs[0] if len(outputs) == 1 else relax.Tuple(outputs)
                    result = self._builder.emit_output(whole)
                self._builder.emit_func_output(result)
            except TvmxError:
                # Without a result the builder complains about the function it leaves behind.
                self._builder.emit_func_output(relax.const(0))
                raise
        specs = tuple(
            TensorSpec(f"output_{index}", shape_of(output), dtype_of(output))
            for index, output in enumerate(outputs)
        )
        return self._builder.get(), specs, self._emitter.sources

    def _convert(self, step: Step) -> Any:
        self._emitter.begin(step)
        args = [self._value(arg) for arg in step.args]
        try:
            attrs = Attrs(step.attrs)
            moved = in_order(self._emitter, step.op, args, attrs)
            if moved is not None:
                return back(self._emitter, RULES[step.op](self._emitter, *moved))
            result = RULES[step.op](self._emitter, args, attrs)
            return result if isinstance(result, tuple) else self._emitter.finish(result)
        except TvmxError:
            raise
        except Exception as err:  # RuleError, or whatever Relax runs into
            raise self._refused(step, reason_of(err)) from err

    def _refused(self, step: Step, reason: str) -> ModelError:
        return ModelError(
            f"{self._path}: {step.op} ({step.name}) cannot be imported: {reason}",
            hint="see docs/relay.md for what is supported",
        )

    def _value(self, value: Value) -> Any:
        if isinstance(value, tuple):
            return tuple(self._value(item) for item in value)
        if isinstance(value, Var):
            if value not in self._inputs:
                raise CorruptModelError(f"{self._path} is damaged: %{value.name} has no value")
            return self._inputs[value]
        if isinstance(value, Constant):
            if value not in self._constants:
                self._constants[value] = _constant(value.array)
            return self._constants[value]
        if isinstance(value, Result):
            return self._result(value)
        raise CorruptModelError(f"{self._path} is damaged: a function is used as a tensor")

    def _result(self, value: Result) -> Any:
        found = self._results[value.step]
        several = isinstance(found, tuple)
        if value.field is None and (not several or len(found) == 1):
            return found[0] if several else found
        if value.field is None or not several or value.field >= len(found):
            step = self._program.steps[value.step]
            raise CorruptModelError(
                f"{self._path}: {step.op} ({step.name}) has no result {value.field}"
            )
        return found[value.field]

    def _outputs(self) -> list[Any]:
        result = self._program.result
        if isinstance(result, Result) and result.field is None:
            found = self._results[result.step]
            whole = found if isinstance(found, tuple) else (found,)
        else:
            whole = result if isinstance(result, tuple) else (result,)
            whole = tuple(self._value(item) for item in whole)
        if not whole or any(isinstance(item, tuple) for item in whole):
            raise ModelError(f"{self._path}: the result is no tensor and no tuple of tensors")
        return list(whole)


def _weights(program: Program) -> int:
    """Elements of all constants that steps read."""
    found: dict[int, int] = {}
    left: list[Value] = [arg for step in program.steps for arg in step.args]
    while left:
        value = left.pop()
        if isinstance(value, tuple):
            left += value
        elif isinstance(value, Constant):
            found[id(value)] = value.array.size
    return sum(found.values())


def _constant(array: Array) -> Any:
    # const() is for tensors: it makes vectors of scalars.
    return const(array) if array.ndim else relax.const(tvm.runtime.tensor(array.copy()))


def _unique(inputs: tuple[TensorSpec, ...]) -> list[str]:
    names: list[str] = []
    for spec in inputs:
        base = name = identifier(spec.name)
        count = 1
        while name in names:
            count += 1
            name = f"{base}_{count}"
        names.append(name)
    return names
