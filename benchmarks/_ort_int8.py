"""ONNX Runtime's int8: a float model quantised by its own tools, and what became of it."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks._folder import Array

if TYPE_CHECKING:
    import onnx

_OPSET = 13  # the first whose QuantizeLinear is per channel
_FLOAT_LAYERS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul")


def quantise_model(source: Path, target: Path, samples: Sequence[Array], form: str = "QDQ") -> None:
    """Write ``source`` quantised: activations u8, weights s8 per output channel, min-max ranges.

    ``form`` is ``QDQ`` or ``QOperator``.

    ``samples`` holds per input, in the model's order, (samples, *shape of one sample); a call
    gets one sample. Batch norms are folded first, as ONNX Runtime's documentation asks for.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model = modernised(onnx.load(source))
    names = [value.name for value in model.graph.input]
    with tempfile.TemporaryDirectory() as folder, _quiet():
        modern, folded = Path(folder) / "modern.onnx", Path(folder) / "folded.onnx"
        onnx.save(model, modern)
        quant_pre_process(modern, folded, skip_symbolic_shape=True)
        quantize_static(
            folded, target, _Reader(names, samples), quant_format=QuantFormat[form],
            per_channel=True, reduce_range=False, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.MinMax,
        )  # fmt: skip


def modernised(model: onnx.ModelProto) -> onnx.ModelProto:
    """At least opset 13, and sums of two written as Add, which ONNX Runtime can quantise."""
    from onnx import version_converter

    version = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if version < _OPSET:
        model = version_converter.convert_version(model, _OPSET)
    for node in model.graph.node:
        if node.op_type == "Sum" and len(node.input) == 2:
            node.op_type = "Add"
    return model


def optimised_nodes(model: Path) -> dict[str, int]:
    """Operators ONNX Runtime runs after all its optimisations, the most frequent first."""
    import onnx
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    return dict(Counter(node.op_type for node in graph.node).most_common())


def float_layers(nodes: Mapping[str, int]) -> int:
    """How many convolutions and matrix products of a quantised model stayed float."""
    return sum(nodes.get(op, 0) for op in _FLOAT_LAYERS)


class _Reader:
    """Feeds the calibration one sample at a time."""

    def __init__(self, names: Sequence[str], samples: Sequence[Array]) -> None:
        self._feeds: Iterator[dict[str, Any]] = iter(
            [
                {name: array[i : i + 1] for name, array in zip(names, samples, strict=True)}
                for i in range(len(samples[0]))
            ]
        )

    def get_next(self) -> dict[str, Any] | None:
        """One call's inputs by name, None at the end."""
        return next(self._feeds, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice to preprocess the model, which is given after it was preprocessed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
