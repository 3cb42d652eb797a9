"""Peers on this machine: OpenVINO, ncnn and MNN, from wheels in a folder of their own.

They are not dependencies of tvmx: pip puts them where only a measuring process looks, after
everything else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks._candidates import Candidate, Expectation, thread_count
from benchmarks._folder import Folder
from benchmarks._sim_peers import MNN, NCNN, PNNX, convert_mnn, convert_ncnn, install_wheels

Array = npt.NDArray[Any]

OPENVINO_PEER, NCNN_PEER, MNN_PEER = PEERS = ("openvino", "ncnn", "mnn")
OPENVINO_INT8 = "openvino int8"
WHEELS = (
    "openvino==2026.4.1", "openvino-telemetry==2025.2.0", f"ncnn=={NCNN}", f"MNN=={MNN}",
    f"pnnx=={PNNX}",
)  # fmt: skip


def install_peers(folder: Path) -> None:
    """Their wheels in ``folder``. Raises MeasureError when pip fails."""
    install_wheels(folder, WHEELS)


def convert_models(folder: Folder, wheels: Path) -> None:
    """The network in ncnn's and MNN's own formats. Raises MeasureError."""
    convert_ncnn(folder, wheels)
    convert_mnn(folder, wheels)


class PeerError(Exception):
    """A peer that cannot run a network; says why."""


def peer_candidates(
    folder: Folder, wheels: Path, inputs: Sequence[Array], expected: Expectation,
    quantised: Expectation,
) -> tuple[list[Candidate], dict[str, str]]:  # fmt: skip
    """One candidate for each peer, float32, and why there is none of the others.

    The last is OpenVINO with ONNX Runtime's quantised model, which must compute ``quantised``.

    Call it in a process of its own.
    """
    sys.path.append(str(wheels))
    candidates, failed = [], {}
    for name, load in zip(PEERS, (_openvino, _ncnn, _mnn), strict=True):
        try:
            candidates.append(load(folder, inputs, expected))
        except PeerError as err:
            failed[name] = str(err)
    candidates.append(_openvino(folder, inputs, quantised, OPENVINO_INT8))
    return candidates, failed


def _openvino(
    folder: Folder, inputs: Sequence[Array], expected: Expectation, name: str = OPENVINO_PEER
) -> Candidate:
    """OpenVINO with the float model, or with the quantised one: it runs those in int8."""
    import openvino as ov

    settings = {
        "INFERENCE_NUM_THREADS": thread_count(), "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }  # fmt: skip
    model = folder.onnx_int8 if name == OPENVINO_INT8 else folder.onnx
    request = ov.Core().compile_model(str(model), "CPU", settings).create_infer_request()
    for index, array in enumerate(inputs):
        request.set_input_tensor(index, ov.Tensor(array))

    def outputs() -> list[Array]:
        count = len(request.model_outputs)
        return [np.array(request.get_output_tensor(i).data) for i in range(count)]

    return Candidate(name, request.infer, outputs, expected)


def _ncnn(folder: Folder, inputs: Sequence[Array], expected: Expectation) -> Candidate:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads, net.opt.use_vulkan_compute = thread_count(), False
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    for suffix, load in ((".param", net.load_param), (".bin", net.load_model)):
        if load(f"{folder.ncnn}{suffix}"):
            kinds = {line.split()[0] for line in _lines(folder.ncnn) if line}
            raise PeerError(f"it does not load what pnnx makes of it ({', '.join(sorted(kinds))})")
    # A Mat does not own the array it is made of.
    images = [ncnn.Mat(array[0]).clone() for array in inputs]
    last: list[Any] = []

    def run() -> None:
        extractor = net.create_extractor()
        for index, image in enumerate(images):
            extractor.input(f"in{index}", image)
        code, mat = extractor.extract("out0")
        if code:
            raise RuntimeError(f"ncnn failed: {code}")
        last[:] = [mat]

    return Candidate(NCNN_PEER, run, lambda: [_like(expected, [np.array(last[0])[None]])], expected)


def _lines(model: Path) -> list[str]:
    """The layers of one of ncnn's files."""
    return model.with_name(model.name + ".param").read_text(encoding="utf-8").splitlines()[2:]


def _mnn(folder: Folder, inputs: Sequence[Array], expected: Expectation) -> Candidate:
    quiet = os.dup(1)
    os.dup2(2, 1)  # it greets on stdout, which is for the table
    import MNN

    os.dup2(quiet, 1)
    os.close(quiet)
    interpreter = MNN.Interpreter(str(folder.mnn))
    settings = {"backend": "CPU", "numThread": thread_count(), "precision": "high"}
    session = interpreter.createSession(settings)
    wanted = list(interpreter.getSessionInputAll(session).values())

    def tensor(array: Array) -> Any:
        return MNN.Tensor(array.shape, MNN.Halide_Type_Float, array, MNN.Tensor_DimensionType_Caffe)

    images = [tensor(array) for array in inputs]

    def run() -> None:
        for one, image in zip(wanted, images, strict=True):
            one.copyFrom(image)  # each time: a run may use the input's memory for other things
        interpreter.runSession(session)

    def outputs() -> list[Array]:
        found = []
        for one in interpreter.getSessionOutputAll(session).values():
            host = tensor(np.zeros(one.getShape(), np.float32))
            one.copyToHostTensor(host)
            found.append(np.array(host.getNumpyData()).reshape(one.getShape()))
        return [_like(expected, found)]

    return Candidate(MNN_PEER, run, outputs, expected)


def _like(expected: Expectation, found: Sequence[Array]) -> Array:
    """The only output, in the shape it has in the ONNX file: both drop axes of extent 1."""
    (output,), (wanted,) = found, expected.outputs
    return output.reshape(wanted.shape) if output.size == wanted.size else output
