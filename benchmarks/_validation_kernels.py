"""The kernels that real and modelled cycles are compared on, built for AVX2 on this machine.

QEMU 7.2 emulates AVX2 and nothing later, so the templates see a target of 256-bit vectors. Each
kernel of a template comes in its default config and in seeded random ones, good and bad; the
simple ones are C, compiled by this machine's compiler.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from benchmarks._results import OF_THE_RANGE
from tvmx.errors import BuildError, MeasureError
from tvmx.targets import Target, load_target

if TYPE_CHECKING:
    from tvmx.build import KernelBuild
    from tvmx.ir import Config, Conv2dWorkload, DenseWorkload
    from tvmx.templates import TemplateEntry

Array = npt.NDArray[Any]
Kind = Literal["gemm", "conv", "1x1", "depthwise", "gemv", "stream", "reduction", "other"]

COMPUTE: tuple[Kind, ...] = ("gemm", "conv", "1x1", "depthwise")
"""The kinds that networks spend their time in, and that the model is held to."""

SOURCES = Path(__file__).parent / "validation"
_FLAGS = ("-std=gnu11", "-O3", "-mavx2", "-mfma", "-fPIC")
_CONFIGS = 3  # of each workload, the default among them
_TYPE_CODES = {"i": 0, "u": 1, "f": 2}  # DLPack's


@dataclass(frozen=True)
class ValidationKernel:
    """One kernel: library, arguments (output last, any content) and what it must compute.

    ``case`` is shared by the configs of one workload. ``logical`` turns the output into the
    shape of ``expected``; ``tolerance`` is the largest absolute error allowed.
    """

    name: str
    kind: Kind
    case: str
    library: Path
    symbol: str
    digest: str
    arrays: tuple[Array, ...]
    expected: Array
    tolerance: float
    logical: Callable[[Array], Array]

    def verify(self, output: Array) -> None:
        """Raises :class:`MeasureError` for a wrong output."""
        difference = self.logical(output).astype(np.float64) - self.expected
        error = float(np.abs(difference).max())
        if not error <= self.tolerance:  # NaN is no good either
            raise MeasureError(f"{self.name}: output off by {error:.2g}: {self.tolerance:.2g} is")

    def write_arrays(self, path: Path) -> None:
        """The arguments as ``validation/driver.c`` reads them."""
        with path.open("wb") as file:
            file.write(np.int64(len(self.arrays)).tobytes())
            for array in self.arrays:
                kind = (_TYPE_CODES[array.dtype.kind], array.dtype.itemsize * 8)
                head = (*kind, array.ndim, *array.shape, array.nbytes)
                file.write(np.array(head, np.int64).tobytes() + array.tobytes())


def validation_target() -> Target:
    """This machine with AVX2 alone."""
    host = load_target("host")
    if host.arch != "x86_64" or host.vector_bits < 256:
        raise MeasureError("the validation needs an x86-64 machine with AVX2")
    return host.model_copy(
        update={
            "name": "avx2", "cpu": "x86-64-v3", "features": (), "vector_bits": 256,
            "vector_registers": 16,
        }
    )  # fmt: skip


def build_kernels(folder: Path, only: Sequence[str] | None = None) -> list[ValidationKernel]:
    """All kernels, or those of the cases in ``only``, their libraries in ``folder``.

    Raises:
        BuildError: one does not build.
    """
    chosen = [case for case in _workloads() if only is None or case[0] in only]
    simple = [case for case in _simple_cases() if only is None or case[1] in only]
    return [*_template_kernels(folder, chosen), *_simple_kernels(folder, simple)]


def compile_driver(folder: Path) -> None:
    """The program ``driver`` that runs a kernel, natively and in the emulator."""
    _compile(folder / "driver", SOURCES / "driver.c", ("-rdynamic", "-ldl"))


def _workloads() -> list[tuple[str, Kind, str, Conv2dWorkload | DenseWorkload]]:
    """Case, kind, template and workload. Kinds are given here, before anything is measured."""
    from tvmx.ir import DenseWorkload, Epilogue
    from tvmx.testing._workloads import conv

    def dense(batch: int, k: int, n: int, **fields: Any) -> DenseWorkload:
        epilogue = Epilogue(bias=True, clip_min=0.0)
        return DenseWorkload(
            batch=batch, in_features=k, out_features=n, epilogue=epilogue, **fields
        )

    def int8(workload: Any) -> Any:
        return workload.model_copy(update={"dtype": "int8"})

    pointwise = conv(128, 128, 14, 1)
    middle, first, deep = conv(64, 64, 28), conv(3, 32, 64, strides=(2, 2)), conv(128, 128, 7)
    depthwise = conv(128, 128, 28, groups=128)
    wide = conv(64, 64, 28, 5, groups=64, strides=(2, 2), padding=(1, 2, 2, 1))
    return [
        ("conv 64-64 28 3x3", "conv", "conv2d_direct", middle),
        ("conv 3-32 64 3x3/2", "conv", "conv2d_direct", first),
        ("conv 128-128 7 3x3", "conv", "conv2d_direct", deep),
        ("conv 64-64 28 3x3 im2col", "conv", "conv2d_im2col", middle),
        ("conv 64-64 28 3x3 int8", "conv", "conv2d_int8", int8(middle)),
        ("1x1 256-64 28", "1x1", "conv2d_direct", conv(256, 64, 28, 1)),
        ("1x1 512-512 7", "1x1", "conv2d_direct", conv(512, 512, 7, 1)),
        ("1x1 128-128 14 im2col", "1x1", "conv2d_im2col", pointwise),
        ("1x1 128-128 14 int8", "1x1", "conv2d_int8", int8(pointwise)),
        ("depthwise 128 28 3x3", "depthwise", "depthwise_nchwc", depthwise),
        ("depthwise 64 28 5x5/2", "depthwise", "depthwise_nchwc", wide),
        ("depthwise 128 28 3x3 int8", "depthwise", "depthwise_int8", int8(depthwise)),
        ("gemm 16x512x512", "gemm", "dense_packed", dense(16, 512, 512)),
        ("gemm 64x256x128", "gemm", "dense_packed", dense(64, 256, 128)),
        ("gemm 16x512x512 int8", "gemm", "dense_int8", int8(dense(16, 512, 512))),
        ("gemv 256x256", "gemv", "dense_packed", dense(1, 256, 256)),
        ("gemv 1024x1000", "gemv", "dense_packed", dense(1, 1024, 1000)),
        ("gemv 1024x1000 int8", "gemv", "dense_int8", int8(dense(1, 1024, 1000))),
    ]


def _template_kernels(
    folder: Path, cases: Sequence[tuple[str, Kind, str, Any]]
) -> list[ValidationKernel]:
    from tvmx.build import BuildPool, KernelBuild
    from tvmx.templates import Registry

    registry, target = Registry.with_builtin(), validation_target()
    jobs: list[tuple[str, Kind, TemplateEntry, Any, Config, KernelBuild]] = []
    for case, kind, name, workload in cases:
        entry = registry.get(name)
        for config in _configs(entry.template.space(workload, target), case):
            path = entry.path
            job = KernelBuild.of(workload, name, path, config, target, folder)
            jobs.append((case, kind, entry, workload, config, job))
    found: dict[int, ValidationKernel] = {}
    with BuildPool() as pool:
        for index, result in pool.build(job[-1] for job in jobs):
            if result.error is not None or result.library is None:
                raise BuildError(f"a kernel of the validation: {result.error}")
            case, kind, entry, workload, config, _ = jobs[index]
            number = sum(1 for before in jobs[:index] if before[0] == case)
            found[index] = _with_arrays(
                f"{case} {f'random {number}' if number else 'default'}", kind, case,
                result.library, result.digest, entry, workload, config, target,
            )  # fmt: skip
    return [found[index] for index in sorted(found)]


def _configs(space: Any, case: str) -> list[Config]:
    """The default and seeded others, all different."""
    others = [point for point in space.points() if point != space.default]
    count = min(_CONFIGS - 1, len(others))
    return [space.default, *random.Random(case).sample(others, count)]


def _with_arrays(
    name: str, kind: Kind, case: str, library: Path, digest: str, entry: TemplateEntry,
    workload: Any, config: Config, target: Target,
) -> ValidationKernel:  # fmt: skip
    from tvmx.ir import to_logical
    from tvmx.templates import make_operands
    from tvmx.testing.templates import kernel_arrays

    template, operands = entry.template, make_operands(workload)
    kernel = template.build(workload, config, target)
    arrays = kernel_arrays(template, kernel, workload, target, operands)
    layout = template.layouts(workload, target)[1]
    expected = operands.expected.astype(np.float64)
    return ValidationKernel(
        name=name,
        kind=kind,
        case=case,
        library=library,
        symbol="__tvm_ffi_kernel",
        digest=digest,
        arrays=tuple(arrays),
        expected=expected,
        tolerance=0.0 if workload.dtype == "int8" else OF_THE_RANGE * float(np.ptp(expected)),
        logical=lambda output: to_logical(output, layout, workload.out_shape[1]),
    )


def _simple_kernels(
    folder: Path, cases: Sequence[tuple[str, str, Kind, tuple[Array, ...], Array]]
) -> Iterator[ValidationKernel]:
    if not cases:
        return
    library = _compile(folder / "simple.so", SOURCES / "simple.c", ("-shared", "-lm"))
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    for symbol, name, kind, inputs, expected in cases:
        exact = expected.dtype.kind != "f"
        reach = float(np.ptp(expected)) or float(np.abs(expected).max())
        yield ValidationKernel(
            name=name, kind=kind, case=name, library=library, symbol=f"__tvm_ffi_{symbol}",
            digest=digest, arrays=(*inputs, np.zeros_like(expected)),
            expected=expected.astype(np.float64), tolerance=0.0 if exact else OF_THE_RANGE * reach,
            logical=lambda output: output,
        )  # fmt: skip


def _simple_cases() -> list[tuple[str, str, Kind, tuple[Array, ...], Array]]:
    """Function of simple.c, name, kind, inputs and output."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32)

    a, b = normal(96, 96), normal(96, 96)
    few, many, most = 1 << 11, 1 << 16, 1 << 20
    found: list[tuple[str, str, Kind, tuple[Array, ...], Array]] = [
        ("gemm_dot", "gemm 96x96x96 by columns", "gemm", (a, b), a @ b),
        ("gemm_rows", "gemm 96x96x96 by rows", "gemm", (a, b), a @ b),
    ]
    for size, where in ((few, "L1"), (many, "L2"), (most, "beyond L2")):
        x, y = normal(size), normal(size)
        found.append(("triad", f"triad {where}", "stream", (x, y), x + np.float32(3) * y))
    x, wide = np.abs(normal(few)), normal(many)
    integers = rng.integers(-128, 128, many, np.int8)
    image = normal(56, 56, 32)
    largest = image.reshape(28, 2, 28, 2, 32).max((1, 3))
    scaled = (wide * np.float32(40)).astype(np.int32)
    steps, last = _cycle(rng, most // 16)
    unit = (wide / np.sqrt(wide * wide + np.float32(1))).astype(np.float32)
    return [
        *found,
        ("sum", "sum, one chain", "reduction", (x,), x.sum(keepdims=True)),
        ("sum_wide", "sum, 32 chains", "reduction", (x,), x.sum(keepdims=True)),
        ("sum_bytes", "sum of bytes", "reduction", (integers,),
         integers.sum(keepdims=True, dtype=np.int32)),
        ("normalise", "normalise", "stream", (wide,), unit),
        ("quantise", "quantise", "stream", (wide,), scaled.clip(-128, 127).astype(np.int8)),
        ("transpose", "transpose 256x256", "other", (wide.reshape(256, 256),),
         np.ascontiguousarray(wide.reshape(256, 256).T)),
        ("maxpool", "max pooling 56 2x2/2", "other", (image,), largest),
        ("chase", "pointers beyond L2", "other", (steps,), last),
    ]  # fmt: skip


def _cycle(rng: np.random.Generator, lines: int) -> tuple[Array, Array]:
    """A chain through all cache lines in random order, and where it ends: at its beginning."""
    order = rng.permutation(lines)
    order = np.roll(order, -int(np.flatnonzero(order == 0)[0]))
    steps = np.zeros((lines, 8), np.int64)
    steps[order, 0] = np.roll(order, -1) * 8
    return steps.reshape(-1), np.zeros(1, np.int64)


def _compile(output: Path, source: Path, options: Sequence[str]) -> Path:
    from tvm_ffi import libinfo

    from tvmx.build import find_linker

    folders = (libinfo.find_include_path(), libinfo.find_dlpack_include_path())
    include = [word for folder in folders for word in ("-isystem", str(folder))]
    command = [*find_linker(validation_target()).command, *_FLAGS, *include]
    command += ["-o", str(output), str(source), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{command[0]} did not compile {source.name}: {done.stderr.strip()}")
    return output
