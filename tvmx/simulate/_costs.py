"""What blocks of code cost: a server the emulator's plugin asks, and a cache on disk."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socketserver
import sqlite3
import struct
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, Self

from tvmx.errors import SimulationError, TvmxError
from tvmx.simulate._mca import Code
from tvmx.simulate._tools import cache_folder

logger = logging.getLogger(__name__)

# Blocks of one call of llvm-mca, whose start takes as long as some ten blocks.
_LEAST_TOGETHER, _MOST_TOGETHER = 16, 64
_LOCKED_S = 60.0
_STOP_WITHIN_S = 0.05


class CostModel(Protocol):
    """What a block of code costs on a core (:class:`tvmx.simulate._mca.Analyser`)."""

    @property
    def name(self) -> str:
        """All that the figures depend on."""
        ...

    def costs(self, blocks: Sequence[Code]) -> list[int]:
        """Thousandths of a cycle of one execution of each."""
        ...


class CostCache:
    """Costs of one model on disk, shared by all processes. Nothing is ever overwritten.

    Raises:
        SimulationError: the file is damaged or cannot be written; it is named.
    """

    def __init__(self, model: str, folder: Path | None = None) -> None:
        folder = cache_folder() / "costs" if folder is None else folder
        self.path = folder / f"{hashlib.sha256(model.encode()).hexdigest()[:16]}.sqlite"
        with self._explained():
            folder.mkdir(parents=True, exist_ok=True)
            self._store = sqlite3.connect(
                self.path, timeout=_LOCKED_S, isolation_level=None, check_same_thread=False
            )
            self._store.execute("BEGIN IMMEDIATE")  # else two that set it up would collide
            self._store.execute(
                "CREATE TABLE IF NOT EXISTS cost (code BLOB PRIMARY KEY, millicycles INTEGER)"
                " WITHOUT ROWID"
            )
            self._store.execute("CREATE TABLE IF NOT EXISTS model (name TEXT PRIMARY KEY)")
            self._store.execute("INSERT OR IGNORE INTO model VALUES (?)", (model,))
            self._store.execute("COMMIT")

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    def known(self, keys: Sequence[bytes]) -> dict[bytes, int]:
        """The costs that are there."""
        found = {}
        with self._explained():
            for key in keys:
                row = self._store.execute("SELECT millicycles FROM cost WHERE code=?", (key,))
                for (cost,) in row:
                    found[key] = int(cost)
        return found

    def add(self, costs: dict[bytes, int]) -> None:
        """Keep new costs."""
        with self._explained():
            self._store.execute("BEGIN IMMEDIATE")
            self._store.executemany("INSERT OR IGNORE INTO cost VALUES (?, ?)", costs.items())
            self._store.execute("COMMIT")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as err:
            raise SimulationError(
                f"the simulator's cost cache {self.path} cannot be used: {err}",
                hint=f"free some space, or remove it: rm {self.path}*",
            ) from err


class CostServer:
    """Answers the plugin on a Unix socket for as long as the ``with`` lasts.

    Blocks nobody has asked for before are handed to the model, on all processors; ``analysed``
    counts them. The answer does not depend on what the cache holds.
    """

    def __init__(self, model: CostModel, folder: Path | None = None) -> None:
        self.model = model
        self.analysed = 0
        self.failure: TvmxError | None = None
        self._folder = folder
        self._workers = len(os.sched_getaffinity(0))
        self._costs: dict[bytes, int] = {}
        self._lock = threading.Lock()
        self._stack = contextlib.ExitStack()

    @property
    def path(self) -> Path:
        """The socket."""
        return self._socket

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._cache = CostCache(self.model.name, self._folder)
            stack.callback(self._cache.close)
            self._pool = stack.enter_context(ThreadPoolExecutor(self._workers))
            # In the system's folder for temporary files: a socket's path has at most 107 bytes.
            home = stack.enter_context(tempfile.TemporaryDirectory(prefix="tvmx-sim-"))
            self._socket = Path(home) / "costs"
            server = _Server(self._socket, self)
            stack.callback(server.server_close)
            thread = threading.Thread(
                target=server.serve_forever, args=(_STOP_WITHIN_S,), name="tvmx-costs", daemon=True
            )
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def answer(self, blocks: Sequence[Code]) -> list[int]:
        """Costs of blocks in thousandths of a cycle, from memory, disk or the model."""
        keys = [hashlib.sha256(bytes(b.sizes) + b"|" + b.data).digest() for b in blocks]
        with self._lock:
            missing = {k: b for k, b in zip(keys, blocks, strict=True) if k not in self._costs}
            if missing:
                self._costs |= self._cache.known(list(missing))
                new = {k: b for k, b in missing.items() if k not in self._costs}
                if new:
                    found = dict(zip(new, self._analyse(list(new.values())), strict=True))
                    self._cache.add(found)
                    self._costs |= found
                    self.analysed += len(found)
            return [self._costs[key] for key in keys]

    def _analyse(self, blocks: list[Code]) -> list[int]:
        size = min(_MOST_TOGETHER, max(_LEAST_TOGETHER, -(-len(blocks) // self._workers)))
        parts = [blocks[i : i + size] for i in range(0, len(blocks), size)]
        return [cost for part in self._pool.map(self.model.costs, parts) for cost in part]


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: Path, costs: CostServer) -> None:
        super().__init__(str(path), _Question)
        self.costs = costs


class _Question(socketserver.StreamRequestHandler):
    """One question of the plugin; ``plugin/costs.c`` has the format."""

    server: _Server

    def handle(self) -> None:
        try:
            answer = self.server.costs.answer(self._blocks())
        except TvmxError as err:  # without an answer the guest ends with a message of its own
            self.server.costs.failure = err
            logger.error("%s", err)
            return
        self.wfile.write(struct.pack(f"={len(answer)}q", *answer))

    def _blocks(self) -> list[Code]:
        (count,) = struct.unpack("=I", self._read(4))
        found = []
        for _ in range(count):
            instructions, size = struct.unpack("=II", self._read(8))
            found.append(Code(self._read(instructions), self._read(size)))
        return found

    def _read(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise SimulationError("a simulated program ended while asking for costs")
        return data
