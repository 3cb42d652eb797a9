"""Libraries for the tests of measuring: right, wrong, crashing, endless, slow, and a network."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvmx.measure import KernelJob, NetworkJob

SHAPE = (1, 3, 5, 7, 4)  # NCHW4c with 10 channels: two padding lanes
CHANNELS = 10

# A kernel in TVM's calling convention; the arguments are never looked at.
C_KERNEL = """
#include <stdint.h>
#include <time.h>
int __tvm_ffi_k(void *self, const void *args, int32_t count, void *result) {{ {body} return 0; }}
"""
BODIES = {
    "crash": "*(volatile int *)8 = 1;",
    "loop": "volatile int on = 1; while (on);",
    "idle": "",  # leaves the output unwritten
    "sleep": "struct timespec t; t.tv_sec = 0; t.tv_nsec = 5000000; nanosleep(&t, 0);",
}


@dataclass(frozen=True)
class Libraries:
    """Paths of the built libraries and the arrays that go with them."""

    folder: Path
    data: np.ndarray
    network_inputs: dict[str, np.ndarray]
    network_outputs: tuple[np.ndarray, ...]

    def kernel(self, name: str, **changes: object) -> KernelJob:
        """A job with the kernel in ``name``.so; ``good`` doubles and adds one."""
        settings: dict[str, object] = {
            "expected": self.data * 2 + 1,
            "layout": "NCHW4c",
            "channels": CHANNELS,
            "label": name,
            "out_shape": SHAPE,
        }
        settings.update(changes)
        library = self.folder / f"{name}.so"
        return KernelJob(library, "k", (self.data,), **settings)  # type: ignore[arg-type]

    def sleeping(self, **changes: object) -> KernelJob:
        """5 ms a call, without work for the processor."""
        return self.kernel("sleep", expected=None, out_dtype="int32", **changes)

    def large(self, nbytes: int) -> KernelJob:
        """A kernel with an input of that size, which takes a while over the wire."""
        data = np.ones(nbytes, np.uint8)
        return KernelJob(self.folder / "idle.so", "k", (data,), (1,), "int32", label="large")

    def foreign(self) -> KernelJob:
        """The good kernel, labelled as aarch64 code in its ELF header."""
        library = bytearray((self.folder / "good.so").read_bytes())
        library[18:20] = (183).to_bytes(2, "little")
        (self.folder / "foreign.so").write_bytes(library)
        return self.kernel("foreign")

    def wrong(self) -> KernelJob:
        """The good kernel against another reference."""
        return self.kernel("good", expected=self.data * 2 + 1.1, label="wrong")

    def network(self) -> NetworkJob:
        """x @ w and x + y, for two inputs."""
        return NetworkJob(
            self.folder / "network.so", self.network_inputs, self.network_outputs, label="network"
        )


def build_c(folder: Path, names: tuple[str, ...] = tuple(BODIES)) -> None:
    """Compile the C kernels."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    command = [compiler] if compiler else [sys.executable, "-m", "ziglang", "cc"]
    for name in names:
        source = folder / f"{name}.c"
        source.write_text(C_KERNEL.format(body=BODIES[name]))
        library = str(folder / f"{name}.so")
        subprocess.run([*command, "-shared", "-fPIC", "-o", library, str(source)], check=True)


def build(folder: Path) -> Libraries:
    """Compile everything for this machine."""
    build_c(folder)
    return build_tvm(folder, {"kind": "llvm"})


def build_tvm(
    folder: Path, config: dict[str, Any], fcompile: Callable[..., None] | None = None
) -> Libraries:
    """Compile the good kernel and the network for TVM target ``config``; ``fcompile`` links."""
    rng = np.random.default_rng(0)
    inputs = {n: rng.random((1, 64), np.float32) for n in ("x", "y")}
    weight = rng.random((64, 8), np.float32)
    for name, module in _tvm_modules(weight, config).items():
        module.export_library(str(folder / f"{name}.so"), fcompile=fcompile)
    outputs = (inputs["x"] @ weight, inputs["x"] + inputs["y"])
    return Libraries(folder, rng.random(SHAPE, np.float32), inputs, outputs)


def _tvm_modules(weight: np.ndarray, config: dict[str, Any]) -> dict[str, Any]:
    import tvm
    from tvm import relax, te, tirx

    target = tvm.target.Target(config)
    a = te.placeholder(SHAPE, name="a")
    b = te.compute(SHAPE, lambda *i: a(*i) * 2.0 + 1.0)
    func = te.create_prim_func([a, b]).with_attr("global_symbol", "k")
    library = tirx.build(tvm.IRModule({"k": func}), target=target)
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 64), "float32"))
    y = relax.Var("y", relax.TensorType((1, 64), "float32"))
    with builder.function("main", [x, y]):
        with builder.dataflow():
            product = builder.emit(relax.op.matmul(x, relax.const(weight)))
            total = builder.emit(relax.op.add(x, y))
            out = builder.emit_output(relax.Tuple([product, total]))
        builder.emit_func_output(out)
    return {"good": library, "network": relax.build(builder.get(), target=target)}
