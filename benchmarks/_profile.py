"""Where the time of a network's defaults goes: every call of TVM's VM, timed in the network."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks._build import SEED, Folder, open_context
from benchmarks._candidates import load_machine
from tvmx.errors import MeasureError
from tvmx.ir import physical_shape

if TYPE_CHECKING:
    from tvmx.explore._context import Context
    from tvmx.ir import LayerChoice

_RUNS = 9
_REPEAT_US = 5e3
_MOST_CALLS = 1000
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
    network_us, calls = _trace(folder, list(inputs.values()))
    names = {c.implementation.template for c in plan.choices}
    anchors = [c for c in calls if _stem(c.kernel) in names]
    rest = [c for c in calls if _stem(c.kernel) not in names]
    return Profile(
        network=folder.network,
        network_us=network_us,
        peak_gflops=measured_peak_gflops(context.target),
        layers=_layers(context, plan.choices, anchors),
        ops=_grouped(c for c in rest if not c.kernel.startswith(_VM)),
        vm=_grouped(Call(c.kernel, (), c.us) for c in rest if c.kernel.startswith(_VM)),
    )


def _stem(kernel: str) -> str:
    """The template's name: the builder numbers kernels of one name."""
    return re.sub(r"\d+$", "", kernel)


def _trace(folder: Folder, inputs: Sequence[Any]) -> tuple[float, list[Call]]:
    """One inference's CPU us, and every call of one in order; the fastest of several runs.

    Runs with and without instruments alternate, so that both see the same machine.
    """
    plain, traced = (load_machine(folder.defaults, inputs) for _ in range(2))
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
        _layer_row(context, layers[group[0][0].layer].workload, group) for group in groups.values()
    )


def _layer_row(
    context: Context, workload: Any, group: Sequence[tuple[LayerChoice, Call]]
) -> LayerRow:
    choice = group[0][0]
    return LayerRow(
        workload=workload.describe(),
        template=choice.implementation.template,
        config=" ".join(f"{k}={v}" for k, v in choice.config.items()),
        calls=len(group),
        us=sum(call.us for _, call in group) / len(group),
        alone_us=_alone_us(context, workload, choice),
        macs=workload.macs,
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
