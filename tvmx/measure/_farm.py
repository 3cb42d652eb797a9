"""LocalFarm: a tracker and servers on this machine, as children that end with this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from types import TracebackType

import psutil

from tvmx.errors import DeviceError, TrackerError
from tvmx.measure._address import DeviceAddress, parse_host_port
from tvmx.measure._cores import Cluster, Cores, has_little_cores
from tvmx.measure._deadlines import Deadlines
from tvmx.measure._guard import GuardedProcess
from tvmx.measure._measurement import Status
from tvmx.measure._observer import Observer
from tvmx.measure._probe import ProbeLibrary
from tvmx.measure._rpc import RpcRunner
from tvmx.measure._tracker import TrackerSummary, tracker_summary

_START_SECONDS = 60.0
_REGISTER_SECONDS = 12.0


class LocalFarm:
    """Starts a tracker and ``servers`` device servers on free loopback ports.

    The embedded default when no board is given: the same RPC path as a board. ``threads`` is
    the most threads a kernel may use on each server. Servers are supervised by their
    registration in the tracker, because TVM's server outlives its own listener. ``cluster``
    ``little`` runs kernels on the machine's slowest cores. Arrays and
    libraries travel by path; ``share_files=False`` sends them through the RPC as to a board.
    ``tracker`` (HOST:PORT) is one that runs already, to be used in place of its own; it is not
    supervised. What other servers a farm may have, a subclass says in ``spawn``.

    Entering raises :class:`tvmx.errors.DeviceError` when the children do not come up.
    """

    def __init__(
        self,
        servers: int = 1,
        threads: int = 1,
        key: str = "host",
        *,
        cluster: Cluster = "big",
        share_files: bool = True,
        tracker: str | None = None,
    ) -> None:
        self._count = servers
        self._threads = threads
        self._cluster: Cluster = cluster
        self._key = key
        self._share_files = share_files
        self._tracker: GuardedProcess | None = None
        self._foreign = tracker is not None
        self._tracker_host, self._tracker_port = (
            parse_host_port(tracker) if tracker else ("127.0.0.1", 0)
        )
        self._servers: dict[int, GuardedProcess] = {}
        self._lock = threading.RLock()

    def __enter__(self) -> LocalFarm:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def address(self) -> DeviceAddress:
        """Where runners find the farm."""
        return DeviceAddress(self._tracker_host, self._tracker_port, self._key)

    @property
    def _bind(self) -> bool:
        """Whether TVM binds threads to cores, which choosing a cluster takes.

        Several servers would all get the first cores; and where all cores are alike the system
        places threads better.
        """
        return self._cluster != "big" or (self._count == 1 and has_little_cores())

    @property
    def processes(self) -> dict[str, int]:
        """Pids of the working processes: ``tracker`` and ``server:PORT``."""
        pids = {f"server:{port}": p.worker_pid or 0 for port, p in self._servers.items()}
        if self._tracker is not None:
            pids["tracker"] = self._tracker.worker_pid or 0
        return pids

    def runner(
        self,
        *,
        deadlines: Deadlines | None = None,
        arch: str | None = None,
        observer: Observer | None = None,
        probe: ProbeLibrary | None = None,
        max_temperature: float | None = None,
    ) -> RpcRunner:
        """A runner on all servers of the farm, which repairs them when candidates break them."""
        self.ensure()  # a server whose last client was killed takes a moment to register again
        return RpcRunner(
            self.address,
            cores=Cores(self._cluster, self._threads),
            deadlines=deadlines,
            arch=arch,
            parallel=self._count,
            observer=observer,
            recover=self.recover,
            probe=probe,
            max_temperature=max_temperature,
        )

    def summary(self) -> TrackerSummary:
        """The tracker's view. Raises :class:`tvmx.errors.TrackerError`."""
        return tracker_summary(self._tracker_host, self._tracker_port)

    def recover(self, port: int | None, status: Status) -> bool:
        """Repair after a failure of a job on the server at ``port``; see :class:`RpcRunner`.

        A server stuck in a candidate is freed by killing the process that serves it; one that
        could not even be reached is replaced. Returns whether a server or the tracker had died,
        or something outside had stopped the server.
        """
        with self._lock:
            server = self._servers.get(port) if port is not None else None
            frozen = False
            if server is not None and server.alive and server.worker_pid:
                if status in ("queue", "connect"):
                    server.kill()
                else:
                    frozen = kill_processes(self.serving(server.worker_pid))
            return self.ensure() or frozen

    def serving(self, pid: int) -> list[psutil.Process]:
        """The processes of server ``pid`` that run candidates."""
        try:
            found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
            return found
        except psutil.NoSuchProcess:
            return []

    def ensure(self) -> bool:
        """Restart whatever is dead or not registered; whether that was needed.

        Raises :class:`tvmx.errors.DeviceError` when the farm does not come up again.
        """
        with self._lock:
            restarted = False
            start = patience = time.monotonic()
            while True:
                replaced = self._replace_dead()
                restarted |= replaced
                missing = self._unregistered()
                if not missing:
                    return restarted
                now = time.monotonic()
                if replaced:
                    patience = now
                elif now - patience > _REGISTER_SECONDS:
                    self._kill_silent(missing)
                    patience = now
                if now - start > _START_SECONDS:
                    raise self._not_registered(missing)
                time.sleep(0.05)

    def spawn(self) -> GuardedProcess:
        """Start one server that registers at :attr:`address`; it is not waited for."""
        args = ["server", "--tracker", self.address.tracker, "--key", self._key]
        if not self._share_files:
            args.append("--plain")
        return GuardedProcess(
            "tvmx.measure._child", args, env=server_environment(self._threads, bind=self._bind)
        )

    def close(self) -> None:
        """End all children. Calling it twice does no harm."""
        with self._lock:
            for server in self._servers.values():
                server.kill()
            self._servers.clear()
            if self._tracker is not None:
                self._tracker.kill()
            self._tracker = None

    def _start(self) -> None:
        self._start_tracker()
        pending = [self.spawn() for _ in range(self._count)]
        try:
            for server in pending:
                self._servers[int(server.ready(_START_SECONDS)["port"])] = server
        finally:
            for server in pending:
                if server not in self._servers.values():
                    server.kill()
        self.ensure()

    def _start_tracker(self) -> None:
        if self._foreign:
            self.summary()
            return
        if self._tracker is not None:
            self._tracker.kill()
        args = ["tracker"]
        if self._tracker_port:  # servers find a restarted tracker again only where it was
            args += ["--port", str(self._tracker_port)]
        self._tracker = GuardedProcess("tvmx.measure._child", args)
        self._tracker_port = int(self._tracker.ready(_START_SECONDS)["port"])

    def _start_server(self) -> None:
        server = self.spawn()
        self._servers[int(server.ready(_START_SECONDS)["port"])] = server

    def _replace_dead(self) -> bool:
        replaced = False
        if not self._foreign and (self._tracker is None or not _works(self._tracker)):
            self._start_tracker()
            replaced = True
        for port in [p for p, s in self._servers.items() if not _works(s)]:
            self._servers.pop(port).kill()
        while len(self._servers) < self._count:
            self._start_server()
            replaced = True
        return replaced

    def _unregistered(self) -> list[int]:
        """Ports of the servers the tracker does not list; all of them if it is silent.

        Servers find a silent tracker of somebody else's again by themselves.
        """
        try:
            summary = self.summary()
        except TrackerError:
            if self._foreign:
                raise
            return list(self._servers)
        return [port for port in self._servers if not summary.registered(self._key, port)]

    def _kill_silent(self, missing: list[int]) -> None:
        """What is up but does not answer or register is replaced in the next round."""
        if len(missing) == len(self._servers) and self._tracker is not None:
            self._tracker.kill()
        for port in missing:
            self._servers[port].kill()

    def _not_registered(self, missing: list[int]) -> DeviceError:
        log = self._servers[missing[0]].log_tail()
        return DeviceError(
            f"the server on port {missing[0]} did not register as {self._key!r}"
            f" within {_START_SECONDS:g} s: {log or 'no message'}"
        )


def server_environment(threads: int, *, bind: bool) -> dict[str, str]:
    """Environment of a server for kernels of up to ``threads`` threads.

    Without TVM_NUM_THREADS TVM uses half of the logical processors of an x86 machine. TVM binds
    each server's threads to the first cores (``bind``), which several servers must not share.
    """
    return {"TVM_NUM_THREADS": str(threads), "TVM_BIND_THREADS": "1" if bind else "0"}


def _works(server: GuardedProcess) -> bool:
    if not server.alive or server.worker_pid is None:
        return False
    try:
        state = psutil.Process(server.worker_pid).status()
    except psutil.NoSuchProcess:
        return False
    # A stopped server stays registered in the tracker, and nobody would ever resume it.
    return state not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def kill_processes(processes: Iterable[psutil.Process]) -> bool:
    """Whether one of them was stopped, by a signal from outside."""
    frozen = False
    for process in processes:
        try:
            frozen |= process.status() == psutil.STATUS_STOPPED
            process.kill()
        except psutil.NoSuchProcess:
            continue
    return frozen
