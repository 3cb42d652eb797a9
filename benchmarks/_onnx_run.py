"""One node test through tvmx: imported, built by the default plan, run, compared."""

from __future__ import annotations

import functools
import resource
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._onnx_cases import Array, Case
from tvmx.errors import BuildError, ModelError, ModelShapeError, TvmxError, UnsupportedOpError

_LONGEST = 300  # characters of a reason
_MEMORY = 4 << 30  # bytes of a worker's data


def run_case(case: Case) -> str:
    """The reason why a test fails, its kind first; "" where the outputs are what it asks for."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(case.model)
        try:
            got = _outputs(path, case)
        except TvmxError as err:
            text = err.message.replace(f"{path}: ", "").replace(str(path), "the model")
            return f"{_kind(err)}: {text}"[:_LONGEST]
        except Exception as err:  # not one of ours: a finding
            return f"untyped error: {type(err).__name__}: {err}"[:_LONGEST]
    return _difference(got, case)


def _kind(err: TvmxError) -> str:
    kinds = (
        (UnsupportedOpError, "unsupported operator"), (ModelShapeError, "dynamic shape"),
        (ModelError, "refused"), (BuildError, "does not compile"),
    )  # fmt: skip
    return next((kind for type_, kind in kinds if isinstance(err, type_)), "failed")


def _outputs(path: Path, case: Case) -> list[Array]:
    from tvmx._tvm import relax, tvm
    from tvmx.build import build_network
    from tvmx.frontends import load_model
    from tvmx.passes import baseline_plan, extract_layers, lower

    model = load_model(path)
    network = extract_layers(model)
    registry, host = _registry(), _host()
    lowered = lower(network, baseline_plan(network, registry, host), registry, host)
    built = build_network(lowered.mod, host, path.with_suffix(".so"))
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(built.path)), tvm.cpu())
    feeds = [tvm.runtime.tensor(case.inputs[spec.name]) for spec in model.inputs]
    out = machine["main"](*feeds)
    every = [out] if isinstance(out, tvm.runtime.Tensor) else list(out)
    return [one.numpy().copy() for one in every]


@functools.cache
def _registry() -> Any:
    from tvmx.templates import Registry

    found = Registry()
    found.load_builtin()
    return found


@functools.cache
def _host() -> Any:
    from tvmx.targets import load_target

    return load_target("host")


def start_worker() -> None:
    """Load what a worker needs, and bound its memory, before its first case's time starts."""
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    _registry()
    import tvmx.build._network
    import tvmx.passes  # noqa: F401


def _difference(got: list[Array], case: Case) -> str:
    if len(got) != len(case.outputs):
        return f"wrong figures: {len(got)} outputs instead of {len(case.outputs)}"
    for index, (a, b) in enumerate(zip(got, case.outputs, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            return (
                f"wrong figures: output {index} is {a.dtype} {a.shape} instead of {b.dtype} "
                f"{b.shape}"
            )
        if not np.allclose(a, b, rtol=case.rtol, atol=case.atol, equal_nan=True):
            return f"wrong figures: output {index} is off in {_share(a, b, case)} of its elements"
    return ""


def _share(a: Array, b: Array, case: Case) -> str:
    close = np.isclose(a, b, rtol=case.rtol, atol=case.atol, equal_nan=True)
    return f"{100 * (1 - close.mean()):.0f} %"
