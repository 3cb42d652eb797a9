"""Where the time of a network's defaults goes: every call of TVM's VM, timed in the network."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks._build import SEED, Folder, open_context
from benchmarks._candidates import load_machine
from tvmx.errors import MeasureError
from tvmx.ir import physical_shape

if TYPE_CHECKING:
    from tvmx.explore._context import Context
    from tvmx.ir import LayerChoice

_RUNS = 9
_VM = ("vm.builtin.", "tvmx_weight")


@dataclass(frozen=True)
class Call:
    """One call of the VM: kernel name, shapes of its arguments (output last), CPU us."""

    kernel: str
    shapes: tuple[tuple[int, ...], ...]
    us: float


@dataclass(frozen=True)
class LayerRow:
    """A distinct workload: ``us`` is per call in the network, ``alone_us`` repeated by itself.

    The difference is what cold caches, weights above all, cost.
    """

    workload: str
    template: str
    config: str
    calls: int
    us: float
    alone_us: float
    macs: int

    @property
    def gflops(self) -> float:
        """In the network."""
        return 2e-3 * self.macs / self.us

    @property
    def alone_gflops(self) -> float:
        """By itself, caches warm."""
        return 2e-3 * self.macs / self.alone_us


@dataclass(frozen=True)
class OpRow:
    """A kernel that is no layer's, or one of the VM's own functions; ``us`` per call."""

    kernel: str
    shapes: tuple[tuple[int, ...], ...]
    calls: int
    us: float


@dataclass(frozen=True)
class Profile:
    """All times are CPU us, 1 thread. ``network_us`` is one inference without instruments."""

    network: str
    network_us: float
    peak_gflops: float
    layers: tuple[LayerRow, ...] = field(default_factory=tuple)
    ops: tuple[OpRow, ...] = field(default_factory=tuple)
    vm: tuple[OpRow, ...] = field(default_factory=tuple)


def profile_network(folder: Folder) -> Profile:
    """Profile ``defaults.so`` of a prepared folder. For a process of its own.

    Raises:
        MeasureError: the calls do not match the network's layers.
    """
    from tvmx.passes import baseline_plan
    from tvmx.testing.templates import measured_peak_gflops

    context = open_context(folder)
    plan = baseline_plan(context.network, context.registry, context.target, SEED)
    inputs, _ = folder.load_golden()
    machine = load_machine(folder.defaults, list(inputs.values()))
    network_us = min(_cpu_us(machine) for _ in range(_RUNS))
    calls = _trace(machine)
    names = {c.implementation.template for c in plan.choices}
    anchors = [c for c in calls if _stem(c.kernel) in names]
    rest = [c for c in calls if _stem(c.kernel) not in names]
    return Profile(
        network=folder.network,
        network_us=network_us,
        peak_gflops=measured_peak_gflops(context.target),
        layers=_layers(context, plan.choices, anchors),
        ops=_grouped(c for c in rest if not c.kernel.startswith(_VM)),
        vm=_grouped(
            Call(c.kernel, (), c.us) for c in rest if c.kernel.startswith(_VM)
        ),
    )


def _cpu_us(machine: Any) -> float:
    started = time.thread_time()
    machine.invoke_stateful("main")
    return (time.thread_time() - started) * 1e6


def _stem(kernel: str) -> str:
    """The template's name: the builder numbers kernels of one name."""
    return re.sub(r"\d+$", "", kernel)


def _trace(machine: Any) -> list[Call]:
    """Every call of one inference in order, the fastest of several runs each."""
    calls: list[tuple[str, tuple[tuple[int, ...], ...]]] = []
    times: list[list[float]] = []
    position, started = 0, 0.0

    def instrument(_func: Any, name: str, before: bool, _result: Any, *args: Any) -> None:
        nonlocal position, started
        if before:
            started = time.thread_time()
            return
        elapsed = time.thread_time() - started
        if position == len(calls):
            shapes = tuple(tuple(int(n) for n in a.shape) for a in args if hasattr(a, "shape"))
            calls.append((name, shapes))
            times.append([])
        times[position].append(elapsed * 1e6)
        position += 1

    machine.set_instrument(instrument)
    for _ in range(_RUNS):
        position = 0
        machine.invoke_stateful("main")
    return [Call(n, s, min(t)) for (n, s), t in zip(calls, times, strict=True)]


def _layers(
    context: Context, choices: Sequence[LayerChoice], calls: Sequence[Call]
) -> tuple[LayerRow, ...]:
    """One row per workload and implementation; calls come in the order of the layers."""
    if len(calls) != len(choices):
        raise MeasureError(f"{len(calls)} kernel calls, but {len(choices)} layers")
    layers = {layer.name: layer for layer in context.network.graph.layers}
    groups: dict[tuple[str, str], list[tuple[LayerChoice, Call]]] = defaultdict(list)
    for choice, call in zip(choices, calls, strict=True):
        wanted = physical_shape(
            layers[choice.layer].workload.out_shape, choice.implementation.layout
        )
        if not call.shapes or call.shapes[-1] != wanted:
            raise MeasureError(f"call {call.kernel} is not layer {choice.layer!r}")
        groups[choice.workload, choice.implementation.template].append((choice, call))
    return tuple(
        _layer_row(context, layers[group[0][0].layer].workload, group)
        for group in groups.values()
    )


def _layer_row(
    context: Context, workload: Any, group: Sequence[tuple[LayerChoice, Call]]
) -> LayerRow:
    from tvmx.testing.templates import evaluate_template

    choice = group[0][0]
    template = context.registry.get(choice.implementation.template).template
    alone = evaluate_template(template, workload, context.target, choice.knobs, timed=True)
    assert alone.gflops is not None
    return LayerRow(
        workload=workload.describe(),
        template=template.name,
        config=" ".join(f"{k}={v}" for k, v in choice.config.items()),
        calls=len(group),
        us=sum(call.us for _, call in group) / len(group),
        alone_us=2e-3 * workload.macs / alone.gflops,
        macs=workload.macs,
    )


def _grouped(calls: Any) -> tuple[OpRow, ...]:
    groups: dict[tuple[str, tuple[tuple[int, ...], ...]], list[float]] = defaultdict(list)
    for call in calls:
        groups[call.kernel, call.shapes].append(call.us)
    return tuple(OpRow(k, s, len(us), sum(us) / len(us)) for (k, s), us in groups.items())
