"""What runs inside a build worker process. Importing this module imports TVM."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import tempfile
import threading
import time
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

from tvmx import _tvm
from tvmx.build._job import BuildFailure, BuildResult, FailureKind, KernelBuild
from tvmx.build._link import link
from tvmx.build._memory import scratch_bytes
from tvmx.build._nest_features import nest_features
from tvmx.errors import BuildError, IllegalConfigError, LinkerError, TemplateError
from tvmx.ir import Config, workload_from_json
from tvmx.targets import Target
from tvmx.templates import load_template


def initialise(memory_limit_bytes: int | None) -> None:
    """Run once in every new worker: end with the parent, die at once when told, bound memory."""
    # Pebble's own SIGTERM handler is Python code, which an endless loop in LLVM never reaches.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()
    if memory_limit_bytes is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (memory_limit_bytes, hard))


def _die_with(sentinel: int) -> None:
    """Wait until the parent is gone, by whatever signal, and end this process with it."""
    connection.wait([sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


def ready() -> int:
    """The worker's process id; scheduled to start workers ahead of the first job."""
    return os.getpid()


def build_kernel(job: KernelBuild) -> BuildResult:
    """Build or describe one kernel. Every exception becomes a failure in the result."""
    start = time.perf_counter()
    try:
        return _describe(job, start) if job.describe_only else _build(job, start)
    except IllegalConfigError as err:
        return _failed("illegal", job, err, start)
    except TemplateError as err:
        return _failed("template", job, err, start)
    except LinkerError as err:
        return _failed("link", job, err, start)
    except _TemplateCodeError as err:
        return _failed("template", job, err.__cause__ or err, start)
    except (Exception, SystemExit) as err:
        return _failed("build", job, err, start)


class _TemplateCodeError(Exception):
    """The template's own code raised something that is no tvmx error."""


def _build(job: KernelBuild, start: float) -> BuildResult:
    target = Target.model_validate_json(job.target)
    func = _schedule(job, target)
    try:
        features = _features(job, func, target)
    except Exception:
        features = {}  # what cannot be described can still be built, measured and chosen
    func = func.with_attr("global_symbol", job.symbol)
    module = _tvm.tvm.IRModule({job.symbol: func})
    scratch = scratch_bytes(module, target)[job.symbol]
    library = job.library
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tvmx-build-") as folder:
        object_file = Path(folder) / f"{job.symbol}.o"
        code = _tvm.build_module(module, target)
        code.write_to_file(str(object_file))
        assembly = str(code.inspect_source("asm")) if job.with_assembly else ""
        digest = hashlib.sha256(object_file.read_bytes()).hexdigest()
        link([object_file], library, target)
    return BuildResult(
        library=library,
        digest=digest,
        arguments=_arguments(func),
        scratch_bytes=scratch,
        features=features,
        assembly=assembly,
        seconds=time.perf_counter() - start,
    )


def _describe(job: KernelBuild, start: float) -> BuildResult:
    target = Target.model_validate_json(job.target)
    features = _features(job, _schedule(job, target), target)
    return BuildResult(features=features, seconds=time.perf_counter() - start)


def _features(job: KernelBuild, func: Any, target: Target) -> dict[str, float]:
    workload = workload_from_json(job.workload)
    return nest_features(func, workload.macs, workload.dtype, target)


def _schedule(job: KernelBuild, target: Target) -> Any:
    template = load_template(job.template, job.template_path)
    workload = workload_from_json(job.workload)
    try:
        kernel = template.build(workload, Config(json.loads(job.config)), target)
    except TemplateError:
        raise
    except (Exception, SystemExit) as err:
        raise _TemplateCodeError from err
    return kernel.func


def _arguments(func: Any) -> tuple[tuple[tuple[int, ...], str], ...]:
    return tuple((tuple(int(n) for n in b.shape), str(b.dtype)) for b in func.params)


def _failed(kind: FailureKind, job: KernelBuild, err: BaseException, start: float) -> BuildResult:
    text = str(err).strip() if isinstance(err, BuildError | TemplateError) else _last_lines(err)
    message = f"{job.describe()}: {text}"
    return BuildResult(error=BuildFailure(kind, message), seconds=time.perf_counter() - start)


def _last_lines(err: BaseException) -> str:
    lines = [line for line in str(err).strip().splitlines() if line.strip()]
    return f"{type(err).__name__}: {' '.join(lines[-3:])[:600]}"
