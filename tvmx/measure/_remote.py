"""The worker's side of an RPC session: open it, bring arrays and libraries over, run them.

Everything here may block for ever or die with the connection, because TVM's C++ client has no
deadlines. It runs in a worker process that its parent kills (see ``_session``).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tvmx.errors import DeviceError
from tvmx.measure import _server_functions as server
from tvmx.measure._elf import elf_machine
from tvmx.measure._jobs import Array, poison
from tvmx.measure._measurement import Status
from tvmx.measure._simulated import COUNTERS, FACTS, SimulatedRun, parse_run
from tvmx.measure._tasks import (
    ArrayRef,
    ConnectedEvent,
    CoolingEvent,
    Event,
    Link,
    Phase,
    PhaseEvent,
    Spec,
    TicketEvent,
    library_bytes,
    upload_bytes,
)
from tvmx.measure._thermal import Thermometer, is_lost, read_text
from tvmx.measure._tracker import ServerTicket, TrackerConnection
from tvmx.measure._verify import WrongOutputError

_CACHE_BYTES = 256 << 20
_COOLING_SECONDS = 180.0
_COOLED_BY = 5.0  # degrees below the limit before measuring goes on
_COOL_LEAVES = 20.0  # seconds of the session for what comes after
_FILE_BYTES = 64 << 10  # below, the wire is faster than a file
_READ_BACK_BYTES = 1 << 20
_ROOM_BYTES = 64 << 10
# Read where a plain TVM server runs: TVM's `download` opens any path, but not /proc.
_IDENTITY_FILES = (
    "/sys/firmware/devicetree/base/model",
    "/sys/devices/system/cpu/cpu0/regs/identification/midr_el1",
    "/etc/hostname",
)
_names = itertools.count()


class StepError(Exception):
    """A phase failed; carries the status of the measurement to be."""

    def __init__(
        self,
        status: Status,
        message: str,
        max_error: float | None = None,
        *,
        hopeless: bool = False,
    ) -> None:
        super().__init__(message)
        self.status: Status = status
        self.max_error = max_error
        self.hopeless = hopeless


def status_of(phase: Phase, error: Exception) -> Status:
    """The measurement status for an exception of TVM's client in a phase."""
    text = str(error)
    if phase not in ("load", "run"):
        return "connect" if phase == "start" or phase == "cool" else phase
    if "RPCSessionTimeoutError" in text or "RPCSessionTimeout" in type(error).__name__:
        return "timeout"
    return "crash" if is_lost(error) else phase


