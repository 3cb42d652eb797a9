"""Build, check, measure and journal kernel candidates, builds overlapping measurements."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmx.build import SYMBOL, BuildPool, BuildResult, KernelBuild, RayPool
from tvmx.errors import DeviceError
from tvmx.ir import Config, Implementation, to_physical
from tvmx.measure import KernelJob, Manners, Measurement, OnResult, Runner, TimingPolicy
from tvmx.store import Journal, MeasurementKey, MeasurementRecord
from tvmx.targets import Target
from tvmx.tune import Prefilter

if TYPE_CHECKING:
    from tvmx.ir import Conv2dWorkload, DenseWorkload
    from tvmx.templates import Operands, TemplateEntry

_DEVICE_RETRIES = 3
_RETRY_S = 60.0  # a runner that waited longer than this for a device need not be asked again
_LEAST_FLUSH, _MOST_FLUSH, _SERVER_FLUSH = 8 << 20, 128 << 20, 96 << 20
_OPERANDS_KEPT = 2
_OTHERS_AT_ONCE = 8
_RTOL = 1e-3  # of the range; int8 kernels must be exact


@dataclass(frozen=True, eq=False)
class Task:
    """One implementation of a workload: what a knob tuner works on.

    ``workload`` is the layer's own (float, dense); ``variant`` the one the template is given.
    """

    workload: Conv2dWorkload | DenseWorkload
    entry: TemplateEntry
    implementation: Implementation

    @cached_property
    def variant(self) -> Conv2dWorkload | DenseWorkload:
        """The workload with the implementation's type and sparsity."""
        return self.implementation.variant(self.workload)

    @property
    def label(self) -> str:
        """For messages: workload and template."""
        return f"{self.variant.describe()} by {self.entry.name}"


@dataclass(frozen=True, eq=False)
class Pending:
    """A candidate on its way. ``known`` is its journalled record, if there is one."""

    task: Task
    config: Config
    key: MeasurementKey
    known: MeasurementRecord | None = None
    build: Future[BuildResult] | None = None

    def features(self) -> Mapping[str, float] | None:
        """What describes its kernel, once it is built; None where it was not."""
        if self.known is not None:
            return self.known.features
        assert self.build is not None
        return self.build.result().features or None


