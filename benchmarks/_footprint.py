"""Memory of one candidate in a process of its own: the peak of its resident set, runtime apart.

Run as a file: it prints one JSON object. The baseline is the process with the runtime imported and
the inputs read, before anything of the network is loaded; the peak is what the kernel saw from
there to the end of a few inferences on one thread.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    from benchmarks._folder import Folder
    from benchmarks._results import Footprint

_RUNS = 3
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # see proc(5): resets VmHWM to the present resident set
_TIMEOUT_S = 600


def measure_footprint(folder: Folder, name: str, model: Path, wheels: Path | None) -> Footprint:
    """Start a fresh process that loads ``model`` by the runtime of candidate ``name`` and runs it.

    Raises:
        MeasureError: it failed, or its outputs are wrong; says what it printed.
    """
    from benchmarks._candidates import ONE_THREAD
    from benchmarks._results import Footprint
    from tvmx.errors import MeasureError

    command = [sys.executable, __file__, name, str(folder.path), str(model), str(wheels or "")]
    # The compiler is not what is deployed: TVM's runtime library alone.
    environment = {**os.environ, **ONE_THREAD, "TVM_USE_RUNTIME_LIB": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise MeasureError(f"{folder.network}: memory of {name}: {last}")
    return Footprint.model_validate_json(done.stdout.strip().splitlines()[-1])


def _main(name: str, folder_path: str, model: str, wheels: str) -> None:
    from benchmarks._candidates import Expectation, verify
    from benchmarks._folder import Folder
    from benchmarks._results import OPENVINO_OF_THE_RANGE

    if wheels:
        sys.path.append(wheels)
    folder = Folder(Path(folder_path))
    inputs, floats = folder.load_golden()
    right = Expectation(floats)
    if name.endswith("int8"):
        # OpenVINO runs ONNX Runtime's quantised model.
        which = name.replace("openvino", "onnxruntime")
        limit = OPENVINO_OF_THE_RANGE if which != name else folder.load_limit(which)
        right = Expectation(folder.load_expected(which), limit)
    load = _loader(name, folder, Path(model))
    before = _memory("VmRSS")
    _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
    candidate = load(list(inputs.values()), right)
    loaded = _memory("VmHWM")
    for _ in range(_RUNS):
        candidate.run()
    after = _memory("VmRSS")  # before the peak: reading takes memory too
    peak = _memory("VmHWM")
    verify(candidate)
    sys.stdout.write(json.dumps({
        "name": name, "baseline_kib": before, "loaded_kib": loaded - before,
        "peak_kib": peak - before, "after_kib": after - before,
    }) + "\n")  # fmt: skip


def _loader(name: str, folder: Folder, model: Path) -> Callable[[Sequence[Any], Any], Any]:
    """Import the runtime of candidate ``name``; what then loads the network."""
    from benchmarks import _peers
    from benchmarks._candidates import onnxruntime_candidate

    match name:
        case _peers.OPENVINO_PEER | _peers.OPENVINO_INT8:
            import openvino  # noqa: F401

            return lambda inputs, right: _peers._openvino(folder, inputs, right, name)
        case _peers.NCNN_PEER:
            import ncnn  # noqa: F401

            return lambda inputs, right: _peers._ncnn(folder, inputs, right)
        case _peers.MNN_PEER:
            import MNN  # noqa: F401

            return lambda inputs, right: _peers._mnn(folder, inputs, right)
        case "onnxruntime" | "onnxruntime int8":
            import onnxruntime  # noqa: F401

            return lambda inputs, right: onnxruntime_candidate(name, model, inputs, right)
    sys.modules["torch"] = None  # type: ignore[assignment]  # tvm_ffi imports it where it is there
    import tvm  # noqa: F401
    from tvm.runtime.vm import VirtualMachine  # noqa: F401

    return lambda inputs, right: _library(name, model, inputs, right)


def _library(name: str, model: Path, inputs: Sequence[Any], right: Any) -> Any:
    """A library of tvmx in TVM's runtime, 1 thread."""
    import tvm
    from tvm.runtime.vm import VirtualMachine

    from benchmarks._candidates import Candidate

    tvm.get_global_func("runtime.config_threadpool")(1, 1)
    machine = VirtualMachine(tvm.runtime.load_module(str(model)), tvm.cpu())
    machine.set_input("main", *(tvm.runtime.tensor(array) for array in inputs))

    def outputs() -> list[Any]:
        got = machine.get_outputs("main")
        return [t.numpy() for t in ([got] if hasattr(got, "numpy") else got)]

    return Candidate(name, lambda: machine.invoke_stateful("main"), outputs, right)


def _memory(field: str) -> int:
    """A field of /proc/self/status in KiB."""
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise OSError(f"{_STATUS} has no {field}")


if __name__ == "__main__":
    _main(*sys.argv[1:])