class RemoteSession:
    """An open session with one server, which ends it after ``lifetime`` seconds.

    ``emit`` reports phases to the parent.
    """

    def __init__(
        self,
        link: Link,
        emit: Callable[[Event], None],
        queue_seconds: float,
        lifetime: float,
    ) -> None:
        self._link = link
        self._emit = emit
        self._lifetime = lifetime
        self.subject = 0
        self.step: Phase = "queue"  # the phase that was entered last
        self._tensors: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._poison: dict[tuple[tuple[int, ...], str], Any] = {}
        self._sent: dict[str, str] = {}
        self.server = ""
        self._remote = self._open(queue_seconds)
        self.device = self._remote.cpu()
        self.thermometer = Thermometer(self._remote)

    @property
    def remote(self) -> Any:
        """TVM's own session; None once this one is closed."""
        return self._remote

    def tell(self, event: Event) -> None:
        """Report to the parent."""
        self._emit(event)

    @contextlib.contextmanager
    def phase(self, name: Phase, seconds: float | None = None) -> Iterator[None]:
        """Announce a phase and turn what goes wrong in it into a :class:`StepError`."""
        limit = self._link.deadlines.of(name) if seconds is None else seconds
        self.step = name
        self._emit(PhaseEvent(name, limit, self.subject))
        try:
            yield
        except StepError:
            raise
        except WrongOutputError as err:
            raise StepError("wrong-output", str(err), err.max_error) from err
        except Exception as err:
            status = status_of(name, err)
            raise StepError(status, f"{name}: {_first_line(err)}") from err

    def _open(self, queue_seconds: float) -> Any:
        from tvm import rpc

        with self.phase("queue", queue_seconds + 1.5):
            ticket = self._queue(queue_seconds)
        self._emit(TicketEvent(ticket.host, ticket.port))
        with self.phase("connect"):
            # The server ends the session by itself after this time, which frees the device
            # from a candidate that hangs even when this process is killed.
            self._ends = time.monotonic() + self._lifetime
            remote = rpc.connect(
                ticket.host, ticket.port, ticket.match_key, session_timeout=self._lifetime
            )
            threads = self._configure(remote)
            token = Path.cwd() / "token"
            self._shared = self._shares_files(remote, token)
            identity = self._identify(remote)
            facts = _optional_function(remote, FACTS)
            simulated = "" if facts is None else str(facts())
        seconds = self._ends - time.monotonic()
        connected = ConnectedEvent(ticket.host, ticket.port, identity, threads, seconds, simulated)
        self.simulated: dict[str, Any] = json.loads(simulated or "{}")
        self.server = connected.server
        self._emit(connected)
        return remote

    def _queue(self, seconds: float) -> ServerTicket:
        address = self._link.address
        try:
            with TrackerConnection(address.host, address.port) as tracker:
                ticket = tracker.request(address.key, seconds)
                if ticket is not None:
                    return ticket
            with TrackerConnection(address.host, address.port) as tracker:
                status = tracker.summary().keys.get(address.key)
        except DeviceError as err:
            raise StepError("queue", err.message) from err
        state = f"{status.servers} registered, all busy" if status else "none is registered"
        raise StepError("queue", f"no device {address} within {seconds:g} s: {state}")

    def _configure(self, remote: Any) -> int:
        cores = self._link.cores
        problem = cores.problem(lambda path: read_text(remote, path))
        if problem:
            raise StepError("connect", f"{self._link.address} {problem}", hopeless=True)
        if cores.threads:
            remote.get_function("runtime.config_threadpool")(cores.mode, cores.threads)
        actual = int(remote.get_function("runtime.NumThreads")())
        if cores.threads and actual != cores.threads:
            raise StepError(
                "connect",
                f"{self._link.address} runs {actual} threads, {cores} were asked for:"
                f" start its server with TVM_NUM_THREADS={cores.threads}, or ask for as many cores"
                " as it has",
                hopeless=True,
            )
        return actual

    def _shares_files(self, remote: Any, token: Path) -> bool:
        read = _optional_function(remote, server.READ_TOKEN)
        if read is None:
            return False
        secret = f"{time.time_ns()} {id(self)}"
        token.write_text(secret)
        if str(read(str(token))) != secret:
            return False
        self._fill = remote.get_function(server.FILL)
        self._dump = remote.get_function(server.DUMP)
        return True

    def _identify(self, remote: Any) -> str:
        describe = _optional_function(remote, server.IDENTITY)
        if describe is not None:
            return str(describe())
        facts = [read_text(remote, path) for path in _IDENTITY_FILES]
        return ", ".join(fact for fact in facts if fact) or "unknown device"

    def simulated_run(self) -> SimulatedRun | None:
        """What a simulated board counted in the last timed run; None on a real device."""
        if not self.simulated.get("figure"):
            return None
        return parse_run(self.simulated, str(self._remote.get_function(COUNTERS)(0)))

    def lasts(self, seconds: float) -> bool:
        """Whether the server will keep the session that long."""
        return time.monotonic() + seconds < self._ends

    def usable(self, seconds: float) -> bool:
        """Whether the connection is alive and the server will keep it that long."""
        if not self.lasts(seconds):
            return False
        try:
            with self.phase("connect"):
                self._remote.get_function("runtime.NumThreads")()
        except StepError:
            return False
        return True

    def tensor(self, ref: ArrayRef) -> Any:
        """The array on the device; what was sent in this session before is not sent again."""
        if ref.digest in self._tensors:
            self._tensors.move_to_end(ref.digest)
            return self._tensors[ref.digest][0]
        array = np.load(ref.path, mmap_mode="r", allow_pickle=False)
        tensor = self.empty(array.shape, array.dtype.name)
        if self._by_file(array.nbytes):
            self._fill(ref.path, tensor, -1)
        else:
            tensor.copyfrom(np.ascontiguousarray(array))
        self._tensors[ref.digest] = (tensor, ref.nbytes)
        while len(self._tensors) > 1 and sum(n for _, n in self._tensors.values()) > _CACHE_BYTES:
            self._tensors.popitem(last=False)
        return tensor

    def forget(self) -> None:
        """Drop the cache of device tensors."""
        self._tensors.clear()

    def close(self) -> None:
        """Let the device go, whoever still holds this object; it is of no use afterwards."""
        self.forget()
        self._poison.clear()
        self.thermometer.close()
        self._remote = self.device = self._fill = self._dump = None

    def relink(self, link: Link) -> None:
        """Other deadlines or another limit of temperature from now on."""
        self._link = link

    def cool_down(self) -> None:
        """Wait until the device is cool enough to measure on; not for ever.

        Each second is reported. After three minutes the job is measured all the same: its
        measurement holds the temperature.
        """
        limit = self._link.max_temperature
        celsius = None if limit is None else self.thermometer.read()
        if limit is None or celsius is None or celsius <= limit:
            return
        end = time.monotonic() + min(_COOLING_SECONDS, self._ends - time.monotonic() - _COOL_LEAVES)
        with self.phase("cool", _COOLING_SECONDS + 5.0):
            while celsius is not None and celsius > limit - _COOLED_BY:
                left = end - time.monotonic()
                if left <= 0:
                    return
                self._emit(CoolingEvent(celsius, left))
                time.sleep(1.0)
                celsius = self.thermometer.read(fresh=True)

    def refill(self, tensor: Any, ref: ArrayRef, index: int) -> None:
        """Overwrite a device tensor by entry ``index`` of a stacked array."""
        stack = np.load(ref.path, mmap_mode="r", allow_pickle=False)
        if self._by_file(stack[index].nbytes):
            self._fill(ref.path, tensor, index)
        else:
            tensor.copyfrom(np.ascontiguousarray(stack[index]))

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Uninitialised device memory."""
        from tvm import runtime

        return runtime.empty(shape, dtype, device=self.device)

    def poisoned(self, shape: tuple[int, ...], dtype: str) -> Any:
        """An output buffer full of NaN, so that what a kernel leaves unwritten shows.

        Fresh memory will not do: it may hold the right answer of the candidate before.
        """
        key = (shape, dtype)
        if key not in self._poison:
            self._poison.clear()
            source = self.empty(shape, dtype)
            source.copyfrom(poison(shape, dtype))
            self._poison[key] = source
        out = self.empty(shape, dtype)
        self._poison[key].copyto(out)
        return out

    def fetch(self, tensor: Any) -> Array:
        """A device tensor's values."""
        if not self._by_file(int(np.prod(tensor.shape)) * np.dtype(str(tensor.dtype)).itemsize):
            return np.asarray(tensor.numpy())
        path = Path.cwd() / "fetched.npy"
        self._dump(str(path), tensor)
        return np.asarray(np.load(path, allow_pickle=False))

    def _by_file(self, nbytes: int) -> bool:
        return self._shared and nbytes >= _FILE_BYTES

    def upload_seconds(self, spec: Spec) -> float:
        """How long bringing this job over may take."""
        return self._link.deadlines.transfer(0 if self._shared else upload_bytes(spec))

    def load_seconds(self, spec: Spec) -> float:
        """How long opening this job's library may take."""
        return self._link.deadlines.loading(library_bytes(spec))

    def upload(self, library: str) -> str:
        """Bring a library over; returns the path to load it by."""
        if self._shared:
            return library
        name = f"lib{next(_names)}.so"
        data = Path(library).read_bytes()
        self._remote.upload(bytearray(data), name)
        self._require_arrived(name, data)
        self._sent[name] = library
        return name

    def _require_arrived(self, name: str, data: bytes) -> None:
        """TVM's server writes a file without looking whether it could.

        A library cut short by a full disk crashes when it is loaded, like a bad candidate.
        """
        if len(data) > _READ_BACK_BYTES:
            # Reading it all back takes as long as sending it. Whether there is room left on
            # the disk that it fills is as good.
            name, data = f"{name}.room", os.urandom(_ROOM_BYTES)
            self._remote.upload(bytearray(data), name)
        arrived = bytes(self._remote.download(name))
        if arrived != data:
            raise StepError(
                "upload",
                f"upload: {len(arrived)} of {len(data)} bytes arrived: the folder for temporary"
                f" files on {self.server} is full; free space there, or start its server with"
                " TMPDIR set to another folder",
            )

    def load(self, path: str) -> Any:
        """Open an uploaded library; its file is removed at once, the mapping stays."""
        library = Path(self._sent.pop(path, path))
        try:
            module = self._remote.load_module(path)
        except Exception as err:
            if is_lost(err):
                raise
            # The system's loader says "no such file" of a library for another machine.
            raise StepError(
                "load",
                f"load: {library.name} is on the device, but cannot be opened there; it is built"
                f" for {elf_machine(library)}: {_first_line(err)}",
            ) from err
        if not self._shared:
            self._remote.remove(path)
        return module


def _optional_function(remote: Any, name: str) -> Any | None:
    try:
        return remote.get_function(name)
    except Exception as err:
        if is_lost(err):
            raise
        return None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    noise = ("RPCError: Error caught from RPC call:", "Error caught from RPC call:")
    useful = [line for line in lines if line not in noise] or lines
    return f"{type(error).__name__}: {useful[0][:300]}" if useful else type(error).__name__
