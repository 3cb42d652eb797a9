"""Libraries for arm64 boards: right, crashing, endless, with dot products, and a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.measure_libraries import BODIES, C_KERNEL, SHAPE, Libraries
from tvmx.build import fcompile, link
from tvmx.targets import Target

# sdot on what the first 64 bytes of the arguments hold; the result does not matter.
SDOT = 'asm volatile(".arch armv8.2-a+dotprod\\nsdot v0.4s, v1.16b, v2.16b" ::: "v0");'
KERNELS = {"crash": BODIES["crash"], "loop": BODIES["loop"], "sdot": SDOT, "idle": BODIES["idle"]}


def build(folder: Path, target: Target) -> Libraries:
    """Compile everything for ``target``."""
    for name, body in KERNELS.items():
        source = folder / f"{name}.c"
        source.write_text(C_KERNEL.format(body=body))
        link([source], folder / f"{name}.so", target)
    rng = np.random.default_rng(0)
    inputs = {n: rng.random((1, 64), np.float32) for n in ("x", "y")}
    weight = rng.random((64, 8), np.float32)
    _build_tvm(folder, weight, target)
    outputs = (inputs["x"] @ weight, inputs["x"] + inputs["y"])
    return Libraries(folder, rng.random(SHAPE, np.float32), inputs, outputs)


def _build_tvm(folder: Path, weight: np.ndarray, target: Target) -> None:
    import tvm
    from tvm import relax, te, tirx

    core = tvm.target.Target(target.tvm_config())
    a = te.placeholder(SHAPE, name="a")
    b = te.compute(SHAPE, lambda *i: a(*i) * 2.0 + 1.0)
    func = te.create_prim_func([a, b]).with_attr("global_symbol", "k")
    library = tirx.build(tvm.IRModule({"k": func}), target=core)
    library.export_library(str(folder / "good.so"), fcompile=fcompile(target))
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 64), "float32"))
    y = relax.Var("y", relax.TensorType((1, 64), "float32"))
    with builder.function("main", [x, y]):
        with builder.dataflow():
            product = builder.emit(relax.op.matmul(x, relax.const(weight)))
            total = builder.emit(relax.op.add(x, y))
            out = builder.emit_output(relax.Tuple([product, total]))
        builder.emit_func_output(out)
    network = relax.build(builder.get(), target=core)
    network.export_library(str(folder / "network.so"), fcompile=fcompile(target))
