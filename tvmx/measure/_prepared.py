"""A job on the device, ready to be checked and timed."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from tvmx.measure._jobs import Array
from tvmx.measure._remote import RemoteSession
from tvmx.measure._simulated import SimulatedRun
from tvmx.measure._tasks import ArrayRef, KernelSpec, NetworkSpec, Spec, Timed
from tvmx.measure._timing import TimingPolicy
from tvmx.measure._verify import check_output


def _read(ref: ArrayRef) -> Array:
    return np.asarray(np.load(ref.path, mmap_mode="r", allow_pickle=False))


class Prepared(ABC):
    """Common part: subclasses say what to run and what came out."""

    def __init__(self, session: RemoteSession) -> None:
        self._session = session
        self.estimate_us = 0.0
        self.max_error: float | None = None
        self.simulated: SimulatedRun | None = None
        self.wall_s = 0.0

    def check(self) -> None:
        """Compare the output with the reference, estimate the latency."""
        start = time.monotonic()
        with self._session.phase("run"):
            self.estimate_us = self._evaluate(1, 1, 0)[0]
            self.simulated = self._session.simulated_run()
            self.max_error = self._verify()
        self.wall_s = time.monotonic() - start

    def time(self, number: int, repeat: int, policy: TimingPolicy) -> list[float]:
        """Mean latencies in microseconds of ``repeat`` times ``number`` calls, warmed up."""
        with self._session.phase("run"):
            self._warm_up(policy.warmup)
            return self._evaluate(number, repeat, policy.flush_bytes)

    def measure(self, policy: TimingPolicy) -> Timed:
        """Check, then time until the policy has enough."""
        self.check()
        if self.simulated is not None:  # the same again, to the last digit
            if policy.flush_bytes:
                with self._session.phase("run"):
                    self.estimate_us = self._evaluate(1, 1, policy.flush_bytes)[0]
                    self.simulated = self._session.simulated_run()
            return self.timed((self.estimate_us,))
        celsius = self._session.thermometer.read()
        number = policy.calls(self.estimate_us)
        with self._session.phase("run"):
            self._warm_up(policy.warmup)

        def more(repeat: int) -> list[float]:
            with self._session.phase("run"):
                return self._evaluate(number, repeat, policy.flush_bytes)

        latencies = policy.collect(self.estimate_us, more)
        return self.timed(latencies, celsius)

    def timed(self, latencies_us: Sequence[float], celsius: float | None = None) -> Timed:
        """What is told of the job after its check."""
        return Timed(tuple(latencies_us), self.max_error, celsius, self.wall_s, self.simulated)

    def _warm_up(self, calls: int) -> None:
        """Run without timing; the time evaluator adds one call of its own."""
        for _ in range(calls - 1):
            self._call()

    @abstractmethod
    def _evaluate(self, number: int, repeat: int, flush_bytes: int) -> list[float]:
        """Mean latencies in microseconds of ``repeat`` times ``number`` calls."""

    @abstractmethod
    def _call(self) -> None:
        """Run once, untimed."""

    @abstractmethod
    def _verify(self) -> float | None:
        """The error relative to the reference's range; None without a reference."""


class PreparedKernel(Prepared):
    """A PrimFunc library with its arguments on the device."""

    def __init__(self, session: RemoteSession, spec: KernelSpec) -> None:
        super().__init__(session)
        self._spec = spec
        with session.phase("upload", session.upload_seconds(spec)):
            self._args = [session.tensor(ref) for ref in spec.inputs]
            self._out = session.poisoned(spec.out_shape, spec.out_dtype)
            path = session.upload(spec.library)
        with session.phase("load", session.load_seconds(spec)):
            self._module = session.load(path)
            self._function = self._module[spec.symbol]

    def _evaluate(self, number: int, repeat: int, flush_bytes: int) -> list[float]:
        timer = self._module.time_evaluator(
            self._spec.symbol,
            self._session.device,
            number=number,
            repeat=repeat,
            cache_flush_bytes=flush_bytes,
        )
        return [seconds * 1e6 for seconds in timer(*self._args, self._out).results]

    def _call(self) -> None:
        self._function(*self._args, self._out)

    def _verify(self) -> float | None:
        spec = self._spec
        return check_output(
            self._session.fetch(self._out),
            None if spec.expected is None else _read(spec.expected),
            spec.rtol,
            layout=spec.layout,
            channels=spec.channels,
        )


class PreparedNetwork(Prepared):
    """A Relax VM with its inputs set."""

    def __init__(self, session: RemoteSession, spec: NetworkSpec) -> None:
        super().__init__(session)
        self._spec = spec
        from tvm.runtime.vm import VirtualMachine

        with session.phase("upload", session.upload_seconds(spec)):
            self.inputs = [session.tensor(ref) for ref in spec.inputs]
            path = session.upload(spec.library)
        with session.phase("load", session.load_seconds(spec)):
            self._vm = VirtualMachine(session.load(path), session.device)
            self._vm.set_input("main", *self.inputs)

    def run(self) -> tuple[Array, ...]:
        """Run once on the inputs as they are on the device; outputs flattened."""
        self._vm.set_input("main", *self.inputs)
        self._call()
        return self._outputs()

    def _evaluate(self, number: int, repeat: int, flush_bytes: int) -> list[float]:
        timer = self._vm.module.time_evaluator(  # the VM's own knows no cache flush
            "invoke_stateful",
            self._session.device,
            number=number,
            repeat=repeat,
            cache_flush_bytes=flush_bytes,
        )
        return [seconds * 1e6 for seconds in timer("main").results]

    def _call(self) -> None:
        self._vm.invoke_stateful("main")

    def _outputs(self) -> tuple[Array, ...]:
        return tuple(self._session.fetch(t) for t in _flatten(self._vm.get_outputs("main")))

    def _verify(self) -> float | None:
        outputs = self._outputs()  # of the last timed call
        expected = self._spec.expected
        if expected is not None and len(expected) != len(outputs):
            raise ValueError(f"{len(outputs)} outputs, {len(expected)} expected")
        references = [None] * len(outputs) if expected is None else [_read(r) for r in expected]
        errors = [
            check_output(out, ref, self._spec.rtol, what=f"output {i}")
            for i, (out, ref) in enumerate(zip(outputs, references, strict=True))
        ]
        known = [e for e in errors if e is not None]
        return max(known) if known else None


def _flatten(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in _flatten(item)]
    return [value]


def prepare(session: RemoteSession, spec: Spec) -> Prepared:
    """Bring a job to the device."""
    if isinstance(spec, KernelSpec):
        return PreparedKernel(session, spec)
    return PreparedNetwork(session, spec)
