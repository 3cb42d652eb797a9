"""A Ray cluster that builds and rollouts are spread over."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, TypeVar

import tvmx
from tvmx.errors import DeviceError, MissingExtraError, UsageError

A = TypeVar("A")
R = TypeVar("R")

_RETRIES = 3  # of a task whose worker died
_LOOK_S = 0.5
_CONNECT_S = 5.0
_START_S = 180.0  # a worker imports TVM, maybe on a machine that was just started


class RayCluster:
    """A connection to the cluster at ``address``; ``local`` starts one on this machine.

    Otherwise an address as ``ray.init`` takes it: ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``.
    The cluster's machines need the same tvmx and Python; nothing is sent to them but jobs, and the
    template's file with each. ``workers`` is the number of its CPUs, at most ``most``. A process is
    connected to one cluster at a time. Use as a context manager, or :meth:`close` it.

    Raises:
        MissingExtraError: Ray is not installed.
        DeviceError: there is no cluster at the address, or it cannot be used.
        UsageError: this process is connected to a cluster already.
    """

    LOCAL = "local"

    def __init__(self, address: str, most: int | None = None) -> None:
        # Ray reports to its makers unless it is told not to.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self.ray = _import_ray()
        if self.ray.is_initialized():
            raise UsageError("this process is connected to a Ray cluster already")
        self.address = address
        self._connect(most)
        cpus = int(self.ray.cluster_resources().get("CPU", 0))
        if cpus < 1:
            self.close()
            raise DeviceError(f"--ray {address}: the cluster has no CPU", hint="`ray status`")
        self.workers = cpus if most is None else min(cpus, most)

    def _connect(self, most: int | None) -> None:
        if ":" in self.address:
            self._require_listener()
        quiet = {"log_to_driver": False, "configure_logging": False}
        try:
            if self.address == self.LOCAL:
                cpus = most or os.cpu_count() or 1
                self.ray.init(address=self.LOCAL, num_cpus=cpus, include_dashboard=False, **quiet)
            else:
                self.ray.init(address=self.address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, OSError) as err:
            raise self._unanswered(err) from err

    @staticmethod
    def require() -> None:
        """Raise MissingExtraError where Ray is not installed."""
        _import_ray()

    def _require_listener(self) -> None:
        """Ray itself would try for minutes."""
        host, _, port = self.address.removeprefix("ray://").rpartition(":")
        if not port.isdecimal():
            raise UsageError(
                f"--ray {self.address} is no address",
                hint="--ray HOST:PORT, --ray auto or --ray local",
            )
        try:
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
        except (OSError, OverflowError) as err:
            raise self._unanswered(err) from err

    def _unanswered(self, err: Exception) -> DeviceError:
        return DeviceError(
            f"--ray {self.address}: no Ray cluster answers there ({_first_line(err)})",
            hint="`ray start --head` starts one and tells its address; --ray local needs none",
        )

    def require_alive(self) -> None:
        """Raise DeviceError where there is no machine left in the cluster."""
        try:
            cpus = self.ray.cluster_resources().get("CPU", 0)
        except Exception as err:  # whatever a connection that broke makes Ray raise
            raise DeviceError(f"--ray {self.address}: {_first_line(err)}") from err
        if cpus < 1:
            raise DeviceError(f"--ray {self.address}: the cluster has no CPU left")

    def map(self, function: Callable[[A], R], items: Iterable[A]) -> list[R]:
        """``function`` of every item, in order; what a worker that died was at is done again.

        Raises what ``function`` raises, and DeviceError where the cluster is gone.
        """
        task = self.ray.remote(function).options(num_cpus=1, max_retries=_RETRIES)
        try:
            found: list[R] = self.ray.get([task.remote(item) for item in items])
        except self.ray.exceptions.RayTaskError as err:
            raise err.cause from err
        except self.ray.exceptions.RayError as err:
            raise DeviceError(f"--ray {self.address}: {_first_line(err)}") from err
        return found

    def close(self) -> None:
        """Disconnect; a local cluster ends. Idempotent."""
        self.ray.shutdown()

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


class RayActor:
    """One worker process of a cluster, replaced when it dies or is killed.

    ``make`` is the class that runs there; calls of its methods are waited for. Its ``ready`` tells
    the version of tvmx. ``closed`` ends a wait early.
    """

    def __init__(self, cluster: RayCluster, make: type, closed: threading.Event) -> None:
        self._cluster, self._ray, self._make, self._closed = cluster, cluster.ray, make, closed
        self._actor: Any = None

    def call(self, method: str, *args: Any, timeout_s: float) -> Any:
        """The result of a method.

        Raises:
            TimeoutError: it took longer than ``timeout_s``; the worker was killed.
            WorkerDiedError: the worker, or the machine that it ran on, is gone.
            DeviceError: no worker could be started, or it has another version of tvmx.
            InterruptedError: ``closed`` was set.
        """
        if self._actor is None:
            self._start()
        return self._wait(getattr(self._actor, method).remote(*args), timeout_s)

    def _start(self) -> None:
        where = f"--ray {self._cluster.address}"
        self._actor = self._ray.remote(self._make).options(num_cpus=1, max_restarts=0).remote()
        try:
            version = self._wait(self._actor.ready.remote(), _START_S)
        except TimeoutError as err:
            raise DeviceError(
                f"{where}: no worker started within {_START_S:.0f} s",
                hint="`ray status` tells what the cluster is busy with",
            ) from err
        if version != tvmx.__version__:
            raise DeviceError(f"{where} has tvmx {version}, this is tvmx {tvmx.__version__}")

    def kill(self) -> None:
        """End the worker at once; the next call starts another. Idempotent."""
        if self._actor is not None:
            self._ray.kill(self._actor, no_restart=True)
            self._actor = None

    def _wait(self, answer: Any, timeout_s: float) -> Any:
        left = timeout_s
        while True:
            try:
                return self._ray.get(answer, timeout=min(_LOOK_S, left))
            except self._ray.exceptions.GetTimeoutError:
                left -= _LOOK_S
            except self._ray.exceptions.RayTaskError as err:
                raise err.cause from err
            except self._ray.exceptions.RayError as err:
                self._actor = None
                raise WorkerDiedError(_first_line(err)) from err
            if self._closed.is_set():
                self.kill()
                raise InterruptedError
            if left <= 0:
                self.kill()
                raise TimeoutError


class WorkerDiedError(Exception):
    """A worker process is gone, for reasons of its own or with its machine."""


def _import_ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as err:
        raise MissingExtraError(
            "--ray needs Ray, which is not installed", hint="pip install 'tvmx[ray]'"
        ) from err
    return ray


def _first_line(err: BaseException) -> str:
    lines = str(err).strip().splitlines()
    return lines[0] if lines else type(err).__name__
