"""The float reference a whole network's output is checked against."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tvmx.errors import ModelError

if TYPE_CHECKING:
    from tvmx.ir import Model

Array = npt.NDArray[Any]


class Reference:
    """Runs the model as imported, by somebody else's kernels.

    An exported program is run by torch, an ONNX file by ONNX Runtime where it is installed, else
    by TVM's default pipeline. ``name`` says which one it is, for reports.
    """

    name: str

    def __init__(self, model: Model) -> None:
        self._model = model
        if model.frontend == "torch":
            self._run = self._torch()
        elif model.frontend == "onnx" and importlib.util.find_spec("onnxruntime") is not None:
            self._run = self._onnxruntime()
        else:
            self._run = self._tvm_default()

    def __call__(self, inputs: dict[str, Array]) -> tuple[Array, ...]:
        """Outputs, in order, for one set of inputs by name."""
        return tuple(np.asarray(out) for out in self._run(inputs))

    def _torch(self) -> Any:
        import torch

        from tvmx.frontends import torch_runner

        self.name = f"torch {torch.__version__}"
        return torch_runner(self._model.path, {i.name: i.shape for i in self._model.inputs})

    def _onnxruntime(self) -> Any:
        import onnxruntime as ort

        self.name = f"onnxruntime {ort.__version__}"
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # Its fusions change results in corner cases (a zero Pad before MaxPool, for one).
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            session = ort.InferenceSession(
                str(self._model.path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as err:
            raise ModelError(f"ONNX Runtime cannot load {self._model.path}: {err}") from err
        return lambda inputs: session.run(None, inputs)

    def _tvm_default(self) -> Any:
        from tvmx._tvm import VERSION, relax, tvm

        self.name = f"TVM {VERSION}, default pipeline"
        target = tvm.target.Target({"kind": "llvm"})
        machine = relax.VirtualMachine(relax.build(self._model.mod, target), tvm.cpu())

        def run(inputs: dict[str, Array]) -> list[Array]:
            ordered = [tvm.runtime.tensor(inputs[spec.name]) for spec in self._model.inputs]
            out = machine["main"](*ordered)
            tensors = [out] if len(self._model.outputs) == 1 else out
            return [tensor.numpy() for tensor in tensors]

        return run


def golden_inputs(model: Model, seed: int) -> dict[str, Array]:
    """Seeded normal inputs (zeros for integer inputs: their legal range is unknown)."""
    rng = np.random.default_rng(seed)
    return {
        spec.name: rng.standard_normal(spec.shape).astype(spec.dtype)
        if spec.dtype.startswith("float")
        else np.zeros(spec.shape, spec.dtype)
        for spec in model.inputs
    }
