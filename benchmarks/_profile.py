"""Where the time of a network's plan goes: every call of TVM's VM, timed in the network."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks._build import open_context
from benchmarks._candidates import load_machine
from benchmarks._folder import Folder
from tvmx.errors import MeasureError
from tvmx.ir import physical_shape

if TYPE_CHECKING:
    from tvmx.explore._context import Context
    from tvmx.ir import Layer, LayerChoice, Plan

_RUNS = 9
_REPEAT_US = 5e3
_MOST_CALLS = 1000
_VM = ("vm.builtin.", "tvmx_weight", "tvmx_view")
INT8_PEAK = 4
"""Times the float peak: a dot-product instruction sums four products per 32-bit lane."""


@dataclass(frozen=True)
class Call:
    """One call of the VM: kernel name, shapes of its arguments (output last), CPU us."""

    kernel: str
    shapes: tuple[tuple[int, ...], ...]
    us: float


@dataclass(frozen=True)
class LayerRow:
    """A distinct workload: ``us`` is per call in the network, ``alone_us`` repeated by itself.

    The difference is what cold caches, weights above all, cost. ``float_us`` is what the same
    layers take in the network of the float defaults, None where that is what is profiled.
    """

    workload: str
    template: str
    config: str
    calls: int
    us: float
    alone_us: float
    macs: int
    precision: str = "f32"
    float_us: float | None = None

    @property
    def gops(self) -> float:
        """10^9 operations (2 per multiply-add) a second, in the network."""
        return 2e-3 * self.macs / self.us

    @property
    def alone_gops(self) -> float:
        """By itself, caches warm."""
        return 2e-3 * self.macs / self.alone_us

    def peak(self, float_peak: float) -> float:
        """What the core could do at most, given its measured float peak."""
        return float_peak * (INT8_PEAK if self.precision == "int8" else 1)


@dataclass(frozen=True)
class OpRow:
    """A kernel that is no layer's, or one of the VM's own functions; ``us`` per call."""

    kernel: str
    shapes: tuple[tuple[int, ...], ...]
    calls: int
    us: float


@dataclass(frozen=True)
class Profile:
    """All times are CPU us, 1 thread. ``network_us`` is one inference without instruments.

    ``plan`` is ``defaults`` or ``int8``.
    """

    network: str
    plan: str
    network_us: float
    peak_gflops: float
    layers: tuple[LayerRow, ...] = field(default_factory=tuple)
    ops: tuple[OpRow, ...] = field(default_factory=tuple)
    vm: tuple[OpRow, ...] = field(default_factory=tuple)


def profile_network(folder: Folder, plan: str = "defaults") -> Profile:
    """Profile the library of a plan, ``defaults`` or ``int8``. For a process of its own.

    Raises:
        MeasureError: the calls do not match the network's layers.
    """
    from tvmx.testing.templates import measured_peak_gflops

    context = open_context(folder)
    traced = _traced(context, folder, plan)
    float_us: dict[str, float] = {}
    if plan != "defaults":
        reference = _traced(context, folder, "defaults")
        float_us = {choice.layer: call.us for choice, call in reference.layers}
    return Profile(
        network=folder.network,
        plan=plan,
        network_us=traced.network_us,
        peak_gflops=measured_peak_gflops(context.target),
        layers=_layers(context, traced.layers, float_us),
        ops=_grouped(c for c in traced.rest if not c.kernel.startswith(_VM)),
        vm=_grouped(Call(c.kernel, (), c.us) for c in traced.rest if c.kernel.startswith(_VM)),
    )


@dataclass(frozen=True)
class _Traced:
    """One library's inference: its layers' calls, paired with their choices, and all others."""

    network_us: float
    layers: list[tuple[LayerChoice, Call]]
    rest: list[Call]


def _traced(context: Context, folder: Folder, name: str) -> _Traced:
    from tvmx.ir import Plan

    plan = Plan.load(folder.plan(name))
    inputs, _ = folder.load_golden()
    network_us, calls = _trace(folder.library(name), list(inputs.values()))
    names = {c.implementation.template for c in plan.choices}
    anchors = [c for c in calls if is_kernel_of(c.kernel, names)]
    rest = [c for c in calls if not is_kernel_of(c.kernel, names)]
    return _Traced(network_us, _paired(context, plan, anchors), rest)


def is_kernel_of(kernel: str, templates: Collection[str]) -> bool:
    """Whether a kernel is one of these templates': the builder numbers kernels of one name."""
    return any(re.fullmatch(rf"{re.escape(name)}(_?\d+)?", kernel) for name in templates)


