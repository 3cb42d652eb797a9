"""Child processes that cannot outlive their parent, and cannot leave anything behind.

:func:`split` is called first thing in a child. It forks: one half goes on and does the work in
a process group of its own; the other, the guard, does nothing but wait. When the parent closes
its end of the child's standard input, or dies in any way, or the working half ends, the guard
kills the whole group: also what the working half forked, which TVM's RPC server does for each
client and which may be stuck in machine code.

:class:`GuardedProcess` is the parent's side.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tvmx.errors import DeviceError

_POLL_SECONDS = 0.2


def split(parent: int, scratch: str | None = None) -> None:
    """Return in the working half; the guard half never returns.

    ``parent`` is the pid this process must not outlive. ``scratch`` is a folder the guard
    removes at the end. The lifeline is standard input (a pipe nobody writes to).
    """
    worker = os.fork()
    if worker == 0:
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        return
    with contextlib.suppress(OSError):  # the child may have done it already
        os.setpgid(worker, worker)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: _finish(worker, scratch, 143))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # only the working half may hold the pipes the parent reads
    os.dup2(null, 2)
    os.closerange(3, 4096)
    _watch(worker, parent, scratch)


def _watch(worker: int, parent: int, scratch: str | None) -> None:
    watched = [0]
    with contextlib.suppress(OSError):  # old kernels and sandboxes: polling will do
        watched.append(os.pidfd_open(worker))
    while True:
        readable, _, _ = select.select(watched, [], [], _POLL_SECONDS)
        if 0 in readable and not os.read(0, 4096):
            _finish(worker, scratch, 0)
        # The pipe alone is not enough: processes the parent forked hold its other end too.
        if os.getppid() != parent:
            _finish(worker, scratch, 0)
        done, status = os.waitpid(worker, os.WNOHANG)
        if done:
            _finish(worker, scratch, 1 if status else 0)


def _finish(worker: int, scratch: str | None, code: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(worker, signal.SIGKILL)
    if scratch:
        shutil.rmtree(scratch, ignore_errors=True)
    os._exit(code)


class GuardedProcess:
    """A child running ``python -m module *args`` under a guard, with a scratch folder.

    The child gets ``--parent PID --scratch DIR`` appended, its temporary files and its log
    (standard error) go to the scratch folder, which vanishes with it. With ``foreground`` the
    log goes to this process's standard error instead.
    """

    def __init__(
        self,
        module: str,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        foreground: bool = False,
    ) -> None:
        self.scratch = Path(tempfile.mkdtemp(prefix="tvmx-"))
        self.log = self.scratch / "log"
        package_root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", module, *args]
        command += ["--parent", str(os.getpid()), "--scratch", str(self.scratch)]
        settings = {
            **os.environ,
            "PYTHONPATH": path,
            "TMPDIR": str(self.scratch),
            # Only the runtime is needed here; one BLAS thread, because the child forks.
            "TVM_USE_RUNTIME_LIB": "1",
            "OPENBLAS_NUM_THREADS": "1",
            **(env or {}),
        }
        with self.log.open("wb") as log:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if foreground else log,
                env=settings,
                pass_fds=tuple(pass_fds),
                start_new_session=not foreground,
            )
        self.worker_pid: int | None = None

    @property
    def alive(self) -> bool:
        """Whether the child still runs."""
        return self._process.poll() is None

    def ready(self, timeout: float) -> dict[str, Any]:
        """The JSON line the child prints when it is up; kills it and raises DeviceError if not."""
        pipe: IO[bytes] = self._process.stdout  # type: ignore[assignment]
        line, end = b"", time.monotonic() + timeout
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([pipe], [], [], max(0.0, end - time.monotonic()))
            chunk = os.read(pipe.fileno(), 4096) if readable else b""
            if not chunk:
                why = "ended" if readable else f"was not ready within {timeout:g} s"
                tail = self.log_tail()
                self.kill()
                raise DeviceError(f"a child process {why}: {tail or 'it wrote no message'}")
            line += chunk
        facts: dict[str, Any] = json.loads(line.splitlines()[0])
        self.worker_pid = int(facts["pid"])
        return facts

    def log_tail(self, lines: int = 3) -> str:
        """The last lines the child wrote to its log."""
        try:
            text = self.log.read_text(errors="replace")
        except OSError:
            return ""
        return " / ".join(text.strip().splitlines()[-lines:])

    def wait(self, timeout: float) -> bool:
        """Wait for the child to end by itself; whether it has."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self, grace: float = 2.0) -> None:
        """End the child and everything it started; returns when it is gone."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is not None and not stdin.closed:
            stdin.close()
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:  # the guard itself is stopped or starved
            if self.worker_pid is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.worker_pid, signal.SIGKILL)
            self._process.kill()
            self._process.wait()
        if stdout is not None:
            stdout.close()
        shutil.rmtree(self.scratch, ignore_errors=True)
