"""A lowered network to a shared library: Relax VM pipeline, code generation, linking, sizes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvmx import _tvm
from tvmx._tvm import relax, tvm
from tvmx.build._link import fcompile
from tvmx.build._memory import arena_bytes, scratch_bytes
from tvmx.build._place import plan_memory
from tvmx.build._views import write_views
from tvmx.build._weights import constant_tensors, include_options, take_weights, tensor_bytes
from tvmx.errors import BuildError
from tvmx.targets import Target


@dataclass(frozen=True)
class NetworkBuild:
    """A built network.

    ``path`` is the shared library and ``bytes`` its size; ``arena_bytes`` what the VM
    allocates for activations in one inference, outputs included; ``scratch_bytes`` the
    largest workspace any one kernel takes while it runs; ``weights_bytes`` the constants.
    """

    path: Path
    bytes: int
    arena_bytes: int
    scratch_bytes: int
    weights_bytes: int


def build_network(mod: Any, target: Target, path: Path) -> NetworkBuild:
    """Build a Relax module whose operators are all kernels already (``call_tir``) to ``path``.

    Operators that are left are legalised by TVM's defaults. Constants are embedded as a
    section of the library (see ``tvmx.build._weights``), so it is self-contained. ``path``
    is written by rename. Raises BuildError naming the target when TVM refuses the module,
    LinkerError when linking fails.
    """
    try:
        lowered = _lower(mod, target)
        weights = sum(tensor_bytes(tensor) for tensor in constant_tensors(lowered))
        scratch = max(scratch_bytes(lowered, target).values(), default=0)
        arena = arena_bytes(lowered)
        lowered, table = take_weights(lowered)
        executable = relax.build(lowered, target=_tvm.make_target(target), relax_pipeline=None)
    except Exception as err:
        # TVM raises ValueError, TypeError, RuntimeError and errors of its own alike.
        text = " ".join(str(err).strip().splitlines()[-3:])[:600]
        raise BuildError(f"cannot compile the network for target {target.name!r}: {text}") from err
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tvmx-build-") as folder:
        sources = [write_views(Path(folder))]
        sources += table.write(Path(folder)) if table.tensors else []
        executable.export_library(
            str(path),
            fcompile=fcompile(target, include_options()),
            addons=[str(source) for source in sources],
            workspace_dir=folder,
        )
    return NetworkBuild(
        path=path,
        bytes=path.stat().st_size,
        arena_bytes=arena,
        scratch_bytes=scratch,
        weights_bytes=weights,
    )


def _lower(mod: Any, target: Target) -> Any:
    """Relax's CPU pipeline from LegalizeOps to the VM's form, without its fusion passes."""
    transform = relax.transform

    @tvm.transform.module_pass(opt_level=0, name="PlanMemory")  # type: ignore[untyped-decorator]
    def plan(mod: Any, context: Any) -> Any:
        del context
        return plan_memory(mod)

    passes = [
        transform.LegalizeOps(),
        transform.RewriteDataflowReshape(),
        transform.ToNonDataflow(),
        transform.RemovePurityChecking(),
        transform.CallTIRRewrite(),
        plan,
        transform.LowerAllocTensor(),
        transform.KillAfterLastUse(),
        transform.LowerRuntimeBuiltin(),
        transform.ComputePrimValue(),
        transform.VMShapeLower(),
        transform.AttachGlobalSymbol(),
    ]
    with _tvm.make_target(target):
        return tvm.transform.Sequential(passes)(mod)