class KernelEvaluator:
    """Turns (task, config) into journalled measurements.

    A candidate the journal knows is neither built nor measured again, whether it succeeded
    or failed. Equal binaries of one workload are measured once. A ``prefilter`` drops what it finds
    slow before it is measured, except defaults; of that nothing is journalled. Counts ``measured``,
    ``recalled``, ``failed``, and what else the device timed: ``converted`` and ``retimed``.
    ``policy`` is how kernels are timed.
    """

    def __init__(
        self, *, target: Target, target_key: str, device: str, manners: Manners,
        versions: dict[str, str], journal: Journal, runner: Runner, pool: BuildPool | RayPool,
        folder: Path, prefilter: Prefilter | None = None,
    ) -> None:  # fmt: skip
        self._target, self._target_key, self._device = target, target_key, device
        self._manners, self._versions, self._prefilter = manners, versions, prefilter
        self.policy = kernel_policy(manners, target)
        self._journal, self._runner, self._pool, self._folder = journal, runner, pool, folder
        self._operands: OrderedDict[str, Operands] = OrderedDict()
        self._binaries: dict[tuple[str, str], Measurement] = {}
        self.measured = self.recalled = self.failed = 0
        self.converted = self.retimed = 0

    def submit(self, task: Task, config: Config) -> Pending:
        """Start building, unless the journal has the answer already."""
        key = self.key(task, config)
        known = self._journal.lookup(key)
        if known is not None:
            return Pending(task, config, key, known=known)
        build = self._pool.submit(self._build_job(task, config))
        return Pending(task, config, key, build=build)

    def describe(self, task: Task, config: Config) -> Future[BuildResult]:
        """Start describing a candidate's kernel, before all that is being built."""
        return self._pool.submit(replace(self._build_job(task, config), describe_only=True))

    def key(self, task: Task, config: Config) -> MeasurementKey:
        """The journal key of a candidate."""
        return MeasurementKey.of(
            task.variant.digest, task.implementation, config, target=self._target_key,
            device=self._device, versions=self._versions, **self._state,
        )  # fmt: skip

    def recall(self, key: MeasurementKey) -> Measurement | None:
        """The journalled measurement of a key."""
        record = self._journal.lookup(key)
        return None if record is None else Measurement.model_validate(record.measurement)

    def finish(self, batch: list[Pending]) -> list[Measurement | None]:
        """Wait for the builds of a batch, measure them, journal all; in the order given.

        None stands for what the prefilter dropped.

        Raises:
            DeviceError: the device failed again and again; nothing measured is lost.
        """
        results: list[Measurement | None] = [
            None if p.known is None else Measurement.model_validate(p.known.measurement)
            for p in batch
        ]
        self.recalled += sum(r is not None for r in results)
        jobs: list[tuple[int, KernelJob, str]] = []
        for index, pending in enumerate(batch):
            if pending.build is None:
                continue
            built = pending.build.result()
            if not built.ok:
                results[index] = self._record(pending.key, _build_failure(built))
                continue
            twin = self._binaries.get((pending.task.variant.digest, built.digest))
            if twin is not None:
                results[index] = self._record(pending.key, twin, built.features)
            else:
                assert built.library is not None
                jobs.append((index, self._job(pending, built.library), built.digest))
        self._measure(batch, jobs if self._prefilter is None else self._kept(batch, jobs), results)
        return results

    def _kept(
        self, batch: list[Pending], jobs: list[tuple[int, KernelJob, str]]
    ) -> list[tuple[int, KernelJob, str]]:
        """The jobs that the prefilter lets through."""
        assert self._prefilter is not None
        groups: dict[str, list[tuple[int, KernelJob, str]]] = {}
        for job in jobs:
            task = batch[job[0]].task
            groups.setdefault(f"{task.variant.digest} {task.entry.name}", []).append(job)
        kept = []
        for group, members in groups.items():
            pending = [batch[index] for index, _, _ in members]
            code = [p.build.result().assembly for p in pending if p.build is not None]
            passed = self._prefilter.keep(group, code)
            for member, one, good in zip(members, pending, passed, strict=True):
                space = one.task.entry.template.space(one.task.variant, self._target)
                if good or one.config == space.default:
                    kept.append(member)
        return sorted(kept, key=lambda job: job[0])

    def others(self, named: Sequence[tuple[str, Callable[[], KernelJob]]]) -> list[Measurement]:
        """Measurements of what is no layer (conversions), journalled by name; in order."""
        keys = [self.named_key(name) for name, _ in named]
        found = [self.recall(key) for key in keys]
        missing = [i for i, measurement in enumerate(found) if measurement is None]
        for start in range(0, len(missing), _OTHERS_AT_ONCE):
            part = missing[start : start + _OTHERS_AT_ONCE]

            def journal(number: int, measurement: Measurement, part: list[int] = part) -> None:
                self.converted += 1
                if not measurement.device_fault:
                    found[part[number]] = self._record(keys[part[number]], measurement)

            self._on_device([named[i][1]() for i in part], self.policy, journal)
        return [m for m in found if m is not None]

    def retime(self, task: Task, configs: Sequence[Config], rounds: int) -> list[Measurement]:
        """Time configs of a task again, interleaved; journalled as one comparison.

        What won in the search won partly by luck: only figures taken side by side, with no
        build running, decide. Returns [] when one of them fails now.
        """
        group = hashlib.sha256("|".join(c.key() for c in configs).encode()).hexdigest()[:12]
        keys = [
            self.key(task, config).model_copy(
                update={"workload": f"retime:{task.variant.digest}:{group}"}
            )
            for config in configs
        ]
        known = [m for key in keys if (m := self.recall(key)) is not None]
        if len(known) == len(keys):
            return known
        # The libraries are still there unless this run was resumed elsewhere.
        jobs = [self._build_job(task, config) for config in configs]
        builds = {j: self._pool.submit(j) for j in jobs if not j.library.is_file()}
        if not all(build.result().ok for build in builds.values()):
            return []
        measured = self._runner.compare(
            [
                self._job(Pending(task, config, key), job.library)
                for config, key, job in zip(configs, keys, jobs, strict=True)
            ],
            rounds, self.policy,
        )  # fmt: skip
        self.retimed += len(jobs)
        if not all(m.ok for m in measured):
            return []
        return [self._record(key, m) for key, m in zip(keys, measured, strict=True)]

    def keep(
        self, key: MeasurementKey, measurement: Measurement, features: Mapping[str, float]
    ) -> None:
        """Journal a measurement that was made elsewhere: of a whole plan."""
        self._journal.append(
            MeasurementRecord(
                key=key, measurement=measurement.model_dump(mode="json"), timestamp=time.time(),
                features=dict(features) or None,
            )
        )  # fmt: skip

    def counts(self) -> dict[str, int]:
        """How often the device timed what, for a result."""
        return {
            "kernels": self.measured, "conversions": self.converted, "re-timed": self.retimed,
        }  # fmt: skip

    def clear(self) -> None:
        """Delete the kernel libraries; a later resume builds what it needs again."""
        for library in self._folder.glob("*.so"):
            library.unlink(missing_ok=True)

    @property
    def _state(self) -> dict[str, Any]:
        """How kernels are run, for the key."""
        cores = self._manners.cores
        return {"threads": cores.threads, "cores": cores.cluster, "cache": self._manners.cache}

    def _build_job(self, task: Task, config: Config) -> KernelBuild:
        job = KernelBuild.of(
            task.variant, task.entry.name, task.entry.path, config, self._target, self._folder
        )
        return replace(job, with_assembly=self._prefilter is not None)

    def named_key(self, name: str) -> MeasurementKey:
        """The journal key of what is no kernel of a layer: a conversion, a whole plan."""
        return MeasurementKey(
            workload=name, implementation="{}", config="{}", target=self._target_key,
            device=self._device, **self._state,
            tvmx=self._versions["tvmx"], tvm=self._versions["tvm"],
        )  # fmt: skip

    def _measure(
        self, batch: list[Pending], jobs: list[tuple[int, KernelJob, str]],
        results: list[Measurement | None],
    ) -> None:  # fmt: skip
        def journal(number: int, measurement: Measurement) -> None:
            if measurement.device_fault:
                return
            index, _, digest = jobs[number]
            pending = batch[index]
            if measurement.ok:
                self._binaries[pending.task.variant.digest, digest] = measurement
            results[index] = self._record(pending.key, measurement, pending.features())
            self.measured += 1

        self._on_device([job for _, job, _ in jobs], self.policy, journal)

    def _on_device(
        self, jobs: list[KernelJob], policy: TimingPolicy, on_result: OnResult
    ) -> list[Measurement]:
        """Measure; what failed through the device's fault is tried again, then given up.

        ``on_result`` gets every measurement at once, so that none is lost when this dies.
        """
        results: dict[int, Measurement] = {}
        left = list(range(len(jobs)))
        start = time.monotonic()
        for attempt in range(1 + _DEVICE_RETRIES):
            if attempt and time.monotonic() - start > _RETRY_S:
                break
            numbers = list(left)

            def done(position: int, measurement: Measurement, numbers: list[int] = numbers) -> None:
                results[numbers[position]] = measurement
                on_result(numbers[position], measurement)

            self._runner.measure([jobs[i] for i in numbers], policy, done)
            left = [i for i in numbers if results[i].device_fault]
            if not left:
                return [results[i] for i in range(len(jobs))]
        fault = results[left[0]]
        raise DeviceError(
            f"device {self._device!r} failed again and again ({fault.status}: {fault.message}); "
            "everything measured so far is in the journal",
            hint="`tvmx devices` shows what is registered; the same command continues the run",
        )

    def _record(
        self,
        key: MeasurementKey,
        measurement: Measurement,
        features: Mapping[str, float] | None = None,
    ) -> Measurement:
        self.keep(key, measurement, features or {})
        self.failed += not measurement.ok
        return measurement

    def _job(self, pending: Pending, library: Path) -> KernelJob:
        task, operands = pending.task, self._operands_of(pending.task.variant)
        kernel = task.entry.template.build(task.variant, pending.config, self._target)
        implementation = task.implementation
        inputs: list[Any] = [
            to_physical(operands.data, implementation.data_layout),
            *kernel.constants(operands.constants),
        ]
        if operands.residual is not None:
            inputs.append(to_physical(operands.residual, implementation.layout))
        expected = to_physical(operands.expected, implementation.layout)
        return KernelJob(
            library=library, symbol=SYMBOL, inputs=tuple(inputs),
            out_shape=expected.shape, out_dtype=str(expected.dtype), expected=expected,
            layout=implementation.layout, channels=task.workload.out_shape[1],
            rtol=0.0 if task.variant.dtype == "int8" else _RTOL,
            label=f"{task.label} {pending.config!r}",
        )  # fmt: skip

    def _operands_of(self, workload: Any) -> Operands:
        """Random operands and the float reference of a workload; the last few are kept."""
        from tvmx.templates import make_operands

        found = self._operands.pop(workload.digest, None) or make_operands(workload)
        self._operands[workload.digest] = found
        while len(self._operands) > _OPERANDS_KEPT:
            self._operands.popitem(last=False)
        return found


def kernel_policy(manners: Manners, target: Target) -> TimingPolicy:
    """How kernels are timed, on warm or flushed caches."""
    quick = TimingPolicy.quick()
    return quick.cold(flush_bytes(target)) if manners.cold else quick


def flush_bytes(target: Target) -> int:
    """What must be written to push a kernel's operands out of all caches: twice the outermost.

    Target files know L1 and L2. A system-level cache behind them is taken to be at most four
    times as large as all L2 together on Arm; elsewhere it has tens of megabytes.
    """
    if target.arch != "aarch64":
        return _SERVER_FLUSH
    clusters = target.clusters
    l2 = sum(c.l2_kib * (c.count if c.l2_private else 1) for c in clusters)
    return min(_MOST_FLUSH, max(_LEAST_FLUSH, 8 * l2 << 10))


def _build_failure(built: BuildResult) -> Measurement:
    assert built.error is not None
    return Measurement.failure("build", f"{built.error.kind}: {built.error.message}")
