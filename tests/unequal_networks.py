"""A small MobileNet-like network whose channels have deliberately unequal ranges."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from tvmx.testing.models import graph_model

make = helper.make_node
SHAPE = (1, 3, 16, 16)
CLASSES = 10


def unequal(spread: float = 1.5, seed: int = 0, batch: int = 1) -> onnx.ModelProto:
    """Stem, two depthwise-pointwise blocks, pool, dense, with ReLU.

    Each channel between layers is multiplied by 10**u, u uniform in [-spread, spread], and divided
    again by the layer behind: the float function hardly depends on ``spread``.
    """
    rng = np.random.default_rng(seed)
    weights: dict[str, Any] = {}
    nodes: list[onnx.NodeProto] = []
    scale, value = np.ones(3), "x"
    plan = [("stem", 3, 16, 3, 1), ("deep1", 16, 16, 3, 16), ("point1", 16, 32, 1, 1),
            ("deep2", 32, 32, 3, 32), ("point2", 32, 48, 1, 1)]  # fmt: skip
    for name, inputs, outputs, kernel, groups in plan:
        weight = rng.standard_normal((outputs, inputs // groups, kernel, kernel))
        weight *= np.sqrt(2 / np.prod(weight.shape[1:]))
        bias = rng.standard_normal(outputs) * 0.2
        after = 10 ** rng.uniform(-spread, spread, outputs)
        before = scale[:, None] if groups > 1 else scale[None, :]
        weight = weight / before[..., None, None] * after[:, None, None, None]
        weights[f"{name}.w"] = weight.astype(np.float32)
        weights[f"{name}.b"] = (bias * after).astype(np.float32)
        pads = [kernel // 2] * 4
        nodes.append(make("Conv", [value, f"{name}.w", f"{name}.b"], [f"{name}.c"], name=name,
                          pads=pads, group=groups))  # fmt: skip
        nodes.append(make("Relu", [f"{name}.c"], [f"{name}.r"]))
        scale, value = after, f"{name}.r"
    dense = rng.standard_normal((CLASSES, len(scale))) / scale
    weights["dense.w"] = dense.astype(np.float32)
    nodes += [
        make("GlobalAveragePool", [value], ["mean"]),
        make("Flatten", ["mean"], ["flat"]),
        make("Gemm", ["flat", "dense.w"], ["y"], name="dense", transB=1),
    ]
    return graph_model(nodes, {"x": (batch, *SHAPE[1:])}, {"y": (batch, CLASSES)}, weights)