def _paired(context: Context, plan: Plan, calls: Sequence[Call]) -> list[tuple[LayerChoice, Call]]:
    """Calls come in the order of the layers. Raises MeasureError where they do not match."""
    if len(calls) != len(plan.choices):
        raise MeasureError(f"{len(calls)} kernel calls, but {len(plan.choices)} layers")
    layers = _by_name(context)
    for choice, call in zip(plan.choices, calls, strict=True):
        wanted = physical_shape(
            layers[choice.layer].workload.out_shape, choice.implementation.layout
        )
        if not call.shapes or call.shapes[-1] != wanted:
            raise MeasureError(f"call {call.kernel} is not layer {choice.layer!r}")
    return list(zip(plan.choices, calls, strict=True))


def _by_name(context: Context) -> dict[str, Layer]:
    return {layer.name: layer for layer in context.network.graph.layers}


def _trace(library: Path, inputs: Sequence[Any]) -> tuple[float, list[Call]]:
    """One inference's CPU us, and every call of one in order; the fastest of several runs.

    Runs with and without instruments alternate, so that both see the same machine.
    """
    plain, traced = (load_machine(library, inputs) for _ in range(2))
    recorder = _Recorder()
    traced.set_instrument(recorder)
    network: list[float] = []
    for _ in range(_RUNS):
        network.append(_cpu_us(lambda: plain.invoke_stateful("main")))
        recorder.rewind()
        traced.invoke_stateful("main")
    return min(network), recorder.calls()


class _Recorder:
    """The VM calls it before and after every call of a function."""

    def __init__(self) -> None:
        self._names: list[tuple[str, tuple[tuple[int, ...], ...]]] = []
        self._us: list[list[float]] = []
        self._position, self._started = 0, 0.0

    def __call__(self, _func: Any, name: str, before: bool, _result: Any, *args: Any) -> None:
        if before:
            self._started = time.thread_time()
            return
        elapsed = time.thread_time() - self._started
        if self._position == len(self._names):
            shapes = tuple(tuple(int(n) for n in a.shape) for a in args if hasattr(a, "shape"))
            self._names.append((name, shapes))
            self._us.append([])
        self._us[self._position].append(elapsed * 1e6)
        self._position += 1

    def rewind(self) -> None:
        """The next call is the first of an inference."""
        self._position = 0

    def calls(self) -> list[Call]:
        """The fastest of each."""
        return [Call(n, s, min(us)) for (n, s), us in zip(self._names, self._us, strict=True)]


def _cpu_us(run: Callable[[], object], calls: int = 1) -> float:
    started = time.thread_time()
    for _ in range(calls):
        run()
    return (time.thread_time() - started) * 1e6 / calls


def _layers(
    context: Context, calls: Sequence[tuple[LayerChoice, Call]], float_us: dict[str, float]
) -> tuple[LayerRow, ...]:
    """One row per workload and implementation."""
    layers = _by_name(context)
    groups: dict[tuple[str, str], list[tuple[LayerChoice, Call]]] = defaultdict(list)
    for choice, call in calls:
        groups[choice.workload, choice.implementation.label()].append((choice, call))
    return tuple(
        _layer_row(context, layers[group[0][0].layer], group, float_us) for group in groups.values()
    )


def _layer_row(
    context: Context, layer: Layer, group: Sequence[tuple[LayerChoice, Call]],
    float_us: dict[str, float],
) -> LayerRow:  # fmt: skip
    choice = group[0][0]
    known = [float_us[c.layer] for c, _ in group if c.layer in float_us]
    return LayerRow(
        workload=layer.workload.describe(),
        template=choice.implementation.template,
        config=" ".join(f"{k}={v}" for k, v in choice.config.items()),
        calls=len(group),
        us=sum(call.us for _, call in group) / len(group),
        alone_us=_alone_us(context, choice.implementation.variant(layer.workload), choice),
        macs=layer.workload.macs,
        precision=choice.implementation.precision,
        float_us=sum(known) / len(known) if known else None,
    )


def _alone_us(context: Context, workload: Any, choice: LayerChoice) -> float:
    """The kernel by itself on random operands; fastest repeat."""
    from tvmx._tvm import build_module, tvm
    from tvmx.testing.templates import kernel_arrays, make_operands

    template = context.registry.get(choice.implementation.template).template
    kernel = template.build(workload, choice.knobs, context.target)
    arrays = kernel_arrays(template, kernel, workload, context.target, make_operands(workload))
    func = kernel.func.with_attr("global_symbol", "kernel")
    module = build_module(tvm.IRModule({"kernel": func}), context.target)
    tensors = [tvm.runtime.tensor(array) for array in arrays]
    run = partial(module["kernel"], *tensors)
    run()
    calls = max(1, min(_MOST_CALLS, int(_REPEAT_US / _cpu_us(run))))
    return min(_cpu_us(run, calls) for _ in range(_RUNS))


def _grouped(calls: Any) -> tuple[OpRow, ...]:
    groups: dict[tuple[str, tuple[tuple[int, ...], ...]], list[float]] = defaultdict(list)
    for call in calls:
        groups[call.kernel, call.shapes].append(call.us)
    return tuple(OpRow(k, s, len(us), sum(us) / len(us)) for (k, s), us in groups.items())
