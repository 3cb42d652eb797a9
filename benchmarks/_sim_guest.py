"""Runs in the arm64 guest, as a script: one inference of one runner, counted by the emulator.

    python _sim_guest.py ncnn --model squeezenet.ncnn --inputs golden.npz --outputs out.npz ...

The model is loaded and run once on the host's clock (which packs weights); then the clock is made
simulated, with cold caches, and one inference is counted. It needs numpy and the runner's own
package. Inputs are the arrays ``in:...`` of the file, in their order.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_HISTORY = 64  # intervals the emulator remembers
_OPENBLAS = "libscipy_openblas64_*.so"  # in numpy's wheels

Run = Callable[[], object]
Outputs = Callable[[], "list[Any]"]


def main() -> None:
    """Parse the command line, load, warm up, count, write outputs and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runner", choices=tuple(_LOADERS))
    for name in ("model", "inputs", "clock", "outputs", "report"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--library", type=Path, help="of _sim_im2col.c")
    args = parser.parse_args()
    facts: dict[str, Any] = {}
    started = time.perf_counter()
    run, outputs = _LOADERS[args.runner](args, facts)
    loaded = time.perf_counter()
    run()
    warm = time.perf_counter()
    counts = _count(run, _load_clock(args.clock))
    seconds = {"load": loaded - started, "warm": warm - loaded, "count": time.perf_counter() - warm}
    np.savez(args.outputs, **{f"out:{i}": array for i, array in enumerate(outputs())})
    args.report.write_text(json.dumps({"counts": counts, "seconds": seconds, "facts": facts}))
    sys.stdout.flush()
    os._exit(0)  # libraries with threads of their own may not end under the emulator


def _load_clock(path: Path) -> Any:
    """``tvmx/simulate/guest_server.py`` by its file, for its calls to the emulator."""
    spec = importlib.util.spec_from_file_location("guest_server", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _count(run: Run, clock: Any) -> dict[str, float]:
    """What one call of ``run`` costs; a library that looks at the clock cuts it into intervals."""
    clock._call_emulator(ctypes.c_long(clock._SIMULATED_CLOCK))
    time.perf_counter()
    before = clock._counters(0)
    run()
    time.perf_counter()
    after = clock._counters(0)
    clock._call_emulator(ctypes.c_long(clock._HOST_CLOCK))
    if "missing" in after:
        raise SystemExit(f"nothing was counted: {after['missing']}")
    intervals = int(after["looks"] - before["looks"])
    if intervals > _HISTORY:
        raise SystemExit(f"{intervals} looks at the clock in one run; {_HISTORY} are remembered")
    found = [clock._counters(index) for index in range(intervals)]
    return {name: sum(one[name] for one in found) for name in found[0]}


def _inputs(args: argparse.Namespace) -> dict[str, Any]:
    with np.load(args.inputs, allow_pickle=False) as data:
        names = [name for name in data.files if name.startswith("in:")]
        return {name.removeprefix("in:"): np.ascontiguousarray(data[name]) for name in names}


def _load_tvm(args: argparse.Namespace, facts: dict[str, Any]) -> tuple[Run, Outputs]:
    import tvm
    from tvm.runtime.vm import VirtualMachine

    tvm.get_global_func("runtime.config_threadpool")(1, 1)
    device = tvm.cpu(0)
    library = tvm.runtime.load_module(str(args.model))
    function = VirtualMachine(library, device)["main"]
    tensors = [tvm.runtime.tensor(array, device) for array in _inputs(args).values()]
    facts["version"] = tvm.__version__
    last: list[Any] = []

    def run() -> None:
        last[:] = [function(*tensors)]

    def outputs() -> list[Any]:
        found = last[0]
        return [t.numpy() for t in ([found] if hasattr(found, "numpy") else found)]

    return run, outputs


def _load_onnxruntime(args: argparse.Namespace, facts: dict[str, Any]) -> tuple[Run, Outputs]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(str(args.model), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    feeds = dict(zip(names, _inputs(args).values(), strict=True))
    facts["version"] = ort.__version__
    last: list[Any] = []

    def run() -> None:
        last[:] = session.run(None, feeds)

    return run, lambda: list(last)


def _load_ncnn(args: argparse.Namespace, facts: dict[str, Any]) -> tuple[Run, Outputs]:
    import ncnn

    net = ncnn.Net()
    options = net.opt
    options.num_threads, options.use_vulkan_compute = 1, False
    # Its default on cores that have half precision; all float columns are float32.
    options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
    for name, load in ((".param", net.load_param), (".bin", net.load_model)):
        if load(f"{args.model}{name}"):
            raise SystemExit(f"ncnn does not load {args.model}{name}")
    # A Mat does not own the array it is made of.
    images = [ncnn.Mat(array[0]).clone() for array in _inputs(args).values()]
    facts["version"] = ncnn.__version__
    last: list[Any] = []

    def run() -> None:
        extractor = net.create_extractor()
        for index, image in enumerate(images):
            extractor.input(f"in{index}", image)
        code, mat = extractor.extract("out0")
        if code:
            raise SystemExit(f"ncnn failed: {code}")
        last[:] = [mat]

    return run, lambda: [np.array(mat)[None] for mat in last]


def _load_mnn(args: argparse.Namespace, facts: dict[str, Any]) -> tuple[Run, Outputs]:
    import MNN

    interpreter = MNN.Interpreter(str(args.model))
    session = interpreter.createSession({"backend": "CPU", "numThread": 1, "precision": "normal"})
    wanted = interpreter.getSessionInputAll(session).values()
    images = [_mnn_tensor(MNN, array) for array in _inputs(args).values()]
    facts["version"] = MNN.version()

    def run() -> None:
        for tensor, image in zip(wanted, images, strict=True):
            tensor.copyFrom(image)  # each time: a run may use the input's memory for other things
        interpreter.runSession(session)

    def outputs() -> list[Any]:
        found = []
        for tensor in interpreter.getSessionOutputAll(session).values():
            shape = tensor.getShape()
            host = _mnn_tensor(MNN, np.zeros(shape, np.float32))
            tensor.copyToHostTensor(host)
            found.append(np.array(host.getNumpyData()).reshape(shape))
        return found

    return run, outputs


def _mnn_tensor(mnn: Any, array: Any) -> Any:
    kind, order = mnn.Halide_Type_Float, mnn.Tensor_DimensionType_Caffe
    return mnn.Tensor(array.shape, kind, array, order)


LAYER_FIELDS = (
    "groups", "out_channels", "in_channels", "in_height", "in_width", "out_height", "out_width",
    "kernel_height", "kernel_width", "stride_height", "stride_width", "pad_top", "pad_left",
)  # fmt: skip
"""Of ``struct layer`` in _sim_im2col.c, before its pointers."""


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in LAYER_FIELDS),
        *((name, ctypes.c_void_p) for name in ("data", "weight", "out")),
    )


def _load_im2col(args: argparse.Namespace, facts: dict[str, Any]) -> tuple[Run, Outputs]:
    """Every layer on the input it has in the network (``data:i``, ``weight:i``, ``shape:i``)."""
    (blas_path,) = (Path(np.__file__).parents[1] / "numpy.libs").glob(_OPENBLAS)
    blas, library = ctypes.CDLL(str(blas_path)), ctypes.CDLL(str(args.library))
    blas.scipy_openblas_set_num_threads64_(1)
    blas.scipy_openblas_get_corename64_.restype = ctypes.c_char_p
    blas.scipy_openblas_get_config64_.restype = ctypes.c_char_p
    facts["version"] = blas.scipy_openblas_get_config64_().decode().split()[1]
    facts["kernels"] = blas.scipy_openblas_get_corename64_().decode()
    with np.load(args.model, allow_pickle=False) as data:
        arrays = {name: np.ascontiguousarray(data[name]) for name in data.files}
    count = sum(name.startswith("shape:") for name in arrays)
    layers = (_Layer * count)()
    found, room = [], 0
    for index, layer in enumerate(layers):
        shape: Mapping[str, int] = dict(
            zip(LAYER_FIELDS, map(int, arrays[f"shape:{index}"]), strict=True)
        )
        for name, value in shape.items():
            setattr(layer, name, value)
        pixels = layer.out_height * layer.out_width
        room = max(room, layer.in_channels * layer.kernel_height * layer.kernel_width * pixels)
        found.append(np.empty(layer.groups * layer.out_channels * pixels, np.float32))
        layer.data = arrays[f"data:{index}"].ctypes.data
        layer.weight = arrays[f"weight:{index}"].ctypes.data
        layer.out = found[-1].ctypes.data
    column = np.empty(room, np.float32)
    sgemm = ctypes.cast(blas.scipy_cblas_sgemm64_, ctypes.c_void_p)
    address, size = ctypes.c_void_p(column.ctypes.data), ctypes.c_int64(count)

    def run() -> None:
        library.tvmx_im2col(layers, size, address, sgemm)

    def outputs() -> list[Any]:
        assert column.size and arrays  # both must live as long as their addresses are used
        return found

    return run, outputs


_LOADERS: dict[str, Callable[[argparse.Namespace, dict[str, Any]], tuple[Run, Outputs]]] = {
    "tvm": _load_tvm,
    "onnxruntime": _load_onnxruntime,
    "ncnn": _load_ncnn,
    "mnn": _load_mnn,
    "im2col": _load_im2col,
}


if __name__ == "__main__":
    main()
