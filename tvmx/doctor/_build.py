"""Building the probe library for a target, and what its kernels must compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tvmx.build import link
from tvmx.doctor import _kernels as kernels
from tvmx.doctor._predict import predict_dot, predict_fma
from tvmx.measure import ProbeKernel, ProbeLibrary
from tvmx.targets import Target
from tvmx.templates import dot_form

_MOST_STREAM_BYTES = 64 << 20
_STREAM_BYTES = 16 << 20  # read and written once a call
_EXAMPLE_SIZE = 4096  # of the stream kernel, which takes any size
_INSTRUCTIONS = {
    "vnni512": "vpdpbusd", "vnni256": "vpdpbusd", "pmadd": "pmaddwd", "sdot": "sdot",
    "smlal": "smull, smlal", "none": "multiply",
}  # fmt: skip


def build_probe(target: Target, folder: Path) -> ProbeLibrary:
    """Build the probe for ``target`` into ``folder``, which is made if it is not there.

    Compiled and linked as candidates are, so what runs here can run there. Raises
    :class:`tvmx.errors.LinkerError`.
    """
    from tvmx import _tvm

    folder = folder.resolve()  # the processes that send the files work in other folders
    folder.mkdir(parents=True, exist_ok=True)
    functions: list[Any] = [
        kernels.fma_kernel(target),
        kernels.dot_kernel(target),
        kernels.stream_kernel(target),
        kernels.copy_text_function(),
        kernels.libc_version_function(),
        kernels.file_system_function(),
    ]
    module = _tvm.tvm.IRModule({str(f.attrs["global_symbol"]): f for f in functions})
    objects, library = folder / "probe.o", folder / "probe.so"
    _tvm.build_module(module, target).write_to_file(str(objects))
    link([objects], library, target)
    objects.unlink()
    examples = folder / "probe.npz"
    np.savez(examples, **_examples(target))
    return _describe(target, library, examples)


def peak_kernel(target: Target) -> tuple[Any, ProbeKernel]:
    """The probe's float32 kernel as a PrimFunc, and what one call of it does."""
    return kernels.fma_kernel(target), _fma(target)


def _fma(target: Target) -> ProbeKernel:
    size = kernels.fma_size(target)
    return ProbeKernel("fma", "int32", size, 2.0 * size * kernels.FMA_STEPS)


def _describe(target: Target, library: Path, examples: Path) -> ProbeLibrary:
    form = dot_form(target)
    stream = _stream_bytes(target)
    products = kernels.dot_chains(target) * form.lanes * form.step * (2 if form.pairs else 1)
    return ProbeLibrary(
        path=library,
        examples=examples,
        fma=_fma(target),
        stream=ProbeKernel("stream", "int32", stream // 4, 2.0 * stream),
        dot=ProbeKernel(
            "dot", "int32", kernels.dot_size(target), 2.0 * products * kernels.DOT_STEPS
        ),
        dot_instruction=_INSTRUCTIONS[form.name],
    )


def _stream_bytes(target: Target) -> int:
    """Four times the second cache at least; on other machines than Arm boards 64 MB.

    Target files know no third cache: those of Arm boards are a few MB, those of servers tens.
    """
    if target.arch != "aarch64":
        return _MOST_STREAM_BYTES
    second = max(c.l2_kib * (c.count if c.l2_private else 1) for c in target.clusters) << 10
    return min(_MOST_STREAM_BYTES, max(_STREAM_BYTES, 4 * second))


def _examples(target: Target) -> dict[str, Any]:
    """Contents before and after one call, by symbol: (2, size) int32."""
    form = dot_form(target)
    random = np.random.default_rng(2)

    def words(size: int) -> Any:
        return random.integers(0, 1 << 31, size, np.int32)

    fma, dot = words(kernels.fma_size(target)), words(kernels.dot_size(target))
    stream = words(_EXAMPLE_SIZE)
    after = predict_fma(
        fma, steps=kernels.FMA_STEPS, seeds=kernels.FMA_SEEDS, factor=kernels.FMA_FACTOR
    )
    chains = kernels.dot_chains(target)
    return {
        "fma": np.stack([fma, after]),
        "dot": np.stack([dot, predict_dot(dot, form, chains=chains, steps=kernels.DOT_STEPS)]),
        "stream": np.stack([stream, stream + 1]),
    }
